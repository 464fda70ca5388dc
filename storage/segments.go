package storage

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"

	"vmm/internal/iovec"
)

// Segments is a disk that is several files one behind the other, for reading only. A list
// names them.
type Segments struct {
	list  *File
	files []*File
	ends  []int64 // of the files on the disk, in bytes
}

// SegmentList is what a list of segments holds, as JSON.
type SegmentList struct {
	// Segments are files, relative to the list's directory. The size of each is a multiple of
	// SegmentUnit.
	Segments []string `json:"segments"`
}

// SegmentUnit is what a segment's size is a multiple of, in bytes: a page of the guest's memory.
const SegmentUnit = 4096

// Bounds of a list.
const (
	maxSegmentList = 1 << 20 // bytes
	maxSegments    = 1024
)

// NewSegments opens the files of a list, which it owns from then on if it succeeds. They are
// read while others may read them too.
func NewSegments(list *File) (*Segments, error) {
	b := make([]byte, min(list.Size(), maxSegmentList+1))
	if _, err := list.ReadAt(b, 0); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	var l SegmentList
	if err := json.Unmarshal(b, &l); err != nil || len(b) > maxSegmentList || len(l.Segments) == 0 || len(l.Segments) > maxSegments {
		return nil, fmt.Errorf("%s: not a list of segments", list.Name())
	}
	s := &Segments{list: list}
	for _, name := range l.Segments {
		if err := s.add(name); err != nil {
			return nil, errors.Join(err, s.closeFiles())
		}
	}
	return s, nil
}

// add opens the next file.
func (s *Segments) add(name string) error {
	if !filepath.IsAbs(name) {
		name = filepath.Join(s.list.Dir(), name)
	}
	f, err := OpenFile(name, true, Writeback)
	if err != nil {
		return fmt.Errorf("%s: a segment: %w", s.list.Name(), err)
	}
	s.files = append(s.files, f)
	size := f.Size()
	if size == 0 || size%SegmentUnit != 0 {
		return fmt.Errorf("%s: a segment of %d bytes: not a multiple of %d", name, size, SegmentUnit)
	}
	s.ends = append(s.ends, s.Size()+size)
	return nil
}

// Files returns the segments in their order. They stay the disk's.
func (s *Segments) Files() []*File { return s.files }

// Size implements Disk.
func (s *Segments) Size() int64 {
	if len(s.ends) == 0 {
		return 0
	}
	return s.ends[len(s.ends)-1]
}

// ReadOnly implements Disk.
func (s *Segments) ReadOnly() bool { return true }

// at finds the segment that has a byte of the disk, and where it begins.
func (s *Segments) at(off int64) (i int, start int64) {
	i, found := slices.BinarySearch(s.ends, off)
	if found {
		i++ // an end is the beginning of the next
	}
	if i > 0 {
		start = s.ends[i-1]
	}
	return i, start
}

// ReadV implements Disk.
func (s *Segments) ReadV(v [][]byte, off int64) error {
	_, err := s.read(v, off, func(f *File, v [][]byte, off int64) (bool, error) { return true, f.ReadV(v, off) })
	return err
}

// TryReadV implements Disk.
func (s *Segments) TryReadV(v [][]byte, off int64) (bool, error) {
	return s.read(v, off, (*File).TryReadV)
}

// read reads each part of a range from its segment.
func (s *Segments) read(v [][]byte, off int64, read func(*File, [][]byte, int64) (bool, error)) (bool, error) {
	n := int64(iovec.Len(v))
	if err := CheckRange(off, n, s.Size()); err != nil {
		return true, err
	}
	if n == 0 {
		return true, nil
	}
	i, start := s.at(off)
	if off+n <= s.ends[i] {
		return read(s.files[i], v, off-start)
	}
	for done := int64(0); done < n; i++ {
		part := min(n-done, s.ends[i]-off-done)
		if ok, err := read(s.files[i], iovec.Cut(nil, v, done, part), off+done-start); !ok || err != nil {
			return ok, err
		}
		done, start = done+part, s.ends[i]
	}
	return true, nil
}

// WriteV implements Disk.
func (s *Segments) WriteV([][]byte, int64) error { return ErrReadOnly }

// Flush implements Disk.
func (s *Segments) Flush() error { return nil }

// Discard implements Disk.
func (s *Segments) Discard(int64, int64) error { return ErrReadOnly }

// WriteZeroes implements Disk.
func (s *Segments) WriteZeroes(int64, int64, bool) error { return ErrReadOnly }

// Resize implements Disk.
func (s *Segments) Resize(int64) error { return ErrReadOnly }

func (s *Segments) closeFiles() (err error) {
	for _, f := range s.files {
		err = errors.Join(err, f.Close())
	}
	return err
}

// Close implements Disk.
func (s *Segments) Close() error { return errors.Join(s.closeFiles(), s.list.Close()) }
