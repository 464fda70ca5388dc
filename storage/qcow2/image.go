package qcow2

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"vmm/storage"
)

// Image is an open qcow2 image. It implements storage.Disk and storage.Mapper.
type Image struct {
	file    *storage.File
	hdr     header
	bits    uint  // of a cluster's size
	cluster int64 // its size
	perL2   int64 // entries of an L2 table
	backing storage.Disk
	size    atomic.Int64

	// io is held for reading while clusters' data is read or written, and for
	// writing when clusters that were given up become free for others.
	io sync.RWMutex

	// flushing serializes writing metadata. It is taken before mu.
	flushing sync.Mutex

	// mu guards all metadata below. Reading it takes it for reading.
	mu         sync.RWMutex
	l1         []uint64
	l1Dirty    span
	tables     []*l2Table // by L1 index; nil where not loaded
	loaded     int        // how many are not
	hand       int        // of the clock that drops tables
	refs       refcounts
	metadata   map[int64]struct{} // host clusters of tables
	allocating map[int64]struct{} // guest clusters whose first write is under way
	allocated  sync.Cond          // one of them is done
	freed      []int64            // host clusters to be given up at the next flush
	broken     error              // why the image may not be written any more

	unpacked unpackedCache
}

// span is a range of indexes that has changed.
type span struct{ from, to int }

func (s *span) add(i int) {
	if s.to == 0 {
		*s = span{i, i + 1}
		return
	}
	s.from, s.to = min(s.from, i), max(s.to, i+1)
}

func (s *span) merge(o span) {
	if o.to > 0 {
		s.add(o.from)
		s.add(o.to - 1)
	}
}

// Open opens the image in a file, which it closes at the end; after an error, that is the
// caller's. The backing disk, if BackingFile names one, is to be given by SetBacking. The
// error is ErrNotQcow2, ErrCorrupt or ErrUnsupported, or the file's.
func Open(f *storage.File) (*Image, error) { return openAs(f, false) }

// OpenForCheck opens an image of which little must be right, for Check. Nothing
// else may be done with it.
func OpenForCheck(f *storage.File) (*Image, error) { return openAs(f, true) }

func openAs(f *storage.File, lenient bool) (*Image, error) {
	i, err := open(f, lenient)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", f.Name(), err)
	}
	return i, nil
}

func open(f *storage.File, lenient bool) (*Image, error) {
	head := make([]byte, min(f.Size(), 1<<maxClusterBits))
	if _, err := f.ReadAt(head, 0); err != nil {
		return nil, err
	}
	h, err := parseHeader(head, f.Size())
	if err != nil {
		return nil, err
	}
	i := &Image{file: f, hdr: *h, bits: uint(h.clusterBits), cluster: h.clusterSize(), perL2: h.l2Entries(),
		allocating: map[int64]struct{}{}}
	i.allocated.L = &i.mu
	i.size.Store(int64(h.size) &^ (storage.SectorSize - 1))
	if err := i.readL1(); err != nil {
		return nil, err
	}
	if err := i.refs.open(i); err != nil {
		return nil, err
	}
	err = i.findMetadata()
	if lenient {
		return i, nil
	}
	if err != nil || f.ReadOnly() {
		return i, err
	}
	return i, i.prepareWriting()
}

// prepareWriting refuses what may not be written, and repairs what a writer
// that died has left on purpose.
func (i *Image) prepareWriting() error {
	h := &i.hdr
	switch {
	case h.incompatible&incompatCorrupt != 0:
		return ErrMarkedCorrupt
	case h.extended():
		return unsupported("extended L2 entries, for writing: open it read-only, or convert it")
	}
	if h.incompatible&incompatDirty != 0 {
		if _, err := i.check(true); err != nil {
			return err
		}
	}
	if h.autoclear != 0 { // what they stand for is not kept up here
		h.autoclear = 0
		return i.writeField(fieldAutoclear, 8, 0)
	}
	return nil
}

func (i *Image) readL1() error {
	raw := make([]byte, int64(i.hdr.l1Size)*8)
	if _, err := i.file.ReadAt(raw, int64(i.hdr.l1Offset)); err != nil {
		return err
	}
	i.l1 = make([]uint64, i.hdr.l1Size)
	for n := range i.l1 {
		i.l1[n] = binary.BigEndian.Uint64(raw[8*n:])
	}
	i.tables = make([]*l2Table, len(i.l1))
	return nil
}

