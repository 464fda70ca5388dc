package native

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// sigaction is struct sigaction of the system call.
type sigaction struct {
	handler, flags, restorer uintptr
	mask                     uint64
}

// takeSignal puts this package's handler before the one of a signal.
func takeSignal(sig unix.Signal) error {
	var act sigaction
	const setSize = unsafe.Sizeof(act.mask)
	if _, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(sig), 0, uintptr(unsafe.Pointer(&act)), setSize, 0, 0); errno != 0 {
		return fmt.Errorf("the handler of %v: %w", sig, errno)
	}
	previous[sig] = act.handler
	act.handler = handlerAddress()
	if _, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(sig), uintptr(unsafe.Pointer(&act)), 0, setSize, 0, 0); errno != 0 {
		return fmt.Errorf("the handler of %v: %w", sig, errno)
	}
	return nil
}
