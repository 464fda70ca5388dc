package ring0

// x87Operand is what an x87 instruction does with memory (SDM 2, appendix A.5): how many bytes it
// reads or, with store, writes.
type x87Operand struct {
	size  uint8 // 0 for what has no translation
	store bool
}

// x87Operands are those of the opcodes from 0xd8 on, by ModRM.reg. What loads and stores the
// environment or all of the state is left out: it has addresses of instructions.
var x87Operands = [8][8]x87Operand{
	{{4, false}, {4, false}, {4, false}, {4, false}, {4, false}, {4, false}, {4, false}, {4, false}},
	{{4, false}, {}, {4, true}, {4, true}, {}, {2, false}, {}, {2, true}},
	{{4, false}, {4, false}, {4, false}, {4, false}, {4, false}, {4, false}, {4, false}, {4, false}},
	{{4, false}, {4, true}, {4, true}, {4, true}, {}, {10, false}, {}, {10, true}},
	{{8, false}, {8, false}, {8, false}, {8, false}, {8, false}, {8, false}, {8, false}, {8, false}},
	{{8, false}, {8, true}, {8, true}, {8, true}, {}, {}, {}, {2, true}},
	{{2, false}, {2, false}, {2, false}, {2, false}, {2, false}, {2, false}, {2, false}, {2, false}},
	{{2, false}, {2, true}, {2, true}, {2, true}, {10, false}, {8, false}, {10, true}, {8, true}},
}

const (
	opFWAIT  = 0x9b
	opX87    = 0xd8 // the first of eight
	fnstswAX = 0xe0 // ModRM behind opcode 0xdf
)

// planX87 returns how to translate an x87 instruction, or FWAIT.
func (t *translator) planX87(in *inst, code []byte) plan {
	op := byte(in.opcode)
	if in.lock {
		return plan{}
	}
	if op == opFWAIT {
		return plan{vector: true, emit: func(t *translator, in *inst) { t.x87(in, x87Operand{}, opFWAIT) }}
	}
	modrm, operand := code[in.form.modrm], x87Operand{}
	if in.mem {
		if operand = x87Operands[op-opX87][modrm>>3&7]; operand.size == 0 {
			return plan{}
		}
		modrm = modrm&0x38 | hostRAX
	}
	p := plan{vector: true, emit: func(t *translator, in *inst) { t.x87(in, operand, op, modrm) }}
	switch {
	case in.mem:
	case op == 0xdf && modrm == fnstswAX:
		p.emit = func(t *translator, in *inst) {
			t.x87(in, operand, op, modrm)
			t.op(2, 0x8b, homes[rAX], register(hostRAX))
		}
	case op == 0xda, op == 0xdb && modrm < 0xe0: // FCMOVcc
		p.reads = arithFlags
	case op == 0xdb && modrm >= 0xe8, op == 0xdf && modrm >= 0xe8: // FCOMI and its like
		p.reads, p.touches = arithFlags, true
	}
	return p
}

// x87 writes an instruction whose memory operand, if it has one, RAX addresses.
func (t *translator) x87(in *inst, o x87Operand, code ...byte) {
	if in.mem {
		t.accessRAX(in, int(o.size), o.store)
	} else if t.keep != 0 { // it may trap
		t.saveFlags()
	}
	t.needFlags()
	t.mayTrap()
	t.bytes(code...)
}
