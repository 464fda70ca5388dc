package agent

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"vmm/internal/paths"
)

// block is what a file takes at least of a file system, in bytes.
const block = 4096

// TooLargeError is the error for more data than may come.
type TooLargeError struct{ Limit int64 }

// Error implements error.
func (e *TooLargeError) Error() string {
	return fmt.Sprintf("the guest sends more than %d bytes, with each file in blocks of %d", e.Limit, block)
}

// extraction unpacks a tar archive in a directory. All belongs to the one who unpacks it,
// and nothing is setuid: neither side should trust the other that far. Names that lead
// out of the directory are refused, and so is what would be written through a symbolic
// link, of the archive or not.
type extraction struct {
	// name is what the archive is of, and the only thing that may be in it, with all below;
	// it is unpacked as as. If name is empty, all is taken as it is called.
	name, as string
	// limit bounds what comes, in bytes and whole blocks; 0 is no limit.
	limit int64
	root  *os.Root
	used  int64
}

// extract unpacks an archive in a directory, which is made if need be.
func (x *extraction) extract(r io.Reader, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	return x.into(r, root)
}

// into unpacks an archive in a directory that is open, and closes it.
func (x *extraction) into(r io.Reader, root *os.Root) error {
	x.root = root
	defer root.Close()
	t := tar.NewReader(r)
	for {
		h, err := t.Next()
		if err == io.EOF {
			_, err = io.Copy(io.Discard, r) // what pads the archive
			return err
		}
		if err != nil {
			return err
		}
		if err := x.entry(t, h); err != nil {
			return fmt.Errorf("%q: %w", h.Name, err)
		}
	}
}

// local is where an entry of the archive comes to be, in the directory.
func (x *extraction) local(entry string) (string, error) {
	clean := path.Clean(strings.TrimPrefix(entry, "/"))
	if x.name != "" {
		rest, ok := strings.CutPrefix(path.Clean(entry), x.name)
		if x.name == "/" {
			rest, ok = entry, path.IsAbs(entry)
		} else if !filepath.IsLocal(entry) {
			ok = false
		}
		if clean = path.Join(x.as, rest); !ok || rest != "" && rest[0] != '/' || clean != x.as && !strings.HasPrefix(clean, x.as+"/") {
			return "", fmt.Errorf("the guest sends what it was not asked for, which was %q", x.name)
		}
	}
	for dir := path.Dir(clean); dir != "." && dir != "/"; dir = path.Dir(dir) {
		if st, err := x.root.Lstat(dir); err == nil && st.Mode()&fs.ModeSymlink != 0 {
			return "", fmt.Errorf("%q is a symbolic link: nothing is written through one", dir)
		}
	}
	return clean, nil
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

func (x *extraction) entry(t *tar.Reader, h *tar.Header) error {
	name, err := x.local(h.Name)
	if err != nil {
		return err
	}
	mode := fs.FileMode(h.Mode).Perm()
	if name == "." {
		return nil
	}
	if err := x.charge(h.Size); err != nil {
		return err
	}
	if err := x.root.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	switch h.Typeflag {
	case tar.TypeDir:
		if st, err := x.root.Lstat(name); err == nil && !st.IsDir() {
			return unix.ENOTDIR
		}
		if err := x.root.MkdirAll(name, mode|0o700); err != nil {
			return err
		}
	case tar.TypeSymlink:
		if err := removeOld(x.root, name); err != nil {
			return err
		}
		return x.root.Symlink(h.Linkname, name)
	case tar.TypeLink:
		to, err := x.local(h.Linkname)
		if err != nil {
			return err
		}
		if err := removeOld(x.root, name); err != nil {
			return err
		}
		return x.root.Link(to, name)
	case tar.TypeReg:
		if err := removeOld(x.root, name); err != nil {
			return err
		}
		f, err := x.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode|0o200)
		if err != nil {
			return err
		}
		_, err = io.Copy(f, t)
		if err = errors.Join(err, f.Close()); err != nil {
			return err
		}
	default:
		return nil // devices and the like are not files to copy
	}
	if err := x.root.Chmod(name, mode); err != nil {
		return err
	}
	return x.root.Chtimes(name, time.Time{}, h.ModTime)
}

// removeOld makes way for a file; a directory stays.
func removeOld(root *os.Root, name string) error {
	err := root.Remove(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// reserve is what a copy leaves free on a file system, if it has that much.
const reserve = 64 << 20

// room is how much may come to a directory: what is free there, but for the reserve.
func room(dir *os.File) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(dir.Fd()), &st); err != nil {
		return 0, err
	}
	return max(block, int64(st.Bavail)*st.Bsize-reserve), nil
}

// openDir opens a directory that somebody may be exchanging: a link in guest's
// directories, and one that comes to be meanwhile, is an error.
func openDir(dir string, guest []string) (*os.File, error) {
	real, links, err := paths.Walk(dir, true)
	if err != nil {
		return nil, err
	}
	for _, l := range links {
		if in := paths.Inside(l, guest); in != "" {
			return nil, &paths.GuestError{Path: dir, Dir: in}
		}
	}
	fd, err := paths.Open(real, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: dir, Err: err}
	}
	return os.NewFile(uintptr(fd), dir), nil
}
