package agent

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"vmm/internal/tarfile"
)

// Change is a file that is not as it is in the image or directory that the guest's root is of.
type Change struct {
	Kind byte   // Added, Changed or Deleted
	Path string // absolute
}

// Changes calls each for what was written to the guest's root. A directory comes before what is
// in it. What the guest says is not to be believed.
func (c *Client) Changes(ctx context.Context, each func(Change) error) error {
	return c.get(ctx, Request{Op: OpChanges}, func(r io.Reader) error {
		lines := bufio.NewReaderSize(r, 2*unix.PathMax)
		for {
			b, err := lines.ReadSlice(0)
			switch {
			case err == io.EOF && len(b) == 0:
				return nil
			case errors.Is(err, bufio.ErrBufferFull) || err == nil && (len(b) < 3 || b[1] != '/' || !bytes.ContainsRune([]byte{Added, Changed, Deleted}, rune(b[0]))):
				return errFrame
			case err != nil:
				return err
			}
			if err := each(Change{b[0], string(b[1 : len(b)-1])}); err != nil {
				return err
			}
		}
	})
}

// GetLayer writes what was written to the guest's root as a layer of a container image, a tar
// archive that is not compressed (OCI image specification, layer.md). The guest's processes stand
// still meanwhile, if pause is set; the error may be ErrNotAlone then.
func (c *Client) GetLayer(ctx context.Context, w io.Writer, pause bool) error {
	return c.get(ctx, Request{Op: OpLayer, Pause: pause}, copyTo(w))
}

// GetRoot writes the guest's whole root as a tar archive, without what is mounted in it.
func (c *Client) GetRoot(ctx context.Context, w io.Writer) error {
	return c.get(ctx, Request{Op: OpRoot}, copyTo(w))
}

func copyTo(w io.Writer) func(io.Reader) error {
	return func(r io.Reader) error {
		_, err := io.Copy(w, r)
		return err
	}
}

// writeChanges writes each change as its kind, its path and a zero.
func (u *Upper) writeChanges(w io.Writer) error {
	b := bufio.NewWriterSize(w, packetFrame)
	err := u.changes(func(c *change) error {
		_, err := fmt.Fprintf(b, "%c/%s\x00", c.kind, c.path)
		return err
	})
	return errors.Join(err, b.Flush())
}

// Whiteouts (OCI image specification, layer.md).
const (
	whiteout       = ".wh."
	whiteoutOpaque = ".wh..wh..opq"
)

// layer sends the upper directory as a layer.
func (s *Server) layer(l *Link, pause bool) error {
	if pause {
		if !s.Alone {
			return ErrNotAlone
		}
		defer stopOthers()()
	}
	return answer(l, s.Upper.writeLayer)
}

// writeLayer writes the upper directory as a layer.
func (u *Upper) writeLayer(w io.Writer) error {
	if u == nil {
		return errNoUpper
	}
	a := newTree(w, u.xattrs())
	err := u.changes(func(c *change) error {
		dir, base := path.Split(c.path)
		gone := c.kind == Deleted || c.kind == Changed && c.at.kind() == unix.S_IFSOCK
		switch {
		case gone && c.hidden:
			return nil
		case gone:
			return a.empty(dir + whiteout + base)
		case strings.HasPrefix(base, whiteout):
			return fmt.Errorf("/%s: an image cannot have a name that begins with %s", c.path, whiteout)
		}
		if err := a.add(&c.at, c.path); err != nil || !c.opaque {
			return err
		}
		return a.empty(c.path + "/" + whiteoutOpaque)
	})
	return errors.Join(err, a.close())
}

// writeRoot writes the root.
func writeRoot(w io.Writer) error {
	// A copy of the mount has nothing of what is mounted in it.
	fd, err := unix.OpenTree(unix.AT_FDCWD, "/", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return fmt.Errorf("the root by itself: %w (Linux 5.2)", err)
	}
	defer unix.Close(fd)
	root, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		return err
	}
	defer root.Close()
	a := newTree(w, TrustedXattrs)
	return errors.Join(a.below(root, ""), a.close())
}

// treeWriter writes files with all that a file system has of them. Of one with several names
// the first is the file, and the others are links to it.
type treeWriter struct {
	buf   *bufio.Writer
	to    *tar.Writer
	part  []byte // of a file's contents
	links map[inode]string
	// hidden begins the names of attributes that are not of the files.
	hidden string
}

type inode struct{ device, number uint64 }

