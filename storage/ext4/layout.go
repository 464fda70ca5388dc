package ext4

import (
	"crypto/rand"
	"time"
)

// The layout. A group has its two bitmaps and its inodes at its beginning; in the
// first one, the superblock and the group descriptors are before them.
const (
	blockSize      = 4096
	blocksPerGroup = 8 * blockSize // as many as a bitmap has bits
	inodesPerGroup = 8192          // one for 16 KiB, as mke2fs has it
	tableBlocks    = inodesPerGroup * inodeSize / blockSize
	groupBlocks    = 2 + tableBlocks
	maxGroups      = MaxSize / blockSize / blocksPerGroup

	descriptorsAt    = 1 // the block behind the superblock's
	descriptorSize   = 32
	descriptorBlocks = maxGroups * descriptorSize / blockSize // at the most
)

func roundUp(n int) int { return (n + blockSize - 1) &^ (blockSize - 1) }

// tables returns where in a group its tables begin.
func tables(group uint32) uint32 {
	if group == 0 {
		return descriptorsAt + descriptorBlocks
	}
	return 0
}

// reserved returns how many blocks at a group's beginning are not for data.
func reserved(group uint32) uint32 { return tables(group) + groupBlocks }

// Close completes the file system and leaves free bytes of room in it. The error is
// ErrTooLarge, or the Image's.
func (w *Writer) Close(free int64) error {
	if err := w.writeDirectories(); err != nil {
		return err
	}
	const room = (blocksPerGroup - groupBlocks) * blockSize // of an empty group
	groups := max(ceil(int64(w.next), blocksPerGroup), ceil(int64(len(w.inodes)), inodesPerGroup)) + ceil(free, room)
	if groups > maxGroups {
		return ErrTooLarge
	}
	s := &super{groups: uint32(groups), journal: w.inodes[journalInode-1], uuid: newUUID()}
	if err := w.writeJournal(s); err != nil {
		return err
	}
	descriptors := make([]byte, roundUp(int(groups)*descriptorSize))
	s.descriptorBlocks = uint32(len(descriptors) / blockSize)
	for g := range s.groups {
		if err := w.writeGroup(s, g, descriptors[g*descriptorSize:]); err != nil {
			return err
		}
	}
	if err := w.writeBlocks(descriptorsAt, descriptors); err != nil {
		return err
	}
	if _, err := w.to.WriteAt(s.encode(), superAt); err != nil {
		return err
	}
	return w.to.Truncate(groups * blocksPerGroup * blockSize)
}

func ceil(a, b int64) int64 { return (a + b - 1) / b }

// writeGroup writes a group's tables and fills in its descriptor.
func (w *Writer) writeGroup(s *super, group uint32, descriptor []byte) error {
	base, tables := group*blocksPerGroup, tables(group)
	blocks, inodes := bitmap(make([]byte, blockSize)), bitmap(make([]byte, blockSize))
	blocks.set(tables, max(reserved(group), min(blocksPerGroup, w.next-min(base, w.next))))
	if group == 0 {
		blocks.set(0, descriptorsAt+s.descriptorBlocks)
	}
	for _, e := range w.removed {
		if e.physical/blocksPerGroup == group {
			blocks.clear(e.physical-base, e.physical-base+e.count)
		}
	}

	table := make([]byte, 0, tableBlocks*blockSize)
	directories := 0
	inodes.set(inodesPerGroup, 8*blockSize) // which there are not
	first := int(group) * inodesPerGroup
	for i := first; i < min(first+inodesPerGroup, len(w.inodes)); i++ {
		table = table[:len(table)+inodeSize]
		n := w.inodes[i]
		if n == nil && i >= firstInode-1 {
			continue // removed
		}
		inodes.set(uint32(i-first), uint32(i-first+1))
		if n != nil {
			n.encode(table[len(table)-inodeSize:])
			if n.children != nil {
				directories++
			}
		}
	}

	freeBlocks, freeInodes := blocks.zeros(), inodes.zeros()
	s.freeBlocks += freeBlocks
	s.freeInodes += freeInodes
	for i, v := range []uint32{base + tables, base + tables + 1, base + tables + 2} { // where the tables are
		le.PutUint32(descriptor[4*i:], v)
	}
	for i, v := range []uint32{freeBlocks, freeInodes, uint32(directories)} {
		le.PutUint16(descriptor[12+2*i:], uint16(v))
	}
	both := append(blocks, inodes...)
	if err := w.writeBlocks(base+tables, both); err != nil {
		return err
	}
	return w.writeBlocks(base+tables+2, table)
}

