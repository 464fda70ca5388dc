// Package ext4 writes new ext4 file systems, from the front of an empty file to its
// back, while the files come in (Linux, Documentation/filesystems/ext4). They are
// plain: no checksums, a journal only if it is asked for, no backups of the superblock, directories without
// hashes. Every group has its own tables at its beginning, so that room behind the
// files is only more groups.
package ext4

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"vmm/storage"
)

// MaxSize is the largest file system, in bytes: the group descriptors have their
// place before it is known how many there are.
const MaxSize = 1 << 40

// ErrTooLarge is returned when the files do not fit in MaxSize.
var ErrTooLarge = fmt.Errorf("larger than %d GiB", MaxSize>>30)

// Image is what a file system is written to: an empty file.
type Image interface {
	io.WriterAt
	Truncate(size int64) error
}

// Attributes are what a file is but for its name and content.
type Attributes struct {
	Mode         uint16 // type and permissions, as in stat(2)
	UID, GID     uint32
	Modified     time.Time
	Target       string // of a symbolic link
	Major, Minor uint32 // of a device
	// Xattrs are the extended attributes, by their full names. Those of a namespace
	// that ext4 does not have are left out.
	Xattrs map[string]string
}

// Writer makes a file system. It is for one goroutine.
type Writer struct {
	to      Image
	inodes  []*inode // the one with number n is at n-1; nil for reserved and removed ones
	next    uint32   // the next block to give out, if it is for data
	removed []extent // blocks of files that later ones replaced
	buf     []byte
}

// Numbers of inodes.
const (
	rootInode     = 2
	firstInode    = 11 // of those that are not reserved
	lostAndFound  = "lost+found"
	maxName       = 255
	maxTarget     = blockSize - 1
	maxLinks      = 65000
	bufferedBytes = 1 << 20
)

// NewWriter begins a file system in an empty file.
func NewWriter(to Image) (*Writer, error) {
	w := &Writer{to: to, inodes: make([]*inode, firstInode-1), buf: make([]byte, bufferedBytes)}
	root := &inode{number: rootInode, links: 2, children: map[string]*inode{}}
	root.Mode, root.Modified, root.parent = unix.S_IFDIR|0o755, time.Unix(0, 0), root
	w.inodes[rootInode-1] = root
	return w, w.Create(lostAndFound, Attributes{Mode: unix.S_IFDIR | 0o700, Modified: root.Modified}, nil)
}

// Create adds a file; content is that of a regular one. Directories on its way that
// there are not yet belong to root. A file replaces one of the same name, a directory
// only changes its attributes.
func (w *Writer) Create(name string, a Attributes, content io.Reader) error {
	err := w.create(name, a, content)
	if err != nil {
		err = fmt.Errorf("%s: %w", name, err)
	}
	return err
}

func (w *Writer) create(name string, a Attributes, content io.Reader) error {
	dir, base, err := w.locate(name, a.Modified)
	if err != nil {
		return err
	}
	isDir := a.Mode&unix.S_IFMT == unix.S_IFDIR
	if base == "" { // the root
		if !isDir {
			return unix.EEXIST
		}
		dir.Attributes = a
		return w.placeXattrs(dir)
	}
	if old := dir.children[base]; old != nil {
		if isDir && old.children != nil {
			old.Attributes = a
			return w.placeXattrs(old)
		}
		if err := w.unlink(dir, base); err != nil {
			return err
		}
	}
	n, err := w.add(dir, base, a)
	if err != nil {
		return err
	}
	switch a.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		if content != nil {
			return w.write(n, content)
		}
	case unix.S_IFLNK:
		n.size = int64(len(a.Target))
		if n.size > maxTarget {
			return unix.ENAMETOOLONG
		}
		if n.size >= inlineTarget {
			return w.write(n, strings.NewReader(a.Target))
		}
	}
	return nil
}

// Link adds another name of a file that there is.
func (w *Writer) Link(target, name string) error {
	err := w.link(target, name)
	if err != nil {
		err = fmt.Errorf("%s, a link to %s: %w", name, target, err)
	}
	return err
}

func (w *Writer) link(target, name string) error {
	from, base, err := w.locate(target, time.Time{})
	if err != nil {
		return err
	}
	n := from.children[base]
	switch {
	case n == nil:
		return fs.ErrNotExist
	case n.children != nil:
		return unix.EISDIR
	case n.links >= maxLinks:
		return unix.EMLINK
	}
	dir, base, err := w.locate(name, n.Modified)
	if err != nil || dir.children[base] == n {
		return err
	}
	if dir.children[base] != nil {
		if err := w.unlink(dir, base); err != nil {
			return err
		}
	}
	dir.children[base] = n
	n.links++
	return nil
}

