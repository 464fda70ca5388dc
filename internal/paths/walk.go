package paths

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// maxLinks is how many symbolic links a path may lead through, as in Linux
// (MAXSYMLINKS).
const maxLinks = 40

// Walk follows a path from directory to directory as the kernel does, and returns it
// absolute and free of symbolic links, and the directories in which it met one. Unless
// last is set, a link that the path ends with is not followed. What the path ends with
// need not be there.
func Walk(path string, last bool) (real string, links []string, err error) {
	if path == "" {
		return "", nil, &fs.PathError{Op: "walk", Path: path, Err: fs.ErrNotExist}
	}
	real = "/"
	if !filepath.IsAbs(path) {
		if real, err = unix.Getwd(); err != nil {
			return "", nil, err
		}
	}
	for todo := strings.Split(path, "/"); len(todo) > 0; {
		name := todo[0]
		switch todo = todo[1:]; name {
		case "", ".":
			continue
		case "..":
			real = filepath.Dir(real)
			continue
		}
		next := filepath.Join(real, name)
		st, err := os.Lstat(next)
		switch {
		case errors.Is(err, fs.ErrNotExist) && len(todo) == 0:
		case err != nil:
			return "", nil, err
		case st.Mode()&fs.ModeSymlink != 0 && (last || len(todo) > 0):
			if links = append(links, real); len(links) > maxLinks {
				return "", nil, &fs.PathError{Op: "walk", Path: path, Err: unix.ELOOP}
			}
			to, err := os.Readlink(next)
			if err != nil {
				return "", nil, err
			}
			if filepath.IsAbs(to) {
				real = "/"
			}
			todo = append(strings.Split(to, "/"), todo...)
			continue
		case len(todo) > 0 && !st.IsDir():
			return "", nil, &fs.PathError{Op: "walk", Path: next, Err: unix.ENOTDIR}
		}
		real = next
	}
	return real, links, nil
}

// Open opens a path that Walk has made. A link that somebody has put there meanwhile is the
// error unix.ELOOP; before Linux 5.6 only one at its end is.
func Open(real string, flags int, mode fs.FileMode) (fd int, err error) {
	how := unix.OpenHow{Flags: uint64(flags) | unix.O_CLOEXEC, Mode: uint64(mode), Resolve: unix.RESOLVE_NO_SYMLINKS}
	for {
		fd, err = unix.Openat2(unix.AT_FDCWD, real, &how)
		if err == unix.ENOSYS {
			fd, err = unix.Open(real, flags|unix.O_CLOEXEC|unix.O_NOFOLLOW, uint32(mode))
		}
		if err != unix.EINTR {
			return fd, err
		}
	}
}

// Inside returns the first of some directories that a path, which Walk has made, is or
// lies in; "" if it is in none.
func Inside(real string, dirs []string) string {
	for _, dir := range dirs {
		top, err := os.Stat(dir)
		for p := real; err == nil; p = filepath.Dir(p) {
			if st, err := os.Stat(p); err == nil && os.SameFile(st, top) {
				return dir
			}
			if p == "/" {
				break
			}
		}
	}
	return ""
}

// GuestError is the error for a path where a guest can put what it likes.
type GuestError struct{ Path, Dir string }

// Error implements error.
func (e *GuestError) Error() string {
	return fmt.Sprintf("%s is in %s, where the guest can change what it leads to", e.Path, e.Dir)
}