// findMetadata notes which clusters hold tables, so that no data is written
// to one, and finds those that serve twice.
func (i *Image) findMetadata() error {
	i.metadata = map[int64]struct{}{0: {}}
	add := func(what string, offset, size uint64) error {
		for at := offset; at < offset+size; at += uint64(i.cluster) {
			c := int64(at >> i.bits)
			if _, ok := i.metadata[c]; ok {
				return corrupt("%s at %#x lies in another table", what, at)
			}
			i.metadata[c] = struct{}{}
		}
		return nil
	}
	h := &i.hdr
	if err := add("the L1 table", h.l1Offset, uint64(len(i.l1))*8); err != nil {
		return err
	}
	if err := add("the refcount table", h.refOffset, uint64(h.refClusters)<<i.bits); err != nil {
		return err
	}
	for n, at := range i.refs.table {
		if at == 0 {
			continue
		}
		if at&^entryOffset != 0 || !i.inFile(int64(at)) {
			return corrupt("refcount block %d at %#x", n, at)
		}
		if err := add("a refcount block", at, 1); err != nil {
			return err
		}
	}
	for n, e := range i.l1 {
		at := e & entryOffset
		if at == 0 {
			continue
		}
		if !i.inFile(int64(at)) {
			return corrupt("L2 table %d at %#x", n, at)
		}
		if err := add("an L2 table", at, 1); err != nil {
			return err
		}
	}
	return nil
}

// inFile reports whether a cluster may begin at a host offset: aligned, and not
// beyond the file.
func (i *Image) inFile(at int64) bool { return at&(i.cluster-1) == 0 && at < i.file.Size() }

// writeField writes a header field of 4 or 8 bytes and waits for it.
func (i *Image) writeField(at int64, size int, v uint64) error {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], v)
	if _, err := i.file.WriteAt(b[8-size:], at); err != nil {
		return err
	}
	return i.file.Sync()
}

// setIncompatible sets or clears an incompatible feature bit on the disk.
func (i *Image) setIncompatible(bit uint64, on bool) error {
	v := i.hdr.incompatible &^ bit
	if on {
		v |= bit
	}
	if i.hdr.version < 3 || v == i.hdr.incompatible {
		return nil
	}
	if err := i.writeField(fieldIncompatible, 8, v); err != nil {
		return err
	}
	i.hdr.incompatible = v
	return nil
}

// damaged marks the image corrupt, so that nobody makes it worse, and returns
// err. mu is held.
func (i *Image) damaged(err error) error {
	err = fmt.Errorf("%s: %w", i.file.Name(), err)
	if i.broken == nil && !i.file.ReadOnly() {
		i.broken = err
		i.setIncompatible(incompatCorrupt, true) // the error itself matters more
	}
	return err
}

// SetBacking gives the disk that shows where the image has nothing. The image
// closes it.
func (i *Image) SetBacking(d storage.Disk) { i.backing = d }

// BackingFile returns the name and the format that the image gives for its
// backing file; "" is none.
func (i *Image) BackingFile() (name, format string) { return i.hdr.backingName, i.hdr.backingFormat }

// Size implements storage.Disk.
func (i *Image) Size() int64 { return i.size.Load() }

// ReadOnly implements storage.Disk.
func (i *Image) ReadOnly() bool { return i.file.ReadOnly() }

// Info describes an image.
type Info struct {
	Version       int    `json:"version"`
	ClusterSize   int64  `json:"cluster-size"`
	RefcountBits  int    `json:"refcount-bits"`
	LazyRefcounts bool   `json:"lazy-refcounts"`
	Dirty         bool   `json:"dirty"`
	Corrupt       bool   `json:"corrupt"`
	ExtendedL2    bool   `json:"extended-l2"`
	Compression   string `json:"compression"`
	Snapshots     int    `json:"internal-snapshots"`
}

// Info returns what the header says.
func (i *Image) Info() Info {
	i.mu.RLock()
	defer i.mu.RUnlock()
	h := &i.hdr
	return Info{
		Version: int(h.version), ClusterSize: i.cluster, RefcountBits: int(h.refcountBits()),
		LazyRefcounts: h.lazyRefcounts(), ExtendedL2: h.extended(),
		Dirty: h.incompatible&incompatDirty != 0, Corrupt: h.incompatible&incompatCorrupt != 0,
		Compression: [...]string{"zlib", "zstd"}[h.compression], Snapshots: int(h.snapshots),
	}
}

// Close implements storage.Disk.
func (i *Image) Close() error {
	var errs []error
	if !i.ReadOnly() {
		errs = append(errs, i.finish())
	}
	if i.backing != nil {
		errs = append(errs, i.backing.Close())
	}
	return errors.Join(append(errs, i.file.Close())...)
}

// finish writes all that is still in memory.
func (i *Image) finish() error {
	if i.broken != nil {
		return nil // it stays as it was found
	}
	if err := i.Flush(); err != nil {
		return err
	}
	if err := i.flush(true); err != nil { // the refcounts of what the first gave up
		return err
	}
	return i.setIncompatible(incompatDirty, false)
}
