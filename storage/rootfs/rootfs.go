// Package rootfs makes an ext4 disk of a directory or a tar archive.
package rootfs

import (
	"archive/tar"
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/Microsoft/hcsshim/ext4/tar2ext4"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/therootcompany/xz"
	"golang.org/x/sys/unix"
)

// maxSize is the largest disk: metadata is laid out for it.
const maxSize = 1 << 40

// Build writes an ext4 file system with the files of source, a directory or a
// tar archive (plain, gzip, zstd or xz), to an empty file, and leaves free
// bytes of room in it. The file is sparse.
//
// Files that belong to the user who makes it belong to root in it, unless that
// is root, as with fakeroot.
func Build(source string, out *os.File, free int64) error {
	r, closeSource, err := open(source)
	if err != nil {
		return err
	}
	err = tar2ext4.Convert(r, out, tar2ext4.MaximumDiskSize(maxSize))
	if err = errors.Join(err, closeSource()); err != nil {
		return fmt.Errorf("%s: %w", source, err)
	}
	return grow(out, free)
}

// IsTar tells whether a file is a tar archive, plain or compressed.
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
	head, _ := b.Peek(6)
	r, err = decompress(b, string(head))
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", source, errors.Join(err, f.Close()))
	}
	return r, f.Close, nil
}

func decompress(r io.Reader, head string) (io.Reader, error) {
	switch {
	case len(head) > 2 && head[:2] == "\x1f\x8b":
		return gzip.NewReader(r)
	case len(head) > 4 && head[:4] == "\x28\xb5\x2f\xfd":
		d, err := zstd.NewReader(r)
		if err != nil {
			return nil, err
		}
		return d.IOReadCloser(), nil
	case len(head) == 6 && head == "\xfd7zXZ\x00":
		return xz.NewReader(r, 0)
	}
	return r, nil
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
	if st, ok := info.Sys().(*unix.Stat_t); ok && st.Nlink > 1 && info.Mode().IsRegular() {
		id := [2]uint64{st.Dev, st.Ino}
		if first, ok := links[id]; ok {
			h.Typeflag, h.Linkname, h.Size = tar.TypeLink, first, 0
			return t.WriteHeader(h)
		}
		links[id] = name
	}
	h.PAXRecords = xattrs(path)
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

// xattrs returns a file's extended attributes as PAX records: capabilities are
// among them.
func xattrs(path string) map[string]string {
	names := make([]byte, 4096)
	n, err := unix.Llistxattr(path, names)
	if err != nil || n == 0 {
		return nil
	}
	out := map[string]string{}
	for _, name := range split(names[:n]) {
		v := make([]byte, 4096)
		if n, err := unix.Lgetxattr(path, name, v); err == nil {
			out["SCHILY.xattr."+name] = string(v[:n])
		}
	}
	return out
}

// split cuts a list of strings that end in zero bytes.
func split(b []byte) (out []string) {
	start := 0
	for i, c := range b {
		if c == 0 {
			out = append(out, string(b[start:i]))
			start = i + 1
		}
	}
	return out
}
