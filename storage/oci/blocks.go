package oci

import (
	"bytes"
	"errors"
	"io"
	"os"

	"vmm/internal/room"
	"vmm/storage/erofs"
)

// blocks writes contents to a file, each from the beginning of a block. Blocks of zeros are
// holes in it.
type blocks struct {
	f    *os.File
	size int64  // of all so far, in whole blocks
	buf  []byte // the bytes before size that are not written yet
	used int    // of buf
}

// blocksBuffer is how much is written at once, in bytes: a multiple of a block.
const blocksBuffer = 1 << 20

func newBlocks(f *os.File) *blocks { return &blocks{f: f, buf: make([]byte, blocksBuffer)} }

// add appends n bytes of r.
func (b *blocks) add(r io.Reader, n int64) error {
	for n > 0 {
		if b.used == len(b.buf) {
			if err := b.flush(); err != nil {
				return err
			}
		}
		part := int(min(n, int64(len(b.buf)-b.used)))
		if _, err := io.ReadFull(r, b.buf[b.used:b.used+part]); err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
		whole := (part + erofs.BlockSize - 1) / erofs.BlockSize * erofs.BlockSize
		clear(b.buf[b.used+part : b.used+whole])
		b.used += whole
		b.size += int64(whole)
		n -= int64(part)
	}
	return nil
}

var zeroBlock [erofs.BlockSize]byte

// flush writes what is no hole.
func (b *blocks) flush() error {
	start := b.size - int64(b.used)
	isZero := func(at int) bool { return bytes.Equal(b.buf[at:at+erofs.BlockSize], zeroBlock[:]) }
	for at := 0; at < b.used; {
		from, zero := at, isZero(at)
		for at < b.used && isZero(at) == zero {
			at += erofs.BlockSize
		}
		if !zero {
			if err := room.For(b.f, at-from); err != nil {
				return err
			}
			if _, err := b.f.WriteAt(b.buf[from:at], start+int64(from)); err != nil {
				return err
			}
		}
	}
	b.used = 0
	return nil
}

// finish writes the rest, and gives the file the size of a segment.
func (b *blocks) finish() error {
	if err := b.flush(); err != nil {
		return err
	}
	return b.f.Truncate((b.size + erofs.SegmentAlign - 1) / erofs.SegmentAlign * erofs.SegmentAlign)
}
