package erofs

import (
	"encoding/binary"
	"fmt"
	"io"
	"maps"
	"slices"

	"golang.org/x/sys/unix"
)

// The superblock (struct erofs_super_block).
const (
	superOffset   = 1024
	superSize     = 128
	superMagic    = 0xE0F5E1E2
	compatMtime   = 0x2 // EROFS_FEATURE_COMPAT_MTIME: i_mtime is the time of the last change
	blockSizeBits = 12
)

// Inodes (struct erofs_inode_extended): addressed by their place in units of 32 bytes, the nid.
const (
	slotSize     = 32
	inodeSize    = 64
	inodeVersion = 1      // of i_format: the extended form
	flatPlain    = 0 << 1 // EROFS_INODE_FLAT_PLAIN: contents in blocks
	flatInline   = 2 << 1 // EROFS_INODE_FLAT_INLINE: the last block's contents follow the inode
	direntSize   = 12     // struct erofs_dirent
)

// place is where an inode is written.
type place struct {
	names  uint32 // directories that it is in
	number uint32 // of the inode, from 1; 0 is one that has no place yet
	at     int64  // in the metadata
	tail   int    // bytes of its own contents behind the inode
	block  uint32 // the first of its blocks, of a directory in the metadata
	blocks int    // of a directory in the metadata
	subs   uint32 // directories in it
}

// Write writes the metadata of a tree at the beginning of w, and returns how large they are on
// the device, in bytes: a multiple of SegmentAlign, up to which the caller extends the file.
// segments are the sizes of what follows there, each a multiple of SegmentAlign too. The tree is
// not to be changed meanwhile, and is written once. ErrTooLarge is in the error for what has no
// room.
func Write(w io.WriterAt, root *Inode, segments []int64) (size int64, err error) {
	p := &plan{next: superOffset + superSize}
	if err := p.add("/", root, root); err != nil {
		return 0, err
	}
	start := roundUp(p.next, BlockSize)
	size = roundUp(start+p.blocks*BlockSize, SegmentAlign)
	bases, end := make([]int64, len(segments)), size
	for i, s := range segments {
		if s%SegmentAlign != 0 {
			return 0, fmt.Errorf("a segment of %d bytes: not a multiple of %d", s, int64(SegmentAlign))
		}
		bases[i], end = end, end+s
	}
	if end/BlockSize > maxBlocks {
		return 0, fmt.Errorf("%d bytes in all: %w", end, ErrTooLarge)
	}
	b := make([]byte, start+p.blocks*BlockSize)
	putSuper(b[superOffset:], root.place, len(p.inodes), end/BlockSize)
	for _, f := range p.inodes {
		if err := f.put(b, uint32(start/BlockSize), bases, segments); err != nil {
			return 0, err
		}
	}
	if _, err := w.WriteAt(b, 0); err != nil {
		return 0, err
	}
	return size, nil
}

// plan gives each inode its place.
type plan struct {
	inodes []planned
	next   int64 // free place in the metadata
	blocks int64 // of directories
}

// planned is an inode, and the directory that it is first found in.
type planned struct {
	*Inode
	parent *Inode
}

// add places an inode, and what is in it if it is a directory.
func (p *plan) add(name string, n, parent *Inode) error {
	n.place.names++
	if n.place.number != 0 {
		if n.isDir() {
			return fmt.Errorf("%q: a directory with two names", name)
		}
		return nil // another name of it
	}
	if err := n.check(name); err != nil {
		return err
	}
	p.inodes = append(p.inodes, planned{n, parent})
	n.place.number = uint32(len(p.inodes))
	length := 0
	switch {
	case n.isDir():
		length = directorySize(directoryBlocks(dirNames(n.Entries)))
	case n.Mode&unix.S_IFMT == unix.S_IFLNK:
		length = len(n.Target)
	}
	body := inodeSize + n.xattrSize()
	n.place.tail, n.place.blocks = length%BlockSize, length/BlockSize
	if body+n.place.tail > BlockSize { // what follows the inode must be in one block
		n.place.tail = 0
		n.place.blocks = (length + BlockSize - 1) / BlockSize
	}
	if left := BlockSize - (p.next+int64(body))%BlockSize; n.place.tail > int(left) {
		p.next = roundUp(p.next, BlockSize)
	}
	n.place.at = p.next
	p.next = roundUp(p.next+int64(body+n.place.tail), slotSize)
	n.place.block = uint32(p.blocks)
	p.blocks += int64(n.place.blocks)
	for _, name := range slices.Sorted(maps.Keys(n.Entries)) {
		child := n.Entries[name]
		if child.isDir() {
			n.place.subs++
		}
		if err := p.add(name, child, n); err != nil {
			return err
		}
	}
	return nil
}

