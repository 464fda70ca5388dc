package qcow2

import (
	"encoding/binary"
	"errors"

	"vmm/internal/iovec"
	"vmm/storage"
)

// change checks a request that changes the disk.
func (i *Image) change(off, n int64) error {
	if i.ReadOnly() {
		return storage.ErrReadOnly
	}
	return storage.CheckRange(off, n, i.Size())
}

// WriteV implements storage.Disk.
func (i *Image) WriteV(v [][]byte, off int64) error {
	total := int64(iovec.Len(v))
	if err := i.change(off, total); err != nil {
		return err
	}
	if err := i.write(v, off, total); err != nil {
		return err
	}
	return i.tidy()
}

// tidy flushes where too much waits for it.
func (i *Image) tidy() error {
	if i.crowded() || i.file.Writethrough() {
		return i.Flush()
	}
	return nil
}

func (i *Image) write(v [][]byte, off, total int64) error {
	i.io.RLock()
	defer i.io.RUnlock()
	for done := int64(0); done < total; {
		r, err := i.find(off+done, total-done)
		if err != nil {
			return err
		}
		part := v
		var p *[][]byte
		if r.n < total {
			p = vectors.Get().(*[][]byte)
			*p = iovec.Cut((*p)[:0], v, done, r.n)
			part = *p
		}
		n := r.n
		if r.kind == kindData && r.own {
			err = i.file.WriteV(part, r.host)
		} else {
			n, err = i.writeNew(part, off+done, r.n)
		}
		if p != nil {
			clear(*p)
			vectors.Put(p)
		}
		if err != nil {
			return err
		}
		done += n
	}
	return nil
}

// place is a row of guest clusters that get new host clusters.
type place struct {
	first, clusters int64 // of the guest
	host            int64 // the first host cluster
	fresh           bool  // beyond all that was ever written: reads as zeros
	before          [2]run
}

// writeNew writes n bytes from v to guest clusters that have no host clusters
// of their own, and returns how many it has done.
func (i *Image) writeNew(v [][]byte, off, n int64) (int64, error) {
	p, again, err := i.reserve(off, n)
	if err != nil || again {
		return 0, err
	}
	end := min(off+n, (p.first+p.clusters)<<i.bits)
	err = i.fill(p, iovec.Cut(nil, v, 0, end-off), off, end)
	if err = i.settle(p, err); err != nil {
		return 0, err
	}
	return end - off, nil
}

// reserve takes host clusters for the guest clusters at off. again is set when
// it had to wait for somebody else's first write to one of them.
func (i *Image) reserve(off, n int64) (p place, again bool, err error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	p.first = off >> i.bits
	last := (off + n - 1) >> i.bits
	l1, _ := i.split(p.first)
	last = min(last, (l1+1)*i.perL2-1) // one L2 table at a time
	for c := p.first; c <= last; c++ {
		if _, busy := i.allocating[c]; busy {
			if c == p.first {
				i.allocated.Wait()
				return p, true, nil
			}
			last = c - 1
			break
		}
	}
	// What it was may have changed since it was looked up.
	t, err := i.table(l1)
	if err != nil {
		return p, false, err
	}
	for c := p.first; t != nil && c <= last; c++ {
		if r := i.classify(t.entries[c%i.perL2]); r.kind == kindData && r.own {
			if c == p.first {
				return p, true, nil
			}
			last = c - 1
		}
	}
	if p.before[0], err = i.lookup(p.first<<i.bits, i.cluster); err != nil {
		return p, false, err
	}
	end := i.file.Size()
	first, got, err := i.refs.alloc(last - p.first + 1)
	if err != nil {
		return p, false, err
	}
	p.host, p.clusters, p.fresh = first, got, first<<i.bits >= end
	if p.before[1], err = i.lookup((p.first+got-1)<<i.bits, i.cluster); err != nil {
		return p, false, err
	}
	for c := p.first; c < p.first+got; c++ {
		i.allocating[c] = struct{}{}
	}
	return p, false, nil
}

// fill writes v, which is the guest's from off to end, and around it what the
// first and the last cluster showed before.
func (i *Image) fill(p place, v [][]byte, off, end int64) error {
	at := p.host<<i.bits + off - p.first<<i.bits
	head := off - p.first<<i.bits
	tail := (p.first+p.clusters)<<i.bits - end
	old := func(r run, from, n int64) ([]byte, error) {
		if n == 0 || p.fresh && i.empty(r, from) {
			return nil, nil
		}
		b := make([]byte, n)
		if r.kind == kindData {
			r.host += from & (i.cluster - 1)
		}
		return b, i.readRun(r, [][]byte{b}, from, false)
	}
	before, err := old(p.before[0], p.first<<i.bits, head)
	if err != nil {
		return err
	}
	after, err := old(p.before[1], end, tail)
	if err != nil {
		return err
	}
	if before != nil {
		v, at = append([][]byte{before}, v...), at-head
	}
	if after != nil {
		v = append(v, after)
	}
	return i.file.WriteV(v, at)
}

