package ring0

import "math/bits"

// Translations of MOVS and STOS, upwards: downwards they are the interpreter's.

// planString returns how to translate a string instruction.
func planString(in *inst) plan {
	switch {
	case in.seg == segFS, in.seg == segGS:
		return plan{}
	case in.rep != repNone:
		return plan{emit: (*translator).repeatString}
	}
	return plan{emit: (*translator).oneString}
}

// moves reports whether a string instruction is MOVS.
func moves(in *inst) bool { return in.opcode&^1 == 0xa4 }

// upwards leaves the instruction to the interpreter where DF is set.
func (t *translator) upwards() {
	t.spoilFlags()
	t.op(4, 0xf7, 0, inFrameAt(offsetSys)) // test
	t.u32(flagDF)
	t.interpretIf(ifNotEqual)
}

// oneString is a string instruction without REP.
func (t *translator) oneString(in *inst) {
	size := int(in.size)
	t.upwards()
	from := homes[rAX]
	if moves(in) {
		from = hostRCX
		t.move(hostRAX, homes[rSI])
		t.op(in.size, 0x8a|wider(in.size), hostRCX, t.look(size, false, false))
		t.store(8, hostRCX, inFrameAt(offsetTarget))
	}
	t.move(hostRAX, homes[rDI])
	to := t.atRAX(t.look(size, true, false))
	if moves(in) {
		t.load(8, hostRCX, inFrameAt(offsetTarget))
		t.lea(homes[rSI], memory(homes[rSI], int32(size)))
	}
	t.op(in.size, 0x88|wider(in.size), from, to)
	t.lea(homes[rDI], memory(homes[rDI], int32(size)))
}

// repeatString is a string instruction with REP: as many elements as are in the pages of the first
// ones, then again. One that is in two pages is the interpreter's.
func (t *translator) repeatString(in *inst) {
	temp, target, count := inFrameAt(offsetTemp), inFrameAt(offsetTarget), homes[rCX]
	t.upwards()
	again := t.n
	t.op(8, 0x85, count, register(count)) // test
	none := t.jumpIf(ifEqual)
	t.move(hostRAX, homes[rDI])
	t.atRAX(t.look(1, true, false))
	if moves(in) {
		t.store(8, hostRAX, target)
		t.move(hostRAX, homes[rSI])
		t.atRAX(t.look(1, false, false))
		t.leftInPage(homes[rSI])
		t.store(8, hostRCX, temp)
	}
	t.leftInPage(homes[rDI])
	if moves(in) {
		t.op(8, 0x3b, hostRCX, temp)       // cmp
		t.op(8, map0F|0x47, hostRCX, temp) // cmova
	}
	if l := bits.TrailingZeros8(in.size); l > 0 {
		t.op(8, 0xc1, 5, register(hostRCX)) // shr
		t.bytes(byte(l))
	}
	t.op(8, 0x3b, hostRCX, register(count))       // cmp
	t.op(8, map0F|0x47, hostRCX, register(count)) // cmova
	t.op(8, 0x85, hostRCX, register(hostRCX))     // test
	t.interpretIf(ifEqual)
	t.op(8, 0x2b, count, register(hostRCX)) // sub
	if moves(in) {
		t.toHost(homes[rSI], temp)
		t.load(8, hostRAX, target)
	}
	t.toHost(homes[rDI], target)
	if !moves(in) {
		t.move(hostRAX, homes[rAX])
	}
	t.bytes(repE)
	switch in.size {
	case 2:
		t.bytes(0x66)
	case 8:
		t.bytes(0x48)
	}
	t.bytes(byte(in.opcode))
	t.op(8, 0x03, homes[rDI], target) // add
	if moves(in) {
		t.op(8, 0x03, homes[rSI], temp) // add
	}
	t.op(8, 0x85, count, register(count)) // test
	all := t.jumpIf(ifEqual)
	t.arithmetic(4, extCMP, inFrameAt(offsetAttention), 0)
	t.interpretIf(ifNotEqual)
	t.land(t.jump(), again)
	t.land(none, t.n)
	t.land(all, t.n)
}

// leftInPage puts into RCX how many bytes are left in a page from a linear address on.
func (t *translator) leftInPage(address uint8) {
	t.move(hostRCX, address)
	t.arithmetic(8, extOR, register(hostRCX), -pageSize)
	t.op(8, 0xf7, 3, register(hostRCX)) // neg
}

// toHost puts the host's address, in RAX, into the register of the guest's, and how far that is
// behind it into the frame.
func (t *translator) toHost(address uint8, behind operand) {
	t.store(8, address, behind)
	t.op(8, 0x29, hostRAX, behind) // sub
	t.move(address, hostRAX)
}

// direction is CLD or STD.
func (t *translator) direction(in *inst) {
	t.spoilFlags()
	if in.opcode == 0xfd {
		t.op(4, 0x81, extOR, inFrameAt(offsetSys))
		t.u32(flagDF)
		return
	}
	t.op(4, 0x81, extAND, inFrameAt(offsetSys))
	t.u32(^uint32(flagDF))
}