// locate finds the directory of a name, which it makes if need be, and what the name
// is there: "" for the root.
func (w *Writer) locate(name string, made time.Time) (dir *inode, base string, err error) {
	dir = w.inodes[rootInode-1]
	parts := strings.Split(strings.TrimPrefix(path.Clean("/"+name), "/"), "/")
	for i, part := range parts {
		switch {
		case len(part) > maxName:
			return nil, "", unix.ENAMETOOLONG
		case i == len(parts)-1:
			return dir, part, nil
		}
		next := dir.children[part]
		if next == nil {
			if next, err = w.add(dir, part, Attributes{Mode: unix.S_IFDIR | 0o755, Modified: made}); err != nil {
				return nil, "", err
			}
		}
		if next.children == nil {
			return nil, "", fmt.Errorf("%s is not a directory: %w", strings.Join(parts[:i+1], "/"), unix.ENOTDIR)
		}
		dir = next
	}
	panic("unreachable") // Split returns one part at least
}

// add makes the inode of a new file.
func (w *Writer) add(dir *inode, name string, a Attributes) (*inode, error) {
	if len(w.inodes) == maxGroups*inodesPerGroup {
		return nil, ErrTooLarge
	}
	n := &inode{Attributes: a, number: uint32(len(w.inodes) + 1), links: 1, parent: dir}
	if a.Mode&unix.S_IFMT == unix.S_IFDIR {
		n.children = map[string]*inode{}
		n.links++ // its own "."
		dir.links++
	}
	w.inodes = append(w.inodes, n)
	dir.children[name] = n
	return n, w.placeXattrs(n)
}

// unlink removes a name, and the file if it was the last.
func (w *Writer) unlink(dir *inode, name string) error {
	n := dir.children[name]
	if n.children != nil {
		return errors.New("a directory is there already")
	}
	delete(dir.children, name)
	if n.links--; n.links == 0 {
		w.removed = append(w.removed, n.extents...)
		w.removed = append(w.removed, n.treeBlocks...)
		if n.xattrBlock != 0 {
			w.removed = append(w.removed, extent{physical: n.xattrBlock, count: 1})
		}
		w.inodes[n.number-1] = nil
	}
	return nil
}

// write puts a file's content into blocks.
func (w *Writer) write(n *inode, content io.Reader) error {
	n.size = 0
	for {
		got, err := io.ReadFull(content, w.buf)
		if got > 0 {
			n.size += int64(got)
			clear(w.buf[got:roundUp(got)])
			if err := w.append(n, w.buf[:roundUp(got)]); err != nil {
				return err
			}
		}
		switch {
		case err == io.EOF || err == io.ErrUnexpectedEOF:
			return w.placeTree(n)
		case err != nil:
			return err
		}
	}
}

// append writes whole blocks behind those that a file has.
func (w *Writer) append(n *inode, b []byte) error {
	for len(b) > 0 {
		at, count, err := w.allocate(uint32(len(b) / blockSize))
		if err != nil {
			return err
		}
		run := b[:count*blockSize]
		b = b[len(run):]
		n.extend(at, count)
		if err := w.writeBlocks(at, run); err != nil {
			return err
		}
	}
	return nil
}

// writeBlocks writes blocks, but leaves a hole in the image where they are zero.
func (w *Writer) writeBlocks(at uint32, b []byte) error {
	if storage.IsZero(b) {
		return nil
	}
	_, err := w.to.WriteAt(b, int64(at)*blockSize)
	return err
}

// allocate gives out at most want blocks that lie one behind the other.
func (w *Writer) allocate(want uint32) (at, count uint32, err error) {
	group := w.next / blocksPerGroup
	if first := group*blocksPerGroup + reserved(group); w.next < first {
		w.next = first
	}
	if group >= maxGroups {
		return 0, 0, ErrTooLarge
	}
	at = w.next
	count = min(want, (group+1)*blocksPerGroup-at)
	w.next += count
	return at, count, nil
}

// writeDirectories writes the entries of all directories.
func (w *Writer) writeDirectories() error {
	for _, n := range w.inodes {
		if n == nil || n.children == nil {
			continue
		}
		var d directory
		d.add(".", n)
		d.add("..", n.parent)
		for _, name := range slices.Sorted(maps.Keys(n.children)) {
			d.add(name, n.children[name])
		}
		b := d.finish()
		n.size = int64(len(b))
		if err := w.append(n, b); err != nil {
			return err
		}
		if err := w.placeTree(n); err != nil {
			return err
		}
	}
	return nil
}
