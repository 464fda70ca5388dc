package ring0

import (
	"runtime"
	"sync"
	"sync/atomic"
	"unsafe"

	"vmm/internal/x86"
)

// Tables knows which guest pages KVM may have a shadow of.
//
// KVM on such hosts runs guest user mode on shadow page tables and notices
// changes of the guest's tables because it executes every write of the guest's
// kernel. A write from here would leave the shadow stale. So every page that
// is reachable as a table by user mode is marked before the guest enters user
// mode, and a store to a marked page is left to KVM (it is a StopKVM). Where
// many come at one page, forget makes KVM drop the shadow of it instead.
//
// A Tables is shared by all vCPUs of a VM and safe for concurrent use.
type Tables struct {
	mem Memory
	// level holds, by guest page number, the level at which a page serves as a
	// table (4 is the root), or 0. Read without the lock.
	level []uint32
	// poke makes KVM drop its shadow of a page.
	poke func(gpa uint64) error
	// room is for translations.
	room   room
	guards guards

	// split is held by locked accesses that no instruction of the host's does at once.
	split sync.Mutex

	mu sync.Mutex
	// scanned holds, by guest page number, in which scan a table was last looked
	// through and at which level: a scan looks through a table once a level, however
	// many entries point to it, or it to itself.
	scanned []uint64
	scan    uint64
	// generation counts changes of marks, so that TLBs learn of them.
	generation atomic.Uint64
	// forgotten counts pages forgotten: all roots are looked at anew after one.
	forgotten uint64
	roots     map[uint64]uint64 // root -> forgotten when it was last scanned
	cpus      []*CPU
	writes    map[uint64]int // stores left to KVM, by page
}

// running is a vCPU's side of the handshake with those that mark pages.
type running struct {
	executing atomic.Bool
	native    atomic.Bool
	seen      atomic.Uint64
}

// NewTables returns an empty set for a guest's memory. poke must make KVM drop
// any shadow of the table page at gpa.
func NewTables(mem Memory, poke func(gpa uint64) error) *Tables {
	return &Tables{mem: mem, poke: poke, level: make([]uint32, mem.Size()>>12+1), scanned: make([]uint64, mem.Size()>>12+1),
		roots: map[uint64]uint64{}, writes: map[uint64]int{}}
}

func (t *Tables) join(c *CPU) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.cpus = append(t.cpus, c)
}

// isTable reports whether the page at gpa, any address, is marked.
func (t *Tables) isTable(gpa uint64) bool {
	n := gpa >> 12
	return n < uint64(len(t.level)) && atomic.LoadUint32(&t.level[n]) != 0
}

// EnterUser must be called before the guest goes on in user mode, and
// LeaveUser after: it marks all tables that user mode can reach.
func (c *CPU) EnterUser() {
	t := c.tables
	root := c.sregs.CR3 & x86.PTEFrame
	t.mu.Lock()
	c.running.native.Store(true)
	if at, ok := t.roots[root]; !ok || at != t.forgotten || !t.isTable(root) {
		// The number of tables that a store must pass by is small, so a root
		// that is no longer one costs little; but do not keep them for ever.
		if len(t.roots) > 4096 {
			clear(t.roots)
		}
		t.roots[root] = t.forgotten
		if t.markAll(root, 4) {
			t.synchronize(c)
		}
	}
	t.mu.Unlock()
}

// LeaveUser ends what EnterUser began.
func (c *CPU) LeaveUser() { c.running.native.Store(false) }

// markAll marks a table and those that user mode can reach through it. It reports
// whether any was new.
func (t *Tables) markAll(gpa uint64, level uint32) bool {
	t.scan++
	return t.mark(gpa, level)
}

// mark is markAll within a scan.
func (t *Tables) mark(gpa uint64, level uint32) bool {
	page := t.mem.Page(gpa)
	if page == nil {
		return false
	}
	changed := false
	if old := atomic.LoadUint32(&t.level[gpa>>12]); old < level {
		atomic.StoreUint32(&t.level[gpa>>12], level)
		changed = changed || old == 0
	}
	const levelBits = 3
	this := t.scan<<levelBits | uint64(level)
	if level == 1 || t.scanned[gpa>>12] >= this { // at a higher level, it reached more
		return changed
	}
	t.scanned[gpa>>12] = this
	for i := 0; i < pageSize; i += 8 {
		e := atomic.LoadUint64((*uint64)(unsafe.Pointer(&page[i])))
		if e&(x86.PTEPresent|x86.PTEUser) == x86.PTEPresent|x86.PTEUser && e&x86.PTELarge == 0 {
			changed = t.mark(e&x86.PTEFrame, level-1) || changed
		}
	}
	return changed
}

// synchronize waits until every other executor has seen the new marks.
func (t *Tables) synchronize(self *CPU) {
	g := t.generation.Add(1)
	for _, c := range t.cpus {
		for c != self && c.running.executing.Load() && c.running.seen.Load() != g {
			runtime.Gosched()
		}
	}
}

// forgetAfter is how many stores to one table KVM gets before it is asked to
// drop the shadow: about the cost of the asking in stores.
const forgetAfter = 12

// Stored must be called after KVM has executed a store that was refused
// because of a table: what the table now points to is marked. Many stores to
// one page make the page an ordinary one until user mode needs it again.
func (c *CPU) Stored() error {
	gpa := c.blocked &^ pageMask
	c.blocked = 0
	if gpa == 0 {
		return nil
	}
	t := c.tables
	t.mu.Lock()
	defer t.mu.Unlock()
	if level := atomic.LoadUint32(&t.level[gpa>>12]); level > 1 {
		if t.markAll(gpa, level) {
			t.synchronize(c)
		}
	}
	t.writes[gpa]++
	if t.writes[gpa] < forgetAfter {
		return nil
	}
	if len(t.writes) > 4096 {
		clear(t.writes)
	}
	return t.forget(c, gpa)
}

// forget makes a table page an ordinary one, if no vCPU uses it right now. The
// lock is held.
func (t *Tables) forget(self *CPU, gpa uint64) error {
	for _, c := range t.cpus {
		if c != self && c.running.native.Load() {
			return nil // it may walk this page at any moment
		}
	}
	delete(t.writes, gpa)
	if err := t.poke(gpa); err != nil {
		return err
	}
	atomic.StoreUint32(&t.level[gpa>>12], 0)
	t.forgotten++
	return nil
}

// FlushAll has every executor forget its translations before its next
// instruction, and returns when none executes with old ones.
func (t *Tables) FlushAll() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.synchronize(nil)
}
