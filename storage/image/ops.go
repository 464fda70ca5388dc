package image

import (
	"bytes"
	"errors"
	"fmt"
	"os"

	"vmm/storage"
	"vmm/storage/qcow2"
)

// CreateOptions describe a new image. What is beyond Size is for Qcow2 only.
type CreateOptions struct {
	Format        string // Raw or Qcow2; if "", what the name ends in, else Qcow2
	Size          int64  // bytes, whole sectors; the backing file's if 0
	Backing       string // relative to the new image, as it is stored in it
	BackingFormat string // one of Formats; found out if ""
	ClusterSize   int64  // bytes, a power of two from 512 to 2 MiB; 64 KiB if 0
	LazyRefcounts bool
}

// Create makes a new image. A file of that name must not exist. Nothing is left of one
// that cannot be made.
func Create(path string, o CreateOptions) (err error) {
	if o.Size%storage.SectorSize != 0 {
		return fmt.Errorf("a disk of %d bytes: whole sectors of %d are possible", o.Size, storage.SectorSize)
	}
	if o.Format, err = newFormat(path, o.Format); err != nil {
		return err
	}
	if o.Format == Raw {
		if o.Backing != "" {
			return errors.New("a raw image has no backing file: use qcow2")
		}
		return storage.Create(path, o.Size)
	}
	bits := uint(0)
	for o.ClusterSize>>bits > 1 {
		bits++
	}
	if o.ClusterSize != 0 && o.ClusterSize != 1<<bits {
		return fmt.Errorf("clusters of %d bytes: a power of two is needed", o.ClusterSize)
	}
	if err := storage.Create(path, 0); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(path)
		}
	}()
	f, err := storage.OpenFile(path, false, "")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if o.Backing != "" {
		below, err := findBacking(f, o.Backing, o.BackingFormat)
		if err != nil {
			return err
		}
		b, err := Open(below.path, Options{ReadOnly: true, Format: below.format, AnyBacking: true})
		if err != nil {
			return err
		}
		if o.Size == 0 {
			o.Size = b.Size()
		}
		o.BackingFormat = b.Format // so that it need not be guessed again
		if err := b.Close(); err != nil {
			return err
		}
	}
	return qcow2.Create(f, qcow2.Options{Size: o.Size, ClusterBits: bits, BackingFile: o.Backing,
		BackingFormat: o.BackingFormat, LazyRefcounts: o.LazyRefcounts})
}

// chunk is how much is copied or compared at once.
const chunk = 1 << 20

// Progress is told how many bytes are done, of how many; nil is told nothing. Its error
// ends what is being done, which returns it and leaves images that show what they showed
// before, but for a copy.
type Progress func(done, total int64) error

func (p Progress) at(done, total int64) error {
	if p == nil {
		return nil
	}
	return p(done, total)
}

// extent is storage.Mapper's Map, for disks that know nothing too.
func extent(d storage.Disk, off, n int64) (storage.Extent, error) {
	if i, ok := d.(*Image); ok {
		d = i.Disk
	}
	if m, ok := d.(storage.Mapper); ok {
		return m.Map(off, n)
	}
	return storage.Extent{Start: off, Length: n, Data: true}, nil
}

// Map calls each with the extents of a disk, in order, until that returns an error.
func Map(d storage.Disk, each func(storage.Extent) error) error {
	for off := int64(0); off < d.Size(); {
		e, err := extent(d, off, d.Size()-off)
		if err != nil {
			return err
		}
		if err := each(e); err != nil {
			return err
		}
		off += e.Length
	}
	return nil
}

// Copy makes the empty disk to show what from shows, and flushes it; it must be as large.
func Copy(from, to storage.Disk, progress Progress) error {
	buf := make([]byte, chunk)
	err := Map(from, func(e storage.Extent) error {
		for off, end := e.Start, e.Start+e.Length; off < end; {
			n := min(end-off, chunk)
			if !e.Data {
				off = end
			} else {
				b := buf[:n]
				if err := from.ReadV([][]byte{b}, off); err != nil {
					return err
				}
				if err := writeData(to, b, off); err != nil {
					return err
				}
				off += n
			}
			if err := progress.at(off, from.Size()); err != nil {
				return err
			}
		}
		return nil
	})
	return errors.Join(err, to.Flush())
}

// sparseUnit is how much must be zero not to be written.
const sparseUnit = 64 << 10

// writeData writes b to an empty disk, but for what is zero.
func writeData(to storage.Disk, b []byte, off int64) error {
	for len(b) > 0 {
		n := 0
		for n < len(b) {
			unit := b[n:min(n+sparseUnit, len(b))]
			if storage.IsZero(unit) {
				break
			}
			n += len(unit)
		}
		if n > 0 {
			if err := to.WriteV([][]byte{b[:n]}, off); err != nil {
				return err
			}
		} else {
			n = min(sparseUnit, len(b))
		}
		b, off = b[n:], off+int64(n)
	}
	return nil
}

// Range is a part of a disk in bytes.
type Range struct {
	Start, Length int64
}

// diffUnit is how exactly Diff looks.
const diffUnit = 4096

