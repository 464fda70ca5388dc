package erofs

import (
	"encoding/binary"
	"sort"
	"strings"
)

// Xattr is an extended attribute as EROFS has it: the namespace is a number.
type Xattr struct {
	prefix uint8
	suffix string
	value  string
}

// xattrPrefixes are the namespaces by their numbers (EROFS_XATTR_INDEX_*). POSIX ACLs have
// nothing behind theirs.
var xattrPrefixes = []struct {
	name   string
	number uint8
	whole  bool
}{
	{"user.", 1, false},
	{"system.posix_acl_access", 2, true},
	{"system.posix_acl_default", 3, true},
	{"trusted.", 4, false},
	{"security.", 6, false},
}

const (
	xattrHeader = 12 // erofs_xattr_ibody_header
	xattrEntry  = 4  // erofs_xattr_entry, before the name
)

// newXattr finds the namespace of a name.
func newXattr(name, value string) (Xattr, bool) {
	for _, p := range xattrPrefixes {
		suffix, ok := strings.CutPrefix(name, p.name)
		if ok && (suffix == "") == p.whole && len(suffix) <= MaxName && len(value) <= maxXattr {
			return Xattr{p.number, suffix, value}, true
		}
	}
	return Xattr{}, false
}

// Name returns the attribute's name with its namespace.
func (x Xattr) Name() string {
	for _, p := range xattrPrefixes {
		if p.number == x.prefix {
			return p.name + x.suffix
		}
	}
	return x.suffix
}

// Value returns the attribute's value.
func (x Xattr) Value() string { return x.value }

func (x Xattr) size() int { return roundUp(xattrEntry+len(x.suffix)+len(x.value), 4) }

// xattrSize is what the attributes take behind the inode, in bytes.
func (n *Inode) xattrSize() int {
	if len(n.Xattrs) == 0 {
		return 0
	}
	size := xattrHeader
	for _, x := range n.Xattrs {
		size += x.size()
	}
	return size
}

// xattrCount is i_xattr_icount: the header counts as one, and what follows in words of 4 bytes.
func (n *Inode) xattrCount() uint16 {
	size := n.xattrSize()
	if size == 0 {
		return 0
	}
	return uint16((size-xattrHeader)/4 + 1)
}

// putXattrs writes the attributes, in the order of their names.
func (n *Inode) putXattrs(b []byte) {
	sort.Slice(n.Xattrs, func(i, j int) bool { return n.Xattrs[i].Name() < n.Xattrs[j].Name() })
	at := xattrHeader // which is all zeros: nothing is shared, and no filter of names is kept
	for _, x := range n.Xattrs {
		b[at], b[at+1] = uint8(len(x.suffix)), x.prefix
		binary.LittleEndian.PutUint16(b[at+2:], uint16(len(x.value)))
		copy(b[at+xattrEntry:], x.suffix)
		copy(b[at+xattrEntry+len(x.suffix):], x.value)
		at += x.size()
	}
}
