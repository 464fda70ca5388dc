package oci

import (
	"archive/tar"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"vmm/internal/tarfile"
	"vmm/storage/erofs"
)

// Whiteouts (OCI image specification, layer.md, "Whiteouts").
const (
	whiteout       = ".wh."             // before the name of a file of lower layers that is gone
	whiteoutOpaque = ".wh..wh..opq"     // all that lower layers have in this directory is gone
	whiteoutOwn    = ".wh..wh."         // what AUFS kept for itself
	overlayXattrs  = "trusted.overlay." // what an overlay would take for its own
)

// maxLinks is how many symbolic links lead to one file, as in Linux.
const maxLinks = 40

// stepsPerEntry is how many parts of names there are to look up for one entry, on the average:
// links that lead through links could have it be thousands.
const stepsPerEntry = 64

// merger puts the layers of an image upon each other.
type merger struct {
	counter
	root    *erofs.Inode
	steps   int // names that were looked up in a directory
	segment int // of the layer's contents
	// own are the names that the layer has itself, which its whiteouts leave alone.
	own map[entry]bool
	// cleared are the directories that have nothing of lower layers any more.
	cleared map[*erofs.Inode]bool
}

// entry is a name in a directory.
type entry struct {
	dir  *erofs.Inode
	base string
}

func newMerger(limits Limits) *merger {
	return &merger{counter: counter{limits: limits}, root: newDirectory()}
}

// newDirectory is a directory that no layer describes.
func newDirectory() *erofs.Inode {
	return &erofs.Inode{Mode: unix.S_IFDIR | 0o755, Modified: time.Unix(0, 0), Entries: erofs.Directory{}}
}

// layer puts the layer of a directory of the store on top. segment is the number that its
// contents will have.
func (m *merger) layer(dir string, segment int) error {
	m.segment, m.own, m.cleared = segment, map[entry]bool{}, map[*erofs.Inode]bool{}
	return readTree(dir, func(h *tar.Header) error {
		err := m.count(h)
		if err == nil {
			err = m.apply(h)
		}
		if err != nil {
			return fmt.Errorf("%.200q: %w", h.Name, err)
		}
		return nil
	})
}

// errOutside is for a name that leads out of the root.
var errOutside = errors.New("the name leads out of the image")

// split cuts the name of an entry into its parts. One that begins with '/' begins at the root too.
func split(name string) (parts []string, err error) {
	for part := range strings.SplitSeq(name, "/") {
		switch part {
		case "", ".":
		case "..":
			return nil, errOutside
		default:
			parts = append(parts, part)
		}
	}
	return parts, nil
}

// apply does what one entry of a layer says.
func (m *merger) apply(h *tar.Header) error {
	parts, err := split(h.Name)
	if err != nil {
		return err
	}
	if len(parts) == 0 {
		if h.Typeflag == tar.TypeDir {
			m.set(m.root, h)
		}
		return nil
	}
	last := len(parts) - 1
	base := parts[last]
	own := func(part string) bool { return strings.HasPrefix(part, whiteoutOwn) }
	if slices.ContainsFunc(parts, own) && base != whiteoutOpaque {
		return nil
	}
	if hidden, ok := strings.CutPrefix(base, whiteout); ok {
		return m.whiteout(parts[:last], hidden)
	}
	dir, err := m.walk(parts[:last], true)
	if err != nil {
		return err
	}
	file, err := m.file(h, dir.Entries[base])
	if err != nil {
		return err
	}
	dir.Entries[base] = file
	m.own[entry{dir, base}] = true
	return nil
}

// whiteout hides a name in the directory of a path, or all names. Where there is no such
// directory it has nothing to do.
func (m *merger) whiteout(parts []string, hidden string) error {
	dir, err := m.walk(parts, false)
	switch {
	case errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ENOTDIR):
		return nil
	case err != nil:
		return err
	case whiteout+hidden == whiteoutOpaque:
		m.hideBelow(dir)
	default:
		m.hide(entry{dir, hidden})
	}
	return nil
}

// file makes the file of an entry. before is what has the name so far, or nil.
func (m *merger) file(h *tar.Header, before *erofs.Inode) (*erofs.Inode, error) {
	switch h.Typeflag {
	case tar.TypeDir:
		if isDir(before) {
			m.set(before, h)
			return before, nil
		}
		n := newDirectory()
		m.set(n, h)
		return n, nil
	case tar.TypeLink:
		n, err := m.find(h.Linkname)
		switch {
		case err != nil:
			return nil, fmt.Errorf("link to %.200q: %w", h.Linkname, err)
		case isDir(n):
			return nil, fmt.Errorf("link to %.200q: %w", h.Linkname, syscall.EISDIR)
		}
		return n, nil
	}
	if h.Typeflag == tar.TypeSymlink && h.Linkname == "" {
		return nil, fmt.Errorf("a symbolic link to nothing: %w", syscall.ENOENT)
	}
	n := &erofs.Inode{Target: h.Linkname, Major: uint32(h.Devmajor), Minor: uint32(h.Devminor)}
	m.set(n, h)
	var err error
	n.Size, n.Data.Block, err = contents(h)
	n.Data.Segment = m.segment
	return n, err
}

