package ring0

import (
	"math/bits"
	"unsafe"
)

// Places in frame that translated code uses.
const (
	offsetAttention     = unsafe.Offsetof(frame{}.Frame.Attention)
	offsetUntilGuard    = unsafe.Offsetof(frame{}.untilGuard)
	offsetRegisters     = unsafe.Offsetof(frame{}.r)
	offsetPage          = unsafe.Offsetof(frame{}.page)
	offsetFlags         = unsafe.Offsetof(frame{}.flags)
	offsetSite          = unsafe.Offsetof(frame{}.site)
	offsetAddress       = unsafe.Offsetof(frame{}.address)
	offsetSys           = unsafe.Offsetof(frame{}.sys)
	offsetWaiting       = unsafe.Offsetof(frame{}.waiting)
	offsetSyscall       = unsafe.Offsetof(frame{}.syscallTarget)
	offsetTemp          = unsafe.Offsetof(frame{}.temp)
	offsetCame          = unsafe.Offsetof(frame{}.came)
	offsetSpilled       = unsafe.Offsetof(frame{}.spilled)
	offsetTarget        = unsafe.Offsetof(frame{}.target)
	offsetEntry         = unsafe.Offsetof(frame{}.entry)
	offsetVectorsLoaded = unsafe.Offsetof(frame{}.vectorsLoaded)
	offsetVectorsReady  = unsafe.Offsetof(frame{}.vectorsReady)
	offsetVectorsWanted = unsafe.Offsetof(frame{}.vectorsWanted)
	offsetTLBs          = unsafe.Offsetof(frame{}.tlbs)
	offsetJumps         = unsafe.Offsetof(frame{}.jumps)

	offsetTLBHost = unsafe.Offsetof(tlbEntry{}.host)
	offsetSecond  = unsafe.Offsetof(tlb{}.second)
)

// tagOffset is where in frame the tags of a TLB for reading or writing begin.
func tagOffset(tlb int, write bool) int32 {
	at := offsetTLBs + uintptr(tlb)*unsafe.Sizeof(frame{}.tlbs[0])
	if write {
		at += unsafe.Offsetof(tlbEntry{}.write)
	}
	return int32(at)
}

// home is where in frame a guest's register has its place.
func home(guest uint8) operand { return inFrameAt(offsetRegisters + 8*uintptr(guest)) }

// segmentBase is where in frame a segment's base is.
func segmentBase(seg uint8) operand {
	return inFrameAt(unsafe.Offsetof(frame{}.base) + 8*uintptr(seg))
}

// hold returns the host's register that holds a guest's: temp where it is in the frame only.
func (t *translator) hold(guest, temp uint8) uint8 {
	if h := homes[guest]; h != inFrame {
		return h
	}
	t.load(8, temp, home(guest))
	return temp
}

// holder is hold without the value.
func holder(guest, temp uint8) uint8 {
	if h := homes[guest]; h != inFrame {
		return h
	}
	return temp
}

// keepIn puts what holder or hold has returned back where it belongs.
func (t *translator) keepIn(guest, host uint8) {
	if homes[guest] == inFrame {
		t.store(8, host, home(guest))
	}
}

// addressable reports whether linear has a form for an address, wherever in its page the
// instruction is.
func addressable(in *inst) bool {
	d := int64(in.disp)
	if in.base == rIP {
		d += pageSize
	}
	return d == int64(int32(d)) && !in.addr4 && !in.addr2 && in.disp == uint64(int64(int32(in.disp)))
}

// offsetOf returns what addresses an operand but for its segment. It spoils RAX and RCX where
// it uses them.
func (t *translator) offsetOf(in *inst) operand {
	d := int32(in.disp)
	if in.base == rIP {
		t.load(8, hostRAX, inFrameAt(offsetPage))
		return memory(hostRAX, d+int32(t.next))
	}
	if in.base == rZero && in.index == rZero {
		t.loadImm(hostRAX, uint64(int64(d)))
		return memory(hostRAX, 0)
	}
	if in.base == rZero {
		i := t.hold(in.index, hostRCX)
		t.lea(hostRAX, operand{mem: true, noBase: true, index: i, scale: in.scale, disp: d})
		return memory(hostRAX, 0)
	}
	o := memory(t.hold(in.base, hostRAX), d)
	if in.index != rZero {
		o.index, o.scale = t.hold(in.index, hostRCX), in.scale
	}
	return o
}

// access returns an operand of size bytes, at RAX and RCX. It spoils the host's flags.
func (t *translator) access(in *inst, size int, write bool) operand {
	t.linear(in)
	return t.look(size, write, in.lock)
}

// accessRAX is access for what needs RCX: the operand is at RAX.
func (t *translator) accessRAX(in *inst, size int, write bool) operand {
	return t.atRAX(t.access(in, size, write))
}

// atRAX has what look has returned at RAX alone. It spoils the host's flags.
func (t *translator) atRAX(o operand) operand {
	t.op(8, 0x03, o.base, register(o.index)) // add
	return memory(o.base, 0)
}

// linear puts the linear address of an operand into RAX. It spoils RCX, and the host's flags.
func (t *translator) linear(in *inst) {
	t.spoilFlags()
	t.lea(hostRAX, t.offsetOf(in))
	if in.seg == segFS || in.seg == segGS {
		t.op(8, 0x03, hostRAX, segmentBase(in.seg))
	}
}

// look returns the operand at the linear address in RAX: it puts the address in the page there, and
// the host's address of the page into RCX. What is locked and not aligned is left to the interpreter.
//
// In user mode a routine does that but for a loop: programs are large, and most of their code is
// executed seldom.
func (t *translator) look(size int, write, locked bool) operand {
	if locked && size > 1 {
		t.bytes(0xa8, byte(size-1)) // test al, size-1
		t.interpretIf(ifNotEqual)
	}
	which, kind := 0, exitRead
	if write {
		which, kind = 1, exitWrite
	}
	if l := bits.TrailingZeros(uint(size)); t.tlb == tlbUser && !t.turns && size == 1<<l && l < lookSizes {
		t.callTo(t.lookUp[which][l])
		t.looks = append(t.looks, codeSite{uint32(t.n), uint16(t.offset)})
	} else {
		site := exitSite{kind: kind, offset: uint16(t.offset), at: uint32(t.n)}
		absent := t.lookInline(t.tlb, size, write, 0)
		t.cold = append(t.cold, func() {
			t.land(absent, t.n)
			t.callOrLeave(t.second[t.tlb][which], int(site.at), site)
		})
	}
	return memory(hostRAX, 0).indexed(hostRCX)
}

// jumpTo goes on at an offset from the page's address, with frame.flags exact.
func (t *translator) jumpTo(target int64) {
	if target >= 0 && target < pageSize {
		t.link(t.jump(), target)
	} else {
		t.jumpToFar(target)
	}
}

// jumpToFar is jumpTo by the linear address.
func (t *translator) jumpToFar(target int64) {
	t.inPage(hostRAX, int32(target))
	t.jumpFar(t.tlb, nil, nil)
}

// inPage puts the linear address at an offset from the page's into a register.
func (t *translator) inPage(reg uint8, offset int32) {
	t.load(8, reg, inFrameAt(offsetPage))
	t.lea(reg, memory(reg, offset))
}

// link has a jump go to a block of the page.
func (t *translator) link(site int, target int64) {
	if t.jumpWithin(site, target) {
		return
	}
	t.cold = append(t.cold, func() {
		t.land(site, t.stub(exitSite{kind: exitLink, offset: uint16(target), at: uint32(site)}))
	})
}
