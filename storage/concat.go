package storage

import (
	"errors"
	"fmt"
	"slices"
	"sync"

	"vmm/internal/iovec"
)

// Concat is a disk for reading that is made of disks, one behind the other.
type Concat struct {
	parts   []Disk
	ends    []int64 // of the parts, in the whole
	vectors sync.Pool
}

// NewConcat returns the disks as one, which owns them from now on.
func NewConcat(parts ...Disk) *Concat {
	c := &Concat{parts: parts, vectors: sync.Pool{New: func() any { return new([][]byte) }}}
	var end int64
	for _, p := range parts {
		end += p.Size()
		c.ends = append(c.ends, end)
	}
	return c
}

// OpenConcat opens files as one disk for reading, in this order. Each has a length that is a
// positive multiple of unit bytes, which is one of SectorSize. They stay open until Close, and nobody
// who asks for locks writes to them until then. The error names the file.
func OpenConcat(unit int64, names ...string) (*Concat, error) {
	var parts []Disk
	for _, name := range names {
		f, err := OpenFile(name, true, Writeback)
		if err == nil {
			parts = append(parts, NewRaw(f, false))
			if n := f.Size(); n == 0 || n%unit != 0 {
				err = fmt.Errorf("%s: %d bytes are not one or more blocks of %d", name, n, unit)
			}
		}
		if err != nil {
			return nil, errors.Join(err, NewConcat(parts...).Close())
		}
	}
	return NewConcat(parts...), nil
}

// Size implements Disk.
func (c *Concat) Size() int64 {
	if len(c.ends) == 0 {
		return 0
	}
	return c.ends[len(c.ends)-1]
}

// ReadOnly implements Disk.
func (c *Concat) ReadOnly() bool { return true }

// ReadV implements Disk.
func (c *Concat) ReadV(v [][]byte, off int64) error {
	_, err := c.each(v, off, func(p Disk, v [][]byte, off int64) (bool, error) { return true, p.ReadV(v, off) })
	return err
}

// TryReadV implements Disk.
func (c *Concat) TryReadV(v [][]byte, off int64) (bool, error) { return c.each(v, off, Disk.TryReadV) }

// each reads the parts of a range from where they are, as long as read says that it did.
func (c *Concat) each(v [][]byte, off int64, read func(p Disk, v [][]byte, off int64) (bool, error)) (bool, error) {
	n := int64(iovec.Len(v))
	if err := CheckRange(off, n, c.Size()); err != nil {
		return true, err
	}
	piece := c.vectors.Get().(*[][]byte)
	defer func() {
		clear(*piece)
		c.vectors.Put(piece)
	}()
	for done := int64(0); done < n; {
		i := c.find(off + done)
		here := min(c.ends[i]-off-done, n-done)
		*piece = iovec.Cut((*piece)[:0], v, done, here)
		ok, err := read(c.parts[i], *piece, off+done-c.start(i))
		if !ok || err != nil {
			return ok, err
		}
		done += here
	}
	return true, nil
}

// find returns the part that has an offset.
func (c *Concat) find(off int64) int {
	i, _ := slices.BinarySearch(c.ends, off+1) // the first that ends behind it
	return i
}

// start is where a part begins in the whole.
func (c *Concat) start(i int) int64 {
	if i == 0 {
		return 0
	}
	return c.ends[i-1]
}

// WriteV implements Disk.
func (c *Concat) WriteV([][]byte, int64) error { return ErrReadOnly }

// Flush implements Disk.
func (c *Concat) Flush() error { return nil }

// Discard implements Disk.
func (c *Concat) Discard(int64, int64) error { return ErrReadOnly }

// WriteZeroes implements Disk.
func (c *Concat) WriteZeroes(int64, int64, bool) error { return ErrReadOnly }

// Resize implements Disk.
func (c *Concat) Resize(int64) error { return ErrReadOnly }

// Close implements Disk.
func (c *Concat) Close() error {
	var errs []error
	for _, p := range c.parts {
		errs = append(errs, p.Close())
	}
	return errors.Join(errs...)
}
