package ring0

import "unsafe"

// Translations of what a block begins with, and a loop's turn.

// beginBlock begins with a look at Attention and a comparison, and has the vector registers
// loaded if the block uses them.
func (t *translator) beginBlock(offset uint32, vectors bool) {
	changed, begin := t.lookUpOrCompare(), t.n
	t.cold = append(t.cold, func() {
		t.land(changed, t.n)
		t.callOrLeave(t.check[0], begin, exitSite{kind: exitHead, offset: uint16(offset)})
		t.copies = t.n
		t.copy(t.parts[:])
	})
	if vectors {
		t.wantVectors(offset)
	}
}

// lookUpOrCompare returns the jump for a block that has to be compared, or for a CPU that has to look up.
func (t *translator) lookUpOrCompare() (site int) {
	t.load(4, hostRAX, inFrameAt(unsafe.Offsetof(frame{}.compare)+4*uintptr(t.block)))
	t.op(4, 0x3b, hostRAX, inFrameAt(offsetAttention)) // cmp
	return t.jumpIf(ifNotEqual)
}

// part is code of the guest, and where it is in this process.
type part struct {
	host uint64
	code []byte
}

// copyHead is how many bytes are in front of a copy: how many it has, in two, and where the guest's are.
const copyHead = 2 + 8

// copy writes copies of parts of the guest's code, for checkRoutines, and that there is no other.
func (t *translator) copy(parts []part) {
	for _, p := range parts {
		if n := len(p.code); n > 0 {
			t.bytes(byte(n), byte(n>>8))
			t.u64(p.host)
			t.bytes(p.code...)
		}
	}
	t.bytes(0, 0)
}

// checkRoutines writes the routines that compare the guest's code with its copies. They return, or
// leave if the code has changed, if the CPU has to look up, or if that was compared often enough.
func (t *translator) checkRoutines() {
	at := func(offset uintptr) operand { return inFrameAt(calledFrame + offset) }
	dx, si := at(offsetSpilled), at(offsetAddress)
	count := register(hostRAX)
	var differs []int
	compare := func(size uint8, mine, copied operand) {
		t.op(size, 0x8a|wider(size), rSI, mine)   // mov
		t.op(size, 0x3a|wider(size), rSI, copied) // cmp
		differs = append(differs, t.jumpIf(ifNotEqual))
	}
	step := func(size uint8) {
		compare(size, memory(rDX, 0), memory(hostRCX, 0))
		t.arithmetic(8, 0, register(rDX), int32(size))     // add
		t.arithmetic(8, 0, register(hostRCX), int32(size)) // add
		t.arithmetic(4, extSUB, count, int32(size))
	}

	t.check[0] = t.n
	t.load(8, hostRCX, memory(hostRSP, 0))
	t.arithmetic(8, 0, register(hostRCX), 5+4) // add: JMP and the site
	t.check[1] = t.n
	t.arithmetic(4, extCMP, at(offsetAttention), 0)
	t.land(t.jumpIf(ifNotEqual), t.outBehind)
	t.store(8, rDX, dx)
	t.store(8, rSI, si)

	next := t.n
	t.op(4, map0F|0xb7, hostRAX, memory(hostRCX, 0)) // movzx
	t.load(8, rDX, memory(hostRCX, 2))
	t.arithmetic(8, 0, register(hostRCX), copyHead) // add
	t.arithmetic(4, extCMP, count, 8)
	few := t.jumpIf(ifBelow)
	eight := t.n
	step(8)
	t.arithmetic(4, extCMP, count, 8)
	t.land(t.jumpIf(ifAboveEqual), eight)
	compare(8, memory(rDX, -8).indexed(hostRAX), memory(hostRCX, -8).indexed(hostRAX))
	t.op(8, 0x03, hostRCX, count) // add
	t.land(t.jump(), next)

	t.land(few, t.n)
	t.op(4, 0x85, hostRAX, count) // test
	equal := t.jumpIf(ifEqual)
	one := t.n
	step(1)
	t.land(t.jumpIf(ifNotEqual), one)
	t.land(t.jump(), next)

	t.land(equal, t.n)
	t.load(8, rDX, dx)
	t.load(8, rSI, si)
	t.arithmetic(4, extSUB, at(offsetUntilGuard), 1)
	t.land(t.jumpIf(ifSign), t.outBehind)
	t.bytes(0xc3) // ret

	t.landAll(differs, t.n)
	t.load(8, rDX, dx)
	t.load(8, rSI, si)
	t.land(t.jump(), t.outBehind)
}

// wantVectors has the vector registers loaded.
func (t *translator) wantVectors(offset uint32) {
	t.arithmetic(4, extCMP, inFrameAt(offsetVectorsLoaded), 0)
	absent, back := t.jumpIf(ifEqual), t.n
	t.cold = append(t.cold, func() {
		t.land(absent, t.n)
		t.callOrLeave(t.vector, back, exitSite{kind: exitVector, offset: uint16(offset)})
	})
}
