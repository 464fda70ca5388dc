package agent

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// archive writes a file or a directory with all in it as a tar archive, in which
// it has a name.
func archive(w io.Writer, path, name string) error {
	t := tar.NewWriter(w)
	err := filepath.WalkDir(path, func(p string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(path, p)
		if err != nil {
			return err
		}
		return addFile(t, p, filepath.Join(name, rel))
	})
	return errors.Join(err, t.Close())
}

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
	if err := t.WriteHeader(h); err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return nil
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	// A file that grows meanwhile would not fit in its header.
	n, err := io.Copy(t, io.LimitReader(f, h.Size))
	if err == nil && n < h.Size {
		err = fmt.Errorf("%s became shorter while it was read", path)
	}
	return err
}

// extract unpacks a tar archive in a directory, which is made if need be; what is
// called name in the archive is called as there. All belongs to the one who
// unpacks it, and nothing is setuid: neither side should trust the other that far.
// Names that lead out of the directory are refused, also by symbolic links of the
// archive.
func extract(r io.Reader, dir, name, as string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
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
		if h.Name = renamed(h.Name, name, as); h.Typeflag == tar.TypeLink {
			h.Linkname = renamed(h.Linkname, name, as)
		}
		if err := extractFile(root, t, h); err != nil {
			return fmt.Errorf("%s: %w", h.Name, err)
		}
	}
}

// renamed gives a path that begins with name another beginning.
func renamed(path, name, as string) string {
	if rest, ok := strings.CutPrefix(path, name); ok && (rest == "" || rest[0] == '/') {
		return as + rest
	}
	return path
}

func extractFile(root *os.Root, t *tar.Reader, h *tar.Header) error {
	name := filepath.Clean(strings.TrimPrefix(h.Name, "/"))
	mode := fs.FileMode(h.Mode).Perm()
	if name == "." {
		return nil
	}
	if err := root.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	switch h.Typeflag {
	case tar.TypeDir:
		if err := root.MkdirAll(name, mode|0o700); err != nil {
			return err
		}
	case tar.TypeSymlink:
		if err := removeOld(root, name); err != nil {
			return err
		}
		return root.Symlink(h.Linkname, name)
	case tar.TypeLink:
		if err := removeOld(root, name); err != nil {
			return err
		}
		return root.Link(filepath.Clean(strings.TrimPrefix(h.Linkname, "/")), name)
	case tar.TypeReg:
		if err := removeOld(root, name); err != nil {
			return err
		}
		f, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode|0o200)
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
	if err := root.Chmod(name, mode); err != nil {
		return err
	}
	return root.Chtimes(name, time.Time{}, h.ModTime)
}

// removeOld makes way for a file; a directory stays.
func removeOld(root *os.Root, name string) error {
	err := root.Remove(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
