package ring0

import "unsafe"

// Translations of how an access finds its page: in a TLB, in the second one, or not at all.

// calledFrame is how far the frame is from RSP in a routine: behind the return address.
const calledFrame = 8

// lookSizes is how many sizes of accesses routines look for: 1 to 32 bytes.
const lookSizes = 6

// lookInline is look with the frame that far from RSP. It returns the jump for what is not in
// the TLB, where the difference to the tag is in RAX, and its place in RCX. An access waits for
// the tag or for the page, whichever is later, and not for a sum of them.
func (t *translator) lookInline(tlb, size int, write bool, frame uintptr) (absent int) {
	const indexMask = (tlbSize - 1) << 5
	t.op(4, 0x8b, hostRCX, register(hostRAX))
	t.op(4, 0xc1, 5, register(hostRCX)) // shr ecx, 7
	t.bytes(12 - 5)
	t.op(4, 0x81, extAND, register(hostRCX))
	t.u32(indexMask)
	tag := inFrameAt(frame + uintptr(tagOffset(tlb, write))).indexed(hostRCX)
	t.op(8, 0x33, hostRAX, tag) // xor
	t.op(8, 0x81, extCMP, register(hostRAX))
	t.u32(uint32(pageSize - size))
	absent = t.jumpIf(ifAbove)
	host := inFrameAt(frame + uintptr(tagOffset(tlb, false)) + offsetTLBHost).indexed(hostRCX)
	t.load(8, hostRCX, host)
	return absent
}

// lookUpRoutines writes the routines that look into user mode's TLB.
func (t *translator) lookUpRoutines(which int, write bool) {
	var absent []int
	for l := range t.lookUp[which] {
		t.lookUp[which][l] = t.n
		miss := t.lookInline(tlbUser, 1<<l, write, calledFrame)
		t.bytes(0xc3) // ret
		t.land(miss, t.n)
		absent = append(absent, t.lookSecond(tlbUser, write)...)
		t.land(t.jump(), t.lookUp[which][l])
	}
	t.landAll(absent, t.n)
	t.op(4, 0x8f, 0, inFrameAt(offsetCame)) // pop, which counts from where RSP is behind it
	t.storeImm(4, inFrameAt(offsetSite), siteRead+uint32(which))
	t.land(t.jump(), t.exit)
}

// secondRoutine writes the routine that looks into a second TLB, after lookInline has not found
// the page in the first. It returns with the linear address in RAX, to look again, or leaves.
func (t *translator) secondRoutine(tlb, which int, write bool) {
	t.second[tlb][which] = t.n
	absent := t.lookSecond(tlb, write)
	t.bytes(0xc3) // ret
	t.landAll(absent, t.outBehind)
}

// lookSecond brings a page from a second TLB into the first, in a routine, with RAX and RCX as
// lookInline leaves them, and puts the linear address into RAX. It returns the jumps for what is
// not there, or is not in one page, with the address in frame.address.
func (t *translator) lookSecond(tlb int, write bool) (absent []int) {
	first := calledFrame + uintptr(tagOffset(tlb, false))
	tag := inFrameAt(calledFrame + uintptr(tagOffset(tlb, write))).indexed(hostRCX)
	table := first + offsetSecond
	entry := func(field uintptr) operand { return inFrameAt(table + field).indexed(rDX) }
	epoch := inFrameAt(table + unsafe.Offsetof(secondTLB{}.epoch))
	address, spilled := inFrameAt(calledFrame+offsetAddress), inFrameAt(calledFrame+offsetSpilled)

	t.op(8, 0xf7, 0, register(hostRAX)) // test
	t.u32(^uint32(pageMask))
	inPage := t.jumpIf(ifEqual) // it ends in the next one
	t.op(8, 0x33, hostRAX, tag) // xor
	t.store(8, hostRAX, address)
	t.store(8, rDX, spilled)
	t.move(rDX, hostRAX)            // as secondPlace does it
	t.op(8, 0xc1, 5, register(rDX)) // shr
	t.bytes(12)
	t.op(4, 0x69, rDX, register(rDX)) // imul
	t.u32(secondHash)
	t.op(4, 0xc1, 5, register(rDX)) // shr
	t.bytes(32 - secondBits - 5)
	t.arithmetic(4, extAND, register(rDX), -1<<5)
	t.op(8, 0x81, extAND, register(hostRAX))
	t.u32(^uint32(pageMask))
	t.op(8, 0x33, hostRAX, epoch) // xor
	field := unsafe.Offsetof(tlbEntry{}.read)
	if write {
		field = unsafe.Offsetof(tlbEntry{}.write)
	}
	t.op(8, 0x3b, hostRAX, entry(field)) // cmp
	other := t.jumpIf(ifNotEqual)

	for _, field := range []uintptr{unsafe.Offsetof(tlbEntry{}.read), unsafe.Offsetof(tlbEntry{}.write)} {
		t.load(8, hostRAX, entry(field))
		t.op(8, 0x33, hostRAX, epoch) // xor
		t.store(8, hostRAX, inFrameAt(first+field).indexed(hostRCX))
	}
	for _, field := range []uintptr{offsetTLBHost, unsafe.Offsetof(tlbEntry{}.gpa)} {
		t.load(8, hostRAX, entry(field))
		t.store(8, hostRAX, inFrameAt(first+field).indexed(hostRCX))
	}
	if tlb == tlbUser { // else it is global
		locals := inFrameAt(first + unsafe.Offsetof(frame{}.tlbs[0].locals))
		t.load(4, hostRAX, locals)
		t.arithmetic(4, extCMP, register(hostRAX), localSize)
		full := t.jumpIf(ifAboveEqual)
		t.op(4, 0xc1, 5, register(hostRCX)) // shr
		t.bytes(5)
		t.store(2, hostRCX, inFrameAt(first+unsafe.Offsetof(frame{}.tlbs[0].local)).indexed(hostRAX).scaled(1))
		t.arithmetic(4, 0, locals, 1) // add
		t.land(full, t.n)
	}
	t.load(8, rDX, spilled)
	t.load(8, hostRAX, address)
	found := t.jump()

	t.land(inPage, t.n)
	t.op(8, 0x33, hostRAX, tag) // xor
	t.store(8, hostRAX, address)
	absent = append(absent, t.jump())
	t.land(other, t.n)
	t.load(8, rDX, spilled)
	absent = append(absent, t.jump())
	t.land(found, t.n)
	return absent
}
