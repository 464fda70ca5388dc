package ring0

import (
	"slices"
	"unsafe"

	"vmm/machine/native"
)

// Translation of blocks of 64-bit code to code for the host's CPU, which is the same kind of
// CPU: an instruction becomes itself, with the host's registers in the place of the guest's
// (homes), and each access to memory goes through the TLB in frame. What has no translation
// ends a block and is interpreted, as is what a translation leaves, so that no fault,
// interrupt or device is dealt with here.
//
// A block is found by the host's address of its code, and by the TLB that it uses. It
// begins with a look at Attention, and with a comparison of the guest's code with what was
// translated unless its page is guarded (guard.go), so that code may change as it likes, and from
// anywhere. Blocks of one page go to each other directly; between pages a table leads from linear
// addresses to translations, which is emptied with the TLB. A block does not know its linear page,
// which is in frame.page.
//
// Between blocks the arithmetic flags are in frame.flags. Within a block they are the host's,
// and saved where code of ours or the end of the block comes between them and who needs them.
// So they are exact at the beginning of a block, and wherever the guest can compute with them.
// A fault within a block may see older ones where the guest was about to overwrite them.

// translator makes and keeps a CPU's translations.
type translator struct {
	assembler
	region *native.Region
	room   *room
	enter  int // where to enter translated code
	exit   int // where it leaves, with frame.site set
	// Called to leave, with a site's number behind the call; and where what was called goes to leave,
	// with JMP between the call and the number.
	out, outBehind int
	check          [2]int            // compares the guest's code: with what is behind the number; with what is at RCX
	begin          int               // behind the code that all blocks share
	second         [numTLBs][2]int   // routines that look into a second TLB, to read and to write
	lookUp         [2][lookSizes]int // routines that look into user mode's, by the logarithm of the size
	far            [numTLBs]int      // routines that look for what is not in a table of jumps
	vector         int               // loads the vector registers

	components uint64        // that the guest has enabled
	smap       bool          // CR4.SMAP
	blocks     []translation // by number
	table      blockTable
	newest     map[uint32]uint32 // blocks by the number of their page's guard
	none       [maxNone]noTranslation
	waits      map[uint32]guardWait
	guardEvery int32
	frame      *frame
	resets     int
	sites      []exitSite
	traps      []codeSite // that may trap, in the order of their places
	looks      []codeSite // behind calls of a routine that looks into a TLB, likewise

	// Of the block that is being translated.
	block      uint32
	tlb        int
	offset     uint32 // in the page, of the instruction
	next       uint32 // of the one behind it
	keep       uint16 // flags that it may not spoil before it is executed itself
	wants      uint16 // flags that must be the host's when it is executed
	index      int    // of the instruction
	places     []place
	waiting    []waitingJump
	turns      bool // it is a loop
	parts      [2]part
	copies     int  // where the copies of the guest's code are
	hostFlags  bool // flags are the host's
	frameFlags bool // frame.flags is exact
	cold       []func()

	code  [maxTranslated * maxInst]byte
	insts [maxTranslated]inst
	plans [maxTranslated]plan
	lives [maxTranslated + 1]uint16
	joins [maxTranslated]bool
}

// translation is a block in the host's code.
type translation struct {
	host  uint64 // the host's address of the guest's code
	next  uint64 // that of the next page, where its only instruction goes on; 0 if it does not
	entry uint32 // in the region
	page  uint32 // the number of the guest's page
	copy  uint32 // in the region, of the guest's code
	older uint32 // another block of such a page, 0 if there is none
	bytes uint16
	tlb   uint8
	gone  bool // the guest's code has changed
}

// exitSite is a place where translated code leaves.
type exitSite struct {
	kind   exitKind
	offset uint16 // in frame.page, of the instruction to go on with
	at     uint32 // in the region: the jump to patch, if any, or where to go on; of an exitJump, what to add to RSP
	block  uint32
}

// codeSite is a place in translated code, and of which instruction it is.
type codeSite struct {
	at     uint32
	offset uint16
}

// exitKind is why translated code left.
type exitKind uint8