// bitmap says which blocks or inodes of a group are used.
type bitmap []byte

func (b bitmap) set(from, to uint32) {
	for i := from; i < to; i++ {
		b[i/8] |= 1 << (i % 8)
	}
}

func (b bitmap) clear(from, to uint32) {
	for i := from; i < to; i++ {
		b[i/8] &^= 1 << (i % 8)
	}
}

func (b bitmap) zeros() (n uint32) {
	for i := range uint32(8 * len(b)) {
		n += uint32(^b[i/8]>>(i%8)) & 1
	}
	return n
}

// super is what the superblock says of this file system (super.rst).
type super struct {
	groups, descriptorBlocks, freeBlocks, freeInodes uint32

	uuid    [16]byte
	journal *inode // nil if there is none
}

// Values in the superblock.
const (
	superAt   = 1024
	superSize = 1024

	magic         = 0xef53
	cleanState    = 1
	onErrorGoOn   = 1
	dynamicRev    = 1
	noMountLimit  = 0xffff
	logBlockSize  = 2 // 1 KiB << 2
	superMagicAt  = 0x38
	superCompatAt = 0x5c
	superUUIDAt   = 0x68
	compatJournal = 0x4
	compatXattr   = 0x8
	compatSparse2 = 0x200 // backups of the superblock only where it says: nowhere
	fileType      = 0x2   // incompatible: the type is in directory entries
	extentTrees   = 0x40
	largeFile     = 0x2 // read-only compatible: files of 2 GiB and more
	dirLinks      = 0x20
	extraSize     = 0x40
)

func (s *super) encode() []byte {
	b := make([]byte, superSize)
	now := uint32(time.Now().Unix())
	for at, v := range map[int]uint32{
		0x00:          s.groups * inodesPerGroup,
		0x04:          s.groups * blocksPerGroup,
		0x0c:          s.freeBlocks,
		0x10:          s.freeInodes,
		0x18:          logBlockSize,
		0x1c:          logBlockSize, // of clusters, which are blocks
		0x20:          blocksPerGroup,
		0x24:          blocksPerGroup, // in clusters
		0x28:          inodesPerGroup,
		0x30:          now, // written
		0x40:          now, // checked
		0x4c:          dynamicRev,
		0x54:          firstInode,
		superCompatAt: compatXattr | compatSparse2,
		0x60:          fileType | extentTrees,
		0x64:          largeFile | dirLinks | extraSize,
	} {
		le.PutUint32(b[at:], v)
	}
	for at, v := range map[int]uint16{
		0x36:         noMountLimit,
		superMagicAt: magic,
		0x3a:         cleanState,
		0x3c:         onErrorGoOn,
		0x58:         inodeSize,
		0x15c:        inodeExtra, // the least, and what is wanted
		0x15e:        inodeExtra,
	} {
		le.PutUint16(b[at:], v)
	}
	copy(b[superUUIDAt:], s.uuid[:])
	if s.journal != nil {
		b[superCompatAt] |= compatJournal
		s.journal.putJournal(b)
	}
	return b
}

// newUUID returns a random one (RFC 9562, version 4).
func newUUID() (id [16]byte) {
	rand.Read(id[:])
	id[6], id[8] = id[6]&0x0f|0x40, id[8]&0x3f|0x80
	return id
}
