// Package kvm wraps the ioctls of Linux's /dev/kvm for x86-64 in typed Go.
//
// It is thin on purpose: one method per ioctl, structures with the layout of
// <linux/kvm.h>, and errors that name the ioctl (*Error), in which errors.Is finds
// the unix.Errno. It knows no device and makes no policy. The names follow the kernel's Documentation/virt/kvm/api.rst.
//
// Unless a method says otherwise, a System and a VM may be used from several
// goroutines; a VCPU belongs to the one OS thread that created it or that
// calls Run.
package kvm
