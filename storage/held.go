package storage

import (
	"errors"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Held keeps the file of a File open without a lock, so that it can be opened again where
// no name leads there any more, or none may be used.
type Held struct {
	Name  string // which Open gives the File
	cache Cache
	fd    int // as File's
	meta  int
}

// Hold keeps the file open beyond Close. Unlock has to follow that, for until then it has
// the lock too.
func (f *File) Hold() (*Held, error) { return hold(f.name, f.cache, f.meta, f.fd) }

// HoldOpen is for a file that was opened elsewhere, for reading and writing, and stays so.
// direct is the same one, opened once more: None needs that, others do not look at it.
func HoldOpen(name string, cache Cache, file, direct *os.File) (*Held, error) {
	if cache == "" {
		cache = Writeback
	}
	meta := int(file.Fd())
	if cache != None {
		return hold(name, cache, meta, meta)
	}
	if direct == nil {
		return nil, &fs.PathError{Op: "direct I/O", Path: name, Err: os.ErrInvalid}
	}
	flags, err := unix.FcntlInt(direct.Fd(), unix.F_GETFL, 0)
	if err == nil {
		_, err = unix.FcntlInt(direct.Fd(), unix.F_SETFL, flags|unix.O_DIRECT)
	}
	if err != nil {
		return nil, noDirect(name, err)
	}
	return hold(name, cache, meta, int(direct.Fd()))
}

func hold(name string, cache Cache, meta, fd int) (_ *Held, err error) {
	h := &Held{Name: name, cache: cache}
	if h.meta, err = again(name, meta); err != nil {
		return nil, err
	}
	h.fd = h.meta
	if fd != meta {
		if h.fd, err = again(name, fd); err != nil {
			unix.Close(h.meta)
			return nil, err
		}
	}
	return h, nil
}

// again is another descriptor of an open file, which shares its locks.
func again(name string, fd int) (int, error) {
	n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return -1, &fs.PathError{Op: "dup", Path: name, Err: err}
	}
	return n, nil
}

// Unlock lets others have the file.
func (h *Held) Unlock() error {
	l := unix.Flock_t{Type: unix.F_UNLCK, Whence: unix.SEEK_SET, Start: lockUsed, Len: 2 * (lockDenied - lockUsed)}
	if err := unix.FcntlFlock(uintptr(h.meta), unix.F_OFD_SETLK, &l); err != nil && !unlockable(err) {
		return &fs.PathError{Op: "unlock", Path: h.Name, Err: err}
	}
	return nil
}

// Open is OpenFile for the file, which can be written to only if it could be before. It
// stays held; its locks are the File's. After an error Unlock has to follow.
func (h *Held) Open(readOnly bool) (*File, error) {
	fd, err := again(h.Name, h.meta)
	if err != nil {
		return nil, err
	}
	return newFile(h.Name, fd, readOnly, h.cache, h)
}

// Stat is the file's length in bytes, and when it was changed.
func (h *Held) Stat() (size int64, changed time.Time, err error) { return stat(h.Name, h.meta) }

// Stat is the file's length in bytes, and when it was changed.
func (f *File) Stat() (size int64, changed time.Time, err error) { return stat(f.name, f.meta) }

func stat(name string, fd int) (size int64, changed time.Time, err error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return 0, changed, &fs.PathError{Op: "stat", Path: name, Err: err}
	}
	return st.Size, time.Unix(st.Mtim.Unix()), nil
}

// Unlinked reports whether no name leads to the file any more.
func (f *File) Unlinked() bool {
	var st unix.Stat_t
	return unix.Fstat(f.meta, &st) == nil && st.Nlink == 0
}

// descriptors is how many it has.
func (h *Held) descriptors() int {
	if h.fd != h.meta {
		return 2
	}
	return 1
}

// Close lets go of the file.
func (h *Held) Close() error {
	var err error
	if h.fd != h.meta {
		err = unix.Close(h.fd)
	}
	return errors.Join(err, unix.Close(h.meta))
}