// Diff calls each with the ranges in which two disks differ, in units of 4096 bytes and in
// order; where one is longer, its end counts as differing unless it is zero.
func Diff(a, b storage.Disk, progress Progress, each func(Range) error) error {
	bufs := [2][]byte{make([]byte, chunk), make([]byte, chunk)}
	size := max(a.Size(), b.Size())
	var open Range
	add := func(r Range) error {
		if open.Length > 0 && open.Start+open.Length == r.Start {
			open.Length += r.Length
			return nil
		}
		var err error
		if open.Length > 0 {
			err = each(open)
		}
		open = r
		return err
	}
	for off := int64(0); off < size; {
		n := min(size-off, chunk)
		skip := size - off
		same := true
		for k, d := range []storage.Disk{a, b} {
			buf := bufs[k][:n]
			clear(buf)
			have := min(n, d.Size()-off)
			if have <= 0 {
				continue
			}
			e, err := extent(d, off, d.Size()-off)
			if err != nil {
				return err
			}
			if e.Data || e.Length < have {
				same = false
				if err := d.ReadV([][]byte{buf[:have]}, off); err != nil {
					return err
				}
			}
			skip = min(skip, e.Length)
		}
		if same && skip > n { // both show nothing for long
			n = skip
		} else {
			for at := int64(0); at < n; at += diffUnit {
				end := min(at+diffUnit, n)
				if !bytes.Equal(bufs[0][at:end], bufs[1][at:end]) {
					if err := add(Range{off + at, end - at}); err != nil {
						return err
					}
				}
			}
		}
		off += n
		if err := progress.at(off, size); err != nil {
			return err
		}
	}
	return add(Range{Start: -1})
}

// Commit writes what the top image holds to its backing file, and empties the
// top image. It must be open with WriteBacking.
func (i *Image) Commit(progress Progress) error {
	if i.Backing == nil {
		return fmt.Errorf("%s has no backing file to commit to", i.File.Name())
	}
	to := i.Backing
	if to.Size() < i.Size() {
		if err := to.Resize(i.Size()); err != nil {
			return err
		}
	}
	err := i.own(func(off, n int64, e storage.Extent) error {
		var err error
		if e.Data {
			err = copyRange(i, to, off, n)
		} else {
			err = to.WriteZeroes(off, n, true)
		}
		if err != nil {
			return err
		}
		return progress.at(off+n, i.Size())
	})
	if err != nil {
		return err
	}
	if err := to.Flush(); err != nil {
		return err
	}
	return i.Qcow2.Empty()
}

// own calls each with the ranges that the top image itself holds.
func (i *Image) own(each func(off, n int64, e storage.Extent) error) error {
	for off := int64(0); off < i.Size(); {
		here, n, err := i.Qcow2.Allocated(off, i.Size()-off)
		if err != nil {
			return err
		}
		if here {
			e, err := i.Qcow2.Map(off, n)
			if err != nil {
				return err
			}
			n = e.Length
			if err := each(off, n, e); err != nil {
				return err
			}
		}
		off += n
	}
	return nil
}

func copyRange(from, to storage.Disk, off, n int64) error {
	buf := make([]byte, min(n, chunk))
	for n > 0 {
		b := buf[:min(n, chunk)]
		if err := from.ReadV([][]byte{b}, off); err != nil {
			return err
		}
		if err := to.WriteV([][]byte{b}, off); err != nil {
			return err
		}
		off, n = off+int64(len(b)), n-int64(len(b))
	}
	return nil
}

// Rebase gives the image another backing file, "" for none, named as it is to
// be stored. What the image shows stays the same: where the old and the new
// one differ, the image gets the old one's data.
func (i *Image) Rebase(backing, format string, progress Progress) error {
	if i.Qcow2 == nil {
		return fmt.Errorf("%s: a raw image has no backing file", i.File.Name())
	}
	var to *Image
	if backing != "" {
		below, err := findBacking(i.File, backing, format)
		if err != nil {
			return err
		}
		if to, err = (*Held)(nil).open(below.path, Options{ReadOnly: true, Format: below.format, AnyBacking: true}, []*storage.File{i.File}); err != nil {
			return err
		}
		defer to.Close()
		format = to.Format
	}
	if err := i.keepOld(to, progress); err != nil {
		return err
	}
	if err := i.Flush(); err != nil {
		return err
	}
	return i.Qcow2.SetBackingFile(backing, format)
}

// keepOld copies into the image what would not show any more with the new
// backing file.
func (i *Image) keepOld(to *Image, progress Progress) error {
	old, fresh := make([]byte, sparseUnit), make([]byte, sparseUnit)
	for off := int64(0); off < i.Size(); {
		here, n, err := i.Qcow2.Allocated(off, i.Size()-off)
		if err != nil {
			return err
		}
		if here {
			off += n
			continue
		}
		n = min(n, sparseUnit)
		if err := i.ReadV([][]byte{old[:n]}, off); err != nil {
			return err
		}
		clear(fresh)
		if to != nil && off < to.Size() {
			if err := to.ReadV([][]byte{fresh[:min(n, to.Size()-off)]}, off); err != nil {
				return err
			}
		}
		if !bytes.Equal(old[:n], fresh[:n]) {
			if err := i.WriteV([][]byte{old[:n]}, off); err != nil {
				return err
			}
		}
		off += n
		if err := progress.at(off, i.Size()); err != nil {
			return err
		}
	}
	return nil
}
