package agent

import (
	"errors"
	"fmt"
	"os/exec"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// startError says what kept a command from being started: the kernel's error names the
// program, also where it was the working directory that its user may not enter.
func startError(c *exec.Cmd, user string, err error) error {
	if cred := c.SysProcAttr.Credential; cred != nil && errors.Is(err, unix.EACCES) && !mayEnter(c.Dir, cred) {
		return fmt.Errorf("directory %s: user %s may not enter it: %w", c.Dir, user, unix.EACCES)
	}
	return err
}

// mayEnter reports whether a user may enter a directory. The kernel is asked as that user,
// by a thread that is nobody else's afterwards, for only it knows of access lists and the like.
func mayEnter(dir string, cred *syscall.Credential) bool {
	answer := make(chan bool)
	go func() {
		runtime.LockOSThread() // without the end of it the thread ends with the goroutine
		answer <- enterAs(dir, cred)
	}()
	return <-answer
}

// enterAs has the thread's rights to files for good, the user's without root's capabilities
// (credentials(7)).
func enterAs(dir string, cred *syscall.Credential) bool {
	var groups unsafe.Pointer
	if len(cred.Groups) > 0 {
		groups = unsafe.Pointer(&cred.Groups[0])
	}
	// Not package unix's Setgroups, which is for all threads.
	if _, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(cred.Groups)), uintptr(groups), 0); errno != 0 {
		return true // it cannot be told
	}
	unix.RawSyscall(unix.SYS_SETFSGID, uintptr(cred.Gid), 0, 0)
	unix.RawSyscall(unix.SYS_SETFSUID, uintptr(cred.Uid), 0, 0)
	fd, err := unix.Open(dir+"/.", unix.O_PATH|unix.O_CLOEXEC, 0)
	if err == nil {
		unix.Close(fd)
	}
	return !errors.Is(err, unix.EACCES)
}
