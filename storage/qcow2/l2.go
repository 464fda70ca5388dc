package qcow2

import (
	"encoding/binary"
)

// l2Table is an L2 table in memory. The image's mu guards it.
type l2Table struct {
	offset  int64    // of its host cluster
	entries []uint64 // one a cluster, or two with extended entries
	dirty   span     // of entries
	used    bool     // since the clock's hand was here
	writing bool     // by a flush, which began when dirty was cleared
}

// maxL2Bytes bounds the L2 tables in memory.
const maxL2Bytes = 32 << 20

// maxTables is the same in tables, at least a few.
func (i *Image) maxTables() int { return max(int(maxL2Bytes>>i.bits), 4) }

// split returns where a guest cluster's entry is.
func (i *Image) split(cluster int64) (l1, l2 int64) { return cluster / i.perL2, cluster % i.perL2 }

// table returns the L2 table for an L1 index, nil if there is none. mu is held
// for writing.
func (i *Image) table(l1 int64) (*l2Table, error) {
	if t := i.tables[l1]; t != nil {
		t.used = true
		return t, nil
	}
	at := int64(i.l1[l1] & entryOffset)
	if at == 0 {
		return nil, nil
	}
	if err := i.makeRoom(); err != nil {
		return nil, err
	}
	raw := make([]byte, i.cluster)
	if _, err := i.file.ReadAt(raw, at); err != nil {
		return nil, err
	}
	t := &l2Table{offset: at, entries: make([]uint64, len(raw)/8), used: true}
	step := int(i.hdr.l2EntrySize() / 8)
	for n := range t.entries {
		t.entries[n] = binary.BigEndian.Uint64(raw[8*n:])
		if n%step == 0 {
			if err := i.checkEntry(t.entries[n]); err != nil {
				return nil, i.damaged(err)
			}
		}
	}
	i.keep(l1, t)
	return t, nil
}

func (i *Image) keep(l1 int64, t *l2Table) {
	i.tables[l1] = t
	i.loaded++
}

// checkEntry refuses an L2 entry that points where no data can be. What it
// lets pass is not looked at again.
func (i *Image) checkEntry(e uint64) error {
	if e&entryCompressed != 0 {
		at, n := i.compressedAt(e)
		if at >= i.file.Size() || n > 2*i.cluster {
			return corrupt("a compressed cluster at %#x", at)
		}
		return nil
	}
	at := int64(e & entryOffset)
	if at == 0 {
		return nil
	}
	if !i.inFile(at) {
		return corrupt("a cluster at %#x", at)
	}
	if _, ok := i.metadata[at>>i.bits]; ok {
		return corrupt("a cluster of data at %#x, where a table is", at)
	}
	return nil
}

// makeRoom drops a table that was not used lately and has not changed.
func (i *Image) makeRoom() error {
	if i.loaded < i.maxTables() {
		return nil
	}
	// Twice around, so that every clean table is met with used unset.
	for range 2 * len(i.tables) {
		n := i.hand
		i.hand = (i.hand + 1) % len(i.tables)
		t := i.tables[n]
		switch {
		case t == nil || t.dirty.to > 0 || t.writing:
		case t.used:
			t.used = false
		default:
			i.tables[n] = nil
			i.loaded--
			return nil
		}
	}
	return nil // all are waiting for a flush: it is due soon, see Image.crowded
}

// crowded reports whether so much waits for a flush that one is due.
func (i *Image) crowded() bool {
	i.mu.RLock()
	defer i.mu.RUnlock()
	return i.loaded > i.maxTables() || int64(len(i.freed))<<i.bits > 256<<20
}

// writableTable returns the table for an L1 index to be changed: made new if
// there is none, and copied if a snapshot shares it. mu is held.
func (i *Image) writableTable(l1 int64) (*l2Table, error) {
	t, err := i.table(l1)
	if err != nil {
		return nil, err
	}
	if t != nil && i.l1[l1]&entryCopied != 0 {
		return t, nil
	}
	if t == nil {
		if err := i.makeRoom(); err != nil {
			return nil, err
		}
	}
	at, err := i.refs.allocTable(1)
	if err != nil {
		return nil, err
	}
	if t == nil {
		t = &l2Table{entries: make([]uint64, i.cluster/8), used: true}
		i.keep(l1, t)
	} else {
		old := t.offset >> i.bits
		delete(i.metadata, old)
		i.freed = append(i.freed, old)
	}
	t.offset = at << i.bits
	t.dirty = span{0, len(t.entries)}
	i.l1[l1] = uint64(t.offset) | entryCopied
	i.l1Dirty.add(int(l1))
	return t, nil
}

