// Package mounts makes mounts that are nowhere in the file system.
package mounts

import "golang.org/x/sys/unix"

// Base are the attributes that no mount here is without (mount_setattr(2)).
const Base = unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NOEXEC

// Detach returns a descriptor of a mount of what is at a path, with the mounts below it,
// which is nowhere yet. attr are attributes beside Base; what the host unmounts later goes
// there too. The caller closes the descriptor. It takes CAP_SYS_ADMIN, and Linux 5.12; the
// error is the system's.
func Detach(path string, attr uint64) (fd int, err error) {
	fd, err = unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		return -1, err
	}
	set := unix.MountAttr{Attr_set: Base | attr, Propagation: unix.MS_SLAVE}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &set); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}
