package ring0

import "unsafe"

// Translations of what a block begins with, and a loop's turn.

// beginBlock begins with a look at Attention and a comparison, and has the vector registers
// loaded if the block uses them.
func (t *translator) beginBlock(offset uint32, vectors bool) {
	changed, begin := t.lookUpOrCompare(), t.n
	t.cold = append(t.cold, func() {
		t.land(changed, t.n)
		t.compareOrLeave(begin, exitSite{kind: exitHead, offset: uint16(offset)})
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

// compareOrLeave is what comes then. It goes on where to is, or leaves by a site if the code has
// changed or the CPU has to look up.
func (t *translator) compareOrLeave(to int, site exitSite) {
	t.arithmetic(4, extCMP, inFrameAt(offsetAttention), 0)
	gone := []int{t.jumpIf(ifNotEqual)}
	for _, p := range t.parts {
		gone = t.compare(p, gone)
	}
	t.arithmetic(4, 5, inFrameAt(offsetUntilGuard), 1) // sub
	t.land(t.jumpIf(ifNotSign), to)
	t.stub(exitSite{kind: exitGuard, offset: site.offset})
	stub := t.stub(site)
	for _, jump := range gone {
		t.land(jump, stub)
	}
}

// part is code of the guest, and where it is in this process.
type part struct {
	host uint64
	code []byte
}

// compare compares a part of the guest's code with what is translated, and adds the jumps for
// where it differs to those in gone.
func (t *translator) compare(p part, gone []int) []int {
	code := p.code
	if len(code) == 0 {
		return gone
	}
	t.loadImm(hostRCX, p.host)
	for i, n := 0, len(code); i < n; {
		switch {
		case n >= 8:
			i = min(i, n-8) // the last one overlaps the one in front
			t.loadImm(hostRAX, le.Uint64(code[i:]))
			t.op(8, 0x3b, hostRAX, memory(hostRCX, int32(i)))
			i += 8
		case n >= 4:
			i = min(i, n-4)
			t.op(4, 0x81, extCMP, memory(hostRCX, int32(i)))
			t.u32(le.Uint32(code[i:]))
			i += 4
		default:
			t.op(1, 0x80, extCMP, memory(hostRCX, int32(i)))
			t.bytes(code[i])
			i++
		}
		gone = append(gone, t.jumpIf(ifNotEqual))
	}
	return gone
}

// wantVectors has the vector registers loaded.
func (t *translator) wantVectors(offset uint32) {
	t.arithmetic(4, extCMP, inFrameAt(offsetVectorsLoaded), 0)
	absent, back := t.jumpIf(ifEqual), t.n
	t.cold = append(t.cold, func() {
		t.land(absent, t.n)
		t.arithmetic(4, extCMP, inFrameAt(offsetVectorsReady), 0)
		unready := t.jumpIf(ifEqual)
		t.bytes(0x48, 0x8d, 0x05) // lea rax, [rip+...]
		t.u32(uint32(back - t.n - 4))
		t.land(t.jump(), t.vector)
		t.land(unready, t.stub(exitSite{kind: exitVector, offset: uint16(offset)}))
	})
}
