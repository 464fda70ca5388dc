package ext4

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Extended attributes (attributes.rst): entries from the front, values from the back,
// behind the inode or, if they are more, in a block.
const (
	xattrMagic      = 0xea020000
	xattrEntry      = 16
	xattrBlockHead  = 32
	xattrInodeHead  = 4
	xattrRoomInode  = inodeSize - inodeXattrs - xattrInodeHead
	xattrTerminator = 4
)

// xattrIndexes are the numbers of namespaces; names are kept without them.
var xattrIndexes = []struct {
	prefix string
	index  byte
}{{"user.", 1}, {aclAccess, 2}, {aclDefault, 3}, {"trusted.", 4}, {"security.", 6}}

// The access control lists, of which no name is left.
const (
	aclAccess  = "system.posix_acl_access"
	aclDefault = "system.posix_acl_default"
)

// xattr is an attribute as it is kept.
type xattr struct {
	index byte
	name  string
	value []byte
}

// placeXattrs makes a file's extended attributes part of it.
func (w *Writer) placeXattrs(n *inode) error {
	if n.xattrBlock != 0 { // of a directory whose attributes change
		w.removed = append(w.removed, extent{physical: n.xattrBlock, count: 1})
	}
	n.xattrs, n.xattrBlock = nil, 0
	list := n.xattrList()
	if len(list) == 0 {
		return nil
	}
	if entries, ok := putXattrs(list, xattrRoomInode, 0); ok {
		n.xattrs = append(le.AppendUint32(nil, xattrMagic), entries...)
		return nil
	}
	entries, ok := putXattrs(list, blockSize-xattrBlockHead, xattrBlockHead)
	if !ok {
		return fmt.Errorf("extended attributes of more than %d bytes", blockSize-xattrBlockHead)
	}
	head := make([]byte, xattrBlockHead, blockSize)
	le.PutUint32(head, xattrMagic)
	le.PutUint32(head[4:], 1) // files that share the block
	le.PutUint32(head[8:], 1) // blocks
	var err error
	if n.xattrBlock, _, err = w.allocate(1); err != nil {
		return err
	}
	return w.writeBlocks(n.xattrBlock, append(head, entries...))
}

// xattrList returns the attributes in the order in which a block has them.
func (n *inode) xattrList() (list []xattr) {
	for _, name := range slices.Sorted(maps.Keys(n.Xattrs)) {
		value := []byte(n.Xattrs[name])
		for _, ns := range xattrIndexes {
			rest, ok := strings.CutPrefix(name, ns.prefix)
			if !ok {
				continue
			}
			if name == aclAccess || name == aclDefault {
				if value = diskACL(value); value == nil {
					continue
				}
			}
			list = append(list, xattr{ns.index, rest, value})
		}
	}
	slices.SortStableFunc(list, func(a, b xattr) int {
		if a.index != b.index {
			return int(a.index) - int(b.index)
		}
		if len(a.name) != len(b.name) {
			return len(a.name) - len(b.name)
		}
		return strings.Compare(a.name, b.name)
	})
	return list
}

// putXattrs lays attributes out in room bytes; offset is where these begin in what
// values are found by. It reports whether they fit.
func putXattrs(list []xattr, room, offset int) ([]byte, bool) {
	b := make([]byte, room)
	front, back := 0, room
	for _, x := range list {
		length, padded := xattrEntry+(len(x.name)+3)&^3, (len(x.value)+3)&^3
		if front+length+xattrTerminator > back-padded {
			return nil, false
		}
		back -= padded
		copy(b[back:], x.value)
		e := b[front:]
		e[0], e[1] = byte(len(x.name)), x.index
		if len(x.value) > 0 {
			le.PutUint16(e[2:], uint16(offset+back))
		}
		le.PutUint32(e[8:], uint32(len(x.value)))
		le.PutUint32(e[12:], hash(x.name, b[back:back+padded]))
		copy(e[xattrEntry:], x.name)
		front += length
	}
	return b, true
}

// hash is that of an entry: of its name and of its value, with zeros to a whole
// number of words.
func hash(name string, value []byte) (h uint32) {
	for _, c := range []byte(name) {
		h = h<<5 ^ h>>27 ^ uint32(c)
	}
	for ; len(value) > 0; value = value[4:] {
		h = h<<16 ^ h>>16 ^ le.Uint32(value)
	}
	return h
}

// An access control list has one form for system calls (linux/posix_acl_xattr.h) and
// another on disks, where only entries of named users and groups have an ID.
const (
	aclVersion     = 2
	aclDiskVersion = 1
	aclHead        = 4
	aclEntry       = 8
	aclUser        = 0x02
	aclGroup       = 0x08
)

// diskACL turns the one into the other; nil if it is none.
func diskACL(v []byte) []byte {
	if len(v) < aclHead || le.Uint32(v) != aclVersion || (len(v)-aclHead)%aclEntry != 0 {
		return nil
	}
	out := le.AppendUint32(nil, aclDiskVersion)
	for e := range slices.Chunk(v[aclHead:], aclEntry) {
		n := 4 // tag and permissions
		if tag := le.Uint16(e); tag == aclUser || tag == aclGroup {
			n = aclEntry
		}
		out = append(out, e[:n]...)
	}
	return out
}
