package share

import (
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// stat reports a node's attributes.
func (f *FS) stat(n *node, out *fuse.AttrOut) fuse.Status {
	var st unix.Stat_t
	if err := unix.Fstat(n.fd, &st); err != nil {
		return status(err)
	}
	f.attr(&st, &out.Attr)
	n.hide(&out.Attr)
	out.SetTimeout(f.attrs)
	return fuse.OK
}

// GetAttr implements fuse.RawFileSystem.
func (f *FS) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	n := f.node(in.NodeId)
	if n == nil {
		return fuse.Status(unix.ESTALE)
	}
	defer n.put()
	return f.stat(n, out)
}

// SetAttr implements fuse.RawFileSystem.
func (f *FS) SetAttr(_ <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	if f.opts.ReadOnly {
		return fuse.EROFS
	}
	n := f.node(in.NodeId)
	if n == nil {
		return fuse.Status(unix.ESTALE)
	}
	defer n.put()
	if n.hidden.Load() {
		return fuse.EACCES
	}
	if in.Valid&(fuse.FATTR_UID|fuse.FATTR_GID) != 0 {
		uid, gid := -1, -1
		if in.Valid&fuse.FATTR_UID != 0 {
			uid = int(in.Uid)
		}
		if in.Valid&fuse.FATTR_GID != 0 {
			gid = int(in.Gid)
		}
		uid, gid = f.owner(uid, gid)
		if err := unix.Fchownat(n.fd, "", uid, gid, unix.AT_EMPTY_PATH); err != nil {
			return status(err)
		}
	}
	// Behind the owner, whose change may take bits of it.
	if in.Valid&fuse.FATTR_MODE != 0 {
		if n.mode&unix.S_IFMT == unix.S_IFLNK {
			return fuse.Status(unix.EOPNOTSUPP)
		}
		if err := unix.Fchmodat(unix.AT_FDCWD, n.path(), in.Mode&0o7777, 0); err != nil {
			return status(err)
		}
	}
	if in.Valid&fuse.FATTR_SIZE != 0 {
		if err := f.truncate(n, in); err != nil {
			return status(err)
		}
	}
	if in.Valid&(fuse.FATTR_ATIME|fuse.FATTR_MTIME) != 0 {
		times := []unix.Timespec{
			timespec(in.Valid, fuse.FATTR_ATIME, fuse.FATTR_ATIME_NOW, in.Atime, in.Atimensec),
			timespec(in.Valid, fuse.FATTR_MTIME, fuse.FATTR_MTIME_NOW, in.Mtime, in.Mtimensec),
		}
		if err := unix.UtimesNanoAt(n.fd, "", times, unix.AT_EMPTY_PATH); err != nil {
			return status(err)
		}
	}
	return f.stat(n, out)
}

func timespec(valid, set, now uint32, sec uint64, nsec uint32) unix.Timespec {
	switch {
	case valid&now != 0:
		return unix.Timespec{Nsec: unix.UTIME_NOW}
	case valid&set != 0:
		return unix.NsecToTimespec(time.Unix(int64(sec), int64(nsec)).UnixNano())
	}
	return unix.Timespec{Nsec: unix.UTIME_OMIT}
}

// truncate sets a file's size, by the open file if there is one: that may be
// writable where the file is not any more.
func (f *FS) truncate(n *node, in *fuse.SetAttrIn) error {
	if in.Valid&fuse.FATTR_FH != 0 {
		if h := f.handle(in.Fh); h != nil {
			defer h.put()
			return unix.Ftruncate(h.fd, int64(in.Size))
		}
	}
	if n.mode&unix.S_IFMT != unix.S_IFREG {
		return unix.EINVAL
	}
	fd, err := n.reopen(unix.O_WRONLY)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Ftruncate(fd, int64(in.Size))
}

// attributed returns the node of a file that can have extended attributes here.
func (f *FS) attributed(id uint64) (*node, fuse.Status) {
	if f.opts.System {
		return nil, fuse.ENOSYS // the guest does not ask again
	}
	n := f.node(id)
	switch {
	case n == nil:
		return nil, fuse.Status(unix.ESTALE)
	case n.hidden.Load():
		n.put()
		return nil, fuse.EACCES
	case n.mode&unix.S_IFMT != unix.S_IFREG && n.mode&unix.S_IFMT != unix.S_IFDIR:
		n.put()
		return nil, fuse.Status(unix.EOPNOTSUPP)
	}
	return n, fuse.OK
}

// GetXAttr implements fuse.RawFileSystem.
func (f *FS) GetXAttr(_ <-chan struct{}, h *fuse.InHeader, attr string, to []byte) (uint32, fuse.Status) {
	n, s := f.attributed(h.NodeId)
	if s != fuse.OK {
		return 0, s
	}
	defer n.put()
	size, err := unix.Getxattr(n.path(), attr, to)
	return uint32(max(size, 0)), status(err)
}

// ListXAttr implements fuse.RawFileSystem.
func (f *FS) ListXAttr(_ <-chan struct{}, h *fuse.InHeader, to []byte) (uint32, fuse.Status) {
	n, s := f.attributed(h.NodeId)
	if s != fuse.OK {
		return 0, s
	}
	defer n.put()
	size, err := unix.Listxattr(n.path(), to)
	return uint32(max(size, 0)), status(err)
}

// SetXAttr implements fuse.RawFileSystem.
func (f *FS) SetXAttr(_ <-chan struct{}, in *fuse.SetXAttrIn, attr string, data []byte) fuse.Status {
	if f.opts.ReadOnly {
		return fuse.EROFS
	}
	n, s := f.attributed(in.NodeId)
	if s != fuse.OK {
		return s
	}
	defer n.put()
	return status(unix.Setxattr(n.path(), attr, data, int(in.Flags)))
}

// RemoveXAttr implements fuse.RawFileSystem.
func (f *FS) RemoveXAttr(_ <-chan struct{}, h *fuse.InHeader, attr string) fuse.Status {
	if f.opts.ReadOnly {
		return fuse.EROFS
	}
	n, s := f.attributed(h.NodeId)
	if s != fuse.OK {
		return s
	}
	defer n.put()
	return status(unix.Removexattr(n.path(), attr))
}
