// Package iface turns network interfaces of this machine on. The guest's init
// has it too, so it is small.
package iface

import "golang.org/x/sys/unix"

// Up turns an interface on. The error is an errno: EAFNOSUPPORT or ENOSYS where
// the kernel has no networks at all.
func Up(name string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	r, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, r); err != nil {
		return err
	}
	r.SetUint16(r.Uint16() | unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, r)
}
