package storage

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"vmm/internal/holes"
	"vmm/internal/iovec"
)

// Cache says how writes reach the disk, in QEMU's words.
type Cache string

// The ways to cache.
const (
	Writeback    Cache = "writeback"    // in the host's memory until a flush; the default
	Writethrough Cache = "writethrough" // every write is flushed
	None         Cache = "none"         // past the host's memory (O_DIRECT), with flushes
	Unsafe       Cache = "unsafe"       // flushes do nothing: for what may be lost
)

// Caches lists them all.
var Caches = []Cache{Writeback, Writethrough, None, Unsafe}

// ErrNoDirectIO is in the error for a file whose file system has no direct I/O, which None
// needs.
var ErrNoDirectIO = errors.New("this file system has no direct I/O")

// File is a file or block device of the host that holds an image. It reads as
// zeros beyond its end, and grows when written there. Offsets and lengths are in bytes.
// All methods but Close may be called concurrently. The host's errors are *fs.PathErrors.
type File struct {
	name     string
	fd       int // of data: with O_DIRECT for Cache None
	meta     int // without it; the same as fd otherwise
	readOnly bool
	cache    Cache
	block    bool   // a block device
	align    int    // of offsets, lengths and memory, for fd
	id       fileID // tells files apart
	held     *Held  // what it is opened again of, until it is open
	size     atomic.Int64
	noWait   atomic.Bool // the file system knows RWF_NOWAIT
	noZero   atomic.Bool // it does not know FALLOC_FL_ZERO_RANGE
}

type fileID struct{ dev, ino uint64 }

// OpenFile opens an image's file; Writeback if cache is empty. It takes a lock that lasts
// until Close: with writing, nobody else has the file; without, nobody writes it. The error
// is a *LockError if somebody does, and ErrNoDirectIO where None is not possible.
func OpenFile(name string, readOnly bool, cache Cache) (*File, error) {
	if cache == "" {
		cache = Writeback
	}
	fd, err := openFD(name, readOnly)
	if err != nil {
		return nil, err
	}
	return newFile(name, fd, readOnly, cache, nil)
}

// Inspect opens an image's file for reading though somebody may be writing it:
// what is read may be out of date, or half changed.
func Inspect(name string) (*File, error) {
	fd, err := openFD(name, true)
	if err != nil {
		return nil, err
	}
	return describe(name, fd, true, Writeback)
}

// Adopt is OpenFile for a file that is open already, for reading and writing, and stays
// so.
func Adopt(f *os.File) (*File, error) {
	fd, err := again(f.Name(), int(f.Fd()))
	if err != nil {
		return nil, err
	}
	return newFile(f.Name(), fd, false, Writeback, nil)
}

func openFD(name string, readOnly bool) (int, error) {
	// A FIFO would wait for its other end, and an image can name one as its backing file.
	fd, err := unix.Open(name, openMode(readOnly)|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return -1, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFL, openMode(readOnly)); err != nil {
		unix.Close(fd)
		return -1, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	return fd, nil
}

// newFile is a File of a descriptor, which it owns, with the locks; of held, if that is
// not nil.
func newFile(name string, fd int, readOnly bool, cache Cache, held *Held) (_ *File, err error) {
	f, err := describe(name, fd, readOnly, cache)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			f.close()
		}
	}()
	if f.held = held; held != nil {
		defer func() { f.held = nil }()
	}
	if err := f.lock(); err != nil {
		return nil, err
	}
	if cache == None {
		if err := f.openDirect(readOnly); err != nil {
			return nil, err
		}
	}
	return f, nil
}

// describe is a File of a descriptor, which it owns, as it is.
func describe(name string, fd int, readOnly bool, cache Cache) (_ *File, err error) {
	f := &File{name: name, fd: fd, meta: fd, readOnly: readOnly, cache: cache, align: 1}
	f.noWait.Store(true)
	defer func() {
		if err != nil {
			f.close()
		}
	}()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, f.fail("stat", err)
	}
	f.id = fileID{st.Dev, st.Ino}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		f.size.Store(st.Size)
	case unix.S_IFBLK:
		f.block = true
		n, err := unix.Seek(fd, 0, unix.SEEK_END)
		if err != nil {
			return nil, f.fail("size", err)
		}
		f.size.Store(n)
	default:
		return nil, fmt.Errorf("%s: neither a file nor a block device", name)
	}
	return f, nil
}

func openMode(readOnly bool) int {
	if readOnly {
		return unix.O_RDONLY
	}
	return unix.O_RDWR
}