// empty reports whether a run reads as zeros from off on.
func (i *Image) empty(r run, off int64) bool {
	return r.kind == kindZero || r.kind == kindNone && (i.backing == nil || off >= i.backing.Size())
}

// settle makes the L2 table point to the new clusters, or gives them back
// after an error.
func (i *Image) settle(p place, failed error) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	for c := p.first; c < p.first+p.clusters; c++ {
		delete(i.allocating, c)
	}
	i.allocated.Broadcast()
	l1, l2 := i.split(p.first)
	var t *l2Table
	if failed == nil {
		t, failed = i.writableTable(l1)
	}
	for c := range p.clusters {
		if failed != nil {
			if _, err := i.refs.drop(p.host + c); err != nil {
				return errors.Join(failed, err)
			}
			continue
		}
		i.replace(t, l2+c, uint64(p.host+c)<<i.bits|entryCopied)
	}
	return failed
}

// replace changes an L2 entry and gives up what it pointed to. mu is held.
func (i *Image) replace(t *l2Table, n int64, e uint64) {
	old := t.entries[n]
	t.entries[n] = e
	t.dirty.add(int(n))
	switch {
	case old&entryCompressed != 0:
		at, size := i.compressedAt(old)
		for c := at >> i.bits; c <= (at+size-1)>>i.bits; c++ {
			i.freed = append(i.freed, c)
		}
	case old&entryOffset != 0 && old&entryOffset != e&entryOffset:
		i.freed = append(i.freed, int64(old&entryOffset)>>i.bits)
	}
}

// Discard implements storage.Disk. Parts of clusters stay as they are.
func (i *Image) Discard(off, n int64) error {
	if err := i.change(off, n); err != nil {
		return err
	}
	first, last := (off+i.cluster-1)>>i.bits, (off+n)>>i.bits
	if off+n == i.Size() { // the last cluster may lie partly beyond
		last = (off + n + i.cluster - 1) >> i.bits
	}
	e, ok := uint64(entryZero), i.hdr.version >= 3
	if i.backing == nil {
		e, ok = 0, true
	}
	if !ok {
		return nil // what the backing file has would show again
	}
	if err := i.setEntries(first, last, false, e); err != nil {
		return err
	}
	return i.tidy()
}

// WriteZeroes implements storage.Disk.
func (i *Image) WriteZeroes(off, n int64, unmap bool) error {
	if err := i.change(off, n); err != nil {
		return err
	}
	end := off + n
	first, last := (off+i.cluster-1)>>i.bits, end>>i.bits
	if end == i.Size() {
		last = (end + i.cluster - 1) >> i.bits
	}
	if i.hdr.version < 3 || first >= last {
		return i.writeZeros(off, end)
	}
	if err := i.writeZeros(off, first<<i.bits); err != nil {
		return err
	}
	if err := i.setEntries(first, last, !unmap, entryZero); err != nil {
		return err
	}
	if err := i.writeZeros(min(last<<i.bits, end), end); err != nil {
		return err
	}
	return i.tidy()
}

// writeZeros writes zeros where something else is.
func (i *Image) writeZeros(off, end int64) error {
	for off < end {
		r, err := i.find(off, end-off)
		if err != nil {
			return err
		}
		if !i.empty(r, off) {
			r.n = min(r.n, storage.MaxZeros)
			if err := i.write([][]byte{storage.Zeros(int(r.n))}, off, r.n); err != nil {
				return err
			}
		}
		off += r.n
	}
	return nil
}

// setEntries makes the entries of guest clusters first to last-1 e; with keep,
// host clusters that they own stay theirs.
func (i *Image) setEntries(first, last int64, keep bool, e uint64) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.broken != nil {
		return i.broken
	}
	for c := first; c < last; c++ {
		for {
			if _, busy := i.allocating[c]; !busy {
				break
			}
			i.allocated.Wait()
		}
		l1, l2 := i.split(c)
		if i.l1[l1] == 0 && (e == 0 || i.backing == nil) {
			c += i.perL2 - l2 - 1 // nothing is there, and it shows as zeros
			continue
		}
		t, err := i.table(l1)
		if err != nil {
			return err
		}
		if t != nil && t.entries[l2] == e {
			continue
		}
		if t, err = i.writableTable(l1); err != nil {
			return err
		}
		entry := e
		if old := t.entries[l2]; keep && old&entryCompressed == 0 && old&entryCopied != 0 {
			entry |= old & (entryOffset | entryCopied)
		}
		i.replace(t, l2, entry)
	}
	return nil
}

