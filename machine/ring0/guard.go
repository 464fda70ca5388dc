package ring0

import (
	"iter"
	"slices"
	"sync/atomic"
)

// Guards of pages with code. A translation need not be compared with the guest's code while its
// page is guarded: no TLB has it as one that can be written to, so that who wants to write to it
// asks first, and ends the guard. Pages are guarded once much of what is executed is theirs, for
// it takes a look through the TLBs.
//
// A guard holds once each CPU has looked through its TLBs after it was made: one that executes
// does that when it begins to execute for the next time, and one that does not executes nothing
// in front of it. It ends before the page is written to: whose translations it concerns gets a
// word, and Attention, by which the block that it executes is the last one that is not compared.
// So a CPU that sees what another one has written after that sees the code, too. What devices
// write ends a guard as soon as it is written.

// guards are those of a VM.
type guards struct {
	// of holds, by the number of a page, which guard it has, 0 for none. Pages whose numbers have
	// the same remainder have theirs together.
	of   []atomic.Uint64
	last atomic.Uint64 // how many were made
}

// maxEnded is of how many ends of guards a CPU is told one by one.
const maxEnded = 64

const (
	// guardEvery is how many blocks are compared between two looks at whose they are.
	guardEvery = 1000
	// mustCompare in frame.compare has a block compared. It is none of Attention's values.
	mustCompare = ^uint32(0)
)

// guardPages is how many there may be, of guests of at most so many pages one each.
const guardPages = 1 << 20

// on is that of a page by its address.
func (g *guards) on(gpa uint64) *atomic.Uint64 { return &g.of[gpa>>12%guardPages] }

// Wrote must be called after memory was written to by others than the VM's CPUs. Both are in bytes.
func (t *Tables) Wrote(gpa, n uint64) {
	// Adding nothing has what was written seen before a guard is looked for here: who makes one
	// meanwhile, and compares, is either seen or sees it.
	if t.guards.last.Add(0) == 0 || n == 0 {
		return
	}
	for page := gpa &^ pageMask; page < gpa+n; page += pageSize {
		t.endGuard(page)
	}
}

// endGuard ends that of a page, if it has one.
func (t *Tables) endGuard(gpa uint64) {
	if t.guards.of == nil || t.guards.on(gpa).Load() == 0 {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.guards.on(gpa).Swap(0) == 0 {
		return
	}
	for _, c := range t.cpus {
		if len(c.endedGuards) < maxEnded {
			c.endedGuards = append(c.endedGuards, uint32(gpa>>12%guardPages))
		}
		c.frame.Attention.Or(attendGuards)
	}
}

// makeGuard guards a page, and returns which guard it has.
func (t *Tables) makeGuard(gpa uint64) uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	g := t.guards.on(gpa)
	if g.Load() == 0 {
		g.Store(t.guards.last.Load() + 1)
		t.guards.last.Add(1)
	}
	return g.Load()
}

// holds reports whether a guard holds, but for the CPU that asks.
func (t *Tables) holds(guard uint64, self *CPU) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return !slices.ContainsFunc(t.cpus, func(c *CPU) bool {
		return c != self && c.running.executing.Load() && c.guarded.Load() < guard
	})
}

// Begin must be called before a complete CPU executes, is given exceptions or interrupts, or
// writes to memory, where there are others; and End after.
func (c *CPU) Begin() {
	c.running.executing.Store(true)
	c.keepGuards()
}

// End ends what Begin began.
func (c *CPU) End() { c.running.executing.Store(false) }

// keepGuards looks through the TLBs for guarded pages that can be written to. What is empty stays
// so: as page 0 that cannot be written to it would match the last page.
func (c *CPU) keepGuards() {
	last := c.tables.guards.last.Load()
	if last == c.guarded.Load() {
		return
	}
	for i := range c.frame.tlbs {
		t := &c.frame.tlbs[i]
		for k := range t.data {
			if e := &t.data[k]; e.host != nil && e.write == e.read && c.tables.guards.on(e.gpa).Load() != 0 {
				e.write = ^e.read
			}
		}
		t.second.empty()
	}
	c.guarded.Store(last)
}

// guardWait is how often a page is not guarded when it could be, after its guard has ended so
// often.
type guardWait struct{ now, next uint16 }

const (
	maxGuardWait  = 1023
	maxGuardWaits = 4096 // pages
)

// guard has the translations of a block's page not compared any more, if it can be guarded.
func (c *CPU) guard(n uint32) {
	t := c.translator
	c.frame.untilGuard = t.guardEvery
	b := &t.blocks[n]
	gpa, host := uint64(b.page)<<12, b.host&^pageMask
	memory := c.tables.mem.Page(gpa)
	if memory == nil || hostAddress(memory[:]) != host { // a device's, or the memory has changed
		return
	}
	guard := c.tables.guards.on(gpa).Load()
	if guard == 0 {
		key := b.page % guardPages
		if w := t.waits[key]; w.now > 0 {
			t.waits[key] = guardWait{w.now - 1, w.next}
			return
		}
		guard = c.tables.makeGuard(gpa)
	}
	if guard > c.guarded.Load() {
		c.keepGuards()
	}
	if !c.tables.holds(guard, c) {
		return
	}
	for k := range t.ofPages(b.page % guardPages) {
		b := &t.blocks[k]
		code := t.b[b.copy:][:b.bytes]
		if b.host&^pageMask == host && b.next == 0 && string(memory[b.host&pageMask:][:b.bytes]) == string(code) {
			c.frame.compare[k] = 0
		}
	}
}

// endGuards has translations compared again whose page's guard has ended.
func (c *CPU) endGuards() {
	c.tables.mu.Lock()
	defer c.tables.mu.Unlock()
	c.frame.Attention.And(^uint32(attendGuards))
	if len(c.endedGuards) == maxEnded {
		c.compareAll()
	}
	for _, key := range c.endedGuards {
		c.compareAgain(key)
	}
	c.endedGuards = c.endedGuards[:0]
}

// compareAgain has the translations of pages compared that may have a guard together, and none
// soon.
func (c *CPU) compareAgain(key uint32) {
	t := c.translator
	if t == nil {
		return
	}
	for k := range t.ofPages(key) {
		c.frame.compare[k] = mustCompare
	}
	next := min(2*t.waits[key].next+1, maxGuardWait)
	if len(t.waits) == maxGuardWaits {
		clear(t.waits)
	}
	t.waits[key] = guardWait{next, next}
}

// ofPages returns the blocks of pages that may have a guard together, and forgets those that are
// gone.
func (t *translator) ofPages(key uint32) iter.Seq[uint32] {
	return func(yield func(uint32) bool) {
		last := uint32(0)
		for k := t.newest[key]; k != 0; k = t.blocks[k].older {
			switch {
			case !t.blocks[k].gone:
				if last = k; !yield(k) {
					return
				}
			case last == 0:
				t.newest[key] = t.blocks[k].older
			default:
				t.blocks[last].older = t.blocks[k].older
			}
		}
	}
}

// compareAll has all translations compared.
func (c *CPU) compareAll() {
	if t := c.translator; t != nil {
		for k := range t.blocks {
			c.frame.compare[k] = mustCompare
		}
	}
}

// ForgetMemory is for who has changed where memory is: it forgets translations of addresses, and
// has those of code compared.
func (c *CPU) ForgetMemory() {
	c.FlushTLB()
	c.compareAll()
}
