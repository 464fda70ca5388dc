package share

import (
	"math"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// openFlags are those of a guest's open that count here. Appending is the guest's
// work: it says where.
func openFlags(flags uint32) int {
	return int(flags) & (unix.O_ACCMODE | unix.O_TRUNC | unix.O_SYNC | unix.O_DSYNC)
}

// writes reports whether an open could change the file.
func writes(flags uint32) bool {
	return flags&unix.O_ACCMODE != unix.O_RDONLY || flags&unix.O_TRUNC != 0
}

// Open implements fuse.RawFileSystem.
func (f *FS) Open(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	if f.opts.ReadOnly && writes(in.Flags) {
		return fuse.EROFS
	}
	n := f.node(in.NodeId)
	if n == nil {
		return fuse.Status(unix.ESTALE)
	}
	fd, err := n.reopen(openFlags(in.Flags))
	if err != nil {
		n.put()
		return status(err)
	}
	var s fuse.Status
	out.Fh, s = f.addHandle(n, fd)
	out.OpenFlags = f.cacheFlags()
	return s
}

// cacheFlags are how the guest's kernel treats an open file. Without KEEP_CACHE
// an open sees what the host has written.
func (f *FS) cacheFlags() uint32 {
	var flags uint32
	if f.opts.Static {
		flags |= fuse.FOPEN_KEEP_CACHE
	}
	if f.opts.System {
		flags |= fuse.FOPEN_NOFLUSH // the overlay on it keeps the locks
	}
	return flags
}

// Create implements fuse.RawFileSystem.
func (f *FS) Create(_ <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	return f.in(in.NodeId, name, func(dir *node) fuse.Status {
		flags := openFlags(in.Flags)
		fd, err := openAt(dir.fd, name, flags|unix.O_CREAT|unix.O_EXCL, in.Mode&0o7777)
		if err == unix.EEXIST && in.Flags&unix.O_EXCL == 0 { // the host was faster
			fd, err = f.openExisting(dir.fd, name, flags)
		} else if err == nil {
			if _, err = f.settle(dir, fd, &in.InHeader, in.Mode); err != nil {
				unix.Close(fd)
			}
		}
		if err != nil {
			return status(err)
		}
		return f.created(dir, name, fd, out)
	})
}

// openExisting opens a file that is looked at first: to open a FIFO or a device would
// have an effect on the host's programs.
func (f *FS) openExisting(dir int, name string, flags int) (int, error) {
	fd, err := openAt(dir, name, unix.O_PATH, 0)
	if err != nil {
		return -1, err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return -1, err
	}
	n := &node{fd: fd, file: fileID{st.Dev, st.Ino}, mode: st.Mode}
	f.note(n, nil)
	return n.reopen(flags)
}

// created makes a node and a handle of a file that Create has opened.
func (f *FS) created(dir *node, name string, fd int, out *fuse.CreateOut) fuse.Status {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return status(err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		unix.Close(fd)
		return fuse.EACCES
	}
	path, err := unix.Open((&node{fd: fd}).path(), unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		unix.Close(fd)
		return status(err)
	}
	f.know(dir, name, path, &st, &out.EntryOut)
	n := f.node(out.NodeId)
	if n == nil { // the guest forgets what it does not know yet
		unix.Close(fd)
		return fuse.Status(unix.ESTALE)
	}
	var s fuse.Status
	out.Fh, s = f.addHandle(n, fd)
	out.OpenFlags = f.cacheFlags()
	return s
}

// Release implements fuse.RawFileSystem.
func (f *FS) Release(_ <-chan struct{}, in *fuse.ReleaseIn) { f.release(in.Fh) }

// result is a read that goes from the file into the guest's memory.
type result struct {
	h    *handle
	off  int64
	size int
}

// Size implements fuse.ReadResult.
func (r *result) Size() int { return r.size }

// Done implements fuse.ReadResult.
func (r *result) Done() { r.h.put() }

// Bytes implements fuse.ReadResult.
func (r *result) Bytes(buf []byte) ([]byte, fuse.Status) {
	n, s := r.Readv([][]byte{buf[:min(len(buf), r.size)]})
	return buf[:n], s
}

// Readv reads straight into what the guest has provided.
func (r *result) Readv(to [][]byte) (int, fuse.Status) {
	for {
		n, err := unix.Preadv(r.h.fd, to, r.off)
		if err == unix.EINTR {
			continue
		}
		return max(n, 0), status(err)
	}
}

// Read implements fuse.RawFileSystem.
func (f *FS) Read(_ <-chan struct{}, in *fuse.ReadIn, _ []byte) (fuse.ReadResult, fuse.Status) {
	h := f.handle(in.Fh)
	if h == nil {
		return nil, fuse.EBADF
	}
	if in.Offset > math.MaxInt64 {
		h.put()
		return nil, fuse.EINVAL
	}
	return &result{h, int64(in.Offset), int(in.Size)}, fuse.OK
}

// with does something with an open file.
func (f *FS) with(id uint64, do func(h *handle) error) fuse.Status {
	h := f.handle(id)
	if h == nil {
		return fuse.EBADF
	}
	defer h.put()
	return status(do(h))
}

// Writev implements fuse.RawFileSystem: it writes straight out of the guest's memory.
func (f *FS) Writev(_ <-chan struct{}, in *fuse.WriteIn, data [][]byte) (written uint32, s fuse.Status) {
	if f.opts.ReadOnly {
		return 0, fuse.EROFS
	}
	if in.Offset > math.MaxInt64 {
		return 0, fuse.Status(unix.EFBIG)
	}
	s = f.with(in.Fh, func(h *handle) error {
		for {
			n, err := unix.Pwritev(h.fd, data, int64(in.Offset))
			if err == unix.EINTR {
				continue
			}
			written = uint32(max(n, 0))
			return err
		}
	})
	return written, s
}

// Lseek implements fuse.RawFileSystem: it finds data and holes.
func (f *FS) Lseek(_ <-chan struct{}, in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	return f.with(in.Fh, func(h *handle) error {
		off, err := unix.Seek(h.fd, int64(in.Offset), int(in.Whence))
		out.Offset = uint64(off)
		return err
	})
}

// CopyFileRange implements fuse.RawFileSystem.
func (f *FS) CopyFileRange(_ <-chan struct{}, in *fuse.CopyFileRangeIn) (written uint32, s fuse.Status) {
	if f.opts.ReadOnly {
		return 0, fuse.EROFS
	}
	s = f.with(in.FhIn, func(from *handle) error {
		to := f.handle(in.FhOut)
		if to == nil {
			return unix.EBADF
		}
		defer to.put()
		a, b := int64(in.OffIn), int64(in.OffOut)
		n, err := unix.CopyFileRange(from.fd, &a, to.fd, &b, int(min(in.Len, 1<<30)), int(in.Flags))
		written = uint32(max(n, 0))
		return err
	})
	return written, s
}

// Flush implements fuse.RawFileSystem: a close ends the locks of its process.
func (f *FS) Flush(_ <-chan struct{}, in *fuse.FlushIn) fuse.Status {
	return f.with(in.Fh, func(h *handle) error {
		h.node.locks.drop(in.LockOwner)
		return nil
	})
}

// fsyncData is the flag of Fsync for the data alone.
const fsyncData = 1

// Fsync implements fuse.RawFileSystem.
func (f *FS) Fsync(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	return f.with(in.Fh, func(h *handle) error {
		if in.FsyncFlags&fsyncData != 0 {
			return unix.Fdatasync(h.fd)
		}
		return unix.Fsync(h.fd)
	})
}

// Fallocate implements fuse.RawFileSystem.
func (f *FS) Fallocate(_ <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	if f.opts.ReadOnly {
		return fuse.EROFS
	}
	return f.with(in.Fh, func(h *handle) error {
		return unix.Fallocate(h.fd, in.Mode, int64(in.Offset), int64(in.Length))
	})
}

// StatFs implements fuse.RawFileSystem.
func (f *FS) StatFs(_ <-chan struct{}, in *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	n := f.node(in.NodeId)
	if n == nil {
		return fuse.Status(unix.ESTALE)
	}
	defer n.put()
	var s syscall.Statfs_t
	if err := syscall.Fstatfs(n.fd, &s); err != nil {
		return status(err)
	}
	out.FromStatfsT(&s)
	return fuse.OK
}
