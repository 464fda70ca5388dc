package rootfs

import (
	"encoding/binary"
	"errors"
	"io"
	"os"
)

// Offsets in the superblock (Linux, Documentation/filesystems/ext4/super.rst),
// which lies at byte 1024.
const (
	superAt          = 1024
	superInodes      = 0x00
	superBlocks      = 0x04
	superFreeBlocks  = 0x0c
	superFreeInodes  = 0x10
	superLogBlock    = 0x18
	superPerGroup    = 0x20
	superInodesGroup = 0x28
	superMagic       = 0x38
	superInodeSize   = 0x58
	superROCompat    = 0x64

	extMagic          = 0xef53
	readonlyFeature   = 0x1000 // RO_COMPAT_READONLY
	descriptorSize    = 32     // without the 64bit feature
	descBlockBitmap   = 0x00
	descInodeBitmap   = 0x04
	descInodeTable    = 0x08
	descFreeBlocks    = 0x0c
	descFreeInodes    = 0x0e
	blockSize         = 4096
	descriptorsABlock = blockSize / descriptorSize
)

var errLayout = errors.New("not the ext4 layout that was written")

// grow gives the compact file system that tar2ext4 wrote room for free bytes:
// it is extended by whole block groups, each of which keeps its own tables, and
// is marked as writable. There are no backups of the superblock, no journal and
// no checksums to keep.
func grow(f *os.File, free int64) error {
	le := binary.LittleEndian
	super := make([]byte, 1024)
	if _, err := f.ReadAt(super, superAt); err != nil {
		return err
	}
	blocks, perGroup := le.Uint32(super[superBlocks:]), le.Uint32(super[superPerGroup:])
	inodes := le.Uint32(super[superInodesGroup:])
	if le.Uint16(super[superMagic:]) != extMagic || le.Uint32(super[superLogBlock:]) != 2 || perGroup != 8*blockSize || blocks == 0 {
		return errLayout
	}
	groups := (blocks + perGroup - 1) / perGroup
	want := groups + uint32((free+blockSize*int64(perGroup)-1)/(blockSize*int64(perGroup)))
	tableBlocks := inodes * uint32(le.Uint16(super[superInodeSize:])) / blockSize

	descriptors := make([]byte, (want+descriptorsABlock-1)/descriptorsABlock*blockSize)
	used := (groups + descriptorsABlock - 1) / descriptorsABlock
	if _, err := f.ReadAt(descriptors[:used*blockSize], blockSize); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	freed, err := openLastGroup(f, descriptors[(groups-1)*descriptorSize:], blocks%perGroup)
	if err != nil {
		return err
	}
	// The descriptors need more blocks behind the superblock, for which room was
	// left.
	taken, err := takeBlocks(f, descriptors, 1+used, 1+uint32(len(descriptors))/blockSize)
	if err != nil {
		return err
	}
	for g := range groups {
		if err := padInodes(f, descriptors[g*descriptorSize:], inodes); err != nil {
			return err
		}
	}
	for g := groups; g < want; g++ {
		first := g * perGroup
		d := descriptors[g*descriptorSize:]
		le.PutUint32(d[descBlockBitmap:], first)
		le.PutUint32(d[descInodeBitmap:], first+1)
		le.PutUint32(d[descInodeTable:], first+2)
		le.PutUint16(d[descFreeBlocks:], uint16(perGroup-2-tableBlocks))
		le.PutUint16(d[descFreeInodes:], uint16(inodes))
		bitmaps := make([]byte, 2*blockSize)
		for i := range 2 + tableBlocks {
			bitmaps[i/8] |= 1 << (i % 8)
		}
		for i := inodes; i < 8*blockSize; i++ { // inodes that there are not
			bitmaps[blockSize+i/8] |= 1 << (i % 8)
		}
		if _, err := f.WriteAt(bitmaps, int64(first)*blockSize); err != nil {
			return err
		}
	}
	add := func(at int, n uint32) { le.PutUint32(super[at:], le.Uint32(super[at:])+n) }
	le.PutUint32(super[superBlocks:], want*perGroup)
	le.PutUint32(super[superInodes:], want*inodes)
	add(superFreeBlocks, freed-taken+(want-groups)*(perGroup-2-tableBlocks))
	add(superFreeInodes, (want-groups)*inodes)
	le.PutUint32(super[superROCompat:], le.Uint32(super[superROCompat:])&^readonlyFeature)
	if _, err := f.WriteAt(descriptors, blockSize); err != nil {
		return err
	}
	if _, err := f.WriteAt(super, superAt); err != nil {
		return err
	}
	return f.Truncate(int64(want) * int64(perGroup) * blockSize)
}

// padInodes marks the inodes as used that an inode bitmap has room for and the
// group has not, which tar2ext4 leaves out and e2fsck misses.
func padInodes(f *os.File, desc []byte, inodes uint32) error {
	pad := make([]byte, blockSize-(inodes+7)/8)
	for i := range pad {
		pad[i] = 0xff
	}
	_, err := f.WriteAt(pad, int64(binary.LittleEndian.Uint32(desc[descInodeBitmap:]))*blockSize+int64(inodes+7)/8)
	return err
}

// openLastGroup makes the blocks of the last group free that the disk was too
// short for.
func openLastGroup(f *os.File, desc []byte, from uint32) (freed uint32, err error) {
	if from == 0 {
		return 0, nil
	}
	return changeBits(f, desc, from, 8*blockSize, false)
}

// takeBlocks marks blocks of group 0 as used.
func takeBlocks(f *os.File, desc []byte, from, to uint32) (taken uint32, err error) {
	return changeBits(f, desc, from, to, true)
}

// changeBits makes blocks of a group used or free and returns how many were
// not.
func changeBits(f *os.File, desc []byte, from, to uint32, use bool) (n uint32, err error) {
	le := binary.LittleEndian
	at := int64(le.Uint32(desc[descBlockBitmap:])) * blockSize
	bitmap := make([]byte, blockSize)
	if _, err := f.ReadAt(bitmap, at); err != nil {
		return 0, err
	}
	for i := from; i < to; i++ {
		if (bitmap[i/8]>>(i%8)&1 != 0) != use {
			bitmap[i/8] ^= 1 << (i % 8)
			n++
		}
	}
	count := le.Uint16(desc[descFreeBlocks:])
	if use {
		count -= uint16(n)
	} else {
		count += uint16(n)
	}
	le.PutUint16(desc[descFreeBlocks:], count)
	_, err = f.WriteAt(bitmap, at)
	return n, err
}
