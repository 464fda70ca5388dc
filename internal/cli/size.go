package cli

import "vmm/internal/bytesize"

// byteSize is a flag for sizes with the suffixes K, M, G and T.
type byteSize = bytesize.Size
