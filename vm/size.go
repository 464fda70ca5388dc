package vm

import "vmm/internal/bytesize"

// Size is a number of bytes. As text it has a suffix: 512M, 4G.
type Size = bytesize.Size
