package storage

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"vmm/internal/hostpid"
)

// Locks are open file description locks on single bytes of the image, the
// same that QEMU takes, so that the two respect each other: a shared lock on
// lockUsed+p says that permission p is in use, one on lockDenied+p that nobody
// else may have it.
const (
	lockUsed   = 100
	lockDenied = 200

	permRead   = 0 // BLK_PERM_CONSISTENT_READ
	permWrite  = 1 // BLK_PERM_WRITE
	permResize = 3 // BLK_PERM_RESIZE
)

// LockError is the error for an image that someone else has.
type LockError struct {
	Name    string // of the file
	Holder  string // "vmm (process 12)", or ""
	Process int    // its number, 0 where that is not known
}

// Error implements error.
func (e *LockError) Error() string {
	holder := e.Holder
	if holder == "" {
		holder = "another process"
	}
	return fmt.Sprintf("%s is in use by %s: stop it first, or use a copy (or an overlay of an image that nobody writes)", e.Name, holder)
}

// A lock is gone when the last process that inherited it has closed the file:
// one that has just been forked from its former holder may have it for a moment
// longer, until it executes something else.
const (
	lockTries = 20
	lockPause = 10 * time.Millisecond
)

// lock takes the file's locks.
func (f *File) lock() (err error) {
	for range lockTries {
		var locked *LockError
		if err = f.tryLock(); !errors.As(err, &locked) {
			return err
		}
		time.Sleep(lockPause)
	}
	return err
}

func (f *File) tryLock() error {
	uses, denies := []int64{permRead}, []int64{permWrite, permResize}
	if !f.readOnly {
		uses = append(uses, permWrite, permResize)
	}
	for _, p := range uses {
		if err := f.lockByte(lockUsed + p); err != nil {
			return err
		}
	}
	for _, p := range denies {
		if err := f.lockByte(lockDenied + p); err != nil {
			return err
		}
	}
	for _, p := range uses {
		if err := f.testByte(lockDenied + p); err != nil {
			return err
		}
	}
	for _, p := range denies {
		if err := f.testByte(lockUsed + p); err != nil {
			return err
		}
	}
	return nil
}

// unlockable tells of a file system without locks, where there is none.
func unlockable(err error) bool {
	return errors.Is(err, unix.ENOLCK) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP)
}

func (f *File) lockByte(at int64) error {
	l := unix.Flock_t{Type: unix.F_RDLCK, Whence: unix.SEEK_SET, Start: at, Len: 1}
	err := unix.FcntlFlock(uintptr(f.meta), unix.F_OFD_SETLK, &l)
	switch {
	case err == nil || unlockable(err):
		return nil
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EACCES):
		return f.locked()
	}
	return f.fail("lock", err)
}

// testByte finds out whether someone else has a lock there.
func (f *File) testByte(at int64) error {
	l := unix.Flock_t{Type: unix.F_WRLCK, Whence: unix.SEEK_SET, Start: at, Len: 1}
	err := unix.FcntlFlock(uintptr(f.meta), unix.F_OFD_GETLK, &l)
	switch {
	case err != nil && unlockable(err):
		return nil
	case err != nil:
		return f.fail("lock", err)
	case l.Type != unix.F_UNLCK:
		return f.locked()
	}
	return nil
}

// InUse reports whether somebody has an open file for writing, as by OpenFile, here or in
// another process; true also on a file system without locks, where nobody can tell.
func InUse(f *os.File) (bool, error) {
	l := unix.Flock_t{Type: unix.F_WRLCK, Whence: unix.SEEK_SET, Start: lockUsed + permWrite, Len: 1}
	err := unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &l)
	if err != nil && !unlockable(err) {
		return false, &fs.PathError{Op: "lock", Path: f.Name(), Err: err}
	}
	return err != nil || l.Type != unix.F_UNLCK, nil
}

func (f *File) locked() error {
	e := &LockError{Name: f.name}
	e.Holder, e.Process = f.holder()
	return e
}

// holder looks for a process that has the file open. Such locks belong to no
// process as far as the kernel tells, and other users' cannot be looked into.
func (f *File) holder() (name string, process int) {
	fds, _ := filepath.Glob("/proc/[0-9]*/fd/*")
	self, mine, known := strconv.Itoa(hostpid.Self()), 0, 1
	if f.held != nil {
		known += f.held.descriptors()
	}
	for _, path := range fds {
		pid := filepath.Base(filepath.Dir(filepath.Dir(path)))
		var st unix.Stat_t
		if unix.Stat(path, &st) != nil || (fileID{st.Dev, st.Ino}) != f.id {
			continue
		}
		if pid == self { // has just opened it, and may have before
			mine++
			continue
		}
		comm, _ := os.ReadFile("/proc/" + pid + "/comm")
		process, _ = strconv.Atoi(pid)
		return fmt.Sprintf("%s (process %d)", bytes.TrimSpace(comm), process), process
	}
	if mine > known {
		return "this command itself", 0
	}
	return "", 0
}
