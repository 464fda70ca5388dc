package agent

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"vmm/internal/paths"
)

// archive writes a file or a directory with all in it as a tar archive, in which it is
// called top. A link at the end of the path is followed if follow is set, or the path names
// a directory.
func archive(w io.Writer, path, top string, follow bool) error {
	real, _, err := paths.Walk(path, follow || namesDir(path))
	if err != nil {
		return err
	}
	file := place{nil, real}
	st, err := file.lstat()
	if err != nil {
		return &fs.PathError{Op: "open", Path: path, Err: errors.Unwrap(err)}
	}
	if st.Mode()&fs.ModeSocket != 0 {
		return fmt.Errorf("%s is a socket, which means nothing elsewhere", path)
	}
	t := tar.NewWriter(w)
	return errors.Join(addTree(t, file, top), t.Close())
}

// place is where a file is: a name in a directory, or without one a path that is free of
// links. Somebody may be exchanging what is there, such as a guest in a directory that is shared
// with it: a link that comes to be meanwhile leads to nothing outside of the directory.
type place struct {
	dir  *os.Root
	name string
}

func (p place) lstat() (fs.FileInfo, error) {
	if p.dir == nil {
		return os.Lstat(p.name)
	}
	return p.dir.Lstat(p.name)
}

func (p place) readlink() (string, error) {
	if p.dir == nil {
		return os.Readlink(p.name)
	}
	return p.dir.Readlink(p.name)
}

// open opens a file for reading. It does not wait for what has come to its place.
func (p place) open() (*os.File, error) {
	const flags = unix.O_RDONLY | unix.O_NONBLOCK | unix.O_NOCTTY
	if p.dir != nil {
		return p.dir.OpenFile(p.name, flags, 0)
	}
	fd, err := paths.Open(p.name, flags, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: p.name, Err: err}
	}
	return os.NewFile(uintptr(fd), p.name), nil
}

// root opens a directory.
func (p place) root() (*os.Root, error) {
	if p.dir != nil {
		return p.dir.OpenRoot(p.name)
	}
	dir, err := openDir(p.name)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	return rootOf(dir)
}

// addTree adds a file and, if it is a directory, all below it in the order of their names.
func addTree(t *tar.Writer, at place, as string) error {
	info, err := at.lstat()
	if err != nil {
		return err
	}
	if err := addFile(t, at, as, info); err != nil || !info.IsDir() {
		return err
	}
	dir, err := at.root()
	if err != nil {
		return err
	}
	defer dir.Close()
	list, err := dir.Open(".")
	if err != nil {
		return err
	}
	names, err := list.Readdirnames(-1)
	if err = errors.Join(err, list.Close()); err != nil {
		return err
	}
	slices.Sort(names)
	for _, n := range names {
		if err := addTree(t, place{dir, n}, filepath.Join(as, n)); err != nil {
			return err
		}
	}
	return nil
}

// namesDir reports whether a path can only be a directory.
func namesDir(path string) bool {
	switch filepath.Base(path) {
	case ".", "..":
		return true
	}
	return strings.HasSuffix(path, "/")
}

// sizeless is how much a file may have that says it had nothing, in bytes.
const sizeless = 64 << 20

// addFile adds a file as it is now. What it says of its size need not be true: in
// /proc it is 0, and in /sys a page.
func addFile(t *tar.Writer, at place, name string, info fs.FileInfo) (err error) {
	if info.Mode()&fs.ModeSocket != 0 {
		return nil // means nothing elsewhere
	}
	var link string
	if info.Mode()&fs.ModeSymlink != 0 {
		if link, err = at.readlink(); err != nil {
			return err
		}
	}
	h, err := tar.FileInfoHeader(info, link)
	if err != nil {
		return err
	}
	h.Name = name
	if !info.Mode().IsRegular() {
		return t.WriteHeader(h)
	}
	f, err := at.open()
	if err != nil {
		return err
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return errors.Join(err, fmt.Errorf("%s has become something else than a file", name))
	}
	var head bytes.Buffer
	most := int64(64 << 10)
	if h.Size == 0 {
		most = sizeless
	}
	switch n, err := io.CopyN(&head, f, most); {
	case err == io.EOF:
		h.Size = n
	case err != nil:
		return err
	case h.Size == 0:
		return fmt.Errorf("%s does not say its size, and has more than %d MiB", name, sizeless>>20)
	case h.Size < n:
		head.Truncate(int(h.Size))
	}
	if err := t.WriteHeader(h); err != nil {
		return err
	}
	if _, err := t.Write(head.Bytes()); err != nil {
		return err
	}
	return copyExactly(t, f, h.Size-int64(head.Len()), name)
}

// copyExactly copies so many bytes: a file that grows meanwhile would not fit in its header.
func copyExactly(w io.Writer, r io.Reader, size int64, name string) error {
	n, err := io.Copy(w, io.LimitReader(r, size))
	if err == nil && n < size {
		err = fmt.Errorf("%s became shorter while it was read", name)
	}
	return err
}
