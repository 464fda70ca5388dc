package ring0

import "unsafe"

// Translations of jumps to other pages, by the linear address.

// jumpBits are the binary logarithms of the numbers of places in the tables of jumps. jumpHash
// places an address.
var jumpBits = [numTLBs]uint8{tlbKernel: maxJumpBits, tlbUser: maxJumpBits, tlbKernelAll: 11}

const (
	maxJumpBits = 14
	jumpShift   = 4 // of a jump's size
	jumpHash    = 0x9e3779b1
)

func jumpSlot(tlb int, addr uint64) uint32 { return uint32(addr) * jumpHash >> (32 - jumpBits[tlb]) }

// knownBits is the binary logarithm of the number of places in frame.known. By knownHash other
// addresses meet there than by jumpHash.
const (
	knownBits = 14
	knownHash = 0x85ebca6b
)

func knownSlot(host uint64) uint32 { return uint32(host) * knownHash >> (32 - knownBits) }

// jumpFar goes to the linear address in RAX, where that leads to a translation for a TLB. Else
// it leaves: by site, if that is not nil, before anything has happened; else with RIP set. last
// is done in front of the jump; it keeps RCX.
func (t *translator) jumpFar(tlb int, site *exitSite, last func()) {
	table, again := offsetJumps+uintptr(tlb)*unsafe.Sizeof(frame{}.jumps[0]), t.n
	t.op(4, 0x69, hostRCX, register(hostRAX)) // imul
	t.u32(jumpHash)
	t.op(4, 0xc1, 5, register(hostRCX)) // shr
	t.bytes(32 - jumpBits[tlb] - jumpShift)
	t.arithmetic(4, extAND, register(hostRCX), -1<<jumpShift)
	slot := inFrameAt(table).indexed(hostRCX)
	t.op(8, 0x3b, hostRAX, slot)
	absent := t.jumpIf(ifNotEqual)
	t.op(8, 0x81, extAND, register(hostRAX))
	t.u32(^uint32(pageMask))
	t.store(8, hostRAX, inFrameAt(offsetPage))
	if last != nil {
		last()
	}
	slot.disp += int32(unsafe.Offsetof(jump{}.to))
	t.op(4, 0xff, 4, slot) // jmp
	t.cold = append(t.cold, func() {
		t.land(absent, t.n)
		t.callTo(t.far[tlb])
		t.land(t.jumpIf(ifEqual), again)
		if site != nil {
			t.store(8, hostRAX, inFrameAt(offsetAddress))
			t.stub(*site)
			return
		}
		t.store(8, hostRAX, home(rIP))
		t.storeImm(4, inFrameAt(offsetSite), siteFar)
		t.land(t.jump(), t.exit)
	})
}

// farRoutine writes the routine that looks for the translation at a linear address, in RAX, that
// the table of jumps does not have: by the address of its code in this process, as far as the TLB
// of code has the page. RCX is as jumpFar leaves it. It returns with ZF if there is one now, and
// keeps RAX.
func (t *translator) farRoutine(tlb int) {
	t.far[tlb] = t.n
	at := func(offset uintptr) operand { return inFrameAt(calledFrame + offset) }
	spilled, slot, global := at(offsetSpilled), at(offsetTemp), at(offsetCame)
	code := offsetTLBs + uintptr(tlb)*unsafe.Sizeof(frame{}.tlbs[0]) + unsafe.Offsetof(frame{}.tlbs[0].code)
	page := func(field uintptr) operand { return at(code + field).indexed(hostRCX) }
	known := unsafe.Offsetof(frame{}.known) + uintptr(tlb)*unsafe.Sizeof(frame{}.known[0])
	table := offsetJumps + uintptr(tlb)*unsafe.Sizeof(frame{}.jumps[0])
	var e itlbEntry
	var j jumpTable

	t.store(8, rDX, spilled)
	t.store(4, hostRCX, slot)
	t.move(rDX, hostRAX)
	t.op(8, 0xc1, 5, register(rDX)) // shr
	t.bytes(12)
	t.op(4, map0F|0xb6, hostRCX, register(rDX)) // movzx, by itlbSize
	t.op(4, 0xc1, 4, register(hostRCX))         // shl
	t.bytes(5)
	t.arithmetic(8, 0, register(rDX), 1) // add
	t.op(8, 0x3b, rDX, page(unsafe.Offsetof(e.tag)))
	absent := []int{t.jumpIf(ifNotEqual)}
	t.op(4, 0x8b, rDX, register(hostRAX))
	t.arithmetic(4, extAND, register(rDX), pageMask)
	t.op(8, 0x03, rDX, page(unsafe.Offsetof(e.host)))
	t.op(4, map0F|0xb6, hostRCX, page(unsafe.Offsetof(e.global)))
	t.store(4, hostRCX, global)
	t.op(4, 0x69, hostRCX, register(rDX)) // imul
	t.u32(knownHash)
	t.op(4, 0xc1, 5, register(hostRCX)) // shr
	t.bytes(32 - knownBits - jumpShift)
	t.arithmetic(4, extAND, register(hostRCX), -1<<jumpShift)
	t.op(8, 0x3b, rDX, at(known).indexed(hostRCX))
	absent = append(absent, t.jumpIf(ifNotEqual))

	// As addJump does it.
	t.load(8, rDX, at(known+unsafe.Offsetof(jump{}.to)).indexed(hostRCX))
	t.load(4, hostRCX, slot)
	t.store(8, hostRAX, at(table).indexed(hostRCX))
	t.store(8, rDX, at(table+unsafe.Offsetof(jump{}.to)).indexed(hostRCX))
	used := at(table + unsafe.Offsetof(j.used))
	t.load(4, rDX, used)
	t.arithmetic(4, extCMP, register(rDX), int32(len(j.slots)))
	full := t.jumpIf(ifAboveEqual)
	t.op(4, 0xc1, 5, register(hostRCX)) // shr
	t.bytes(jumpShift)
	t.store(2, hostRCX, at(table+unsafe.Offsetof(j.slots)).indexed(rDX).scaled(1))
	t.land(full, t.n)
	t.arithmetic(8, 0, used, 1) // add
	t.move(rDX, hostRAX)
	t.op(8, 0xc1, 5, register(rDX)) // shr
	t.bytes(12)
	t.op(4, map0F|0xb7, rDX, register(rDX))                      // movzx, by jumpPages
	t.op(8, map0F|0xab, rDX, at(table+unsafe.Offsetof(j.pages))) // bts
	t.load(4, hostRCX, global)
	t.arithmetic(4, 6, register(hostRCX), 1)                   // xor
	t.op(1, 0x08, hostRCX, at(table+unsafe.Offsetof(j.local))) // or
	t.load(8, rDX, spilled)
	t.op(4, 0x33, hostRCX, register(hostRCX)) // xor
	t.bytes(0xc3)                             // ret

	t.landAll(absent, t.n)
	t.load(8, rDX, spilled)
	t.arithmetic(4, extOR, register(hostRCX), 1)
	t.bytes(0xc3) // ret
}
