// Package hostpid knows what others call this process where it is number 1 of a namespace of
// processes (pid_namespaces(7)), but has been started from outside of it and sees the /proc there.
package hostpid

import (
	"errors"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// procSelf leads to the directory of who reads it: its number is that of the namespace that the
// file system was mounted in (proc(5)).
const procSelf = "/proc/self"

// Self is this process's number for who has started it.
func Self() int {
	if here := os.Getpid(); here != 1 {
		return here
	}
	return number(1)
}

// Own reports whether this process is alone in a namespace of processes, or with those that it has
// started.
func Own() bool { return os.Getpid() == 1 && Self() != 1 }

// Tells reports whether a process that this one starts in a namespace will know its number here:
// /proc could be that of another namespace.
func Tells() bool { return number(0) == os.Getpid() }

// Exists reports whether the process of a number, as Self has them, is there. It can say no of another
// user's where /proc hides those.
func Exists(pid int) bool {
	if os.Getpid() != 1 {
		return !errors.Is(unix.Kill(pid, 0), unix.ESRCH)
	}
	_, err := os.Lstat("/proc/" + strconv.Itoa(pid))
	return err == nil
}

// number is this process's in /proc, or otherwise if that does not say.
func number(otherwise int) int {
	name, err := os.Readlink(procSelf)
	if err != nil {
		return otherwise
	}
	n, err := strconv.Atoi(name)
	if err != nil {
		return otherwise
	}
	return n
}