func newTree(w io.Writer, hidden string) *treeWriter {
	b := bufio.NewWriterSize(w, packetFrame)
	return &treeWriter{buf: b, to: tar.NewWriter(b), part: make([]byte, packetFrame), links: map[inode]string{}, hidden: hidden}
}

func (a *treeWriter) close() error { return errors.Join(a.to.Close(), a.buf.Flush()) }

// below adds all that is in a directory.
func (a *treeWriter) below(dir *os.File, as string) error {
	names, err := namesIn(dir)
	if err != nil {
		return err
	}
	for _, base := range names {
		e, ok, err := look(dir, base)
		if err != nil {
			return err
		}
		if !ok { // it has gone meanwhile
			continue
		}
		name := path.Join(as, base)
		if err := a.add(&e, name); err != nil {
			return err
		}
		if !e.isDir() {
			continue
		}
		d, err := e.open(unix.O_DIRECTORY)
		if err != nil {
			return err
		}
		if err := errors.Join(a.below(d, name), d.Close()); err != nil {
			return err
		}
	}
	return nil
}

// empty adds a file that says something by its name.
func (a *treeWriter) empty(name string) error {
	return a.to.WriteHeader(&tar.Header{Format: tar.FormatPAX, Typeflag: tar.TypeReg, Name: name, Mode: 0o600, ModTime: time.Unix(0, 0)})
}

// types are those of entries, by the types of files.
var types = map[uint32]byte{
	unix.S_IFREG: tar.TypeReg, unix.S_IFDIR: tar.TypeDir, unix.S_IFLNK: tar.TypeSymlink,
	unix.S_IFCHR: tar.TypeChar, unix.S_IFBLK: tar.TypeBlock, unix.S_IFIFO: tar.TypeFifo,
}

// add adds a file by itself. A socket means nothing elsewhere, and is left out.
func (a *treeWriter) add(e *entry, name string) (err error) {
	kind, ok := types[e.kind()]
	if !ok {
		return nil
	}
	st := &e.st
	h := &tar.Header{Format: tar.FormatPAX, Typeflag: kind, Name: name, Mode: int64(st.Mode & 0o7777), Uid: int(st.Uid), Gid: int(st.Gid),
		ModTime: time.Unix(st.Mtim.Unix()), PAXRecords: map[string]string{}}
	if kind == tar.TypeDir {
		h.Name += "/"
	} else if st.Nlink > 1 {
		key := inode{st.Dev, st.Ino}
		if first, ok := a.links[key]; ok {
			h.Typeflag, h.Linkname = tar.TypeLink, first
			return a.to.WriteHeader(h)
		}
		a.links[key] = name
	}
	if kind == tar.TypeReg {
		return a.contents(e, h)
	}
	attributes, err := e.xattrs()
	if err != nil {
		return err
	}
	a.addXattrs(h, attributes)
	switch kind {
	case tar.TypeSymlink:
		b := make([]byte, unix.PathMax)
		n, err := unix.Readlinkat(int(e.dir.Fd()), e.base, b)
		if err != nil {
			return e.failed(err)
		}
		h.Linkname = string(b[:n])
	case tar.TypeChar, tar.TypeBlock:
		h.Devmajor, h.Devminor = int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
	}
	return a.to.WriteHeader(h)
}

// contents adds a file with what is in it, as large as it is when it is opened.
func (a *treeWriter) contents(e *entry, h *tar.Header) error {
	fd, err := e.openFD(0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return e.failed(err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return fmt.Errorf("%s has become something else than a file", h.Name)
	}
	attributes, err := e.xattrsOf(fd)
	if err != nil {
		return err
	}
	a.addXattrs(h, attributes)
	h.Size = st.Size
	if err := a.to.WriteHeader(h); err != nil {
		return err
	}
	for left := st.Size; left > 0; {
		n, err := unix.Read(fd, a.part[:min(left, int64(len(a.part)))])
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return e.failed(err)
		case n == 0:
			return fmt.Errorf("%s became shorter while it was read", h.Name)
		}
		if _, err := a.to.Write(a.part[:n]); err != nil {
			return err
		}
		left -= int64(n)
	}
	return nil
}

// addXattrs gives an entry the extended attributes that are the file's.
func (a *treeWriter) addXattrs(h *tar.Header, attributes map[string]string) {
	for key, value := range without(attributes, a.hidden) {
		h.PAXRecords[tarfile.XattrKey(key)] = value
	}
}

// without are the extended attributes but for those whose names begin so.
func without(attributes map[string]string, prefix string) map[string]string {
	out := map[string]string{}
	for key, value := range attributes {
		if !strings.HasPrefix(key, prefix) {
			out[key] = value
		}
	}
	return out
}
