package ext4

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

var le = binary.LittleEndian

// inode is a file.
type inode struct {
	Attributes
	number   uint32
	links    int
	size     int64
	parent   *inode
	children map[string]*inode // nil unless it is a directory

	extents    []extent
	treeBlocks []extent // of the tree of extents
	root       [60]byte // of that tree
	xattrs     []byte   // as they stand behind the inode
	xattrBlock uint32   // where they are else
}

// extent is blocks that lie one behind the other, in the file and on the disk.
type extent struct{ logical, physical, count uint32 }

// maxExtent bounds an extent, in blocks.
const maxExtent = 32768

// extend adds blocks at the end.
func (n *inode) extend(at, count uint32) {
	logical := uint32(0)
	if len(n.extents) > 0 {
		last := &n.extents[len(n.extents)-1]
		logical = last.logical + last.count
		if last.physical+last.count == at && last.count+count <= maxExtent {
			last.count += count
			return
		}
	}
	n.extents = append(n.extents, extent{logical, at, count})
}

// Trees of extents (ifork.rst, "Extent Tree"): nodes of a header and entries of 12
// bytes each, the root in the inode.
const (
	extentMagic   = 0xf30a
	extentEntry   = 12
	entriesInode  = 4
	entriesABlock = (blockSize - extentEntry) / extentEntry
)

// placeTree writes the tree of a file's extents, from its leaves to its root.
func (w *Writer) placeTree(n *inode) error {
	level := n.extents
	depth := uint16(0)
	for ; len(level) > entriesInode; depth++ {
		var above []extent
		for len(level) > 0 {
			node := level[:min(entriesABlock, len(level))]
			level = level[len(node):]
			at, _, err := w.allocate(1)
			if err != nil {
				return err
			}
			b := make([]byte, blockSize)
			putNode(b, node, entriesABlock, depth)
			if err := w.writeBlocks(at, b); err != nil {
				return err
			}
			n.treeBlocks = append(n.treeBlocks, extent{physical: at, count: 1})
			above = append(above, extent{logical: node[0].logical, physical: at})
		}
		level = above
	}
	putNode(n.root[:], level, entriesInode, depth)
	return nil
}

// putNode writes a node: of depth 0 a leaf with extents, else one with the blocks of
// the nodes below it.
func putNode(b []byte, entries []extent, room int, depth uint16) {
	le.PutUint16(b, extentMagic)
	le.PutUint16(b[2:], uint16(len(entries)))
	le.PutUint16(b[4:], uint16(room))
	le.PutUint16(b[6:], depth)
	for i, e := range entries {
		b := b[extentEntry*(i+1):]
		le.PutUint32(b, e.logical)
		if depth == 0 {
			le.PutUint16(b[4:], uint16(e.count))
			le.PutUint32(b[8:], e.physical)
		} else {
			le.PutUint32(b[4:], e.physical)
		}
	}
}

// The inode (inodes.rst).
const (
	inodeSize      = 256
	inodeExtra     = 32 // bytes of fields behind the first 128
	inodeXattrs    = 128 + inodeExtra
	inodeBlock     = 40 // i_block, what the file's kind needs
	extentsFlag    = 0x80000
	inlineTarget   = 60 // shorter targets of symbolic links are in i_block
	sectorsABlock  = blockSize / 512
	oldDeviceLimit = 256
)

// encode writes the inode to b, which is zero.
func (n *inode) encode(b []byte) {
	le.PutUint16(b[0:], n.Mode)
	le.PutUint16(b[2:], uint16(n.UID))
	le.PutUint32(b[4:], uint32(n.size))
	seconds := n.Modified.Unix()
	for _, at := range []int{8, 12, 16, 144} { // atime, ctime, mtime, crtime
		le.PutUint32(b[at:], uint32(seconds))
	}
	// Two bits more of seconds, which count from the signed ones, and nanoseconds.
	extra := uint32((seconds-int64(int32(seconds)))>>32)&3 | uint32(n.Modified.Nanosecond())<<2
	for _, at := range []int{132, 136, 140, 148} {
		le.PutUint32(b[at:], extra)
	}
	le.PutUint16(b[24:], uint16(n.GID))
	links := n.links
	if n.children != nil && links >= maxLinks {
		links = 1 // "many", of directories
	}
	le.PutUint16(b[26:], uint16(links))
	sectors := uint32(len(n.treeBlocks)) * sectorsABlock
	for _, e := range n.extents {
		sectors += e.count * sectorsABlock
	}
	if n.xattrBlock != 0 {
		sectors += sectorsABlock
	}
	le.PutUint32(b[28:], sectors)
	le.PutUint32(b[104:], n.xattrBlock)
	le.PutUint32(b[108:], uint32(n.size>>32))
	le.PutUint16(b[120:], uint16(n.UID>>16))
	le.PutUint16(b[122:], uint16(n.GID>>16))
	le.PutUint16(b[128:], inodeExtra)
	copy(b[inodeXattrs:], n.xattrs)

	block := b[inodeBlock:]
	switch n.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		if n.size < inlineTarget {
			copy(block, n.Target)
			return
		}
	case unix.S_IFCHR, unix.S_IFBLK:
		if n.Major < oldDeviceLimit && n.Minor < oldDeviceLimit {
			le.PutUint32(block, n.Major<<8|n.Minor)
		} else {
			le.PutUint32(block[4:], n.Minor&0xff|n.Major<<8|n.Minor&^0xff<<12)
		}
		return
	case unix.S_IFIFO, unix.S_IFSOCK:
		return
	}
	le.PutUint32(b[32:], extentsFlag)
	if len(n.extents) == 0 {
		putNode(n.root[:], nil, entriesInode, 0)
	}
	copy(block, n.root[:])
}

// directory makes the blocks of a directory (directory.rst, "Linear Directories").
type directory struct {
	b    []byte
	last int // where the last entry begins
}

// The head of a directory's entry, before the name.
const entryHead = 8

func (d *directory) add(name string, n *inode) {
	length := (entryHead + len(name) + 3) &^ 3
	if len(d.b)%blockSize+length > blockSize || len(d.b)%blockSize == 0 && len(d.b) > 0 {
		d.fill()
	}
	d.last = len(d.b)
	d.b = append(d.b, make([]byte, length)...)
	e := d.b[d.last:]
	le.PutUint32(e, n.number)
	le.PutUint16(e[4:], uint16(length))
	e[6], e[7] = byte(len(name)), fileTypes[n.Mode&unix.S_IFMT]
	copy(e[entryHead:], name)
}

// fill makes the last entry reach to the end of its block.
func (d *directory) fill() {
	d.b = append(d.b, make([]byte, roundUp(len(d.b))-len(d.b))...)
	le.PutUint16(d.b[d.last+4:], uint16(len(d.b)-d.last))
}

func (d *directory) finish() []byte {
	d.fill()
	return d.b
}

// fileTypes are those in directory entries.
var fileTypes = map[uint16]byte{
	unix.S_IFREG: 1, unix.S_IFDIR: 2, unix.S_IFCHR: 3, unix.S_IFBLK: 4,
	unix.S_IFIFO: 5, unix.S_IFSOCK: 6, unix.S_IFLNK: 7,
}
