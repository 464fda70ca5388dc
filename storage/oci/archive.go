package oci

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"vmm/internal/ctxio"
	"vmm/internal/decompress"
	"vmm/internal/temp"
)

// archive is a directory or a tar archive whose files can be read in any order.
type archive struct {
	root  *os.Root           // of a directory
	file  *os.File           // of an archive, not compressed
	files map[string]section // of an archive
	close func() error
}

// section is where a file's contents lie in an archive, or the file that has them.
type section struct {
	at, size int64
	link     string
}

// maxArchived is how many files an archive of images may have.
const maxArchived = 100000

// openArchive opens what a user has given: f stays his. What is compressed, or comes by a pipe,
// is copied to a temporary file.
func openArchive(ctx context.Context, f *os.File) (*archive, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if st.IsDir() {
		root, err := os.OpenRoot(f.Name())
		if err != nil {
			return nil, err
		}
		return &archive{root: root, close: root.Close}, nil
	}
	a := &archive{file: f, close: func() error { return nil }}
	b := bufio.NewReaderSize(f, 256<<10)
	head, _ := b.Peek(decompress.HeadSize)
	format := decompress.Detect(head)
	if format != nil || !st.Mode().IsRegular() {
		if err := a.spool(ctx, b, format); err != nil {
			return nil, err
		}
	}
	if err := a.scan(); err != nil {
		return nil, errors.Join(err, a.close())
	}
	return a, nil
}

// spool copies the archive to a temporary file, which goes when it is closed.
func (a *archive) spool(ctx context.Context, r io.Reader, format *decompress.Format) error {
	if format != nil {
		unpacked, err := format.NewReader(r)
		if err != nil {
			return err
		}
		defer unpacked.Close()
		r = unpacked
	}
	out, err := temp.File("vmm-load-")
	if err != nil {
		return err
	}
	os.Remove(out.Name())
	if _, err := io.Copy(out, ctxio.Reader(ctx, r)); err != nil {
		return errors.Join(err, out.Close())
	}
	a.file, a.close = out, out.Close
	return nil
}

// scan finds the files of a tar archive.
func (a *archive) scan() error {
	if _, err := a.file.Seek(0, io.SeekStart); err != nil {
		return err
	}
	a.files = map[string]section{}
	r := tar.NewReader(a.file)
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("not a tar archive, or cut off: %w", err)
		}
		if len(a.files) == maxArchived {
			return fmt.Errorf("over %d files: %w", maxArchived, ErrLimit)
		}
		name := path.Clean(strings.TrimPrefix(h.Name, "/"))
		switch h.Typeflag {
		case tar.TypeReg:
			at, err := a.file.Seek(0, io.SeekCurrent) // the reader reads no further than it must
			if err != nil {
				return err
			}
			a.files[name] = section{at: at, size: h.Size}
		case tar.TypeSymlink: // old versions of docker have a layer once
			a.files[name] = section{link: path.Join(path.Dir(name), h.Linkname)}
		case tar.TypeLink:
			a.files[name] = section{link: path.Clean(h.Linkname)}
		}
	}
}

// open opens a file by its name. fs.ErrNotExist is in the error if there is none.
func (a *archive) open(name string) (io.ReadCloser, error) {
	if a.root != nil {
		return a.openFile(name)
	}
	at := path.Clean(name)
	for range maxLinks {
		s, ok := a.files[at]
		if !ok {
			break
		}
		if s.link == "" {
			return io.NopCloser(io.NewSectionReader(a.file, s.at, s.size)), nil
		}
		at = s.link
	}
	return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
}

// openFile opens a file of a directory, which is not waited for if it is a pipe.
func (a *archive) openFile(name string) (io.ReadCloser, error) {
	f, err := a.root.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = fmt.Errorf("%s: not a file", name)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// read reads a file that describes others.
func (a *archive) read(name string) ([]byte, error) {
	f, err := a.open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxManifest+1))
	if err == nil && len(b) > maxManifest {
		err = fmt.Errorf("%s: over %d bytes: %w", name, maxManifest, ErrLimit)
	}
	return b, err
}
