// Package output opens the files that vmm writes for its user: reports, consoles,
// captures, keys. A guest that once could write to a directory may have left a symbolic
// link there for the next one, so none is followed; and no output is opened where a guest
// that is about to run could exchange it. A file is opened before its VM starts and
// written in place at the end, when the process may open nothing any more.
package output

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"vmm/internal/paths"
)

// The permissions that a file is made with.
const (
	Private fs.FileMode = 0o600 // for what may hold secrets
	Report  fs.FileMode = 0o666 // as the user's umask leaves it
)

// ErrLink is in the error for a path that ends with a symbolic link.
var ErrLink = errors.New("it is a symbolic link, which a guest may have left there: name the file itself")

// File is an output. It is for one goroutine at a time.
type File struct {
	*os.File
	path string // if it was made here, and nothing was written to it
	real string // where it is, if it is regular
}

// Open opens a file for writing, and makes it with a mode if it is not there; one that is
// there keeps its mode and, until Replace, its contents. guest are the directories that
// the guest of the VM can write to: a paths.GuestError says that the path is in one, or
// leads through a link there. A device or a pipe is written to as it is, and so are the
// links of /dev and /proc, such as /dev/stdout. Other errors are a *fs.PathError.
func Open(path string, mode fs.FileMode, guest []string) (*File, error) {
	real, err := Place(path, guest)
	if err != nil {
		return nil, err
	}
	st, err := os.Lstat(real)
	if err == nil && st.Mode()&fs.ModeSymlink != 0 {
		if filepath.Dir(real) != "/dev" && !strings.HasPrefix(real, "/proc/") {
			return nil, &fs.PathError{Op: "open", Path: path, Err: ErrLink}
		}
		f, err := os.OpenFile(real, os.O_WRONLY|os.O_APPEND, 0)
		return &File{File: f}, err
	}
	made := ""
	const flags = unix.O_WRONLY | unix.O_NOCTTY
	fd, err := paths.Open(real, flags|unix.O_CREAT|unix.O_EXCL, mode)
	if err == nil {
		made = real
	} else if errors.Is(err, unix.EEXIST) {
		fd, err = paths.Open(real, flags, 0)
	}
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	f := &File{File: os.NewFile(uintptr(fd), path), path: made}
	if st, err = f.Stat(); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if st.Mode().IsRegular() {
		f.real = real
	}
	return f, nil
}

// Place returns a path, which need not be there, absolute and free of symbolic links but for one that it ends with. Where
// a guest could put something in its way, the error is a *paths.GuestError; guest are the directories that it can write to.
func Place(path string, guest []string) (real string, err error) {
	real, links, err := paths.Walk(path, false)
	if err != nil {
		var part *fs.PathError // of a directory above it, which says less than the output's name
		if errors.As(err, &part) {
			err = &fs.PathError{Op: "open", Path: path, Err: part.Err}
		}
		return "", err
	}
	for _, p := range append(links, real) {
		if dir := paths.Inside(p, guest); dir != "" {
			return "", &paths.GuestError{Path: path, Dir: dir}
		}
	}
	return real, nil
}

// Regular reports whether the output is a file on a disk.
func (f *File) Regular() bool { return f.real != "" }

// Create opens a file as Open does, and empties it.
func Create(path string, mode fs.FileMode, guest []string) (*File, error) {
	f, err := Open(path, mode, guest)
	if err != nil {
		return nil, err
	}
	if err := f.begin(); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// begin empties the file, which stays from now on.
func (f *File) begin() error {
	f.path = ""
	if !f.Regular() {
		return nil
	}
	return f.Truncate(0)
}

// Replace writes all that the file is to hold.
func (f *File) Replace(b []byte) error {
	if err := f.begin(); err != nil {
		return err
	}
	_, err := f.Write(b)
	return err
}

// Close closes the file. One that was made for what then did not come to be is removed,
// where the process may still do that.
func (f *File) Close() error {
	if f == nil {
		return nil
	}
	f.remove(f.path)
	if err := f.File.Close(); err != nil {
		return fmt.Errorf("what was written may not be there: %w", err)
	}
	return nil
}

// Abandon closes a file whose contents have not come whole, and removes it: not a device or a
// pipe, and not what has come to its place.
func (f *File) Abandon() error {
	f.remove(f.real)
	return f.File.Close()
}

// remove removes the file from a path, if it is there and that is not empty.
func (f *File) remove(path string) {
	if path == "" {
		return
	}
	here, err := f.Stat()
	if there, bad := os.Lstat(path); err == nil && bad == nil && os.SameFile(here, there) {
		os.Remove(path)
	}
}
