package ring0

import "vmm/internal/x86"

// hostCounts is whether the host's CPU has POPCNT, TZCNT and LZCNT, which others take for
// other instructions.
var hostCounts = x86.CPUID(1, 0)[2]>>23&1 != 0 && x86.CPUID(7, 0)[1]>>3&1 != 0 && x86.CPUID(0x80000001, 0)[2]>>5&1 != 0

// plan is how to translate an instruction.
type plan struct {
	emit func(*translator, *inst) // nil for one without translation
	// The arithmetic flags that it reads, and that it surely overwrites; touches says that
	// the host's flags are changed by it.
	reads, kills uint16
	touches      bool
	leaves       bool // the block
	vector       bool // it uses the vector registers
}

// planOf returns how to translate an instruction.
func (t *translator) planOf(in *inst, code []byte) plan {
	if p := t.planLevel(in, code); p.emit != nil {
		return p
	}
	switch {
	case in.priv != 0, in.addr4, in.addr2, in.mem && !addressable(in):
		return plan{}
	case in.opcode == opFWAIT, in.opcode&^7 == opX87:
		return t.planX87(in, code)
	case in.form != (vectorForm{}):
		return t.planVector(in, code)
	case in.reg >= byteHigh && !extendsOpcode(in), in.rm >= byteHigh && !takesHigh(in), in.lock && !in.mem:
		return plan{}
	}
	if in.opcode == 0xfa || in.opcode == 0xfb { // CLI, STI
		if t.tlb == tlbUser {
			return plan{}
		}
		return plan{emit: (*translator).interruptFlag}
	}
	p := planInteger(in)
	if jumps := p.leaves || in.opcode&^0xf == map0F|0x80; jumps && (int64(in.imm) > maxJump || int64(in.imm) < -maxJump) {
		return plan{}
	}
	if in.lock && !lockableOpcode(in) {
		return plan{}
	}
	return p
}

// maxJump is how far a jump may go so that its target has a displacement from its page.
const maxJump = 1<<31 - 2*pageSize

// extendsOpcode reports whether ModRM.reg is a part of the opcode, and no register.
func extendsOpcode(in *inst) bool {
	switch op := in.opcode; {
	case op == 0x80, op == 0xc0, op == 0xc6, op == 0xd0, op == 0xd2, op == 0xf6, op == 0xfe, op&^0xf == map0F|0x90:
		return true
	}
	return false
}

// takesHigh reports whether the r/m operand may be AH, CH, DH or BH here.
func takesHigh(in *inst) bool {
	switch op := in.opcode; {
	case op == 0x80, op == 0xc6, op == 0xfe, op == 0xf6 && in.op < 4, op&^7 == 0xb0, op == map0F|0xb6, op == map0F|0xbe:
		return true
	}
	return false
}

// lockableOpcode reports whether LOCK may be in front (SDM 2, LOCK).
func lockableOpcode(in *inst) bool {
	switch op := in.opcode; {
	case op < 0x40:
		return op&7 < 2 && op>>3 != aluCmp
	case op == 0x80, op == 0x81, op == 0x83:
		return in.op != aluCmp
	case op == 0xf6, op == 0xf7:
		return in.op == 2 || in.op == 3
	case op == 0xfe, op == 0xff:
		return in.op < 2
	case op == 0x86, op == 0x87, op == map0F|0xb0, op == map0F|0xb1, op == map0F|0xc0, op == map0F|0xc1:
		return true
	case op == map0F|0xba:
		return in.op != 0
	case op == map0F|0xab, op == map0F|0xb3, op == map0F|0xbb:
		return true
	}
	return false
}

// arithmeticPlan is the plan of what overwrites all arithmetic flags.
func arithmeticPlan(emit func(*translator, *inst)) plan {
	return plan{emit: emit, kills: arithFlags, touches: true}
}

