package qcow2

import (
	"encoding/binary"
	"fmt"
)

// CheckResult is what Check found.
type CheckResult struct {
	// Corruptions are references to clusters that the image does not count, or
	// that cannot be: data may be lost or overwritten.
	Corruptions int `json:"corruptions"`
	// Leaks are clusters that are counted and not referenced: lost space.
	Leaks int `json:"leaks"`
	// Allocated is how many guest clusters have data, Compressed how many of
	// them packed.
	Allocated  int64 `json:"allocated-clusters"`
	Compressed int64 `json:"compressed-clusters"`
	Total      int64 `json:"total-clusters"`
	// Repaired tells that both are put right.
	Repaired bool     `json:"repaired,omitempty"`
	Messages []string `json:"messages,omitempty"` // the first ones
}

// maxMessages bounds CheckResult.Messages.
const maxMessages = 20

// checker counts references anew.
type checker struct {
	image  *Image
	result CheckResult
	counts []uint32 // by host cluster
	// entries are the L1 and L2 entries whose copied bit has to say what the
	// count says, which is known when all is counted.
	entries []copiedEntry
}

// copiedEntry is an entry of an active table with its place in the file.
type copiedEntry struct {
	at    int64
	entry uint64
}

func (c *checker) say(format string, args ...any) {
	if len(c.result.Messages) < maxMessages {
		c.result.Messages = append(c.result.Messages, fmt.Sprintf(format, args...))
	}
}

func (c *checker) corrupt(format string, args ...any) {
	c.result.Corruptions++
	c.say("ERROR: "+format, args...)
}

// count counts a reference to the clusters of n bytes at a host offset. It
// reports whether they can be there.
func (c *checker) count(what string, at, n int64) bool {
	i := c.image
	if at < 0 || n < 0 || at+n < at || at > i.file.Size() {
		c.corrupt("%s at %#x is beyond the file", what, at)
		return false
	}
	for k := at >> i.bits; n > 0 && k <= (at+n-1)>>i.bits; k++ {
		for int64(len(c.counts)) <= k {
			c.counts = append(c.counts, 0)
		}
		c.counts[k]++
	}
	return true
}

func (c *checker) countAligned(what string, at, n int64) bool {
	if at&(c.image.cluster-1) != 0 {
		c.corrupt("%s at %#x is not at a cluster's start", what, at)
		return false
	}
	return c.count(what, at, n)
}

// Check compares the refcounts with the references to all clusters. repair
// puts right what is wrong with the counts; the image must be open for writing.
func (i *Image) Check(repair bool) (*CheckResult, error) {
	if repair {
		if err := i.Flush(); err != nil {
			return nil, err
		}
		if err := i.Flush(); err != nil { // what the first gave up is counted now
			return nil, err
		}
	}
	return i.check(repair)
}

// check is Check without anything that waits for a flush.
func (i *Image) check(repair bool) (*CheckResult, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	c := &checker{image: i, counts: make([]uint32, (i.file.Size()+i.cluster-1)>>i.bits)}
	c.result.Total = i.hdr.clusterCount()
	if err := c.countAll(); err != nil {
		return nil, err
	}
	if err := c.compare(); err != nil {
		return nil, err
	}
	r := &c.result
	if !repair || r.Corruptions+r.Leaks == 0 && i.hdr.incompatible&(incompatDirty|incompatCorrupt) == 0 {
		return r, nil
	}
	if err := c.repair(); err != nil {
		return r, err
	}
	r.Repaired = true
	return r, nil
}

// countAll counts all references.
func (c *checker) countAll() error {
	i, h := c.image, &c.image.hdr
	c.count("the header", 0, i.cluster)
	c.countAligned("the refcount table", int64(h.refOffset), int64(h.refClusters)<<i.bits)
	for n, at := range i.refs.table {
		if at != 0 && !c.countAligned(fmt.Sprintf("refcount block %d", n), int64(at), i.cluster) {
			i.refs.table[n] = 0 // in memory, so that it is not read
		}
	}
	if err := c.countL1("the L1 table", int64(h.l1Offset), i.l1, true); err != nil {
		return err
	}
	if err := c.countSnapshots(); err != nil {
		return err
	}
	return c.countBitmaps()
}