const (
	// exitLink goes on with another block: the jump can go there by itself.
	exitLink exitKind = iota
	// exitInterpret has an instruction without translation, or one that needs a slower way.
	exitInterpret
	// exitRead and exitWrite found nothing in the TLB for frame.address.
	exitRead
	exitWrite
	// exitHead found that the CPU has to look up, that the guest's code has changed, or that much is
	// compared, at last that block.
	exitHead
	// exitVector needs the vector registers.
	exitVector
	// exitFar goes on at another page's address, which is in r[rIP].
	exitFar
	// exitJump goes on at frame.address, by a jump that can have an exception.
	exitJump
	// exitTrap was made by the host's CPU.
	exitTrap
)

const (
	maxTranslated = 40 // instructions of a block
	// blockRoom is more than a block's translation takes.
	blockRoom = 64 << 10
)

// newTranslator makes a translator. The error is native.ErrNoMemory, or of the host.
func newTranslator(f *frame, u *native.Unit, r *room) (*translator, error) {
	region, err := native.NewRegion()
	if err != nil {
		return nil, err
	}
	t := &translator{region: region, room: r, frame: f, waits: map[uint32]guardWait{}, assembler: assembler{b: region.Code}}
	t.guardEvery, f.untilGuard = guardEvery, guardEvery
	f.TrapExit = region.Base + uint64(t.common(u))
	f.xsave, f.mxcsr = u.Extended(), native.DefaultMXCSR
	t.begin = t.n
	r.join()
	t.reset()
	return t, nil
}

// close gives back what newTranslator has taken.
func (t *translator) close() error {
	t.room.leave(t.n - t.begin)
	return t.region.Close()
}

// reset forgets all translations.
func (t *translator) reset() {
	t.room.take(t.begin - t.n)
	if share := t.room.share(); t.n > share {
		t.region.Free(share) // else it is just memory that is wanted again
	}
	t.n = t.begin
	if len(t.blocks) > 1 { // at a start all is zeros
		clear(t.frame.known[:])
	}
	clear(t.none[:])
	t.blocks = append(t.blocks[:0], translation{}) // none
	clear(t.table[:])
	t.newest = map[uint32]uint32{}
	t.resets++
	t.sites = append(t.sites[:0], exitSite{kind: exitTrap}, exitSite{kind: exitFar}, exitSite{kind: exitRead}, exitSite{kind: exitWrite})
	t.traps, t.looks = t.traps[:0], t.looks[:0]
}

// Numbers of the sites that all blocks share.
const (
	siteTrap = iota
	siteFar
	siteRead
	siteWrite
)

// translate returns the translation of the block at code, which ends with its page, whose number
// in the guest page is, for a TLB; with next, which begins the page behind it, that of one instruction that goes on there. It
// returns 0 where not one instruction has a translation.
func (t *translator) translate(page uint64, code, next []byte, tlb int) (block uint32) {
	host, nextHost := hostAddress(code), uint64(0)
	if next != nil {
		nextHost = hostAddress(next)
	}
	if b := t.table.find(t.blocks, host, nextHost, tlb); b != 0 {
		return b
	}
	if t.n+blockRoom > len(t.b) || len(t.blocks) == maxBlocks || t.room.lacks(t.n) {
		t.reset()
	}
	mine := t.code[:copy(t.code[:], code)] // which the guest cannot change
	limit := maxTranslated
	if next != nil {
		mine, limit = t.code[:len(mine)+copy(t.code[len(mine):], next)], 1
	}
	t.tlb = tlb
	b := t.plan(mine, limit)
	if len(b.insts) == 0 {
		return 0
	}
	t.block = uint32(len(t.blocks))
	t.blocks = append(t.blocks, translation{host: host, next: nextHost, page: uint32(page), tlb: uint8(tlb), entry: uint32(t.n)})
	start := uint32(host & pageMask)
	t.cold = t.cold[:0]
	t.parts = [2]part{{host, mine[:min(b.bytes, len(code))]}, {nextHost, mine[min(b.bytes, len(code)):b.bytes]}}
	t.beginBlock(start, b.vectors)
	t.hostFlags, t.frameFlags, t.next = false, true, start
	t.places, t.waiting = t.places[:0], t.waiting[:0]
	for i := range b.insts {
		t.places = append(t.places, place{offset: int64(start)})
		start += uint32(b.insts[i].len)
	}
	t.turns = b.findJoins(t.places) && next == nil
	for i := range b.insts {
		in, p := &b.insts[i], &b.plans[i]
		t.index, t.offset, t.next = i, t.next, t.next+uint32(in.len)
		if b.joins[i] {
			t.join(b.live[i])
		}
		t.keep, t.wants = b.live[i], p.reads
		if p.touches {
			t.wants |= b.live[i+1] &^ p.kills
		}
		p.emit(t, in)
		if p.touches {
			t.hostFlags, t.frameFlags = true, false
		}
	}
	if !b.leaves {
		t.saveFlags()
		if b.stopped && (t.next+maxInst <= pageSize || !cutOff(mine[b.bytes:])) {
			t.land(t.jump(), t.stub(exitSite{kind: exitInterpret, offset: uint16(t.next)}))
		} else if b.stopped {
			t.jumpToFar(int64(t.next)) // to where it is found out
		} else {
			t.jumpTo(int64(t.next))
		}
	}
	for i := 0; i < len(t.cold); i++ { //nolint:intrange // they add to it
		t.cold[i]()
	}
	made := &t.blocks[t.block]
	made.copy, made.bytes, made.older = uint32(t.copies+copyHead), uint16(b.bytes), t.newest[made.page%guardPages]
	t.newest[made.page%guardPages] = t.block
	t.frame.compare[t.block] = mustCompare
	t.table.add(t.blocks, t.block)
	t.room.take(t.n - int(t.blocks[t.block].entry))
	return t.block
}