// openDirect opens the file again, past the page cache.
func (f *File) openDirect(readOnly bool) error {
	var fd int
	var err error
	if f.held != nil {
		fd, err = again(f.name, f.held.fd)
	} else if fd, err = unix.Open(f.name, openMode(readOnly)|unix.O_CLOEXEC|unix.O_DIRECT, 0); err != nil {
		err = noDirect(f.name, err)
	}
	if err != nil {
		return err
	}
	f.fd, f.align = fd, 4096
	var st unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_DIOALIGN, &st); err == nil && st.Mask&unix.STATX_DIOALIGN != 0 {
		if n := max(st.Dio_mem_align, st.Dio_offset_align); n >= SectorSize && n <= 4096 {
			f.align = int(n)
		}
	}
	return nil
}

// noDirect is the error for a file that cannot be opened past the page cache.
func noDirect(name string, err error) error {
	if errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("%s: %w", name, ErrNoDirectIO)
	}
	return &fs.PathError{Op: "open", Path: name, Err: err}
}

// Name is the path that the file was opened by.
func (f *File) Name() string { return f.name }

// Device reports whether it is a block device.
func (f *File) Device() bool { return f.block }

// ReadOnly reports whether the file was opened for reading.
func (f *File) ReadOnly() bool { return f.readOnly }

// Size is the file's length in bytes.
func (f *File) Size() int64 { return f.size.Load() }

// At reports whether it is the file at a path.
func (f *File) At(path string) bool {
	var st unix.Stat_t
	return unix.Stat(path, &st) == nil && f.id == fileID{st.Dev, st.Ino}
}

// Allocated is how many bytes the file takes on its file system.
func (f *File) Allocated() int64 {
	var st unix.Stat_t
	if unix.Fstat(f.meta, &st) != nil {
		return 0
	}
	if f.block {
		return f.Size()
	}
	return st.Blocks * 512
}

func (f *File) fail(op string, err error) error {
	if err == nil {
		return nil
	}
	return &fs.PathError{Op: op, Path: f.name, Err: err}
}

func (f *File) close() error {
	var errs []error
	if f.meta != f.fd {
		errs = append(errs, unix.Close(f.meta))
	}
	return errors.Join(append(errs, unix.Close(f.fd))...)
}

// Close gives the lock back. It does not flush.
func (f *File) Close() error { return f.fail("close", f.close()) }

// iovecs are kept, so that a request allocates none.
var iovecs = sync.Pool{New: func() any { s := make([]unix.Iovec, 0, 256); return &s }}

// maxIovecs is UIO_MAXIOV.
const maxIovecs = 1024

// noWaitFlag is RWF_NOWAIT of preadv2(2).
const noWaitFlag = 0x8

// errShort marks an end of file.
var errShort = errors.New("short")

// transfer moves n bytes between v and the file, all of them, or up to the
// file's end when reading, which is errShort with the bytes done.
func transfer(trap uintptr, fd int, v [][]byte, off int64, flags uintptr) (done int64, err error) {
	p := iovecs.Get().(*[]unix.Iovec)
	defer func() {
		clear(*p)
		*p = (*p)[:0]
		iovecs.Put(p)
	}()
	*p = iovec.Append(*p, v...)
	iov, total := *p, int64(iovec.Len(v))
	for done < total {
		n, _, errno := unix.Syscall6(trap, uintptr(fd), uintptr(unsafe.Pointer(&iov[0])), uintptr(min(len(iov), maxIovecs)),
			uintptr(off+done), 0, flags)
		switch {
		case errno == unix.EINTR:
			continue
		case errno != 0:
			return done, errno
		case n == 0:
			return done, errShort
		}
		done += int64(n)
		for n > 0 {
			if uint64(n) < iov[0].Len {
				iov[0].Base = (*byte)(unsafe.Add(unsafe.Pointer(iov[0].Base), n))
				iov[0].Len -= uint64(n)
				break
			}
			n -= uintptr(iov[0].Len)
			iov = iov[1:]
		}
	}
	return done, nil
}

// aligned reports whether direct I/O takes the request as it is.
func (f *File) aligned(v [][]byte, off int64) bool {
	mask := uintptr(f.align - 1)
	if uintptr(off)&mask != 0 {
		return false
	}
	for _, b := range v {
		if len(b) > 0 && (uintptr(unsafe.Pointer(&b[0]))|uintptr(len(b)))&mask != 0 {
			return false
		}
	}
	return true
}

// dataFD is the descriptor for a request: what direct I/O does not take goes
// through the page cache, which the kernel keeps coherent.
func (f *File) dataFD(v [][]byte, off int64) int {
	if f.align > 1 && !f.aligned(v, off) {
		return f.meta
	}
	return f.fd
}

// ReadV fills v from off on; beyond the end with zeros.
func (f *File) ReadV(v [][]byte, off int64) error {
	done, err := transfer(unix.SYS_PREADV2, f.dataFD(v, off), v, off, 0)
	return f.finishRead(v, done, err)
}