// countL1 counts what an L1 table refers to.
func (c *checker) countL1(what string, at int64, l1 []uint64, active bool) error {
	i := c.image
	c.countAligned(what, at, int64(len(l1))*8)
	raw := make([]byte, i.cluster)
	for n, e := range l1 {
		l2 := int64(e & entryOffset)
		if l2 == 0 || !c.countAligned(fmt.Sprintf("L2 table %d", n), l2, i.cluster) {
			continue
		}
		if active {
			c.entries = append(c.entries, copiedEntry{at + int64(n)*8, e})
		}
		if _, err := i.file.ReadAt(raw, l2); err != nil {
			return err
		}
		step := i.hdr.l2EntrySize()
		for k := int64(0); k < i.cluster; k += step {
			c.countEntry(binary.BigEndian.Uint64(raw[k:]), l2+k, active)
		}
	}
	return nil
}

func (c *checker) countEntry(e uint64, at int64, active bool) {
	i := c.image
	allocated := active
	switch {
	case e&entryCompressed != 0:
		where, n := i.compressedAt(e)
		c.count("a compressed cluster", where, n)
		if active {
			c.result.Compressed++
		}
	case e&entryOffset != 0:
		if c.countAligned("a cluster", int64(e&entryOffset), i.cluster) && active {
			c.entries = append(c.entries, copiedEntry{at, e})
		}
	default:
		allocated = false
	}
	if allocated {
		c.result.Allocated++
	}
}

// countSnapshots counts the internal snapshots' tables.
func (c *checker) countSnapshots() error {
	i, be := c.image, binary.BigEndian
	at := int64(i.hdr.snapOffset)
	start := at
	for n := range i.hdr.snapshots {
		var fixed [40]byte
		if _, err := i.file.ReadAt(fixed[:], at); err != nil {
			return err
		}
		l1Offset, l1Size := int64(be.Uint64(fixed[:])), be.Uint32(fixed[8:])
		id, name, extra := be.Uint16(fixed[12:]), be.Uint16(fixed[14:]), be.Uint32(fixed[36:])
		if uint64(l1Size)*8 > maxL1Bytes || extra > 1<<16 || at > i.file.Size() {
			c.corrupt("internal snapshot %d", n)
			return nil
		}
		raw := make([]byte, int64(l1Size)*8)
		if _, err := i.file.ReadAt(raw, l1Offset); err != nil {
			return err
		}
		l1 := make([]uint64, l1Size)
		for k := range l1 {
			l1[k] = be.Uint64(raw[8*k:])
		}
		if err := c.countL1(fmt.Sprintf("the L1 table of internal snapshot %d", n), l1Offset, l1, false); err != nil {
			return err
		}
		at += (int64(len(fixed)) + int64(extra) + int64(id) + int64(name) + 7) &^ 7
	}
	if at > start {
		c.countAligned("the table of internal snapshots", start, at-start)
	}
	return nil
}

// countBitmaps counts the persistent dirty bitmaps, which are not used here.
func (c *checker) countBitmaps() error {
	i, be := c.image, binary.BigEndian
	h := &i.hdr
	if h.bitmapsCount == 0 {
		return nil
	}
	if h.bitmapsSize > 1<<20 || !c.countAligned("the directory of bitmaps", int64(h.bitmapsOffset), int64(h.bitmapsSize)) {
		return nil
	}
	dir := make([]byte, h.bitmapsSize)
	if _, err := i.file.ReadAt(dir, int64(h.bitmapsOffset)); err != nil {
		return err
	}
	for range h.bitmapsCount {
		if len(dir) < 24 {
			c.corrupt("the directory of bitmaps is cut off")
			return nil
		}
		at, n := int64(be.Uint64(dir)), int64(be.Uint32(dir[8:]))
		size := 24 + int(be.Uint16(dir[18:])) + int(be.Uint32(dir[20:]))
		dir = dir[min((size+7)&^7, len(dir)):]
		if n > 1<<20 || !c.countAligned("a bitmap's table", at, n*8) {
			continue
		}
		table := make([]byte, n*8)
		if _, err := i.file.ReadAt(table, at); err != nil {
			return err
		}
		for k := range n {
			if e := be.Uint64(table[8*k:]) & entryOffset; e != 0 {
				c.countAligned("a bitmap's cluster", int64(e), i.cluster)
			}
		}
	}
	return nil
}

