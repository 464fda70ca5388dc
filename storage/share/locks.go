package share

import (
	"io"
	"math"
	"sync"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// maxOwners bounds the owners of locks on one file: each is a descriptor.
const maxOwners = 256

// lockTable is the POSIX locks on a file: each owner in the guest has an open file
// of its own, whose locks (F_OFD_SETLK) are the owner's.
type lockTable struct {
	mu     sync.Mutex
	owners map[uint64]int
}

// descriptor is the owner's.
func (t *lockTable) descriptor(n *node, owner uint64) (int, error) {
	if fd, ok := t.owners[owner]; ok {
		return fd, nil
	}
	if len(t.owners) >= maxOwners || full() {
		return -1, unix.ENOLCK
	}
	fd, err := n.reopen(unix.O_RDWR)
	if err != nil {
		if fd, err = n.reopen(unix.O_RDONLY); err != nil { // enough for a shared lock
			return -1, err
		}
	}
	if t.owners == nil {
		t.owners = map[uint64]int{}
	}
	t.owners[owner] = fd
	descriptors.Add(1)
	return fd, nil
}

// drop ends all locks of an owner.
func (t *lockTable) drop(owner uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if fd, ok := t.owners[owner]; ok {
		unix.Close(fd)
		descriptors.Add(-1)
		delete(t.owners, owner)
	}
}

func (t *lockTable) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, fd := range t.owners {
		unix.Close(fd)
		descriptors.Add(-1)
	}
	t.owners = nil
}

// flock is the host's form of a FUSE lock, whose end is inclusive.
func flock(l *fuse.FileLock) (*unix.Flock_t, error) {
	if l.Start > math.MaxInt64 || l.End < l.Start {
		return nil, unix.EINVAL
	}
	f := &unix.Flock_t{Type: int16(l.Typ), Whence: io.SeekStart, Start: int64(l.Start)}
	if l.End < math.MaxInt64 {
		f.Len = int64(l.End-l.Start) + 1
	}
	return f, nil
}

// lockable does something with the locks of an open file.
func (f *FS) lockable(id uint64, do func(h *handle) error) fuse.Status {
	if !f.Locks() {
		return fuse.ENOSYS // the guest's kernel was told that it keeps them
	}
	return f.with(id, do)
}

// GetLk implements fuse.RawFileSystem.
func (f *FS) GetLk(_ <-chan struct{}, in *fuse.LkIn, out *fuse.LkOut) fuse.Status {
	return f.lockable(in.Fh, func(h *handle) error {
		l, err := flock(&in.Lk)
		if err != nil {
			return err
		}
		t := &h.node.locks
		t.mu.Lock()
		defer t.mu.Unlock()
		fd, err := t.descriptor(h.node, in.Owner)
		if err != nil {
			return err
		}
		if err := unix.FcntlFlock(uintptr(fd), unix.F_OFD_GETLK, l); err != nil {
			return err
		}
		out.Lk = fuse.FileLock{Typ: uint32(l.Type)}
		if l.Type != unix.F_UNLCK {
			out.Lk.Start, out.Lk.End = uint64(l.Start), math.MaxInt64
			if l.Len > 0 {
				out.Lk.End = uint64(l.Start + l.Len - 1)
			}
		}
		return nil
	})
}

// tryLock does what SetLk asks for, without waiting.
func (h *handle) tryLock(in *fuse.LkIn) error {
	if in.LkFlags&fuse.FUSE_LK_FLOCK != 0 {
		how := map[uint32]int{unix.F_RDLCK: unix.LOCK_SH, unix.F_WRLCK: unix.LOCK_EX, unix.F_UNLCK: unix.LOCK_UN}[in.Lk.Typ]
		return unix.Flock(h.fd, how|unix.LOCK_NB)
	}
	l, err := flock(&in.Lk)
	if err != nil {
		return err
	}
	t := &h.node.locks
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, ok := t.owners[in.Owner]; !ok && l.Type == unix.F_UNLCK {
		return nil
	}
	fd, err := t.descriptor(h.node, in.Owner)
	if err != nil {
		return err
	}
	return unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, l)
}

// SetLk implements fuse.RawFileSystem.
func (f *FS) SetLk(_ <-chan struct{}, in *fuse.LkIn) fuse.Status {
	return f.lockable(in.Fh, func(h *handle) error { return h.tryLock(in) })
}

// The times between two tries for a lock.
const (
	firstTry = time.Millisecond
	laterTry = 50 * time.Millisecond
)

// SetLkw implements fuse.RawFileSystem: it tries until the guest gives up, for a
// call that sleeps could not be ended.
func (f *FS) SetLkw(cancel <-chan struct{}, in *fuse.LkIn) fuse.Status {
	return f.lockable(in.Fh, func(h *handle) error {
		for wait := firstTry; ; wait = min(2*wait, laterTry) {
			err := h.tryLock(in)
			if err != unix.EAGAIN && err != unix.EACCES {
				return err
			}
			select {
			case <-time.After(wait):
			case <-cancel:
				return unix.EINTR
			case <-f.waiting():
				return unix.EINTR
			case <-f.done:
				return unix.EIO
			}
		}
	})
}
