package qcow2

import (
	"encoding/binary"
	"fmt"

	"vmm/storage"
)

// Options are what a new image can have. The zero values are good.
type Options struct {
	Size          int64  // of the disk: bytes, a multiple of storage.SectorSize, at most MaxSize
	ClusterBits   uint   // clusters have 1<<ClusterBits bytes: from 9 to 21; 16 if 0
	BackingFile   string // its name as it is stored, at most 1023 bytes
	BackingFormat string // raw or qcow2
	LazyRefcounts bool   // counts are only right when the image is closed; version 3's compatible bit 0
}

const defaultClusterBits = 16

// Create writes an empty image, of version 3, to an empty file.
func Create(f *storage.File, o Options) error {
	if o.ClusterBits == 0 {
		o.ClusterBits = defaultClusterBits
	}
	h := header{version: 3, clusterBits: uint32(o.ClusterBits), size: uint64(o.Size), refcountOrder: defaultRefcountOrder,
		length: headerLengthV3, backingName: o.BackingFile, backingFormat: o.BackingFormat}
	if o.LazyRefcounts {
		h.compatible = compatLazyRefcounts
	}
	switch {
	case o.ClusterBits < minClusterBits || o.ClusterBits > maxClusterBits:
		return fmt.Errorf("clusters of 2^%d bytes: between 2^%d and 2^%d are possible", o.ClusterBits, minClusterBits, maxClusterBits)
	case o.Size < 0 || o.Size > MaxSize || h.l1Needed()*8 > maxL1Bytes:
		return fmt.Errorf("a disk of %d bytes is too large for clusters of %d bytes", o.Size, h.clusterSize())
	case len(o.BackingFile) > maxBackingName:
		return fmt.Errorf("the backing file's name has %d bytes: at most %d are possible", len(o.BackingFile), maxBackingName)
	}
	// The header, the refcount table, refcount blocks, and the L1 table.
	cs := h.clusterSize()
	h.l1Size = uint32(max(h.l1Needed(), 1))
	l1Clusters := (int64(h.l1Size)*8 + cs - 1) / cs
	blocks, tableClusters := int64(1), int64(1)
	for {
		total := 1 + tableClusters + blocks + l1Clusters
		b := (total + h.perRefBlock() - 1) / h.perRefBlock()
		t := (b*8 + cs - 1) / cs
		if b <= blocks && t <= tableClusters {
			break
		}
		blocks, tableClusters = max(b, blocks), max(t, tableClusters)
	}
	h.refOffset, h.refClusters = uint64(cs), uint32(tableClusters)
	h.l1Offset = uint64((1 + tableClusters + blocks) * cs)
	head, err := h.encode()
	if err != nil {
		return err
	}
	total := 1 + tableClusters + blocks + l1Clusters
	b := make([]byte, (1+tableClusters+blocks)*cs)
	copy(b, head)
	for n := range blocks {
		at := (1 + tableClusters + n) * cs
		binary.BigEndian.PutUint64(b[cs+8*n:], uint64(at))
		for k := n * h.perRefBlock(); k < min(total, (n+1)*h.perRefBlock()); k++ {
			setCount(b[at:], k-n*h.perRefBlock(), h.refcountOrder, 1)
		}
	}
	if _, err := f.WriteAt(b, 0); err != nil {
		return err
	}
	if err := f.Truncate(total * cs); err != nil { // an empty L1 table
		return err
	}
	return f.Sync()
}

