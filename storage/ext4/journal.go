package ext4

import (
	"encoding/binary"
	"time"

	"golang.org/x/sys/unix"
)

// The journal (journal.rst): a file of its own inode, whose first block says what the log
// behind it holds. Its numbers are big-endian.
const (
	journalInode  = 8
	journalBlocks = 8192 // 32 MiB

	journalMagic = 0xc03b3998
	journalSuper = 4 // the kind of its first block, version 2
)

// AddJournal gives the file system a journal of 32 MiB, which has nothing in it: what is mounted after
// a machine was cut off while it wrote is whole. It is called once.
func (w *Writer) AddJournal() error {
	n := &inode{number: journalInode, links: 1, size: journalBlocks * blockSize}
	n.Mode, n.Modified = unix.S_IFREG|0o600, time.Unix(0, 0)
	w.inodes[journalInode-1] = n
	for left := uint32(journalBlocks); left > 0; {
		at, count, err := w.allocate(left)
		if err != nil {
			return err
		}
		n.extend(at, count)
		left -= count
	}
	return w.placeTree(n)
}

// writeJournal writes the first block of a superblock's journal, if it has one; all others are zero.
func (w *Writer) writeJournal(s *super) error {
	if s.journal == nil {
		return nil
	}
	b := make([]byte, blockSize)
	for at, v := range map[int]uint32{
		0x00: journalMagic,
		0x04: journalSuper,
		0x0c: blockSize,
		0x10: journalBlocks,
		0x14: 1, // the log's first block
		0x18: 1, // and the number of its first transaction; that there is none yet is 0 at 0x1c
		0x40: 1, // file systems that use it
	} {
		binary.BigEndian.PutUint32(b[at:], v)
	}
	copy(b[0x30:], s.uuid[:])
	copy(b[0x100:], s.uuid[:]) // the one that uses it
	return w.writeBlocks(s.journal.extents[0].physical, b)
}

// putJournal says in a superblock where the journal is.
func (n *inode) putJournal(b []byte) {
	le.PutUint32(b[0xe0:], journalInode)
	b[0xfd] = 1 // what follows is a copy of that inode's blocks and size
	copy(b[0x10c:], n.root[:])
	le.PutUint32(b[0x10c+64:], uint32(n.size))
}