func planInteger(in *inst) plan {
	op := in.opcode
	switch {
	case op < 0x40 && op&7 < 6:
		p := arithmeticPlan((*translator).alu)
		if in.op == aluAdc || in.op == aluSbb {
			p.reads = flagCF
		}
		return p
	case op&^0xf == 0x70, op&^0xf == map0F|0x80:
		return plan{emit: (*translator).jcc, reads: arithFlags} // of the block that it leads to, too
	case op&^0xf == map0F|0x40:
		return plan{emit: (*translator).cmov, reads: conditionFlags(in.op)}
	case op&^0xf == map0F|0x90:
		return plan{emit: (*translator).setcc, reads: conditionFlags(in.op)}
	case op&^7 == map0F|0xc8 && in.size >= 4:
		return plan{emit: (*translator).bswap}
	case op&^7 == 0x50 && in.size == 8:
		return plan{emit: (*translator).push}
	case op&^7 == 0x58 && in.size == 8:
		return plan{emit: (*translator).pop}
	case op&^0xf == 0xb0:
		return plan{emit: (*translator).moveImm}
	case op > 0x90 && op < 0x98, op == 0x90 && in.size != 0:
		return plan{emit: (*translator).exchange}
	case op < 0x100:
		return planByte(in)
	}
	return planTwo(in)
}

// planByte plans the rest of the one-byte opcodes.
func planByte(in *inst) plan {
	switch in.opcode {
	case 0x63:
		return plan{emit: (*translator).toRegister}
	case 0x68, 0x6a:
		if in.size == 8 {
			return plan{emit: (*translator).push}
		}
	case 0x69, 0x6b:
		return arithmeticPlan((*translator).multiply)
	case 0x80, 0x81, 0x83:
		p := arithmeticPlan((*translator).aluImm)
		if in.op == aluAdc || in.op == aluSbb {
			p.reads = flagCF
		}
		return p
	case 0x84, 0x85:
		return arithmeticPlan((*translator).readOnly)
	case 0x86, 0x87:
		return plan{emit: (*translator).exchange}
	case 0x88, 0x89:
		return plan{emit: (*translator).moveToRM}
	case 0x8a, 0x8b:
		return plan{emit: (*translator).toRegister}
	case 0x8c:
		return planFromSegment(in)
	case 0x8d:
		if in.size >= 4 {
			return plan{emit: (*translator).leaOf}
		}
	case 0x90:
		if in.rep != repE {
			return plan{emit: (*translator).nothing}
		}
	case 0x98, 0x99:
		return plan{emit: (*translator).extendRAX}
	case 0x9c:
		if in.size == 8 {
			return plan{emit: (*translator).pushFlags, reads: arithFlags}
		}
	case 0xa4, 0xa5, 0xaa, 0xab:
		return planString(in)
	case 0xa8, 0xa9:
		return arithmeticPlan((*translator).testImm)
	case 0xc0, 0xc1, 0xd0, 0xd1:
		return planShift(in)
	case 0xd2, 0xd3:
		if !in.mem {
			p := plan{emit: (*translator).shiftCL, touches: true}
			if in.op == 2 || in.op == 3 {
				p.reads = flagCF
			}
			return p
		}
	case 0xc2, 0xc3:
		return plan{emit: (*translator).ret, leaves: true}
	case 0xc6, 0xc7:
		return plan{emit: (*translator).moveImm}
	case 0xc9:
		return plan{emit: (*translator).leave}
	case 0xe8:
		return plan{emit: (*translator).call, leaves: true}
	case 0xe9, 0xeb:
		return plan{emit: (*translator).jmp, leaves: true}
	case 0xf5, 0xf8, 0xf9: // CMC, CLC, STC
		return plan{emit: (*translator).carry, reads: flagCF, kills: flagCF, touches: true}
	case 0xf6, 0xf7:
		switch in.op {
		case 0, 1:
			return arithmeticPlan((*translator).testImm)
		case 2:
			return plan{emit: (*translator).unary}
		case 3:
			return arithmeticPlan((*translator).unary)
		}
		return arithmeticPlan((*translator).wide)
	case 0xfc, 0xfd:
		return plan{emit: (*translator).direction}
	case 0xfe, 0xff:
		return planGroup5(in)
	}
	return plan{}
}