// Flush implements storage.Disk.
func (i *Image) Flush() error { return i.flush(!i.hdr.lazyRefcounts()) }

// pending is the metadata that one flush writes: a copy, so that the image
// goes on meanwhile.
type pending struct {
	blocks map[int64][]byte // by index in the refcount table
	refs   []tablePart
	l2     []tablePart
	l1     []tablePart
	tables []*l2Table // those of l2
	freed  []int64
}

// tablePart is a piece of a table and where it goes.
type tablePart struct {
	offset int64
	data   []byte
	failed func() // marks it as changed again
}

// part copies entries of a table.
func part(offset int64, entries []uint64, s span, failed func()) tablePart {
	b := make([]byte, 0, 8*(s.to-s.from))
	for _, e := range entries[s.from:s.to] {
		b = binary.BigEndian.AppendUint64(b, e)
	}
	return tablePart{offset + int64(s.from)*8, b, failed}
}

// collect takes what has changed.
func (i *Image) collect(refcounts bool) *pending {
	i.mu.Lock()
	defer i.mu.Unlock()
	p := &pending{blocks: map[int64][]byte{}, freed: i.freed}
	i.freed = nil
	r := &i.refs
	if refcounts {
		for n, b := range r.blocks {
			if b.dirty {
				p.blocks[n] = append([]byte(nil), b.data...)
				b.dirty, b.writing = false, true
			}
		}
		if s := r.dirty; s.to > 0 {
			p.refs = append(p.refs, part(int64(i.hdr.refOffset), r.table, s, func() { r.dirty.merge(s) }))
			r.dirty = span{}
		}
	}
	for _, t := range i.tables {
		if t != nil && t.dirty.to > 0 {
			s := t.dirty
			p.l2 = append(p.l2, part(t.offset, t.entries, s, func() { t.dirty.merge(s) }))
			p.tables = append(p.tables, t)
			t.dirty, t.writing = span{}, true
		}
	}
	if s := i.l1Dirty; s.to > 0 {
		p.l1 = append(p.l1, part(int64(i.hdr.l1Offset), i.l1, s, func() { i.l1Dirty.merge(s) }))
		i.l1Dirty = span{}
	}
	return p
}

// flush writes what has changed. Before each kind of table is written, what it
// points to is on the disk.
func (i *Image) flush(refcounts bool) error {
	if i.ReadOnly() {
		return nil
	}
	i.flushing.Lock()
	defer i.flushing.Unlock()
	p := i.collect(refcounts)
	err := i.writePending(p)
	i.written(p, err)
	if err != nil {
		return err
	}
	return i.release(p.freed)
}

// written notes that a flush has ended. Until here nothing of it was dropped
// from memory.
func (i *Image) written(p *pending, err error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	for n := range p.blocks {
		b := i.refs.blocks[n]
		b.writing = false
		b.dirty = b.dirty || err != nil
	}
	for _, t := range p.tables {
		t.writing = false
	}
	if err == nil {
		return
	}
	for _, parts := range [][]tablePart{p.refs, p.l2, p.l1} {
		for _, t := range parts {
			t.failed()
		}
	}
	i.freed = append(i.freed, p.freed...)
}

func (i *Image) writePending(p *pending) error {
	i.mu.RLock()
	table := i.refs.table
	i.mu.RUnlock()
	for n, b := range p.blocks {
		if _, err := i.file.WriteAt(b, int64(table[n])); err != nil {
			return err
		}
	}
	for _, parts := range [][]tablePart{p.refs, p.l2, p.l1} {
		if len(parts) == 0 {
			continue
		}
		if err := i.file.Sync(); err != nil {
			return err
		}
		for _, t := range parts {
			if _, err := i.file.WriteAt(t.data, t.offset); err != nil {
				return err
			}
		}
	}
	return i.file.Sync()
}

// release makes clusters free that no table on the disk points to any more.
func (i *Image) release(freed []int64) error {
	if len(freed) == 0 {
		return nil
	}
	i.io.Lock() // until here, a request may still use one
	defer i.io.Unlock()
	i.forgetUnpacked()
	i.mu.Lock()
	defer i.mu.Unlock()
	var holes []int64
	for _, c := range freed {
		left, err := i.refs.drop(c)
		if err != nil {
			return err
		}
		if left == 0 {
			holes = append(holes, c)
		}
	}
	return i.punch(holes)
}

// punch gives the host storage of free clusters back, in runs.
func (i *Image) punch(clusters []int64) error {
	for n := 0; n < len(clusters); {
		end := n + 1
		for end < len(clusters) && clusters[end] == clusters[end-1]+1 {
			end++
		}
		if done, err := i.file.Punch(clusters[n]<<i.bits, int64(end-n)<<i.bits); err != nil || !done {
			return err // a file system that cannot, cannot the next time either
		}
		n = end
	}
	return nil
}
