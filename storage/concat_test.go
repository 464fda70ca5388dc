package storage

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// pattern writes a file of blocks, each of which differs from all others.
func pattern(t *testing.T, name string, size, seed int) []byte {
	t.Helper()
	b := make([]byte, size)
	for i := range b {
		b[i] = byte(i/SectorSize*7 + seed)
	}
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return b
}

// TestConcat reads all ranges of several files as one, in pieces, from several goroutines.
func TestConcat(t *testing.T) {
	dir := t.TempDir()
	var names []string
	var want []byte
	for i, size := range []int{4096, 8192, 4096} {
		name := filepath.Join(dir, string(rune('a'+i)))
		names = append(names, name)
		want = append(want, pattern(t, name, size, 50*i)...)
	}
	c, err := OpenConcat(4096, names...)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if c.Size() != int64(len(want)) || !c.ReadOnly() {
		t.Fatalf("%d bytes, read-only %v", c.Size(), c.ReadOnly())
	}
	for _, name := range names { // a disk does not need the names
		os.Remove(name)
	}
	var all sync.WaitGroup
	for split := SectorSize; split <= 1024; split += SectorSize {
		all.Go(func() {
			for off := 0; off <= len(want); off += SectorSize {
				for end := off; end <= len(want); end += SectorSize {
					got := make([]byte, end-off)
					cut := min(split, len(got))
					v := [][]byte{got[:cut], nil, got[cut:]}
					if ok, err := c.TryReadV(v, int64(off)); err != nil || !ok {
						if err := c.ReadV(v, int64(off)); err != nil {
							t.Errorf("%d to %d: %v", off, end, err)
						}
					}
					if !bytes.Equal(got, want[off:end]) {
						t.Errorf("%d to %d differs", off, end)
						return
					}
				}
			}
		})
	}
	all.Wait()
	for _, off := range []int64{-SectorSize, c.Size(), 1 << 62} {
		if err := c.ReadV([][]byte{make([]byte, SectorSize)}, off); !errors.Is(err, ErrRange) {
			t.Errorf("at %d: %v", off, err)
		}
	}
	for what, err := range map[string]error{"write": c.WriteV([][]byte{make([]byte, SectorSize)}, 0), "discard": c.Discard(0, SectorSize),
		"zeros": c.WriteZeroes(0, SectorSize, true), "resize": c.Resize(0)} {
		if !errors.Is(err, ErrReadOnly) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// TestConcatRefuses names the file that is no part of a disk, and leaves none open.
func TestConcatRefuses(t *testing.T) {
	dir := t.TempDir()
	good := filepath.Join(dir, "good")
	pattern(t, good, 4096, 0)
	for name, size := range map[string]int{"empty": 0, "odd": 4096 + SectorSize, "missing": -1} {
		path := filepath.Join(dir, name)
		if size >= 0 {
			pattern(t, path, size, 0)
		}
		if _, err := OpenConcat(4096, good, path); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", name, err)
		}
	}
	f, err := OpenFile(good, false, Writeback) // nobody has a lock on it
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
}

func BenchmarkConcatRead(b *testing.B) {
	names := []string{filepath.Join(b.TempDir(), "a"), filepath.Join(b.TempDir(), "b")}
	for _, name := range names {
		if err := Create(name, 4096); err != nil {
			b.Fatal(err)
		}
	}
	c, err := OpenConcat(4096, names...)
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	v := [][]byte{make([]byte, 4096), make([]byte, 4096)}
	b.ReportAllocs()
	for b.Loop() {
		if err := c.ReadV(v, 0); err != nil {
			b.Fatal(err)
		}
	}
}
