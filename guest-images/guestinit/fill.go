package guestinit

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"vmm/internal/xattr"
)

// mountFilled mounts a directory of the host that is first given what is in its place, if it is
// empty.
func mountFilled(m *Mount, work string) error {
	beside := filepath.Join(work, "fill")
	if err := os.MkdirAll(beside, 0o755); err != nil {
		return err
	}
	if err := mountShare(m.Tag, beside, 0); err != nil {
		return err
	}
	if err := fill(m.Path, beside); err != nil {
		return errors.Join(fmt.Errorf("%s: copying what is there: %w", m.Path, err), unix.Unmount(beside, unix.MNT_DETACH))
	}
	if err := unix.Mount(beside, m.Path, "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("moving to %s: %w", m.Path, err)
	}
	return nil
}

// filling is a directory in one that is filled, in which all that is to be there is made first. Where it is found and
// nobody fills, whoever began was killed.
const filling = ".vmm-filling"

// fill gives a directory that is empty what another one has. Of several guests that would do so at
// a time one does, and what one has begun that was killed is begun anew. Other guests may use the directory meanwhile:
// what they make there stays, in the place of what would have had its name, and leads nowhere else.
func fill(from, to string) error {
	root, err := os.OpenRoot(to)
	if err != nil {
		return err
	}
	defer root.Close()
	lock, err := root.Open(".")
	if err != nil {
		return err
	}
	defer lock.Close()
	for err = unix.EINTR; errors.Is(err, unix.EINTR); {
		err = unix.Flock(int(lock.Fd()), unix.LOCK_EX)
	}
	if err != nil {
		return &os.PathError{Op: "flock", Path: to, Err: err}
	}
	there, err := lock.Readdirnames(-1)
	if err != nil || len(there) > 0 && !slices.Contains(there, filling) {
		return err
	}
	if err := errors.Join(root.RemoveAll(filling), root.Mkdir(filling, 0o700)); err != nil {
		return err
	}
	made, err := openTarget(root, filling)
	if err != nil {
		return err
	}
	defer made.close()
	f := filler{top: made.root, links: map[uint64]string{}}
	if err := f.directory(from, made, ""); err != nil {
		return err
	}
	if err := made.moveTo(lock); err != nil {
		return err
	}
	if err := root.RemoveAll(filling); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Stat(from, &st); err != nil {
		return &os.PathError{Op: "stat", Path: from, Err: err}
	}
	return (&target{root, lock}).attributes(from, ".", &st)
}

// target is a directory that is written to, open in two ways.
type target struct {
	root *os.Root
	dir  *os.File
}

func openTarget(in *os.Root, name string) (*target, error) {
	root, err := in.OpenRoot(name)
	if err != nil {
		return nil, err
	}
	dir, err := root.Open(".")
	if err != nil {
		return nil, errors.Join(err, root.Close())
	}
	return &target{root, dir}, nil
}

func (t *target) close() { errors.Join(t.dir.Close(), t.root.Close()) }

func (t *target) fd() int { return int(t.dir.Fd()) }

// moveTo moves what is in the directory to another one, but for what there is there.
func (t *target) moveTo(to *os.File) error {
	names, err := t.dir.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, name := range names {
		err := unix.Renameat2(t.fd(), name, int(to.Fd()), name, unix.RENAME_NOREPLACE)
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return &os.PathError{Op: "rename", Path: name, Err: err}
		}
	}
	return nil
}

// filler copies a tree.
type filler struct {
	top   *os.Root
	links map[uint64]string // what was copied, by inode, from top on
}

// directory copies what a directory has, and its attributes. What the host does not let the guest
// make there is left out: devices, other owners, attributes of the system. rest is where it is, from the top on.
func (f *filler) directory(from string, to *target, rest string) error {
	list, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	for _, e := range list {
		if err := f.entry(filepath.Join(from, e.Name()), to, path.Join(rest, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// entry copies one file, or a directory with what is in it.
func (f *filler) entry(from string, to *target, rest string) error {
	var st unix.Stat_t
	if err := unix.Lstat(from, &st); err != nil {
		return &os.PathError{Op: "lstat", Path: from, Err: err}
	}
	base := path.Base(rest)
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		if err := to.root.Mkdir(base, 0o700); err != nil {
			return err
		}
		below, err := openTarget(to.root, base)
		if err != nil {
			return err
		}
		defer below.close()
		if err := f.directory(from, below, rest); err != nil {
			return err
		}
		return to.attributes(from, base, &st) // now that nothing changes its time any more
	}
	if first, ok := f.links[st.Ino]; ok {
		return f.top.Link(first, rest)
	}
	made, err := to.make(from, base, &st)
	if err != nil || !made {
		return err
	}
	if st.Nlink > 1 {
		f.links[st.Ino] = rest
	}
	return to.attributes(from, base, &st)
}

// make makes a file, with its contents, and reports whether the host let it.
func (t *target) make(from, base string, st *unix.Stat_t) (made bool, err error) {
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		err = t.copyContent(from, base)
	case unix.S_IFLNK:
		var to string
		if to, err = os.Readlink(from); err == nil {
			err = t.root.Symlink(to, base)
		}
	default:
		if err = unix.Mknodat(t.fd(), base, st.Mode, int(st.Rdev)); refused(err) {
			return false, nil
		}
		if err != nil {
			err = &os.PathError{Op: "mknod", Path: base, Err: err}
		}
	}
	return err == nil, err
}

func (t *target) copyContent(from, base string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := t.root.OpenFile(base, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// refused reports whether the host does not allow something that the guest may do without.
func refused(err error) bool {
	return errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) || errors.Is(err, unix.ENOTSUP)
}

// unlessRefused is the error of what was done to a file, but for one that the guest may do without.
func unlessRefused(op, name string, err error) error {
	if err == nil || refused(err) {
		return nil
	}
	return &os.PathError{Op: op, Path: name, Err: err}
}

// attributes gives a file those of another.
func (t *target) attributes(from, base string, st *unix.Stat_t) error {
	if err := unlessRefused("chown", base, unix.Fchownat(t.fd(), base, int(st.Uid), int(st.Gid), unix.AT_SYMLINK_NOFOLLOW)); err != nil {
		return err
	}
	values, err := xattr.Of(from)
	if err != nil {
		return err
	}
	for name, value := range values {
		at := fmt.Sprintf("/proc/self/fd/%d/%s", t.fd(), base)
		if err := unlessRefused("xattr "+name, base, unix.Lsetxattr(at, name, []byte(value), 0)); err != nil {
			return err
		}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFLNK { // behind the owner, whose change takes bits of it
		if err := t.root.Chmod(base, fileMode(st.Mode)); err != nil && !refused(err) {
			return err
		}
	}
	times := []unix.Timespec{st.Atim, st.Mtim}
	return unlessRefused("utimes", base, unix.UtimesNanoAt(t.fd(), base, times, unix.AT_SYMLINK_NOFOLLOW))
}

// fileMode are the permissions of a mode of the system's as Go has them.
func fileMode(mode uint32) fs.FileMode {
	out := fs.FileMode(mode).Perm()
	for bit, of := range map[uint32]fs.FileMode{unix.S_ISUID: fs.ModeSetuid, unix.S_ISGID: fs.ModeSetgid, unix.S_ISVTX: fs.ModeSticky} {
		if mode&bit != 0 {
			out |= of
		}
	}
	return out
}
