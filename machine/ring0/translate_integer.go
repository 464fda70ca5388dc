package ring0

// Translations of instructions on general registers.

// sizeOf is the size of a memory operand, in bytes.
func sizeOf(in *inst) int {
	switch in.opcode {
	case map0F | 0xb6, map0F | 0xb7, map0F | 0xbe, map0F | 0xbf, 0x63:
		return int(in.op)
	}
	return int(in.size)
}

// prefix is the one that belongs to the opcode.
func prefix(in *inst) byte {
	switch in.opcode {
	case map0F | 0xb8, map0F | 0xbc, map0F | 0xbd:
		return in.rep
	}
	return 0
}

// rm gets the r/m operand: memory at RAX and, where reg is not held by that, RCX, or a register,
// for which RAX is the temporary one.
func (t *translator) rm(in *inst, write bool) operand {
	return t.rmBeside(in, write, homes[in.reg&15] == inFrame)
}

// rmBeside is rm, with memory at RAX alone if there is something beside it that needs RCX.
func (t *translator) rmBeside(in *inst, write, beside bool) operand {
	if !in.mem {
		t.needFlags()
		if in.rm >= byteHigh {
			return register(t.holdHigh(in.rm))
		}
		return register(t.hold(in.rm, hostRAX))
	}
	o := t.access(in, sizeOf(in), write)
	if beside {
		o = t.atRAX(o)
	}
	t.needFlagsKeeping()
	return o
}

// done puts a register that is the r/m operand back where it belongs.
func (t *translator) done(in *inst) {
	switch {
	case in.mem:
	case in.rm >= byteHigh:
		t.keepHigh(in.rm)
	default:
		t.keepIn(in.rm, holder(in.rm, hostRAX))
	}
}

// holdHigh is hold for AH, CH, DH or BH, in whose place only the host's of that name will do.
func (t *translator) holdHigh(guest uint8) uint8 {
	if full := guest &^ byteHigh; homes[full] != full {
		t.move(full, homes[full])
	}
	return guest
}

// keepHigh puts what holdHigh has returned back where it belongs.
func (t *translator) keepHigh(guest uint8) {
	if full := guest &^ byteHigh; homes[full] != full {
		t.move(homes[full], full)
	}
}

// lockPrefix writes LOCK where the instruction has it.
func (t *translator) lockPrefix(in *inst) {
	if in.lock {
		t.bytes(0xf0)
	}
}

func (t *translator) nothing(*inst) {}

// readOnly is an operation on both operands that changes neither.
func (t *translator) readOnly(in *inst) {
	rm := t.rm(in, false)
	t.op(in.size, in.opcode, t.hold(in.reg, hostRCX), rm)
}

// toRegister is an operation that changes the register.
func (t *translator) toRegister(in *inst) {
	rm := t.rm(in, false)
	reg := t.hold(in.reg, hostRCX)
	t.opPrefixed(prefix(in), in.size, in.opcode, reg, rm)
	t.keepIn(in.reg, reg)
}

// registerToRM is an operation that changes the r/m operand, which may be just looked at.
func (t *translator) registerToRM(in *inst) {
	rm := t.rm(in, true)
	reg := t.hold(in.reg, hostRCX)
	t.lockPrefix(in)
	t.op(in.size, in.opcode, reg, rm)
	t.done(in)
}

// alu is one of the forms that ADD, OR, ... share.
func (t *translator) alu(in *inst) {
	switch in.opcode & 7 {
	case 0, 1:
		if in.op == aluCmp {
			t.readOnly(in)
		} else {
			t.registerToRM(in)
		}
	case 2, 3:
		if in.op == aluCmp {
			t.readOnly(in)
		} else {
			t.toRegister(in)
		}
	case 4, 5:
		t.aluImm(in)
	}
}

