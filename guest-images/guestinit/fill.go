package guestinit

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
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

// filling is in a directory while it is filled. Where it is found, whoever began was killed.
const filling = ".vmm-filling"

// fill gives a directory that is empty what another one has. Of several guests that would do so at
// a time one does, and what one has begun that was killed is begun anew.
func fill(from, to string) error {
	lock, err := os.Open(to)
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
	mark := filepath.Join(to, filling)
	if err := os.Mkdir(mark, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	for _, name := range there {
		if name != filling {
			if err := os.RemoveAll(filepath.Join(to, name)); err != nil {
				return err
			}
		}
	}
	if err := copyTree(from, to); err != nil {
		return err
	}
	if err := os.Remove(mark); err != nil {
		return err
	}
	var st unix.Stat_t // again, for the mark has changed it
	if err := unix.Stat(from, &st); err != nil {
		return &os.PathError{Op: "stat", Path: from, Err: err}
	}
	return copyTimes(to, &st)
}

// copyTree copies what a directory has, and its attributes. What the host does not let the guest
// make there is left out: devices, other owners, attributes of the system.
func copyTree(from, to string) error {
	links := map[uint64]string{} // what was copied, by inode
	var dirs []string            // whose times change until all is there
	err := filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rest, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return &os.PathError{Op: "lstat", Path: path, Err: err}
		}
		at := filepath.Join(to, rest)
		if d.IsDir() {
			dirs = append(dirs, rest)
		} else if first, ok := links[st.Ino]; ok && st.Nlink > 1 {
			return os.Link(first, at)
		}
		links[st.Ino] = at
		made, err := copyEntry(path, at, &st)
		if err != nil || !made {
			return err
		}
		return copyAttributes(path, at, &st)
	})
	for i := len(dirs) - 1; i >= 0 && err == nil; i-- {
		var st unix.Stat_t
		if err = unix.Lstat(filepath.Join(from, dirs[i]), &st); err == nil {
			err = copyTimes(filepath.Join(to, dirs[i]), &st)
		}
	}
	return err
}

// copyEntry makes what is at a path anew at another, and reports whether the host let it.
func copyEntry(path, at string, st *unix.Stat_t) (made bool, err error) {
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		if err = os.Mkdir(at, 0o700); errors.Is(err, fs.ErrExist) { // the top
			err = nil
		}
	case unix.S_IFREG:
		err = copyContent(path, at)
	case unix.S_IFLNK:
		var target string
		if target, err = os.Readlink(path); err == nil {
			err = os.Symlink(target, at)
		}
	default:
		if err = unix.Mknod(at, st.Mode, int(st.Rdev)); refused(err) {
			return false, nil
		}
		if err != nil {
			err = &os.PathError{Op: "mknod", Path: at, Err: err}
		}
	}
	return err == nil, err
}

func copyContent(path, at string) (err error) {
	in, err := os.Open(path)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(at, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
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

// unlessRefused is the error of what was done to a path, but for one that the guest may do without.
func unlessRefused(op, path string, err error) error {
	if err == nil || refused(err) {
		return nil
	}
	return &os.PathError{Op: op, Path: path, Err: err}
}

// copyAttributes gives what is at a path the attributes of another.
func copyAttributes(path, at string, st *unix.Stat_t) error {
	if err := unlessRefused("chown", at, unix.Lchown(at, int(st.Uid), int(st.Gid))); err != nil {
		return err
	}
	if err := copyXattrs(path, at); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFLNK { // behind the owner, whose change takes bits of it
		if err := unlessRefused("chmod", at, unix.Chmod(at, st.Mode&0o7777)); err != nil {
			return err
		}
	}
	return copyTimes(at, st)
}

func copyTimes(at string, st *unix.Stat_t) error {
	return unlessRefused("utimes", at, unix.UtimesNanoAt(unix.AT_FDCWD, at, []unix.Timespec{st.Atim, st.Mtim}, unix.AT_SYMLINK_NOFOLLOW))
}

func copyXattrs(path, at string) error {
	attributes, err := xattr.Of(path)
	if err != nil {
		return err
	}
	for name, value := range attributes {
		if err := unlessRefused("xattr "+name, at, unix.Lsetxattr(at, name, []byte(value), 0)); err != nil {
			return err
		}
	}
	return nil
}
