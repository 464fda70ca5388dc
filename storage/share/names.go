package share

import (
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Lookup implements fuse.RawFileSystem.
func (f *FS) Lookup(_ <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	dir := f.node(h.NodeId)
	if dir == nil {
		return fuse.Status(unix.ESTALE)
	}
	defer dir.put()
	s := f.lookup(dir, name, out)
	if s == fuse.ENOENT && f.opts.Static {
		f.missed(dir, name)
		out.NodeId = 0 // the guest keeps in mind that there is none
		out.SetEntryTimeout(f.names)
		return fuse.OK
	}
	return s
}

// in does something with a name of a directory that may be changed.
func (f *FS) in(id uint64, name string, do func(dir *node) fuse.Status) fuse.Status {
	switch {
	case f.opts.ReadOnly:
		return fuse.EROFS
	case badName(name):
		return fuse.EINVAL
	case noRoom():
		return fuse.Status(unix.ENFILE)
	}
	dir := f.node(id)
	if dir == nil {
		return fuse.Status(unix.ESTALE)
	}
	defer dir.put()
	if dir.touches(name) {
		return fuse.EACCES
	}
	return do(dir)
}

// made finishes a new file and makes a node of it.
func (f *FS) made(dir *node, h *fuse.InHeader, name string, mode uint32, out *fuse.EntryOut) fuse.Status {
	fd, err := openAt(dir.fd, name, unix.O_PATH, 0)
	if err != nil {
		return status(err)
	}
	st, err := f.settle(dir, fd, h, mode)
	if err != nil {
		unix.Close(fd)
		return status(err)
	}
	f.know(dir, name, fd, st, out)
	return fuse.OK
}

// settle makes a new file the one's who asked for it, if the process is allowed to,
// and gives it the mode that the guest has chosen: the process's own umask and a
// change of owner take bits of it.
func (f *FS) settle(dir *node, fd int, h *fuse.InHeader, mode uint32) (*unix.Stat_t, error) {
	if f.uid == 0 && (h.Uid != 0 || h.Gid != 0) {
		gid := int(h.Gid)
		var st unix.Stat_t
		if unix.Fstat(dir.fd, &st) == nil && st.Mode&unix.S_ISGID != 0 {
			gid = -1 // the directory's
		}
		if err := unix.Fchownat(fd, "", int(h.Uid), gid, unix.AT_EMPTY_PATH); err != nil {
			return nil, err
		}
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	if lost := mode & 0o7777 &^ st.Mode; lost != 0 && st.Mode&unix.S_IFMT != unix.S_IFLNK {
		st.Mode |= lost
		if err := unix.Fchmodat(unix.AT_FDCWD, (&node{fd: fd}).path(), st.Mode&0o7777, 0); err != nil {
			return nil, err
		}
	}
	return &st, nil
}

// Mknod implements fuse.RawFileSystem. Devices are the host's: only the mark of an
// overlay for what was removed is made.
func (f *FS) Mknod(_ <-chan struct{}, in *fuse.MknodIn, name string, out *fuse.EntryOut) fuse.Status {
	switch in.Mode & unix.S_IFMT {
	case unix.S_IFREG, unix.S_IFIFO, unix.S_IFSOCK, 0:
	default:
		if in.Mode&unix.S_IFMT != unix.S_IFCHR || in.Rdev != 0 {
			return fuse.EPERM
		}
	}
	return f.in(in.NodeId, name, func(dir *node) fuse.Status {
		if err := unix.Mknodat(dir.fd, name, in.Mode, int(in.Rdev)); err != nil {
			return status(err)
		}
		return f.made(dir, &in.InHeader, name, in.Mode, out)
	})
}

// Mkdir implements fuse.RawFileSystem.
func (f *FS) Mkdir(_ <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	return f.in(in.NodeId, name, func(dir *node) fuse.Status {
		if err := unix.Mkdirat(dir.fd, name, in.Mode); err != nil {
			return status(err)
		}
		return f.made(dir, &in.InHeader, name, in.Mode, out)
	})
}

// Symlink implements fuse.RawFileSystem.
func (f *FS) Symlink(_ <-chan struct{}, h *fuse.InHeader, to, name string, out *fuse.EntryOut) fuse.Status {
	return f.in(h.NodeId, name, func(dir *node) fuse.Status {
		if err := unix.Symlinkat(to, dir.fd, name); err != nil {
			return status(err)
		}
		return f.made(dir, h, name, 0, out)
	})
}

// Link implements fuse.RawFileSystem.
func (f *FS) Link(_ <-chan struct{}, in *fuse.LinkIn, name string, out *fuse.EntryOut) fuse.Status {
	return f.in(in.NodeId, name, func(dir *node) fuse.Status {
		n := f.node(in.Oldnodeid)
		if n == nil {
			return fuse.Status(unix.ESTALE)
		}
		defer n.put()
		if n.hidden.Load() {
			return fuse.EACCES
		}
		if err := unix.Linkat(unix.AT_FDCWD, n.path(), dir.fd, name, unix.AT_SYMLINK_FOLLOW); err != nil {
			return status(err)
		}
		return f.lookup(dir, name, out)
	})
}

// Unlink implements fuse.RawFileSystem.
func (f *FS) Unlink(_ <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	return f.in(h.NodeId, name, func(dir *node) fuse.Status { return status(unix.Unlinkat(dir.fd, name, 0)) })
}

// Rmdir implements fuse.RawFileSystem.
func (f *FS) Rmdir(_ <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	return f.in(h.NodeId, name, func(dir *node) fuse.Status {
		return status(unix.Unlinkat(dir.fd, name, unix.AT_REMOVEDIR))
	})
}

// Rename implements fuse.RawFileSystem.
func (f *FS) Rename(_ <-chan struct{}, in *fuse.RenameIn, from, to string) fuse.Status {
	if badName(to) {
		return fuse.EINVAL
	}
	return f.in(in.NodeId, from, func(dir *node) fuse.Status {
		target := f.node(in.Newdir)
		if target == nil {
			return fuse.Status(unix.ESTALE)
		}
		defer target.put()
		// What moves takes along what is hidden below it.
		if dir.hides.Load().child(from) != nil || target.touches(to) || target.hides.Load().child(to) != nil {
			return fuse.EACCES
		}
		if err := unix.Renameat2(dir.fd, from, target.fd, to, uint(in.Flags)); err != nil {
			return status(err)
		}
		f.moved(target, to)
		if in.Flags&unix.RENAME_EXCHANGE != 0 {
			f.moved(dir, from)
		}
		return fuse.OK
	})
}

// Readlink implements fuse.RawFileSystem.
func (f *FS) Readlink(_ <-chan struct{}, h *fuse.InHeader) ([]byte, fuse.Status) {
	n := f.node(h.NodeId)
	if n == nil {
		return nil, fuse.Status(unix.ESTALE)
	}
	defer n.put()
	if n.hidden.Load() {
		return nil, fuse.EACCES
	}
	buf := make([]byte, unix.PathMax)
	k, err := unix.Readlinkat(n.fd, "", buf)
	if err != nil {
		return nil, status(err)
	}
	return buf[:k], fuse.OK
}

// OpenDir implements fuse.RawFileSystem.
func (f *FS) OpenDir(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	n := f.node(in.NodeId)
	if n == nil {
		return fuse.Status(unix.ESTALE)
	}
	fd, err := n.openDir(unix.O_RDONLY)
	if err != nil {
		n.put()
		return status(err)
	}
	var s fuse.Status
	out.Fh, s = f.addHandle(n, fd)
	if f.opts.Static {
		out.OpenFlags = fuse.FOPEN_KEEP_CACHE | fuse.FOPEN_CACHE_DIR
	}
	return s
}

// ReleaseDir implements fuse.RawFileSystem.
func (f *FS) ReleaseDir(in *fuse.ReleaseIn) { f.release(in.Fh) }

// FsyncDir implements fuse.RawFileSystem.
func (f *FS) FsyncDir(cancel <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	return f.Fsync(cancel, in)
}

// direntBuffer is how much of a directory is read at once, in bytes.
const direntBuffer = 32 << 10

// eachEntry calls add for the entries from an offset on until it returns false.
func (f *FS) eachEntry(in *fuse.ReadIn, add func(h *handle, e fuse.DirEntry) bool) fuse.Status {
	h := f.handle(in.Fh)
	if h == nil {
		return fuse.EBADF
	}
	defer h.put()
	if h.node.hidden.Load() {
		return fuse.OK
	}
	if f.opts.Static && in.Offset == 0 { // the guest keeps what it reads
		f.listed(h.node)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if in.Offset != h.next {
		h.entries = nil
		if _, err := unix.Seek(h.fd, int64(in.Offset), unix.SEEK_SET); err != nil {
			return status(err)
		}
		h.next = in.Offset
	}
	for {
		if len(h.entries) == 0 {
			if h.buffer == nil {
				h.buffer = make([]byte, direntBuffer)
			}
			n, err := unix.Getdents(h.fd, h.buffer)
			if err != nil {
				return status(err)
			}
			if n == 0 {
				return fuse.OK
			}
			h.entries = h.buffer[:n]
		}
		var e fuse.DirEntry
		n := e.Parse(h.entries)
		if !add(h, e) {
			return fuse.OK
		}
		h.entries, h.next = h.entries[n:], e.Off
	}
}

// ReadDir implements fuse.RawFileSystem.
func (f *FS) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return f.eachEntry(in, func(_ *handle, e fuse.DirEntry) bool { return out.AddDirEntry(e) })
}

// ReadDirPlus implements fuse.RawFileSystem.
func (f *FS) ReadDirPlus(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return f.eachEntry(in, func(h *handle, e fuse.DirEntry) bool {
		to := out.AddDirLookupEntry(e)
		if to == nil {
			return false
		}
		if e.Name != "." && e.Name != ".." {
			// What has gone meanwhile has no node.
			var entry fuse.EntryOut
			if f.lookup(h.node, e.Name, &entry) == fuse.OK {
				*to = entry
			}
		}
		return true
	})
}
