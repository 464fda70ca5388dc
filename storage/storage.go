// Package storage is what is behind a disk: raw files and block devices here,
// qcow2 images with their backing chains in the package of that name, and the
// host files under both.
//
// A disk is read and written in vectors: pieces of memory, one after another,
// that are usually the guest's own.
package storage

import (
	"bytes"
	"errors"
	"fmt"
	"io"
)

// SectorSize is the unit of all sizes and offsets of a disk, in bytes.
const SectorSize = 512

// Disk is a virtual disk. Sizes, offsets and lengths are in bytes and multiples of
// SectorSize; a range outside of the disk is ErrRange. All methods may be called
// concurrently; what overlapping writes leave is one or the other, sector by sector.
// What changes a disk that is open for reading returns ErrReadOnly. The host's own errors
// are in *fs.PathErrors: unix.ENOSPC says that its disk is full.
type Disk interface {
	Size() int64
	// ReadV fills v from off on, and WriteV writes it there.
	ReadV(v [][]byte, off int64) error
	// TryReadV is ReadV where that needs no waiting; else it returns false and
	// v is undefined.
	TryReadV(v [][]byte, off int64) (bool, error)
	WriteV(v [][]byte, off int64) error
	// Flush returns when all that was written before it is on the host's disk.
	Flush() error
	// Discard gives a range up: it reads as anything, usually zero.
	Discard(off, n int64) error
	// WriteZeroes makes a range read as zeros; with unmap its storage may go.
	WriteZeroes(off, n int64, unmap bool) error
	// Resize changes the size; what is beyond a smaller one is lost, and a larger one
	// reads as zeros there.
	Resize(size int64) error
	// ReadOnly reports whether the disk is open for reading only.
	ReadOnly() bool
	// Close flushes, and frees what the disk holds. Nothing may be called after it.
	Close() error
}

// Extent is a range of a disk, in bytes, that has one kind of content.
type Extent struct {
	Start, Length int64
	// Data is false where the range reads as zeros without storage.
	Data bool
	// Depth tells which image of a backing chain holds it; 0 is the top one.
	// Where Data is false and nobody says so, it is the chain's length.
	Depth int
	// Zero is set where an image says that the range reads as zeros.
	Zero bool
	// Offset is where the data is in that image's file, or -1 where it is
	// compressed.
	Offset int64
}

// Mapper is a disk that knows where its data is.
type Mapper interface {
	// Map returns the extent at off, at most n bytes of it, which must be on the disk.
	Map(off, n int64) (Extent, error)
}

// ErrReadOnly is returned for a change of a disk that is open for reading.
var ErrReadOnly = errors.New("the disk is read-only")

// ErrRange is returned for an access outside the disk.
var ErrRange = errors.New("access beyond the end of the disk")

// CheckRange returns ErrRange unless n bytes at off lie within size.
func CheckRange(off, n, size int64) error {
	if off < 0 || n < 0 || off > size || n > size-off {
		return fmt.Errorf("%w: %d bytes at %d, of %d", ErrRange, n, off, size)
	}
	return nil
}

// MaxZeros bounds Zeros, in bytes.
const MaxZeros = 1 << 20

var zeros [MaxZeros]byte

// Zeros returns n bytes, at most MaxZeros, that are zero, for reading only.
func Zeros(n int) []byte { return zeros[:n:n] }

// IsZero reports whether bytes are all zero.
func IsZero(b []byte) bool {
	for len(b) > MaxZeros {
		if !bytes.Equal(b[:MaxZeros], zeros[:]) {
			return false
		}
		b = b[MaxZeros:]
	}
	return bytes.Equal(b, zeros[:len(b)])
}

// ReaderAt reads a disk as a file, at any offset.
type ReaderAt struct{ Disk Disk }

// ReadAt implements io.ReaderAt.
func (r ReaderAt) ReadAt(p []byte, off int64) (int, error) {
	size := r.Disk.Size()
	if off < 0 || off >= size {
		return 0, io.EOF
	}
	n := min(int64(len(p)), size-off)
	start, end := off&^(SectorSize-1), (off+n+SectorSize-1)&^(SectorSize-1)
	var err error
	if start == off && end == off+n {
		err = r.Disk.ReadV([][]byte{p[:n]}, off)
	} else {
		whole := make([]byte, end-start)
		if err = r.Disk.ReadV([][]byte{whole}, start); err == nil {
			copy(p[:n], whole[off-start:])
		}
	}
	if err != nil {
		return 0, err
	}
	if n < int64(len(p)) {
		return int(n), io.EOF
	}
	return int(n), nil
}
