package qcow2

import (
	"encoding/binary"
	"fmt"
)

// refcounts is the count of references to every host cluster: a table of
// blocks of counts. The image's mu guards it.
type refcounts struct {
	image  *Image
	table  []uint64 // of the blocks' offsets; 0 where all counts are 0
	dirty  span     // of table
	blocks map[int64]*refBlock
	per    int64 // counts a block
	hint   int64 // no cluster below is free
}

type refBlock struct {
	data    []byte
	dirty   bool
	writing bool // by a flush, which began when dirty was cleared
}

// maxRefBlocks bounds the blocks in memory that have not changed.
const maxRefBlocks = 1024

func (r *refcounts) open(i *Image) error {
	r.image, r.per, r.blocks = i, i.hdr.perRefBlock(), map[int64]*refBlock{}
	raw := make([]byte, int64(i.hdr.refClusters)<<i.bits)
	if _, err := i.file.ReadAt(raw, int64(i.hdr.refOffset)); err != nil {
		return err
	}
	r.table = make([]uint64, len(raw)/8)
	for n := range r.table {
		r.table[n] = binary.BigEndian.Uint64(raw[8*n:])
	}
	return nil
}

// block returns block n, which must exist.
func (r *refcounts) block(n int64) (*refBlock, error) {
	if b := r.blocks[n]; b != nil {
		return b, nil
	}
	if len(r.blocks) >= maxRefBlocks {
		for k, b := range r.blocks {
			if !b.dirty && !b.writing {
				delete(r.blocks, k)
			}
		}
	}
	b := &refBlock{data: make([]byte, r.image.cluster)}
	if _, err := r.image.file.ReadAt(b.data, int64(r.table[n])); err != nil {
		return nil, err
	}
	r.blocks[n] = b
	return b, nil
}

// get returns a cluster's count.
func (r *refcounts) get(cluster int64) (uint64, error) {
	n := cluster / r.per
	if n >= int64(len(r.table)) || r.table[n] == 0 {
		return 0, nil
	}
	b, err := r.block(n)
	if err != nil {
		return 0, err
	}
	return getCount(b.data, cluster%r.per, r.image.hdr.refcountOrder), nil
}

// set changes a cluster's count; its block must exist.
func (r *refcounts) set(cluster int64, v uint64) error {
	b, err := r.block(cluster / r.per)
	if err != nil {
		return err
	}
	if bits := r.image.hdr.refcountBits(); bits < 64 && v >= 1<<bits {
		return fmt.Errorf("cluster %d has %d references: the image counts with %d bits", cluster, v, bits)
	}
	setCount(b.data, cluster%r.per, r.image.hdr.refcountOrder, v)
	b.dirty = true
	return nil
}

// getCount reads count n of a block with counts of 2^order bits.
func getCount(b []byte, n int64, order uint32) uint64 {
	switch order {
	case 3:
		return uint64(b[n])
	case 4:
		return uint64(binary.BigEndian.Uint16(b[2*n:]))
	case 5:
		return uint64(binary.BigEndian.Uint32(b[4*n:]))
	case 6:
		return binary.BigEndian.Uint64(b[8*n:])
	}
	bits := int64(1) << order
	return uint64(b[n*bits/8]>>(n*bits%8)) & (1<<bits - 1)
}

func setCount(b []byte, n int64, order uint32, v uint64) {
	switch order {
	case 3:
		b[n] = byte(v)
	case 4:
		binary.BigEndian.PutUint16(b[2*n:], uint16(v))
	case 5:
		binary.BigEndian.PutUint32(b[4*n:], uint32(v))
	case 6:
		binary.BigEndian.PutUint64(b[8*n:], v)
	default:
		bits := int64(1) << order
		shift := n * bits % 8
		mask := byte(1<<bits-1) << shift
		b[n*bits/8] = b[n*bits/8]&^mask | byte(v)<<shift&mask
	}
}

// alloc takes up to n free clusters in a row and returns the first and how
// many there are, at least 1.
func (r *refcounts) alloc(n int64) (first, got int64, err error) {
	if err := r.image.startChanging(); err != nil {
		return 0, 0, err
	}
	for c := r.hint; ; c++ {
		if err := r.cover(c); err != nil {
			return 0, 0, err
		}
		count, err := r.get(c)
		if err != nil {
			return 0, 0, err
		}
		if count == 0 {
			if _, ok := r.image.metadata[c]; ok {
				return 0, 0, r.image.damaged(corrupt("cluster %d holds a table and is not counted", c))
			}
			if got == 0 {
				first = c
			}
			if err := r.set(c, 1); err != nil {
				return 0, 0, err
			}
			got++
		}
		if got == n || got > 0 && count != 0 {
			r.hint = first + got
			return first, got, nil
		}
	}
}

// allocTable takes n clusters in a row for a table.
func (r *refcounts) allocTable(n int64) (int64, error) {
	for {
		first, got, err := r.alloc(n)
		if err != nil {
			return 0, err
		}
		if got == n {
			for c := first; c < first+n; c++ {
				r.image.metadata[c] = struct{}{}
			}
			return first, nil
		}
		// Too short: it is left for smaller things, beyond which the search goes
		// on.
		for c := first; c < first+got; c++ {
			if err := r.set(c, 0); err != nil {
				return 0, err
			}
		}
		defer func() { r.hint = min(r.hint, first) }()
	}
}

