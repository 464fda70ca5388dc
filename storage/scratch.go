package storage

import (
	"errors"
	"sync"

	"vmm/internal/iovec"
)

// ErrScratchFull is returned for a write to a Scratch that has no room for it.
var ErrScratchFull = errors.New("more is written than is kept")

// Scratch is a disk on which nothing is written: what its user writes is kept in memory, and gone
// with it.
type Scratch struct {
	disk Disk
	max  int // sectors in memory

	mu      sync.RWMutex
	sectors map[int64][]byte // what was written, by number
}

// NewScratch makes one of a disk, which stays open when the Scratch is closed. At most limit bytes
// are kept: a write for which there is no room changes nothing, and returns ErrScratchFull.
func NewScratch(disk Disk, limit int64) *Scratch {
	return &Scratch{disk: disk, max: int(limit / SectorSize), sectors: map[int64][]byte{}}
}

// Size implements Disk.
func (s *Scratch) Size() int64 { return s.disk.Size() }

// ReadOnly implements Disk.
func (s *Scratch) ReadOnly() bool { return false }

// ReadV implements Disk.
func (s *Scratch) ReadV(v [][]byte, off int64) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if err := s.disk.ReadV(v, off); err != nil || len(s.sectors) == 0 {
		return err
	}
	var part [][]byte
	for at := int64(0); at < int64(iovec.Len(v)); at += SectorSize {
		if b := s.sectors[(off+at)/SectorSize]; b != nil {
			part = iovec.Cut(part[:0], v, at, SectorSize)
			iovec.Scatter(part, b)
		}
	}
	return nil
}

// TryReadV implements Disk. What was written is not looked at: ReadV does that.
func (s *Scratch) TryReadV(v [][]byte, off int64) (bool, error) {
	if !s.mu.TryRLock() {
		return false, nil
	}
	defer s.mu.RUnlock()
	if len(s.sectors) > 0 {
		return false, nil
	}
	return s.disk.TryReadV(v, off)
}

// WriteV implements Disk.
func (s *Scratch) WriteV(v [][]byte, off int64) error {
	n := int64(iovec.Len(v))
	if err := CheckRange(off, n, s.Size()); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	first, end := off/SectorSize, (off+n)/SectorSize
	if end-first > int64(s.max) {
		return ErrScratchFull
	}
	room := s.max - len(s.sectors)
	for i := first; i < end; i++ {
		if s.sectors[i] == nil {
			room--
		}
	}
	if room < 0 {
		return ErrScratchFull
	}
	b := make([]byte, n)
	iovec.Gather(b, v)
	for i := first; i < end; i++ {
		s.sectors[i], b = b[:SectorSize:SectorSize], b[SectorSize:]
	}
	return nil
}

// WriteZeroes implements Disk.
func (s *Scratch) WriteZeroes(off, n int64, _ bool) error {
	for n > 0 {
		part := min(n, MaxZeros)
		if err := s.WriteV([][]byte{Zeros(int(part))}, off); err != nil {
			return err
		}
		off, n = off+part, n-part
	}
	return nil
}

// Discard implements Disk: it does nothing.
func (s *Scratch) Discard(off, n int64) error { return CheckRange(off, n, s.Size()) }

// Flush implements Disk: nothing is to be kept.
func (s *Scratch) Flush() error { return nil }

// Resize implements Disk: it is ErrReadOnly.
func (s *Scratch) Resize(int64) error { return ErrReadOnly }

// Close implements Disk, and leaves the disk below open.
func (s *Scratch) Close() error { return nil }