func (t *translator) aluImm(in *inst) {
	rm := t.rm(in, in.op != aluCmp)
	t.lockPrefix(in)
	small := in.size > 1 && in.imm == uint64(int64(int8(in.imm)))
	switch {
	case in.size == 1:
		t.op(1, 0x80, in.op, rm)
		t.imm(in.imm, 1)
	case small:
		t.op(in.size, 0x83, in.op, rm)
		t.imm(in.imm, 1)
	default:
		t.op(in.size, 0x81, in.op, rm)
		t.imm(in.imm, in.size)
	}
	if in.op != aluCmp {
		t.done(in)
	}
}

func (t *translator) testImm(in *inst) {
	rm := t.rm(in, false)
	t.op(in.size, 0xf6|wider(in.size), 0, rm)
	t.imm(in.imm, in.size)
}

// wider is the bit of an opcode for operands of more than a byte.
func wider(size uint8) uint32 {
	if size > 1 {
		return 1
	}
	return 0
}

// unary is INC, DEC, NOT or NEG.
func (t *translator) unary(in *inst) {
	rm := t.rm(in, true)
	t.lockPrefix(in)
	t.op(in.size, in.opcode&^1|wider(in.size), in.op, rm)
	t.done(in)
}

func (t *translator) moveToRM(in *inst) {
	rm := t.rm(in, true)
	t.op(in.size, 0x88|wider(in.size), t.hold(in.reg, hostRCX), rm)
	t.done(in)
}

func (t *translator) moveImm(in *inst) {
	switch {
	case in.mem:
		t.op(in.size, 0xc6|wider(in.size), 0, t.access(in, int(in.size), true))
		t.imm(in.imm, in.size)
	case in.size >= 4:
		v := in.imm
		if in.size == 4 {
			v = uint64(uint32(v))
		}
		rm := holder(in.rm, hostRAX)
		t.loadImm(rm, v)
		t.keepIn(in.rm, rm)
	default:
		t.op(in.size, 0xc6|wider(in.size), 0, t.rm(in, true))
		t.imm(in.imm, in.size)
		t.done(in)
	}
}

// exchange is XCHG, which locks memory without a prefix.
func (t *translator) exchange(in *inst) {
	if in.mem {
		locked := *in
		locked.lock = true
		o := t.accessRAX(&locked, int(in.size), true)
		reg := t.hold(in.reg, hostRCX)
		t.op(in.size, 0x86|wider(in.size), reg, o)
		t.keepIn(in.reg, reg)
		return
	}
	rm, reg := t.hold(in.rm, hostRAX), t.hold(in.reg, hostRCX)
	t.op(in.size, 0x86|wider(in.size), reg, register(rm))
	t.keepIn(in.reg, reg)
	t.keepIn(in.rm, rm)
}

func (t *translator) exchangeAdd(in *inst) {
	rm := t.rm(in, true)
	reg := t.hold(in.reg, hostRCX)
	t.lockPrefix(in)
	t.op(in.size, in.opcode, reg, rm)
	t.keepIn(in.reg, reg)
	t.done(in)
}

// compareExchange is CMPXCHG with memory. The host's RAX is needed for the guest's, and there
// is no other register for one that is in the frame only.
func (t *translator) compareExchange(in *inst) {
	t.lea(hostRCX, t.access(in, int(in.size), true))
	reg := homes[in.reg]
	if reg == inFrame {
		reg = rDX
		t.store(8, reg, inFrameAt(offsetTemp))
		t.load(8, reg, home(in.reg))
	}
	t.move(hostRAX, homes[rAX])
	t.lockPrefix(in)
	t.op(in.size, in.opcode, reg, memory(hostRCX, 0))
	t.move(homes[rAX], hostRAX)
	if homes[in.reg] == inFrame {
		t.load(8, rDX, inFrameAt(offsetTemp))
	}
}