// place is an instruction of the block that is being translated.
type place struct {
	offset int64 // in the page
	at     int   // in the region, where others go to it
}

// findJoins finds the instructions to which others of the block go, and reports whether one
// goes back.
func (b *planned) findJoins(places []place) (back bool) {
	for i := range b.insts {
		in := &b.insts[i]
		if !jumpsNear(in) {
			continue
		}
		target := places[i].offset + int64(in.len) + int64(in.imm)
		for k := range places {
			if places[k].offset == target {
				b.joins[k] = k > 0
				back = back || k <= i
			}
		}
	}
	return back
}

// jumpsNear reports whether an instruction is a JMP or a conditional jump.
func jumpsNear(in *inst) bool {
	op := in.opcode
	return op == 0xe9 || op == 0xeb || op&^0xf == 0x70 || op&^0xf == map0F|0x80
}

// join is in front of an instruction to which others of the block go, with frame.flags exact.
func (t *translator) join(live uint16) {
	if live != 0 {
		t.saveFlags()
	}
	t.hostFlags, t.frameFlags = false, true
	t.places[t.index].at = t.n
	for _, w := range t.waiting {
		if w.index == t.index {
			t.land(w.site, t.n)
		}
	}
}

// jumpWithin has a jump go to an instruction of the block, and reports whether there is one at
// target that it may go to.
func (t *translator) jumpWithin(site int, target int64) bool {
	k := slices.IndexFunc(t.places, func(p place) bool { return p.offset == target })
	switch {
	case k < 0:
		return false
	case k > t.index:
		t.waiting = append(t.waiting, waitingJump{site, k})
	case !t.turns:
		return false
	case k == 0:
		t.land(site, int(t.blocks[t.block].entry))
	default:
		t.cold = append(t.cold, func() {
			t.land(site, t.n)
			changed := t.lookUpOrCompare()
			t.land(t.jump(), t.places[k].at)
			t.land(changed, t.n)
			t.bytes(0x48, 0x8d, 0x0d) // lea rcx, [rip+...]
			t.u32(uint32(t.copies - t.n - 4))
			t.callOrLeave(t.check[1], t.places[k].at, exitSite{kind: exitLink, offset: uint16(target)}) // whose jump stays as it is
		})
	}
	return true
}

// waitingJump is a jump to an instruction of the block that is still to come.
type waitingJump struct{ site, index int }

// hostAddress is where the guest's code is in this process.
func hostAddress(code []byte) uint64 {
	first := unsafe.Pointer(&code[0])
	return *(*uint64)(unsafe.Pointer(&first))
}