func (n *Inode) isDir() bool { return n.Mode&unix.S_IFMT == unix.S_IFDIR }

func (p place) nid() uint64 { return uint64(p.at / slotSize) }

func putSuper(b []byte, root place, inodes int, blocks int64) {
	le := binary.LittleEndian
	le.PutUint32(b[0:], superMagic)
	le.PutUint32(b[8:], compatMtime)
	b[12] = blockSizeBits
	le.PutUint16(b[14:], uint16(root.nid())) // the first inode, so that 16 bits do
	le.PutUint64(b[16:], uint64(inodes))
	le.PutUint32(b[36:], uint32(blocks))
}

// put writes an inode and what the metadata has of its contents. dirs is the block where
// directories begin, bases where the segments do in bytes.
func (n planned) put(b []byte, dirs uint32, bases, segments []int64) error {
	le, at, length := binary.LittleEndian, n.place.at, n.Size
	format, data := uint16(inodeVersion|flatPlain), uint32(0)
	var contents []byte
	switch n.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		contents = n.directory()
	case unix.S_IFLNK:
		contents = []byte(n.Target)
	case unix.S_IFCHR, unix.S_IFBLK:
		length, data = 0, deviceNumber(n.Major, n.Minor)
	case unix.S_IFREG:
		if n.Size == 0 {
			break
		}
		i, from := n.Data.Segment, int64(n.Data.Block)*BlockSize
		if i < 0 || i >= len(bases) || from+n.Size > segments[i] {
			return fmt.Errorf("contents of a file are not in segment %d", i)
		}
		data = uint32(bases[i]/BlockSize) + n.Data.Block
	default:
		length = 0
	}
	if contents != nil {
		length, data = int64(len(contents)), dirs+n.place.block
		inBlocks := len(contents) - n.place.tail
		copy(b[int64(data)*BlockSize:], contents[:inBlocks])
		if n.place.tail > 0 {
			format |= flatInline
			copy(b[at+inodeSize+int64(n.xattrSize()):], contents[inBlocks:])
		}
	}
	i := b[at : at+inodeSize+int64(n.xattrSize())]
	le.PutUint16(i[0:], format)
	le.PutUint16(i[2:], n.xattrCount())
	le.PutUint16(i[4:], n.Mode)
	le.PutUint64(i[8:], uint64(length))
	le.PutUint32(i[16:], data)
	le.PutUint32(i[20:], n.place.number)
	le.PutUint32(i[24:], n.UID)
	le.PutUint32(i[28:], n.GID)
	le.PutUint64(i[32:], uint64(n.Modified.Unix()))
	le.PutUint32(i[40:], uint32(n.Modified.Nanosecond()))
	le.PutUint32(i[44:], n.links())
	if len(n.Xattrs) > 0 {
		n.putXattrs(i[inodeSize:])
	}
	return nil
}

// links is st_nlink: a directory has its name, its "." and the ".." of those in it.
func (n *Inode) links() uint32 {
	if n.isDir() {
		return 2 + n.place.subs
	}
	return n.place.names
}

// deviceNumber is what Linux calls new_encode_dev.
func deviceNumber(major, minor uint32) uint32 {
	return minor&0xFF | major&0xFFF<<8 | minor&^uint32(0xFF)<<12
}

func roundUp[N int | int64](n, to N) N { return (n + to - 1) / to * to }
