package kvm

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The encoding of an ioctl request number, <asm-generic/ioctl.h>.
const (
	iocWrite = 1
	iocRead  = 2

	iocTypeKVM = 0xAE // KVMIO
)

// request is an ioctl number with the name that errors show.
type request struct {
	name string
	num  uintptr
}

func io(name string, nr uintptr) request {
	return request{name, iocTypeKVM<<8 | nr}
}

func ioc[T any](name string, dir, nr uintptr) request {
	var v T
	return request{name, dir<<30 | unsafe.Sizeof(v)<<16 | iocTypeKVM<<8 | nr}
}

func ior[T any](name string, nr uintptr) request  { return ioc[T](name, iocRead, nr) }
func iow[T any](name string, nr uintptr) request  { return ioc[T](name, iocWrite, nr) }
func iowr[T any](name string, nr uintptr) request { return ioc[T](name, iocRead|iocWrite, nr) }

// Error is a failed ioctl. errors.Is sees through it to the errno.
type Error struct {
	Ioctl string
	Errno unix.Errno
}

func (e *Error) Error() string { return fmt.Sprintf("%s: %v", e.Ioctl, e.Errno) }

// Unwrap returns the errno.
func (e *Error) Unwrap() error { return e.Errno }

// call runs an ioctl whose argument is a plain number and returns its result.
func call(fd int, r request, arg uintptr) (int, error) {
	for {
		n, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), r.num, arg)
		switch errno {
		case 0:
			return int(n), nil
		case unix.EINTR:
			continue
		default:
			return 0, &Error{r.name, errno}
		}
	}
}

// callPtr runs an ioctl whose argument is a structure.
func callPtr[T any](fd int, r request, arg *T) (int, error) {
	return call(fd, r, uintptr(unsafe.Pointer(arg)))
}
