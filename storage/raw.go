package storage

import (
	"errors"
	"sync"

	"vmm/internal/iovec"
)

// Raw is a disk that is a file, byte by byte.
type Raw struct {
	file    *File
	guarded bool

	mu   sync.RWMutex // of size
	size int64
}

// qcow2Magic begins a qcow2 image.
const qcow2Magic = "QFI\xfb"

// ErrMasquerade is returned for a write that would make a raw disk, whose
// format nobody gave, be taken for a qcow2 image the next time: a guest could
// have any of the host's files shown to it as a backing file.
var ErrMasquerade = errors.New("a guest may not write a qcow2 header to a disk whose format was guessed")

// NewRaw returns a file as a disk, which owns it from now on. Its size is the file's,
// rounded up to whole sectors. guarded says that the format was guessed: see ErrMasquerade.
func NewRaw(f *File, guarded bool) *Raw {
	return &Raw{file: f, guarded: guarded, size: sectors(f.Size())}
}

// sectors rounds a size up to whole ones.
func sectors(n int64) int64 { return (n + SectorSize - 1) &^ (SectorSize - 1) }

// Size implements Disk.
func (r *Raw) Size() int64 {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.size
}

// ReadOnly implements Disk.
func (r *Raw) ReadOnly() bool { return r.file.ReadOnly() }

// ReadV implements Disk.
func (r *Raw) ReadV(v [][]byte, off int64) error {
	if err := CheckRange(off, int64(iovec.Len(v)), r.Size()); err != nil {
		return err
	}
	return r.file.ReadV(v, off)
}

// TryReadV implements Disk.
func (r *Raw) TryReadV(v [][]byte, off int64) (bool, error) {
	if err := CheckRange(off, int64(iovec.Len(v)), r.Size()); err != nil {
		return true, err
	}
	return r.file.TryReadV(v, off)
}

// change checks a request that changes the disk.
func (r *Raw) change(off, n int64) error {
	if r.ReadOnly() {
		return ErrReadOnly
	}
	return CheckRange(off, n, r.Size())
}

// WriteV implements Disk.
func (r *Raw) WriteV(v [][]byte, off int64) error {
	if err := r.change(off, int64(iovec.Len(v))); err != nil {
		return err
	}
	if r.guarded && off == 0 && masquerades(v) {
		return ErrMasquerade
	}
	if err := r.file.WriteV(v, off); err != nil || !r.file.Writethrough() {
		return err
	}
	return r.file.Sync()
}

// masquerades reports whether v begins as a qcow2 image does.
func masquerades(v [][]byte) bool {
	var head [len(qcow2Magic)]byte
	iovec.Gather(head[:], v)
	return string(head[:]) == qcow2Magic
}

// Flush implements Disk.
func (r *Raw) Flush() error { return r.file.Sync() }

// Discard implements Disk.
func (r *Raw) Discard(off, n int64) error {
	if err := r.change(off, n); err != nil {
		return err
	}
	_, err := r.file.Punch(off, n)
	return err
}

// WriteZeroes implements Disk.
func (r *Raw) WriteZeroes(off, n int64, unmap bool) error {
	if err := r.change(off, n); err != nil {
		return err
	}
	if unmap {
		if done, err := r.file.Punch(off, n); done || err != nil {
			return err
		}
	}
	return r.file.Zero(off, n)
}

// Resize implements Disk.
func (r *Raw) Resize(size int64) error {
	if r.ReadOnly() {
		return ErrReadOnly
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.file.Truncate(size); err != nil {
		return err
	}
	r.size = sectors(size)
	return nil
}

// Map implements Mapper.
func (r *Raw) Map(off, n int64) (Extent, error) {
	if err := CheckRange(off, n, r.Size()); err != nil {
		return Extent{}, err
	}
	data, end := r.file.Extent(off, off+n)
	end = min((end+SectorSize-1)&^(SectorSize-1), off+n)
	return Extent{Start: off, Length: end - off, Data: data, Zero: !data, Offset: off}, nil
}

// Close implements Disk.
func (r *Raw) Close() error { return errors.Join(r.Flush(), r.file.Close()) }