// SetBackingFile changes what the header says of the backing file; "" is none.
func (i *Image) SetBackingFile(name, format string) error {
	if i.ReadOnly() {
		return storage.ErrReadOnly
	}
	if len(name) > maxBackingName {
		return fmt.Errorf("the backing file's name has %d bytes: at most %d are possible", len(name), maxBackingName)
	}
	if err := i.Flush(); err != nil {
		return err
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	h := i.hdr
	h.backingName, h.backingFormat = name, format
	if h.version == 3 {
		h.length = max(min(h.length, headerLengthV3), fieldCompression)
	}
	b, err := h.encode()
	if err != nil {
		return err
	}
	if _, err := i.file.WriteAt(b, 0); err != nil {
		return err
	}
	i.hdr = h
	return i.file.Sync()
}

// Resize implements storage.Disk.
func (i *Image) Resize(size int64) error {
	switch {
	case i.ReadOnly():
		return storage.ErrReadOnly
	case size < 0 || size&(storage.SectorSize-1) != 0:
		return fmt.Errorf("a disk of %d bytes: whole sectors of %d are possible", size, storage.SectorSize)
	case i.hdr.snapshots > 0:
		return unsupported("resizing with internal snapshots")
	}
	old := i.Size()
	if size < old {
		// What is beyond may not show again when the disk grows.
		if err := i.cutOff(size, old); err != nil {
			return err
		}
	}
	if err := i.setSize(size); err != nil {
		return err
	}
	if size > old && i.backing != nil && i.backing.Size() > old {
		// Nor may what the backing file has there.
		return i.WriteZeroes(old, min(size, i.backing.Size())-old, true)
	}
	return nil
}

// cutOff empties the disk from size to old.
func (i *Image) cutOff(size, old int64) error {
	edge := min((size+i.cluster-1)&^(i.cluster-1), old)
	if err := i.writeZeros(size, edge); err != nil {
		return err
	}
	if edge < old {
		if err := i.setEntries(edge>>i.bits, (old+i.cluster-1)>>i.bits, false, 0); err != nil {
			return err
		}
	}
	return i.Flush()
}

// setSize changes the size in the header, after the L1 table has room.
func (i *Image) setSize(size int64) error {
	if err := i.settleL1(); err != nil {
		return err
	}
	defer i.flushing.Unlock()
	defer i.mu.Unlock()
	h := i.hdr
	h.size = uint64(size)
	if size > MaxSize || h.l1Needed()*8 > maxL1Bytes {
		return fmt.Errorf("a disk of %d bytes is too large for clusters of %d bytes", size, i.cluster)
	}
	if need := h.l1Needed(); need > int64(len(i.l1)) {
		if err := i.growL1(need); err != nil {
			return err
		}
	}
	if err := i.writeField(fieldSize, 8, uint64(size)); err != nil {
		return err
	}
	i.hdr.size = uint64(size)
	i.size.Store(size)
	return nil
}

// settleL1 flushes until the L1 table on the disk is that in memory, and
// returns with flushing and mu held.
func (i *Image) settleL1() error {
	for {
		if err := i.Flush(); err != nil {
			return err
		}
		i.flushing.Lock()
		i.mu.Lock()
		if i.l1Dirty.to == 0 {
			return nil
		}
		i.mu.Unlock()
		i.flushing.Unlock()
	}
}

// growL1 moves the L1 table to where it has room for n entries. mu and
// flushing are held.
func (i *Image) growL1(n int64) error {
	clusters := (n*8 + i.cluster - 1) >> i.bits
	first, err := i.refs.allocTable(clusters)
	if err != nil {
		return err
	}
	l1 := make([]uint64, n)
	copy(l1, i.l1)
	raw := make([]byte, 0, clusters<<i.bits)
	for _, e := range l1 {
		raw = binary.BigEndian.AppendUint64(raw, e)
	}
	raw = raw[:cap(raw)]
	if _, err := i.file.WriteAt(raw, first<<i.bits); err != nil {
		return err
	}
	// The counts of the new clusters go before the header that points to them.
	if err := i.refs.writeBlocks(); err != nil {
		return err
	}
	if s := i.refs.dirty; s.to > 0 {
		p := part(int64(i.hdr.refOffset), i.refs.table, s, nil)
		if _, err := i.file.WriteAt(p.data, p.offset); err != nil {
			return err
		}
	}
	if err := i.file.Sync(); err != nil {
		return err
	}
	field := binary.BigEndian.AppendUint32(nil, uint32(n))
	field = binary.BigEndian.AppendUint64(field, uint64(first)<<i.bits)
	if _, err := i.file.WriteAt(field, fieldL1Size); err != nil {
		return err
	}
	if err := i.file.Sync(); err != nil {
		return err
	}
	old, oldClusters := int64(i.hdr.l1Offset)>>i.bits, (int64(len(i.l1))*8+i.cluster-1)>>i.bits
	for c := old; c < old+oldClusters; c++ {
		delete(i.metadata, c)
		i.freed = append(i.freed, c)
	}
	i.hdr.l1Size, i.hdr.l1Offset = uint32(n), uint64(first)<<i.bits
	i.l1, i.l1Dirty = l1, span{}
	i.tables = append(i.tables, make([]*l2Table, n-int64(len(i.tables)))...)
	return nil
}

// Map implements storage.Mapper. Depth counts from this image.
func (i *Image) Map(off, n int64) (storage.Extent, error) {
	if err := storage.CheckRange(off, n, i.Size()); err != nil {
		return storage.Extent{}, err
	}
	r, err := i.find(off, n)
	if err != nil {
		return storage.Extent{}, err
	}
	e := storage.Extent{Start: off, Length: r.n}
	switch r.kind {
	case kindData:
		e.Data, e.Offset = true, r.host
	case kindCompressed:
		e.Data, e.Offset = true, -1
	case kindZero:
		e.Zero = true
	case kindNone:
		return i.mapBacking(e)
	}
	return e, nil
}

// mapBacking asks the backing disk about an extent that is not here.
func (i *Image) mapBacking(e storage.Extent) (storage.Extent, error) {
	m, ok := i.backing.(storage.Mapper)
	if !ok || e.Start >= i.backing.Size() {
		e.Depth, e.Zero = 1, true
		return e, nil
	}
	b, err := m.Map(e.Start, min(e.Length, i.backing.Size()-e.Start))
	b.Depth++
	return b, err
}

// Allocated reports whether what is at off is in this image itself and not in its backing
// file, and how many bytes of n that is so for.
func (i *Image) Allocated(off, n int64) (bool, int64, error) {
	r, err := i.find(off, n)
	return r.kind != kindNone, r.n, err
}

// Empty drops all that the image holds, so that it shows its backing file, and flushes.
func (i *Image) Empty() error {
	if err := i.setEntries(0, i.hdr.clusterCount(), false, 0); err != nil {
		return err
	}
	return i.Flush()
}