// extend is MOVZX or MOVSX.
func (t *translator) extend(in *inst) {
	if in.mem || in.rm < byteHigh {
		t.toRegister(in)
		return
	}
	rm := t.rm(in, false)
	t.op(4, in.opcode, hostRCX, rm) // the register may have a number for which there is none of these
	if rm.reg = hostRCX; in.opcode == map0F|0xbe && in.size == 8 {
		t.op(8, 0x63, hostRCX, rm) // movsxd
	}
	reg := t.hold(in.reg, hostRAX)
	t.load(in.size, reg, rm)
	t.keepIn(in.reg, reg)
}

func (t *translator) leaOf(in *inst) {
	o := t.offsetOf(in)
	reg := holder(in.reg, hostRCX)
	t.op(in.size, 0x8d, reg, o)
	t.keepIn(in.reg, reg)
}

// extendRAX is CBW and CWD, and those of other sizes.
func (t *translator) extendRAX(in *inst) {
	t.move(hostRAX, homes[rAX])
	if in.size == 2 {
		t.bytes(0x66)
	}
	if in.size == 8 {
		t.bytes(0x48)
	}
	t.bytes(byte(in.opcode))
	if in.opcode == 0x98 {
		t.move(homes[rAX], hostRAX)
	}
}

// multiply is IMUL with a number.
func (t *translator) multiply(in *inst) {
	rm := t.rm(in, false)
	reg := holder(in.reg, hostRCX)
	if in.size == 2 { // the rest of the register stays
		reg = t.hold(in.reg, hostRCX)
	}
	t.op(in.size, 0x69, reg, rm)
	t.imm(in.imm, in.size)
	t.keepIn(in.reg, reg)
}

// wide is MUL, IMUL, DIV or IDIV, of RAX and RDX.
func (t *translator) wide(in *inst) {
	rm := t.rm(in, false)
	if in.mem {
		t.op(in.size, 0x8a|wider(in.size), hostRCX, rm)
		rm = register(hostRCX)
	} else if rm.reg == hostRAX {
		t.move(hostRCX, hostRAX)
		rm = register(hostRCX)
	}
	t.move(hostRAX, homes[rAX])
	if in.op >= 6 {
		t.mayTrap()
	}
	t.op(in.size, 0xf6|wider(in.size), in.op, rm)
	t.move(homes[rAX], hostRAX)
}

func (t *translator) shiftImm(in *inst) {
	rm := t.rm(in, true)
	t.op(in.size, 0xc0|wider(in.size), in.op, rm)
	t.bytes(byte(in.imm))
	t.done(in)
}

func (t *translator) shiftCL(in *inst) {
	t.needFlags()
	rm := t.hold(in.rm, hostRAX)
	t.move(hostRCX, homes[rCX])
	t.op(in.size, 0xd2|wider(in.size), in.op, register(rm))
	t.keepIn(in.rm, rm)
}

// shiftDouble is SHLD or SHRD by a number.
func (t *translator) shiftDouble(in *inst) {
	rm := t.rm(in, true)
	t.op(in.size, in.opcode, t.hold(in.reg, hostRCX), rm)
	t.bytes(byte(in.imm))
	t.done(in)
}

// shiftDoubleCL is SHLD or SHRD of registers by CL. There is no other register for one that is
// in the frame only.
func (t *translator) shiftDoubleCL(in *inst) {
	t.needFlags()
	reg, rm := homes[in.reg], homes[in.rm]
	if reg == inFrame && rm == inFrame {
		t.store(8, rDX, inFrameAt(offsetTemp))
		t.load(8, rDX, home(in.reg))
		reg, rm = rDX, t.hold(in.rm, hostRAX)
	} else {
		reg, rm = t.hold(in.reg, hostRAX), t.hold(in.rm, hostRAX)
	}
	t.move(hostRCX, homes[rCX])
	t.op(in.size, in.opcode, reg, register(rm))
	t.keepIn(in.rm, rm)
	if homes[in.reg] == inFrame && homes[in.rm] == inFrame {
		t.load(8, rDX, inFrameAt(offsetTemp))
	}
}

