// Package iface turns network interfaces of this machine on, and gives them addresses. The
// guest's init has it too, so it is small.
package iface

import (
	"net"
	"net/netip"

	"golang.org/x/sys/unix"
)

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

// SetAddress gives an interface an IPv4 address with its network, in the place of another one.
// The error is an errno, as of Up.
func SetAddress(name string, a netip.Prefix) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for _, set := range []struct {
		request uint
		addr    []byte
	}{{unix.SIOCSIFADDR, a.Addr().AsSlice()}, {unix.SIOCSIFNETMASK, net.CIDRMask(a.Bits(), 32)}} {
		r, err := unix.NewIfreq(name)
		if err != nil {
			return err
		}
		if err := r.SetInet4Addr(set.addr); err != nil {
			return err
		}
		if err := unix.IoctlIfreq(fd, set.request, r); err != nil {
			return err
		}
	}
	return nil
}
