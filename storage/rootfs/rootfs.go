// Package rootfs makes an ext4 disk of a directory or a tar archive.
package rootfs

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"vmm/internal/ctxio"
	"vmm/internal/decompress"
	"vmm/internal/tarfile"
	"vmm/internal/xattr"
	"vmm/storage/ext4"
)

// Build writes an ext4 file system with the files of source, a directory or a
// tar archive, plain or compressed, to an empty file, and leaves free
// bytes of room in it. The file is sparse.
//
// Files that belong to the user who makes it belong to root in it, unless that
// is root, as with fakeroot. When ctx ends, Build ends with its error.
func Build(ctx context.Context, source string, out *os.File, free int64) error {
	r, closeSource, err := open(source)
	if err != nil {
		return err
	}
	err = build(tar.NewReader(ctxio.Reader(ctx, r)), out, free)
	if err = errors.Join(err, closeSource()); err != nil {
		return fmt.Errorf("%s: %w", source, err)
	}
	return nil
}

// build makes the file system of an archive.
func build(r *tar.Reader, out *os.File, free int64) error {
	w, err := ext4.NewWriter(out)
	if err != nil {
		return err
	}
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return w.Close(free)
		}
		if err != nil {
			return err
		}
		if h.Typeflag == tar.TypeLink {
			err = w.Link(h.Linkname, h.Name)
		} else if kind, ok := tarfile.Types[h.Typeflag]; ok {
			err = w.Create(h.Name, ext4.Attributes{
				Mode: kind | uint16(h.Mode)&0o7777, UID: uint32(h.Uid), GID: uint32(h.Gid), Modified: h.ModTime,
				Target: h.Linkname, Major: uint32(h.Devmajor), Minor: uint32(h.Devminor), Xattrs: tarfile.Xattrs(h),
			}, r)
		} // what else there is in archives is no file
		if err != nil {
			return err
		}
	}
}

// IsTar reports whether a file is a tar archive, plain or compressed.
func IsTar(path string) (bool, error) {
	r, closeSource, err := open(path)
	if err != nil {
		return false, err
	}
	defer closeSource()
	_, err = tar.NewReader(r).Next()
	return err == nil, nil
}

// open returns the source as a tar stream.
func open(source string) (r io.Reader, close func() error, err error) {
	f, err := os.Open(source)
	if err != nil {
		return nil, nil, err
	}
	st, err := f.Stat()
	if err != nil {
		return nil, nil, errors.Join(err, f.Close())
	}
	if st.IsDir() {
		f.Close()
		pr, pw := io.Pipe()
		go func() { pw.CloseWithError(archive(source, pw)) }()
		return pr, pr.Close, nil
	}
	b := bufio.NewReader(f)
	head, _ := b.Peek(decompress.HeadSize)
	format := decompress.Detect(head)
	if format == nil {
		return b, f.Close, nil
	}
	unpacked, err := format.NewReader(b)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", source, errors.Join(err, f.Close()))
	}
	return unpacked, func() error { return errors.Join(unpacked.Close(), f.Close()) }, nil
}

// archive writes a directory as a tar stream.
func archive(dir string, w io.Writer) error {
	t := tar.NewWriter(w)
	links := map[[2]uint64]string{} // of files with several names
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil || name == "." {
			return err
		}
		return add(t, path, name, links)
	})
	return errors.Join(err, t.Close())
}

// add writes one file.
func add(t *tar.Writer, path, name string, links map[[2]uint64]string) error {
	info, err := os.Lstat(path)
	if err != nil {
		return err
	}
	target := ""
	switch {
	case info.Mode()&fs.ModeSymlink != 0:
		if target, err = os.Readlink(path); err != nil {
			return err
		}
	case info.Mode()&fs.ModeSocket != 0:
		return nil // it belongs to a process of the host
	}
	h, err := tar.FileInfoHeader(info, target)
	if err != nil {
		return err
	}
	h.Name, h.Format = name, tar.FormatPAX
	h.Uname, h.Gname = "", ""
	if me := os.Geteuid(); me != 0 && h.Uid == me {
		h.Uid, h.Gid = 0, 0
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && st.Nlink > 1 && info.Mode().IsRegular() {
		id := [2]uint64{st.Dev, st.Ino}
		if first, ok := links[id]; ok {
			h.Typeflag, h.Linkname, h.Size = tar.TypeLink, first, 0
			return t.WriteHeader(h)
		}
		links[id] = name
	}
	attributes, err := xattr.Of(path)
	if err != nil {
		return err
	}
	h.PAXRecords = map[string]string{}
	for key, value := range attributes { // capabilities are among them
		h.PAXRecords[tarfile.XattrKey(key)] = value
	}
	if err := t.WriteHeader(h); err != nil || !info.Mode().IsRegular() {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(t, f)
	return err
}
