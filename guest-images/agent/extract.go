package agent

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// block is what a file takes at least of a file system, in bytes.
const block = 4096

// TooLargeError is the error for more data than may come.
type TooLargeError struct{ Limit int64 }

// Error implements error.
func (e *TooLargeError) Error() string {
	return fmt.Sprintf("the guest sends more than %d bytes, with each file in blocks of %d", e.Limit, block)
}

// extraction unpacks a tar archive where a copy comes to. All belongs to the one who unpacks
// it, and nothing is setuid: neither side should trust the other that far. Names that lead
// out of the place are refused, and so is what would be written through a symbolic link, of
// the archive or not; but the path that was asked for may end with one.
type extraction struct {
	to string // where the copy comes to, as it was written
	// top is what the archive is of, and the only thing that may be in it, with all below; base
	// is what it is called in a directory that it comes to. If top is empty, all is taken as
	// it is called.
	top, base string
	content   bool     // of a directory, what is in it comes to the place
	guest     []string // see GetOptions
	// limit bounds what comes, in bytes and whole blocks; 0 is no limit. With fits it is what
	// there is room for.
	limit int64
	fits  bool
	ctx   context.Context // ends the wait for a pipe's reader; nil waits on

	destination
	used int64
	dirs []made
}

// made is a directory, and what it is to be when all is in it.
type made struct {
	name string
	mode fs.FileMode
	time time.Time
}

// extraction is how the guest takes it.
func (c *copyIn) extraction() *extraction {
	return &extraction{to: c.To, top: c.Top, base: c.Top, content: c.Content}
}

// unpack unpacks an archive.
func (x *extraction) unpack(r io.Reader) (err error) {
	defer func() { err = errors.Join(err, x.finish()) }()
	if x.top == "" {
		if err := x.find(nil); err != nil {
			return err
		}
	}
	t := tar.NewReader(r)
	for {
		h, err := t.Next()
		if err == io.EOF {
			_, err = io.Copy(io.Discard, r) // what pads the archive
			return err
		}
		if err != nil {
			if x.top == "" { // somebody's own
				err = fmt.Errorf("no tar archive, or one that is cut off: %w", err)
			}
			return err
		}
		if x.root == nil {
			if path.Clean(h.Name) != x.top {
				return fmt.Errorf("%q: %w", h.Name, &unaskedError{x.top})
			}
			if err := x.find(h); err != nil {
				return err
			}
		}
		if err := x.entry(t, h); err != nil {
			return fmt.Errorf("%q: %w", h.Name, err)
		}
	}
}

// finish gives the directories the modes and times that they are to have, the inner ones
// first.
func (x *extraction) finish() (err error) {
	if x.root == nil {
		return nil
	}
	for _, d := range slices.Backward(x.dirs) {
		err = errors.Join(err, x.root.Chmod(d.name, d.mode), x.root.Chtimes(d.name, time.Time{}, d.time))
	}
	return errors.Join(err, x.root.Close())
}

// unaskedError is the error for an entry of an archive that is of something else.
type unaskedError struct{ asked string }

// Error implements error.
func (e *unaskedError) Error() string {
	return fmt.Sprintf("the guest sends what it was not asked for, which was %q", e.asked)
}

// local is where an entry of the archive comes to be, below the root.
func (x *extraction) local(entry string) (string, error) {
	name := path.Clean(entry)
	if x.top == "" {
		name = strings.TrimPrefix(name, "/")
	} else {
		rest, ok := strings.CutPrefix(name, x.top)
		if !ok || rest != "" && rest[0] != '/' {
			return "", &unaskedError{x.top}
		}
		name = path.Join(x.as, rest)
	}
	if !filepath.IsLocal(name) {
		return "", errors.New("the name leads out of the directory")
	}
	for dir := path.Dir(name); dir != "." && dir != "/"; dir = path.Dir(dir) {
		if st, err := x.root.Lstat(dir); err == nil && st.Mode()&fs.ModeSymlink != 0 {
			return "", fmt.Errorf("%q is a symbolic link: nothing is written through one", dir)
		}
	}
	return name, nil
}

// charge counts a file of so many bytes.
func (x *extraction) charge(size int64) error {
	blocks := size / block
	if size%block != 0 || size == 0 {
		blocks++
	}
	if x.limit > 0 && blocks > (x.limit-x.used)/block {
		return &TooLargeError{x.limit}
	}
	x.used += blocks * block
	return nil
}

// entry unpacks one entry.
func (x *extraction) entry(t *tar.Reader, h *tar.Header) error {
	name, err := x.local(h.Name)
	if err != nil {
		return err
	}
	if name == "." && h.Typeflag == tar.TypeDir {
		return nil // it stays as it is
	}
	if err := x.charge(h.Size); err != nil {
		return err
	}
	mode := fs.FileMode(h.Mode).Perm()
	if dir := path.Dir(name); dir != "." {
		if err := x.root.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	through := x.through
	x.through = "" // for the first entry only
	switch h.Typeflag {
	case tar.TypeDir:
		return x.directory(name, mode, h.ModTime)
	case tar.TypeSymlink:
		if err := x.makeWay(name); err != nil {
			return err
		}
		return x.root.Symlink(h.Linkname, name)
	case tar.TypeLink:
		to, err := x.local(h.Linkname)
		if err != nil {
			return err
		}
		if err := x.makeWay(name); err != nil {
			return err
		}
		return x.root.Link(to, name)
	case tar.TypeReg:
		if through != "" {
			f, err := x.openThrough(through)
			if err == nil {
				_, err = io.Copy(f, t)
				if x.regular { // it may be another's, who has given it its mode
					f.Chmod(mode)
				}
				return errors.Join(err, f.Close())
			}
			if !x.regular || !errors.Is(err, unix.EACCES) && !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.ETXTBSY) {
				return err
			}
		}
		if err := x.makeWay(name); err != nil {
			return err
		}
		f, err := x.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode|0o200)
		if err != nil {
			return err
		}
		_, err = io.Copy(f, t)
		if err = errors.Join(err, f.Close()); err != nil { // half a file is none
			return errors.Join(err, x.root.Remove(name))
		}
	default:
		return nil // devices and the like are not files to copy
	}
	if err := x.root.Chmod(name, mode); err != nil {
		return err
	}
	return x.root.Chtimes(name, time.Time{}, h.ModTime)
}

// directory makes a directory, or takes the one that is there. Until all is in it, it can be
// written to.
func (x *extraction) directory(name string, mode fs.FileMode, when time.Time) error {
	st, err := x.root.Lstat(name)
	switch {
	case err == nil && !st.IsDir():
		return fmt.Errorf("a directory does not replace what is there: %w", unix.ENOTDIR)
	case err == nil && st.Mode()&0o700 != 0o700:
		err = x.root.Chmod(name, mode|0o700)
	case err != nil:
		err = x.root.Mkdir(name, mode|0o700)
	}
	if err == nil {
		x.dirs = append(x.dirs, made{name, mode, when})
	}
	return err
}

// makeWay removes what a file, or a link, is to be in the place of. A directory stays.
func (x *extraction) makeWay(name string) error {
	st, err := x.root.Lstat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case st.IsDir():
		return fmt.Errorf("it does not replace the directory that is there: %w", unix.EISDIR)
	}
	return x.root.Remove(name)
}