// set gives a file the attributes of an entry.
func (m *merger) set(n *erofs.Inode, h *tar.Header) {
	n.Mode = tarfile.Types[h.Typeflag] | uint16(h.Mode)&0o7777
	if h.Typeflag == tar.TypeSymlink {
		n.Mode |= 0o777
	}
	n.UID, n.GID, n.Modified = uint32(h.Uid), uint32(h.Gid), h.ModTime
	xattrs := tarfile.Xattrs(h)
	maps.DeleteFunc(xattrs, func(x, _ string) bool { return strings.HasPrefix(x, overlayXattrs) })
	n.SetXattrs(xattrs) // without what EROFS cannot have, as other file systems do
}

// hide removes what lower layers have under a name.
func (m *merger) hide(n entry) {
	m.steps++
	file := n.dir.Entries[n.base]
	switch {
	case file == nil:
	case !m.own[n]:
		delete(n.dir.Entries, n.base)
	case isDir(file):
		m.hideBelow(file)
	}
}

// hideBelow removes what lower layers have in a directory, once: a layer can say it of each
// directory and as often as it has entries.
func (m *merger) hideBelow(dir *erofs.Inode) {
	if m.cleared[dir] {
		return
	}
	m.cleared[dir] = true
	for base := range dir.Entries {
		m.hide(entry{dir, base})
	}
}

// find returns the file of a name, which is not followed if it is a symbolic link itself.
func (m *merger) find(file string) (*erofs.Inode, error) {
	parts, err := split(file)
	if err != nil {
		return nil, err
	}
	if len(parts) == 0 {
		return m.root, nil
	}
	last := len(parts) - 1
	dir, err := m.walk(parts[:last], false)
	if err != nil {
		return nil, err
	}
	if n := dir.Entries[parts[last]]; n != nil {
		return n, nil
	}
	return nil, syscall.ENOENT
}

// walk goes from the root along a path to a directory, through symbolic links, none of which
// leads out of the root. It makes what is missing of it if making is set.
func (m *merger) walk(parts []string, making bool) (*erofs.Inode, error) {
	way := []*erofs.Inode{m.root} // from the root to where it is
	for links := 0; len(parts) > 0; {
		if m.steps++; m.steps/stepsPerEntry > m.limits.Entries {
			return nil, fmt.Errorf("over %d parts of names: %w", m.steps, ErrLimit)
		}
		dir, part := way[len(way)-1], parts[0]
		parts = parts[1:]
		if part == ".." {
			way = way[:max(1, len(way)-1)]
			continue
		}
		next := dir.Entries[part]
		if next == nil {
			if !making {
				return nil, syscall.ENOENT
			}
			if err := m.count(&tar.Header{Name: part}); err != nil { // which none has, but which must be there
				return nil, err
			}
			next = newDirectory()
			dir.Entries[part] = next
		}
		switch next.Mode & unix.S_IFMT {
		case unix.S_IFDIR:
			if making {
				m.own[entry{dir, part}] = true
			}
			way = append(way, next)
		case unix.S_IFLNK:
			if links++; links > maxLinks {
				return nil, syscall.ELOOP
			}
			if path.IsAbs(next.Target) {
				way = way[:1]
			}
			parts = append(targetParts(next.Target), parts...)
		default:
			return nil, fmt.Errorf("%q: %w", part, syscall.ENOTDIR)
		}
		if len(way) > maxPath {
			return nil, syscall.ENAMETOOLONG
		}
	}
	return way[len(way)-1], nil
}

// targetParts cuts the target of a link into its parts, with each "..".
func targetParts(target string) (parts []string) {
	for part := range strings.SplitSeq(target, "/") {
		if part != "" && part != "." {
			parts = append(parts, part)
		}
	}
	return parts
}

// dropWhiteouts removes the devices that an overlay over the image takes for whiteouts (Linux,
// filesystems/overlayfs.rst): nothing of theirs would show, and they are no whiteouts of layers.
func dropWhiteouts(dir *erofs.Inode) {
	for base, n := range dir.Entries {
		switch {
		case isDir(n):
			dropWhiteouts(n)
		case n.Mode&unix.S_IFMT == unix.S_IFCHR && n.Major == 0 && n.Minor == 0:
			delete(dir.Entries, base)
		}
	}
}

func isDir(n *erofs.Inode) bool { return n != nil && n.Mode&unix.S_IFMT == unix.S_IFDIR }