// planGroup5 plans opcodes 0xfe and 0xff.
func planGroup5(in *inst) plan {
	switch {
	case in.op < 2:
		return plan{emit: (*translator).unary, kills: arithFlags &^ flagCF, touches: true}
	case in.op == 2 && (in.mem || in.rm != rSP):
		return plan{emit: (*translator).callRM, leaves: true}
	case in.op == 4:
		return plan{emit: (*translator).jmpRM, leaves: true}
	case in.op == 6 && in.size == 8 && in.mem:
		return plan{emit: (*translator).pushRM}
	}
	return plan{}
}

// shiftMask is for the number of a shift.
func shiftMask(size uint8) uint64 {
	if size == 8 {
		return 63
	}
	return 31
}

// planShift plans shifts by a number.
func planShift(in *inst) plan {
	switch {
	case in.imm&shiftMask(in.size) == 0:
		return plan{}
	case in.op >= shiftSHL:
		return arithmeticPlan((*translator).shiftImm)
	case in.op >= 2: // RCL, RCR; they may do nothing, in full circles
		return plan{emit: (*translator).shiftImm, reads: flagCF, touches: true}
	}
	return plan{emit: (*translator).shiftImm, touches: true}
}

// planTwo plans the opcodes behind 0x0f.
func planTwo(in *inst) plan {
	switch in.opcode {
	case map0F | 0x0d, map0F | 0x18, map0F | 0x19, map0F | 0x1a, map0F | 0x1b, map0F | 0x1c, map0F | 0x1d, map0F | 0x1e, map0F | 0x1f:
		return plan{emit: (*translator).nothing}
	case map0F | 0xa3, map0F | 0xab, map0F | 0xb3, map0F | 0xbb:
		if !in.mem {
			return plan{emit: (*translator).registerToRM, kills: flagCF, touches: true}
		}
		if in.size >= 4 {
			return plan{emit: (*translator).bitString, kills: flagCF, touches: true}
		}
	case map0F | 0xba:
		return plan{emit: (*translator).bitImm, kills: flagCF, touches: true}
	case map0F | 0xa4, map0F | 0xac:
		if in.imm&shiftMask(in.size) != 0 && in.size >= 4 {
			return arithmeticPlan((*translator).shiftDouble)
		}
	case map0F | 0xa5, map0F | 0xad:
		if !in.mem && in.size >= 4 {
			return plan{emit: (*translator).shiftDoubleCL, touches: true}
		}
	case map0F | 0xae:
		switch {
		case in.mem:
		case in.reg&7 >= 5 && in.rep == repNone:
			return plan{emit: (*translator).fence}
		case in.reg&7 < 4 && in.rep == repE && in.size >= 4:
			return plan{emit: (*translator).segmentBaseOf}
		}
	case map0F | 0xaf:
		return arithmeticPlan((*translator).toRegister)
	case map0F | 0xb0, map0F | 0xb1:
		if in.mem {
			return arithmeticPlan((*translator).compareExchange)
		}
	case map0F | 0xc0, map0F | 0xc1:
		return arithmeticPlan((*translator).exchangeAdd)
	case map0F | 0xb6, map0F | 0xb7, map0F | 0xbe, map0F | 0xbf:
		return plan{emit: (*translator).extend}
	case map0F | 0xb8, map0F | 0xbc, map0F | 0xbd:
		if in.rep == repNone || hostCounts {
			return arithmeticPlan((*translator).toRegister)
		}
	case map0F | 0xc3:
		return plan{emit: (*translator).moveToRM}
	}
	return plan{}
}

// conditionFlags are the flags that a condition looks at.
func conditionFlags(cc uint8) uint16 {
	return [8]uint16{flagOF, flagCF, flagZF, flagCF | flagZF, flagSF, flagPF, flagSF | flagOF, flagZF | flagSF | flagOF}[cc>>1]
}