func (f *File) finishRead(v [][]byte, done int64, err error) error {
	if err == errShort {
		iovec.Clear(iovec.Cut(nil, v, done, math.MaxInt64))
		return nil
	}
	return f.fail("read", err)
}

// TryReadV is ReadV for what is in the page cache; else it returns false, and v is
// undefined.
func (f *File) TryReadV(v [][]byte, off int64) (bool, error) {
	if f.align > 1 || !f.noWait.Load() {
		return false, nil
	}
	done, err := transfer(unix.SYS_PREADV2, f.fd, v, off, noWaitFlag)
	switch {
	case errors.Is(err, unix.EAGAIN):
		return false, nil
	case errors.Is(err, unix.EOPNOTSUPP):
		f.noWait.Store(false)
		return false, nil
	}
	return true, f.finishRead(v, done, err)
}

// WriteV writes v from off on.
func (f *File) WriteV(v [][]byte, off int64) error {
	done, err := transfer(unix.SYS_PWRITEV2, f.dataFD(v, off), v, off, 0)
	if err == nil {
		f.grown(off + done)
	}
	if err == errShort {
		err = unix.ENOSPC
	}
	return f.fail("write", err)
}

func (f *File) grown(end int64) {
	for old := f.size.Load(); old < end && !f.size.CompareAndSwap(old, end); {
		old = f.size.Load()
	}
}

// ReadAt and WriteAt are for metadata: through the page cache, at any offset.
func (f *File) ReadAt(p []byte, off int64) (int, error) {
	v := [1][]byte{p}
	done, err := transfer(unix.SYS_PREADV2, f.meta, v[:], off, 0)
	return len(p), f.finishRead(v[:], done, err)
}

// WriteAt is ReadAt's counterpart.
func (f *File) WriteAt(p []byte, off int64) (int, error) {
	v := [1][]byte{p}
	done, err := transfer(unix.SYS_PWRITEV2, f.meta, v[:], off, 0)
	if err == nil {
		f.grown(off + done)
	}
	return int(done), f.fail("write", err)
}

// Sync returns when all that was written is on the disk; with Unsafe, at once.
func (f *File) Sync() error {
	if f.cache == Unsafe || f.readOnly {
		return nil
	}
	return f.fail("flush", unix.Fdatasync(f.fd))
}

// Punch gives a range's storage back; it reads as zeros then. Where the file
// system cannot, nothing happens and it returns false.
func (f *File) Punch(off, n int64) (bool, error) {
	return f.fallocate("discard", unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
}

func (f *File) fallocate(op string, mode uint32, off, n int64) (bool, error) {
	for {
		err := unix.Fallocate(f.meta, mode, off, n)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOSYS), errors.Is(err, unix.ENODEV), errors.Is(err, unix.EINVAL):
			return false, nil
		}
		return err == nil, f.fail(op, err)
	}
}

// Zero makes a range read as zeros, keeping its storage.
func (f *File) Zero(off, n int64) error {
	if !f.noZero.Load() {
		done, err := f.fallocate("write", unix.FALLOC_FL_ZERO_RANGE, off, n)
		if done || err != nil {
			f.grown(off + n)
			return err
		}
		f.noZero.Store(true)
	}
	for n > 0 {
		part := min(n, MaxZeros)
		if _, err := f.WriteAt(Zeros(int(part)), off); err != nil {
			return err
		}
		off, n = off+part, n-part
	}
	return nil
}

// Truncate sets the file's length. A block device has that which it has: it is an error
// to make it longer.
func (f *File) Truncate(size int64) error {
	if f.block {
		if size > f.Size() {
			return fmt.Errorf("%s: a block device of %d bytes cannot become %d", f.name, f.Size(), size)
		}
		return nil
	}
	if err := unix.Ftruncate(f.meta, size); err != nil {
		return f.fail("resize", err)
	}
	f.size.Store(size)
	return nil
}

// Extent finds where data begins and ends: it returns whether there is data
// at off, and the end of what is so, at most limit.
func (f *File) Extent(off, limit int64) (data bool, end int64) {
	if off >= f.Size() {
		return false, limit
	}
	from, to, err := holes.Next(f.meta, off, limit)
	switch {
	case err != nil:
		return true, limit // a device: all of it is data
	case from > off:
		return false, from
	}
	return true, to
}

// Create makes a new, sparse file of a length in bytes. It is an error if there is one of
// that name, and nothing is left of one that cannot be made.
func Create(name string, size int64) error {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o644)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s exists already: remove it first, or take another name", name)
	}
	if err != nil {
		return err
	}
	if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
		os.Remove(name)
		return err
	}
	return nil
}

// Dir is the directory of the file, for names that are relative to it.
func (f *File) Dir() string { return filepath.Dir(f.name) }

// Writethrough reports whether its user is to flush after every write.
func (f *File) Writethrough() bool { return f.cache == Writethrough }
