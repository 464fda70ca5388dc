package share

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
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
	fd, err := detached(dir, readOnly)
	if err != nil { // it may not, or the kernel is older than Linux 5.12
		fd, err = unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", dir, err)
	}
	return &Held{os.NewFile(uintptr(fd), dir)}, nil
}

// detached returns a descriptor of a mount of the directory that is nowhere.
func detached(dir string, readOnly bool) (fd int, err error) {
	fd, err = unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		return -1, err
	}
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NOEXEC, Propagation: unix.MS_SLAVE}
	if readOnly {
		attr.Attr_set |= unix.MOUNT_ATTR_RDONLY
	}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &attr); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// Path leads this process to the directory, until Close.
func (h *Held) Path() string { return fmt.Sprintf("/proc/self/fd/%d", h.f.Fd()) }

// Close lets it go.
func (h *Held) Close() error { return h.f.Close() }