// drop takes a reference away that no table on the disk has any more.
func (r *refcounts) drop(cluster int64) (left uint64, err error) {
	v, err := r.get(cluster)
	if err != nil {
		return 0, err
	}
	if v == 0 {
		return 0, r.image.damaged(corrupt("cluster %d is used and not counted", cluster))
	}
	if v == 1 {
		r.hint = min(r.hint, cluster)
	}
	return v - 1, r.set(cluster, v-1)
}

// cover makes the block that counts a cluster. A new block takes the first of
// the clusters that it counts, all of which are free.
func (r *refcounts) cover(cluster int64) error {
	n := cluster / r.per
	if n >= int64(len(r.table)) {
		return r.grow(n)
	}
	if r.table[n] != 0 {
		return nil
	}
	at := n * r.per
	if _, ok := r.image.metadata[at]; ok {
		return r.image.damaged(corrupt("cluster %d holds a table and is not counted", at))
	}
	b := &refBlock{data: make([]byte, r.image.cluster), dirty: true}
	setCount(b.data, 0, r.image.hdr.refcountOrder, 1)
	r.blocks[n] = b
	r.table[n] = uint64(at) << r.image.bits
	r.dirty.add(int(n))
	r.image.metadata[at] = struct{}{}
	return nil
}

// grow makes a larger table, one that has room for block n, behind all that
// is counted: first the blocks that count the new area, then the table.
func (r *refcounts) grow(n int64) error {
	i := r.image
	first := int64(len(r.table)) * r.per // nothing is counted from here on
	perCluster := i.cluster / 8
	tableClusters := (max(n+1, int64(len(r.table))*3/2) + perCluster - 1) / perCluster
	blocks := int64(1)
	for (blocks+tableClusters+r.per-1)/r.per > blocks {
		blocks++
	}
	if need := first/r.per + blocks; need > tableClusters*perCluster {
		tableClusters = (need + perCluster - 1) / perCluster
		blocks = (blocks+tableClusters+r.per-1)/r.per + 1
	}
	if tableClusters*i.cluster > maxRefTableBytes {
		return fmt.Errorf("%s: the image cannot grow any further: its refcount table is full", i.file.Name())
	}
	table := make([]uint64, tableClusters*perCluster)
	copy(table, r.table)
	fresh := make([]refBlock, blocks)
	for b := range fresh {
		fresh[b].data = make([]byte, i.cluster)
		table[first/r.per+int64(b)] = uint64(first+int64(b)) << i.bits
	}
	for c := range blocks + tableClusters {
		setCount(fresh[c/r.per].data, c%r.per, i.hdr.refcountOrder, 1)
	}
	for b := range fresh {
		if _, err := i.file.WriteAt(fresh[b].data, (first+int64(b))<<i.bits); err != nil {
			return err
		}
	}
	at := first + blocks
	if err := i.moveRefTable(table, at); err != nil {
		return err
	}
	for b := range fresh {
		r.blocks[first/r.per+int64(b)] = &fresh[b]
		i.metadata[first+int64(b)] = struct{}{}
	}
	return nil
}

// writeBlocks writes the blocks that have changed. They stay dirty: a flush
// that is under way may write an older copy after it.
func (r *refcounts) writeBlocks() error {
	for n, b := range r.blocks {
		if b.dirty || b.writing {
			if _, err := r.image.file.WriteAt(b.data, int64(r.table[n])); err != nil {
				return err
			}
		}
	}
	return nil
}

// moveRefTable writes a new refcount table to a cluster, makes the header
// point to it and gives the old one up. Whatever is dirty of the blocks that
// are in the table already, is written first.
func (i *Image) moveRefTable(table []uint64, cluster int64) error {
	r := &i.refs
	if err := r.writeBlocks(); err != nil {
		return err
	}
	raw := make([]byte, 0, 8*len(table))
	for _, e := range table {
		raw = binary.BigEndian.AppendUint64(raw, e)
	}
	if _, err := i.file.WriteAt(raw, cluster<<i.bits); err != nil {
		return err
	}
	if err := i.file.Sync(); err != nil {
		return err
	}
	clusters := int64(len(raw)) >> i.bits
	field := binary.BigEndian.AppendUint64(nil, uint64(cluster)<<i.bits)
	field = binary.BigEndian.AppendUint32(field, uint32(clusters))
	if _, err := i.file.WriteAt(field, fieldRefcountOffset); err != nil {
		return err
	}
	if err := i.file.Sync(); err != nil {
		return err
	}
	old, oldClusters := int64(i.hdr.refOffset)>>i.bits, int64(i.hdr.refClusters)
	i.hdr.refOffset, i.hdr.refClusters = uint64(cluster)<<i.bits, uint32(clusters)
	r.table, r.dirty = table, span{}
	for c := cluster; c < cluster+clusters; c++ {
		i.metadata[c] = struct{}{}
	}
	for c := old; c < old+oldClusters; c++ {
		delete(i.metadata, c)
		i.freed = append(i.freed, c)
	}
	return nil
}

// startChanging is called before the first change of refcounts: with lazy
// refcounts the image says from then on that they are not to be trusted.
func (i *Image) startChanging() error {
	if i.broken != nil {
		return i.broken
	}
	if !i.hdr.lazyRefcounts() {
		return nil
	}
	return i.setIncompatible(incompatDirty, true)
}
