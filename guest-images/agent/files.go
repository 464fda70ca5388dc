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
	"strings"

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
	st, err := os.Lstat(real)
	if err != nil {
		return &fs.PathError{Op: "open", Path: path, Err: errors.Unwrap(err)}
	}
	if st.Mode()&fs.ModeSocket != 0 {
		return fmt.Errorf("%s is a socket, which means nothing elsewhere", path)
	}
	t := tar.NewWriter(w)
	err = filepath.WalkDir(real, func(p string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(real, p)
		if err != nil {
			return err
		}
		return addFile(t, p, filepath.Join(top, rel))
	})
	return errors.Join(err, t.Close())
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

// addFile adds a file as it is now. What it says of its size need not be true: in /proc it
// is 0, and in /sys a page.
func addFile(t *tar.Writer, path, name string) error {
	info, err := os.Lstat(path)
	if err != nil {
		return err
	}
	if info.Mode()&fs.ModeSocket != 0 {
		return nil // means nothing elsewhere
	}
	var link string
	if info.Mode()&fs.ModeSymlink != 0 {
		if link, err = os.Readlink(path); err != nil {
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
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
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
		return fmt.Errorf("%s does not say its size, and has more than %d MiB", path, sizeless>>20)
	case h.Size < n:
		head.Truncate(int(h.Size))
	}
	if err := t.WriteHeader(h); err != nil {
		return err
	}
	if _, err := t.Write(head.Bytes()); err != nil {
		return err
	}
	// A file that grows meanwhile would not fit in its header.
	rest := h.Size - int64(head.Len())
	n, err := io.Copy(t, io.LimitReader(f, rest))
	if err == nil && n < rest {
		err = fmt.Errorf("%s became shorter while it was read", path)
	}
	return err
}