// planned is a block's instructions and how to translate them.
type planned struct {
	insts   []inst
	plans   []plan
	live    []uint16 // the flags that are wanted in front of each, and behind the last
	joins   []bool   // whether others of the block go to it
	bytes   int
	leaves  bool // the last one leaves the block
	stopped bool // the one behind the last has no translation
	vectors bool // some use the vector registers
}

// plan decodes a block of at most limit instructions and looks how to translate it.
func (t *translator) plan(code []byte, limit int) (b planned) {
	b.insts, b.plans = t.insts[:0], t.plans[:0]
	for len(b.insts) < limit && b.bytes < len(code) && !b.leaves {
		var in inst
		if !decodeComplete(code[b.bytes:], &in, mode64) {
			b.stopped = true
			break
		}
		p := t.planOf(&in, code[b.bytes:b.bytes+int(in.len)])
		if p.emit == nil {
			b.stopped = true
			break
		}
		b.insts, b.plans = append(b.insts, in), append(b.plans, p)
		b.bytes += int(in.len)
		b.leaves = p.leaves
		b.vectors = b.vectors || p.vector
		if jumpsNear(&in) && int64(in.imm) < 0 {
			break // a loop, perhaps: what is behind it is not compared with each turn
		}
	}
	if n := len(b.insts); n > 0 && b.insts[n-1].opcode == 0xfb && !b.stopped {
		// Interrupts wait for the instruction behind STI, and so for the next block.
		b.bytes -= int(b.insts[n-1].len)
		b.insts, b.plans, b.stopped = b.insts[:n-1], b.plans[:n-1], true
	}
	b.joins = t.joins[:len(b.insts)]
	clear(b.joins)
	b.live = t.lives[:len(b.insts)+1]
	b.live[len(b.insts)] = arithFlags
	for i := len(b.insts) - 1; i >= 0; i-- {
		b.live[i] = b.live[i+1]&^b.plans[i].kills | b.plans[i].reads
	}
	return b
}

// stub writes a place where translated code leaves, and returns where it is.
func (t *translator) stub(s exitSite) int {
	at := t.n
	t.callTo(t.out)
	t.site(s)
	return at
}

// callOrLeave calls a routine that may leave by a site, and goes on at to.
func (t *translator) callOrLeave(routine, to int, s exitSite) {
	t.callTo(routine)
	t.land(t.jump(), to)
	t.site(s)
}

// site writes the number of a site.
func (t *translator) site(s exitSite) {
	s.block = t.block
	t.u32(uint32(len(t.sites)))
	t.sites = append(t.sites, s)
}

// mayTrap notes that what comes next may trap.
func (t *translator) mayTrap() {
	t.traps = append(t.traps, codeSite{uint32(t.n), uint16(t.offset)})
}

// saveFlags makes frame.flags exact. It spoils RAX.
func (t *translator) saveFlags() {
	if t.frameFlags || !t.hostFlags {
		return
	}
	t.bytes(0x9f)                             // lahf
	t.op(1, map0F|0x90, 0, register(hostRAX)) // seto al
	t.store(2, hostRAX, inFrameAt(offsetFlags))
	t.frameFlags = true
}

// needFlags makes the flags that the instruction wants the host's. It spoils RAX.
func (t *translator) needFlags() {
	if t.hostFlags || t.wants == 0 {
		return
	}
	t.op(4, map0F|0xb7, hostRAX, inFrameAt(offsetFlags)) // movzx
	t.bytes(0x04, 0x7f)                                  // add al, 0x7f
	t.bytes(0x9e)                                        // sahf
	t.hostFlags = true
}

// needFlagsKeeping is needFlags that keeps RAX.
func (t *translator) needFlagsKeeping() {
	if t.hostFlags || t.wants == 0 {
		return
	}
	t.store(8, hostRAX, inFrameAt(offsetTemp))
	t.needFlags()
	t.load(8, hostRAX, inFrameAt(offsetTemp))
}

// spoilFlags is in front of code that changes the host's flags. It spoils RAX.
func (t *translator) spoilFlags() {
	if t.keep != 0 {
		t.saveFlags()
	}
	t.hostFlags = false
}