func (t *translator) bswap(in *inst) {
	rm := t.hold(in.rm, hostRAX)
	rex := rm >> 3
	if in.size == 8 {
		rex |= 8
	}
	t.bytes(0x40|rex, 0x0f, 0xc8|rm&7)
	t.keepIn(in.rm, rm)
}

// bitImm is BT, BTS, BTR or BTC with a number.
func (t *translator) bitImm(in *inst) {
	rm := t.rm(in, in.op != 0)
	t.lockPrefix(in)
	t.op(in.size, in.opcode, 4|in.op, rm)
	t.bytes(byte(in.imm))
	if in.op != 0 {
		t.done(in)
	}
}

// bitString is BT, BTS, BTR or BTC with a register that reaches beyond the operand: by the
// number of operands that is in its upper bits (SDM 2, BT).
func (t *translator) bitString(in *inst) {
	t.linear(in)
	shift := byte(5)
	t.load(in.size, hostRCX, register(t.hold(in.reg, hostRCX)))
	if in.size == 8 {
		shift = 6
	} else {
		t.op(8, 0x63, hostRCX, register(hostRCX)) // movsxd
	}
	t.op(8, 0xc1, 7, register(hostRCX)) // sar
	t.bytes(shift)
	t.lea(hostRAX, memory(hostRAX, 0).indexed(hostRCX).scaled(shift-3))
	o := t.atRAX(t.look(int(in.size), in.op != 0, in.lock))
	t.load(8, hostRCX, register(t.hold(in.reg, hostRCX)))
	t.arithmetic(4, extAND, register(hostRCX), 1<<shift-1)
	t.needFlagsKeeping()
	t.lockPrefix(in)
	t.op(in.size, in.opcode, hostRCX, o)
}

func (t *translator) cmov(in *inst) {
	if !in.mem {
		t.needFlags()
		rm, reg := t.hold(in.rm, hostRAX), t.hold(in.reg, hostRCX)
		t.op(in.size, in.opcode, reg, register(rm))
		t.keepIn(in.reg, reg)
		return
	}
	t.load(in.size, hostRCX, t.access(in, int(in.size), false))
	t.needFlags()
	if reg := homes[in.reg]; reg != inFrame {
		t.op(in.size, in.opcode, reg, register(hostRCX))
		return
	}
	t.load(8, hostRAX, home(in.reg))
	t.op(in.size, in.opcode, hostRAX, register(hostRCX))
	t.store(8, hostRAX, home(in.reg))
}

func (t *translator) setcc(in *inst) {
	t.needFlags()
	if !in.mem {
		rm := t.hold(in.rm, hostRAX)
		t.op(1, in.opcode, 0, register(rm))
		t.keepIn(in.rm, rm)
		return
	}
	t.op(1, in.opcode, 0, inFrameAt(offsetTemp))
	o := t.accessRAX(in, 1, true)
	t.load(4, hostRCX, inFrameAt(offsetTemp))
	t.op(1, 0x88, hostRCX, o)
}

func (t *translator) carry(in *inst) {
	t.needFlags()
	t.bytes(byte(in.opcode))
}

// interruptFlag is CLI or STI at level 0. Where an interrupt may be waiting for STI, that is
// the interpreter's.
func (t *translator) interruptFlag(in *inst) {
	t.spoilFlags()
	sys := inFrameAt(offsetSys)
	if in.opcode == 0xfa {
		t.op(4, 0x81, extAND, sys)
		t.u32(^uint32(flagIF))
		return
	}
	t.arithmetic(4, extCMP, inFrameAt(offsetWaiting), 0)
	t.interpretIf(ifNotEqual)
	t.op(4, 0x81, extOR, sys)
	t.u32(flagIF)
}

// fence is LFENCE, MFENCE or SFENCE.
func (t *translator) fence(in *inst) { t.bytes(0x0f, 0xae, 0xc0|in.reg&7<<3) }
