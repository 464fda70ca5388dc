package share

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"vmm/internal/mounts"
)

// Held is a directory that stays the one it was when it was opened, whatever its name
// leads to later, and where the process cannot look names up any more.
//
// Where the process may mount, it is a mount of its own that is nowhere in the file
// system: no path leads out of it, no device in it can be opened, and nothing in one that
// is only to be read can be changed. File systems that the host mounts in it later are
// not seen, as with docker; those that it unmounts go.
type Held struct{ f *os.File }

// Hold opens a directory. The caller closes it.
func Hold(dir string, readOnly bool) (*Held, error) {
	attr := uint64(unix.MOUNT_ATTR_NODEV)
	if readOnly {
		attr |= unix.MOUNT_ATTR_RDONLY
	}
	fd, err := mounts.Detach(dir, attr)
	if err != nil { // it may not, or the kernel is older than Linux 5.12
		fd, err = unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", dir, err)
	}
	return &Held{os.NewFile(uintptr(fd), dir)}, nil
}

// Path leads this process to the directory, until Close.
func (h *Held) Path() string { return fmt.Sprintf("/proc/self/fd/%d", h.f.Fd()) }

// Close lets it go.
func (h *Held) Close() error { return h.f.Close() }
