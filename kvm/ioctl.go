package kvm

import (
	"fmt"
	"runtime"
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

// Error implements error.
func (e *Error) Error() string { return fmt.Sprintf("%s: %v", e.Ioctl, e.Errno) }

// Unwrap returns the errno.
func (e *Error) Unwrap() error { return e.Errno }

// call runs an ioctl whose argument is a plain number and returns its result. An
// address must not come this way: a number does not move when the stack of the goroutine
// that has the memory does.
func call(fd int, r request, arg uintptr) (int, error) {
	for {
		n, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), r.num, arg)
		if errno != unix.EINTR {
			return result(r, n, errno)
		}
	}
}

// callPtr runs an ioctl whose argument is a structure.
func callPtr[T any](fd int, r request, arg *T) (int, error) {
	for {
		// Only here may it become a number: the stack stays where it is in the call.
		n, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), r.num, uintptr(unsafe.Pointer(arg)))
		if errno != unix.EINTR {
			return result(r, n, errno)
		}
	}
}

// result is what an ioctl has returned.
func result(r request, n uintptr, errno unix.Errno) (int, error) {
	if errno != 0 {
		return 0, &Error{r.name, errno}
	}
	return int(n), nil
}

// pinned is the address of memory that KVM gets as a number, in a structure: where it is
// until pin lets it go.
func pinned[T any](pin *runtime.Pinner, p *T) uint64 {
	if p != nil {
		pin.Pin(p)
	}
	return uint64(uintptr(unsafe.Pointer(p)))
}
