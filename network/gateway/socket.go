package gateway

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// The host's sockets do not block, so a call takes microseconds: as long as it
// takes the Go scheduler to give the goroutine's place to another, for which
// the goroutine would then wait when it comes back. So these calls do without
// the scheduler.

// readSocket reads what there is; the error is an errno.
func readSocket(fd int, b []byte) (int, error) {
	return socketCall(unix.SYS_READ, fd, uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
}

// writeSocket writes as much as there is room for.
func writeSocket(fd int, b []byte) (int, error) {
	return socketCall(unix.SYS_WRITE, fd, uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
}

// sendSocket sends a message.
func sendSocket(fd int, m *unix.Msghdr) error {
	_, err := socketCall(unix.SYS_SENDMSG, fd, uintptr(unsafe.Pointer(m)), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
	return err
}

// readable is how many bytes can be read; n is its memory.
func readable(fd int, n *int32) (int, error) {
	_, err := socketCall(unix.SYS_IOCTL, fd, unix.TIOCINQ, uintptr(unsafe.Pointer(n)))
	return int(*n), err
}

//go:uintptrescapes
func socketCall(call uintptr, fd int, a, b uintptr) (int, error) {
	for {
		n, _, e := unix.RawSyscall(call, uintptr(fd), a, b)
		switch e {
		case 0:
			return int(n), nil
		case unix.EINTR:
		case unix.EAGAIN: // no allocation for the usual one
			return 0, unix.EAGAIN
		default:
			return 0, e
		}
	}
}