// kind is what a guest cluster is.
type kind int

const (
	kindNone       kind = iota // not in this image: the backing file's, or zeros
	kindZero                   // zeros
	kindData                   // at a host offset
	kindCompressed             // packed at a host offset
)

// run is a range of the guest's disk of one kind.
type run struct {
	kind kind
	n    int64 // bytes
	host int64 // of kindData: where the first byte is
	// entry is the L2 entry of kindCompressed.
	entry uint64
	// own is set where kindData may be overwritten: nobody shares it.
	own bool
}

// notLoaded says that a table has to be read first.
type notLoaded struct{}

func (notLoaded) Error() string { return "an L2 table is not in memory" }

// lookup returns the run at off, at most n bytes. mu is held for reading; a
// table that is not in memory is notLoaded.
func (i *Image) lookup(off, n int64) (run, error) {
	l1, l2 := i.split(off >> i.bits)
	if l1 >= int64(len(i.l1)) {
		return run{}, corrupt("no L1 entry for offset %d", off)
	}
	in := off & (i.cluster - 1)
	t := i.tables[l1]
	if t == nil {
		if i.l1[l1]&entryOffset != 0 {
			return run{}, notLoaded{}
		}
		return run{kind: kindNone, n: min(n, (i.perL2-l2)<<i.bits-in)}, nil
	}
	if i.hdr.extended() {
		return i.lookupExtended(t, l2, in, n), nil
	}
	first := i.classify(t.entries[l2])
	first.host += in
	first.n = i.cluster - in
	for first.kind != kindCompressed && first.n < n && l2+1 < i.perL2 {
		l2++
		next := i.classify(t.entries[l2])
		if next.kind != first.kind || next.own != first.own || first.kind == kindData && next.host != first.host+first.n {
			break
		}
		first.n += i.cluster
	}
	first.n = min(first.n, n)
	return first, nil
}

// classify decodes an L2 entry.
func (i *Image) classify(e uint64) run {
	switch {
	case e&entryCompressed != 0:
		return run{kind: kindCompressed, entry: e}
	case e&entryZero != 0 && i.hdr.version >= 3:
		return run{kind: kindZero}
	case e&entryOffset != 0:
		return run{kind: kindData, host: int64(e & entryOffset), own: e&entryCopied != 0}
	}
	return run{kind: kindNone}
}

// lookupExtended is lookup with extended L2 entries: every cluster has 32
// subclusters with two bits each.
func (i *Image) lookupExtended(t *l2Table, l2, in, n int64) run {
	e, bitmap := t.entries[2*l2], t.entries[2*l2+1]
	if e&entryCompressed != 0 {
		return run{kind: kindCompressed, entry: e, n: min(n, i.cluster-in)}
	}
	bits := i.hdr.subclusterBits()
	at := func(s int64) kind {
		switch {
		case bitmap>>(32+s)&1 != 0:
			return kindZero
		case bitmap>>s&1 != 0 && e&entryOffset != 0:
			return kindData
		}
		return kindNone
	}
	s := in >> bits
	k := at(s)
	for s++; s < 32 && at(s) == k; s++ {
	}
	return run{kind: k, host: int64(e&entryOffset) + in, n: min(n, s<<bits-in)}
}

// find is lookup that reads the table if it must.
func (i *Image) find(off, n int64) (run, error) {
	i.mu.RLock()
	r, err := i.lookup(off, n)
	i.mu.RUnlock()
	if _, ok := err.(notLoaded); !ok {
		return r, err
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	l1, _ := i.split(off >> i.bits)
	if _, err := i.table(l1); err != nil {
		return run{}, err
	}
	return i.lookup(off, n)
}
