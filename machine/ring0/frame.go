package ring0

import (
	"vmm/kvm"
	"vmm/machine/native"
)

// frame is what translated code works with: it has its address in a register. Only the CPU
// itself uses it, but for attention.
type frame struct {
	native.Frame

	// What is near the beginning has a short displacement.

	flags   uint64 // AX as LAHF and SETO have left it
	page    uint64 // the linear page of the block
	temp    uint64
	target  uint64 // of a call, while its return address is written
	address uint64 // linear, of an access that was not in the TLB
	came    uint64 // behind the call of the routine that has not found it
	spilled uint64 // RDX, in such a routine
	sys     uint64 // the bits of RFLAGS but for the arithmetic flags
	site    uint32 // where it has left, a number of translator.sites
	waiting uint32 // an interrupt may be waiting until the guest takes it

	// Whether the vector registers are the guest's; may be loaded from xsave; are to be.
	vectorsLoaded, vectorsReady, vectorsWanted uint32

	moved, movedTo uint32 // what changed the TLB, and to which

	// untilGuard is how many blocks may be compared until one leaves to have its page guarded.
	untilGuard int32

	// r holds the general registers by number, and RIP in r[rIP].
	r [numRegs]uint64
	// base is of segments, by segNone, segFS, ...
	base [numSegs]uint64

	kernelGSBase uint64
	// Where SYSCALL goes, and what it clears in RFLAGS; 0 where that is the interpreter's.
	syscallTarget, syscallMask uint64
	entry                      uint64 // where to enter translated code

	userCode, userStack uint64 // the selectors of SYSRET, where syscallTarget is not 0

	// InNMI tells the executor that KVM, or an NMI that comes, waits for the IRET of an NMI's handler.
	InNMI bool

	// sregs are as translated code has found them: what it changes is in moved.
	sregs kvm.Sregs

	mxcsr uint32 // the host's
	xsave uint64 // the address of the guest's extended state

	jumps [numTLBs]jumpTable
	tlbs  [numTLBs]tlb
	// known leads from addresses of code in this process to translations, which the tables of jumps
	// have lost, or a CR3 has made void. It has none of instructions that go on in another page.
	known [numTLBs][1 << knownBits]jump

	// compare is mustCompare for blocks that are compared with the guest's code, and 0 for others.
	compare [maxBlocks]uint32
}

// newFrame returns a frame where native.Frame wants it: what is so large begins with a page.
func newFrame() *frame {
	return &new(struct {
		returnAddress uint64
		frame         frame
	}).frame
}

// jumpTable leads from linear addresses to translations. An address that belongs into another
// place matches nothing.
type jumpTable struct {
	jumps [1 << maxJumpBits]jump

	pages [jumpPages / 64]uint64 // bits of whether some may be in pages with a number of this remainder
	local bool                   // some are in a page that is not global

	used  int          // how many were added, and the places of the first of them
	slots [1024]uint16 // user mode's table is emptied with each change of CR3
}

// jump leads from an address to a translation.
type jump struct{ from, to uint64 }

// jumpPages is so large that pages of data seldom share a remainder with those of a large program.
const jumpPages = 1 << 16

// addJump makes an address lead to a translation for a TLB.
func (f *frame) addJump(tlb int, from, to uint64, global bool) {
	j, slot := &f.jumps[tlb], jumpSlot(tlb, from)
	j.jumps[slot] = jump{from, to}
	if j.used < len(j.slots) {
		j.slots[j.used] = uint16(slot)
	}
	j.used++
	j.of(from>>12, global)
}

// knownAt returns the translation of code at an address in this process, 0 if it is not known.
func (f *frame) knownAt(tlb int, host uint64) uint64 {
	if k := &f.known[tlb][knownSlot(host)]; k.from == host {
		return k.to
	}
	return 0
}

// forgetKnown is for a translation that is not that of the guest's code any more.
func (f *frame) forgetKnown(b *translation) {
	if k := &f.known[b.tlb][knownSlot(b.host)]; k.from == b.host {
		*k = jump{}
	}
}

// of notes that a jump leads to a page.
func (j *jumpTable) of(vpn uint64, global bool) {
	j.pages[vpn%jumpPages/64] |= 1 << (vpn % 64)
	j.local = j.local || !global
}

// mayLeadTo reports whether a jump may lead to a page.
func (j *jumpTable) mayLeadTo(vpn uint64) bool { return j.pages[vpn%jumpPages/64]>>(vpn%64)&1 != 0 }

// emptyJumps forgets all jumps of a TLB.
func (f *frame) emptyJumps(tlb int) {
	j := &f.jumps[tlb]
	if j.used == 0 && j.jumps[0].from != 0 {
		return
	}
	if j.used <= len(j.slots) {
		for _, slot := range j.slots[:j.used] {
			j.jumps[slot].from = 0
		}
	} else {
		clear(j.jumps[:1<<jumpBits[tlb]])
	}
	clear(j.pages[:])
	j.used = 0
	j.jumps[0].from, j.local = 1, false
}

// The TLBs, by what the accesses may do.
const (
	tlbKernel    = iota
	tlbUser      // at privilege level 3
	tlbKernelAll // of kernel mode, to pages of user mode, too
	numTLBs
)

// chooseTLB has accesses use the TLB of what they may do.
func (c *CPU) chooseTLB() {
	switch {
	case c.userAccess != 0:
		c.tlbNumber = tlbUser
	case c.noUser:
		c.tlbNumber = tlbKernel
	default:
		c.tlbNumber = tlbKernelAll
	}
	c.tlb = &c.frame.tlbs[c.tlbNumber]
}
