// Package erofs writes the metadata of EROFS, the read-only file system of Linux: a tree of
// files whose contents lie in other files, the segments. What Linux mounts is one flat device,
// the metadata and behind it the segments in their order. So trees that have files in common
// also have them once on the host's disk and in its page cache. Source: Linux,
// Documentation/filesystems/erofs.rst and fs/erofs/erofs_fs.h.
package erofs

import (
	"errors"
	"fmt"
	"time"
)

// BlockSize is the size of a block in bytes: contents of files begin at one.
const BlockSize = 4096

// SegmentAlign is what the size of a segment, and of the metadata, is a multiple of, in
// bytes: mapped one behind the other, each can have huge pages.
const SegmentAlign = 2 << 20

// Bounds of the format.
const (
	MaxName     = 255             // bytes of a name
	MaxTarget   = BlockSize - 1   // bytes of a symbolic link's target: PATH_MAX without its zero
	maxXattr    = 0xFFFF          // bytes of an extended attribute's value
	maxXattrs   = 0xFFFF * 4      // bytes of all extended attributes of a file
	maxBlocks   = 1<<32 - 1       // addresses of blocks have 32 bits
	MaxFileSize = maxBlocks << 12 // bytes
)

// ErrTooLarge is in the error for a tree or a file that the format has no room for.
var ErrTooLarge = errors.New("too large for EROFS")

// Inode is a file. A file with several names is in several directories.
type Inode struct {
	Mode     uint16 // type and permissions, as st_mode has them
	UID, GID uint32
	Modified time.Time
	Size     int64     // of a regular file, in bytes
	Data     Extent    // of a regular file with a size
	Target   string    // of a symbolic link
	Major    uint32    // of a device
	Minor    uint32    // of a device
	Xattrs   []Xattr   // as SetXattrs keeps them
	Entries  Directory // of a directory

	place place
}

// Directory has files by their names, which are any bytes but '/' and zero, at most MaxName.
// "." and ".." are not in it.
type Directory map[string]*Inode

// Extent is where the contents of a file lie, one block behind the other.
type Extent struct {
	Segment int
	Block   uint32 // in the segment
}

// SetXattrs gives a file its extended attributes, by their names, in the place of those before. EROFS can
// have those of users, security, trusted ones and POSIX ACLs; others are left out.
func (n *Inode) SetXattrs(values map[string]string) {
	n.Xattrs = nil
	for name, value := range values {
		if x, ok := newXattr(name, value); ok {
			n.Xattrs = append(n.Xattrs, x)
		}
	}
}

// check finds what the format cannot hold in one file.
func (n *Inode) check(name string) error {
	switch {
	case len(name) > MaxName:
		return fmt.Errorf("a name of %d bytes: %w", len(name), ErrTooLarge)
	case len(n.Target) > MaxTarget:
		return fmt.Errorf("%q: a link of %d bytes: %w", name, len(n.Target), ErrTooLarge)
	case n.Size < 0 || n.Size > MaxFileSize:
		return fmt.Errorf("%q: a file of %d bytes: %w", name, n.Size, ErrTooLarge)
	case n.xattrSize() > maxXattrs:
		return fmt.Errorf("%q: extended attributes of %d bytes: %w", name, n.xattrSize(), ErrTooLarge)
	}
	return nil
}
