package storage

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"testing"
)

// TestScratch writes to a scratch disk at random, and holds it to a copy in memory; the file below
// stays as it is.
func TestScratch(t *testing.T) {
	const size = 64 << 10
	name := filepath.Join(t.TempDir(), "disk")
	below := pattern(t, name, size, 3)
	f, err := OpenFile(name, true, Writeback)
	if err != nil {
		t.Fatal(err)
	}
	disk := NewRaw(f, false)
	defer disk.Close()
	s := NewScratch(disk, size)
	want := bytes.Clone(below)
	r := rand.New(rand.NewPCG(1, 2))
	for range 500 {
		off := r.IntN(size/SectorSize) * SectorSize
		n := min(1+r.IntN(8), (size-off)/SectorSize) * SectorSize
		cut := r.IntN(n)
		b := make([]byte, n)
		switch r.IntN(3) {
		case 0:
			for i := range b {
				b[i] = byte(r.Uint32())
			}
			err = s.WriteV([][]byte{b[:cut], nil, b[cut:]}, int64(off))
			copy(want[off:], b)
		case 1:
			err = s.WriteZeroes(int64(off), int64(n), true)
			copy(want[off:], b)
		default:
			v := [][]byte{b[:cut], b[cut:]}
			var ok bool
			if ok, err = s.TryReadV(v, int64(off)); err == nil && !ok {
				err = s.ReadV(v, int64(off))
			}
			if !bytes.Equal(b, want[off:off+n]) {
				t.Fatalf("%d bytes at %d differ", n, off)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	whole := make([]byte, size)
	if err := disk.ReadV([][]byte{whole}, 0); err != nil || !bytes.Equal(whole, below) {
		t.Errorf("the disk below has changed, or cannot be read: %v", err)
	}
}

// TestScratchBounds has a scratch disk keep no more than it may.
func TestScratchBounds(t *testing.T) {
	name := filepath.Join(t.TempDir(), "disk")
	pattern(t, name, 1<<20, 3)
	f, err := OpenFile(name, true, Writeback)
	if err != nil {
		t.Fatal(err)
	}
	disk := NewRaw(f, false)
	defer disk.Close()
	s := NewScratch(disk, 4*SectorSize)
	write := func(sectors int, off int64) error {
		return s.WriteV([][]byte{make([]byte, sectors*SectorSize)}, off*SectorSize)
	}
	for _, c := range []struct {
		sectors int
		off     int64
		want    error
	}{
		{5, 0, ErrScratchFull}, {3, 0, nil}, {3, 1, nil}, {2, 10, ErrScratchFull}, {4, 0, nil}, {1, 2047, ErrScratchFull}, {1, 2048, ErrRange}, {1, -1, ErrRange},
	} {
		if err := write(c.sectors, c.off); !errors.Is(err, c.want) {
			t.Errorf("%d sectors at %d: %v, want %v", c.sectors, c.off, err, c.want)
		}
	}
	if err := s.WriteZeroes(0, 1<<20, false); !errors.Is(err, ErrScratchFull) {
		t.Errorf("zeros all over: %v", err)
	}
	if err := errors.Join(s.Discard(0, 1<<20), s.Flush(), s.Close()); err != nil {
		t.Error(err)
	}
	if err := s.Resize(0); !errors.Is(err, ErrReadOnly) {
		t.Errorf("another size: %v", err)
	}
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for i := range int64(100) {
				b := make([]byte, SectorSize)
				if err := errors.Join(write(1, i%4), s.ReadV([][]byte{b}, i*SectorSize)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
}
