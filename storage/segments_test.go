package storage

import (
	"bytes"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// segmentList makes files and a list of them.
func segmentList(t *testing.T, list any, files ...[]byte) *File {
	t.Helper()
	dir := t.TempDir()
	for i, b := range files {
		if err := os.WriteFile(filepath.Join(dir, string(rune('a'+i))), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	b, err := json.Marshal(list)
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(dir, "list")
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := OpenFile(name, true, Writeback)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// TestSegments reads any range of several files as of one.
func TestSegments(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	var files [][]byte
	var names []string
	for i, pages := range []int{1, 3, 1, 2} {
		b := make([]byte, pages*SegmentUnit)
		for j := range b {
			b[j] = byte(random.Uint32())
		}
		files, names = append(files, b), append(names, string(rune('a'+i)))
	}
	s, err := NewSegments(segmentList(t, SegmentList{names}, files...))
	if err != nil {
		t.Fatal(err)
	}
	want := bytes.Join(files, nil)
	if s.Size() != int64(len(want)) || len(s.Files()) != 4 {
		t.Fatalf("%d bytes in %d files", s.Size(), len(s.Files()))
	}
	for range 500 {
		off := random.IntN(len(want)/SectorSize) * SectorSize
		n := (1 + random.IntN((len(want)-off)/SectorSize)) * SectorSize
		cut := random.IntN(n + 1)
		a, b := make([]byte, cut), make([]byte, n-cut)
		if err := s.ReadV([][]byte{a, b}, int64(off)); err != nil || !bytes.Equal(append(a, b...), want[off:off+n]) {
			t.Fatalf("%d bytes at %d: %v", n, off, err)
		}
	}
	if err := s.ReadV([][]byte{make([]byte, 2*SectorSize)}, s.Size()-SectorSize); !errors.Is(err, ErrRange) {
		t.Error(err)
	}
	if err := s.ReadV(nil, s.Size()); err != nil {
		t.Error(err)
	}
	if err := s.WriteV([][]byte{want[:SectorSize]}, 0); !errors.Is(err, ErrReadOnly) {
		t.Error(err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// TestBadSegments: lists that are none are refused, and nothing stays open.
func TestBadSegments(t *testing.T) {
	page := make([]byte, SegmentUnit)
	for name, c := range map[string]struct {
		list  any
		files [][]byte
	}{
		"empty":   {list: SegmentList{}},
		"other":   {list: []string{"a"}, files: [][]byte{page}},
		"missing": {list: SegmentList{[]string{"a", "b"}}, files: [][]byte{page}},
		"odd":     {list: SegmentList{[]string{"a"}}, files: [][]byte{page[:100]}},
		"nothing": {list: SegmentList{[]string{"a"}}, files: [][]byte{{}}},
		"many":    {list: SegmentList{make([]string, maxSegments+1)}},
		"large":   {list: map[string]any{"segments": []string{"a"}, "x": strings.Repeat("x", maxSegmentList)}, files: [][]byte{page}},
	} {
		t.Run(name, func(t *testing.T) {
			f := segmentList(t, c.list, c.files...)
			defer f.Close()
			if _, err := NewSegments(f); err == nil {
				t.Error("it was taken")
			}
		})
	}
}