// compare looks at every count and every copied bit.
func (c *checker) compare() error {
	i := c.image
	covered := int64(len(i.refs.table)) * i.refs.per
	for k := int64(0); k < max(covered, int64(len(c.counts))); k++ {
		if n := k / i.refs.per; k%i.refs.per == 0 && k >= int64(len(c.counts)) && n < int64(len(i.refs.table)) && i.refs.table[n] == 0 {
			k += i.refs.per - 1
			continue
		}
		want := uint64(0)
		if k < int64(len(c.counts)) {
			want = uint64(c.counts[k])
		}
		got, err := i.refs.get(k)
		switch {
		case err != nil:
			return err
		case got > want:
			c.result.Leaks++
			c.say("leaked: cluster %d has %d references and is counted %d times", k, want, got)
		case got < want:
			c.corrupt("cluster %d has %d references and is counted %d times", k, want, got)
		}
	}
	for _, e := range c.entries {
		if c.copiedWrong(e.entry) {
			c.corrupt("the entry %#x at %#x: its copied bit is not what the count says", e.entry, e.at)
		}
	}
	return nil
}

func (c *checker) copiedWrong(e uint64) bool {
	k := int64(e&entryOffset) >> c.image.bits
	return (e&entryCopied != 0) != (c.counts[k] == 1)
}

// repair writes new refcounts behind everything, makes the header point to
// them, and puts the copied bits right. What refers to where nothing can be
// stays as it is: then the image stays marked as corrupt.
func (c *checker) repair() error {
	i := c.image
	h := &i.hdr
	// The old refcount structures are not references any more.
	c.uncount(int64(h.refOffset), int64(h.refClusters))
	for _, at := range i.refs.table {
		if at != 0 {
			c.uncount(int64(at), 1)
		}
	}
	first := int64(len(c.counts))
	perCluster := i.cluster / 8
	var blocks, tableClusters int64
	for {
		total := first + blocks + tableClusters
		b := (total + i.refs.per - 1) / i.refs.per
		t := (b + perCluster - 1) / perCluster
		if b == blocks && t == tableClusters {
			break
		}
		blocks, tableClusters = max(b, blocks), max(t, tableClusters)
	}
	for range blocks + tableClusters {
		c.counts = append(c.counts, 1)
	}
	limit := uint64(1)<<(h.refcountBits()&63) - 1
	if h.refcountBits() == 64 {
		limit = ^uint64(0)
	}
	table := make([]uint64, tableClusters*perCluster)
	data := make([]byte, i.cluster)
	for b := range blocks {
		clear(data)
		for k := b * i.refs.per; k < min((b+1)*i.refs.per, int64(len(c.counts))); k++ {
			setCount(data, k-b*i.refs.per, h.refcountOrder, min(uint64(c.counts[k]), limit))
		}
		table[b] = uint64(first+b) << i.bits
		if _, err := i.file.WriteAt(data, int64(table[b])); err != nil {
			return err
		}
	}
	i.refs.blocks = map[int64]*refBlock{} // moveRefTable has none to save
	broken := i.broken
	i.broken = nil
	if err := i.moveRefTable(table, first+blocks); err != nil {
		i.broken = broken
		return err
	}
	i.freed, i.refs.hint = nil, 0 // the new counts leave the old table out
	for _, e := range c.entries {
		if !c.copiedWrong(e.entry) {
			continue
		}
		var b [8]byte
		binary.BigEndian.PutUint64(b[:], e.entry^entryCopied)
		if _, err := i.file.WriteAt(b[:], e.at); err != nil {
			return err
		}
	}
	if err := i.file.Sync(); err != nil {
		return err
	}
	return i.reload()
}

func (c *checker) uncount(at, clusters int64) {
	for k := at >> c.image.bits; k < at>>c.image.bits+clusters && k < int64(len(c.counts)); k++ {
		if c.counts[k] > 0 {
			c.counts[k]--
		}
	}
}

// reload reads the tables anew and takes the marks of trouble off, if they
// are in order now.
func (i *Image) reload() error {
	i.loaded = 0
	if err := i.readL1(); err != nil {
		return err
	}
	if err := i.refs.open(i); err != nil {
		return err
	}
	if err := i.findMetadata(); err != nil {
		return err
	}
	again := &checker{image: i, counts: make([]uint32, (i.file.Size()+i.cluster-1)>>i.bits)}
	if err := again.countAll(); err != nil {
		return err
	}
	if err := again.compare(); err != nil {
		return err
	}
	if again.result.Corruptions > 0 {
		return corrupt("what is left cannot be repaired: %s", again.result.Messages[0])
	}
	i.broken = nil
	if err := i.setIncompatible(incompatCorrupt, false); err != nil {
		return err
	}
	return i.setIncompatible(incompatDirty, false)
}
