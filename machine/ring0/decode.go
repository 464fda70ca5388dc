package ring0

// Segment numbers of an address.
const (
	segNone = iota
	segFS
	segGS
	segES
	segCS
	segSS
	segDS
	numSegs
)

// status is how an instruction ended.
type status uint8

const (
	done status = iota
	// handOver leaves the instruction to KVM; nothing of it was done.
	handOver
	// leave ends Execute after a completed instruction.
	leave
	// pause is a completed PAUSE: a sign of waiting.
	pause
	// opened is a completed instruction that let interrupts in.
	opened
	// inject raises the exception in CPU.Inject.
	inject
	// shadow is a completed STI: interrupts wait for one more instruction.
	shadow
	// halt is a completed HLT.
	halt
	// unknown is what neither this package nor KVM can do.
	unknown
)

// Values of inst.rep.
const (
	repNone = 0
	repNE   = 0xf2
	repE    = 0xf3
)

// byteHigh added to a register number means AH, CH, DH, BH.
const byteHigh = 0x40

// inst is a decoded instruction.
type inst struct {
	exec func(*CPU, *inst) status
	disp uint64
	imm  uint64 // sign-extended

	opcode uint32 // with the map's bytes, but for VEX and EVEX

	len   uint8
	size  uint8 // of the operands, in bytes
	reg   uint8 // ModRM.reg or the register of the opcode
	rm    uint8 // ModRM.rm where it is a register
	op    uint8 // which of a family: an ALU operation, a condition
	base  uint8
	index uint8
	scale uint8
	seg   uint8
	rep   uint8
	priv  uint8 // levels, of bits 0 and 1, that may not: level0 for all but 0
	mem   bool  // ModRM.rm is memory
	lock  bool
	addr4 bool // 32-bit addresses
	addr2 bool // 16-bit addresses
	own   bool // KVM cannot do it on such hosts: faults are injected from here
	count bool // rep counts with rCX
	ends  bool // a jump, behind which other code may begin
	// evexDisp marks an EVEX address whose displacement has an unknown scale.
	evexDisp bool
	// form, modrm and gather are for instructions that the host's CPU executes.
	form  vectorForm
	modrm uint8
	gather
	// undefined are the flags that the instruction leaves undefined; tests
	// must not compare them.
	undefined uint16
}

// decoder walks the bytes of one instruction.
type decoder struct {
	b   []byte
	pos int
	rex uint8
	op2 bool // operand-size prefix
	in  *inst
	bad bool
	// evexDisp is set while an 8-bit displacement is in units of the operand.
	evexDisp bool
	ext      uint8 // ModRM.reg without REX: the operation of a group
	mode     uint8
	complete bool // for a complete CPU
}

func (d *decoder) u8() uint8 {
	if d.pos >= len(d.b) {
		d.bad = true
		return 0
	}
	v := d.b[d.pos]
	d.pos++
	return v
}

// imm reads a little-endian immediate of n bytes, sign-extended.
func (d *decoder) immediate(n uint8) uint64 {
	var v uint64
	for i := range n {
		v |= uint64(d.u8()) << (8 * i)
	}
	sh := 64 - 8*uint(n)
	return uint64(int64(v<<sh) >> sh)
}

// sizeV is the operand size of most instructions: 2, 4 or 8.
func (d *decoder) sizeV() uint8 {
	switch {
	case d.rex&8 != 0:
		return 8
	case d.op2 != (d.mode == mode16):
		return 2
	}
	return 4
}

// size64 is the operand size of those that default to 64 bits.
func (d *decoder) size64() uint8 {
	if d.mode != mode64 {
		return d.sizeV()
	}
	if d.op2 && d.rex&8 == 0 {
		return 2
	}
	return 8
}

func (d *decoder) byteReg(n uint8) uint8 {
	if d.rex == 0 && n >= 4 {
		return n - 4 | byteHigh
	}
	return n
}

// decode reads the instruction at b into in. It returns false, with in
// unusable, for what this package leaves to KVM.
func decode(b []byte, in *inst) bool {
	return decodeAs(&decoder{b: b[:min(len(b), 15)], in: in})
}

func decodeAs(d *decoder) bool {
	in := d.in
	*in = inst{base: rZero, index: rZero}
	if d.mode != mode64 {
		in.addr4, in.addr2 = d.mode == mode32, d.mode == mode16
	}
prefixes:
	for !d.bad {
		switch p := d.u8(); {
		case p == 0x66:
			d.op2, d.rex = true, 0
		case p == 0x67:
			if in.addr4, d.rex = true, 0; d.mode != mode64 {
				in.addr4, in.addr2 = d.mode == mode16, d.mode == mode32
			}
		case p == 0xf0:
			in.lock, d.rex = true, 0
		case p == repNE || p == repE:
			in.rep, d.rex = p, 0
		case p == 0x64:
			in.seg, d.rex = segFS, 0
		case p == 0x65:
			in.seg, d.rex = segGS, 0
		case p == 0x2e || p == 0x36 || p == 0x3e || p == 0x26:
			if d.rex = 0; d.mode != mode64 { // without meaning in 64-bit mode
				in.seg = [...]uint8{segES, segCS, segSS, segDS}[p>>3&3]
			}
		case p&0xf0 == 0x40 && d.mode == mode64:
			d.rex = p
		case p == 0x0f:
			d.twoByte()
			break prefixes
		default:
			d.oneByte(p)
			break prefixes
		}
	}
	if d.bad || in.exec == nil {
		return false
	}
	in.len = uint8(d.pos)
	return true
}

// oneByte decodes the one-byte opcodes (SDM 2, table A-2).
func (d *decoder) oneByte(op uint8) {
	in := d.in
	in.opcode = uint32(op)
	switch {
	case d.complete && d.completeByte(op):
	case op < 0x40 && op&7 < 6:
		in.op = op >> 3
		d.alu(op & 7)
	case op < 0x60 && op >= 0x50:
		in.reg = op&7 | d.rex&1<<3
		in.size = d.size64()
		if in.exec = execPush; op >= 0x58 {
			in.exec = execPop
		}
	case op&0xf0 == 0x70:
		in.op, in.imm, in.exec = op&15, d.immediate(1), execJcc
	case op >= 0x91 && op <= 0x97:
		in.size, in.rm, in.reg, in.exec = d.sizeV(), op&7|d.rex&1<<3, rAX, execXchg
	case op&0xf8 == 0xb0:
		in.size, in.rm, in.exec = 1, d.byteReg(op&7|d.rex&1<<3), execMovImm
		in.imm = d.immediate(1)
	case op&0xf8 == 0xb8:
		in.size, in.rm, in.exec = d.sizeV(), op&7|d.rex&1<<3, execMovImm
		in.imm = d.immediate(in.size)
	default:
		d.oneByteRest(op)
	}
}

// logicFlags notes that AF is undefined after AND, OR, XOR and TEST.
func (d *decoder) logicFlags() {
	if op := d.in.op; op == aluOr || op == aluAnd || op == aluXor {
		d.in.undefined = flagAF
	}
}

// alu decodes one of the six forms that ADD, OR, ... share.
func (d *decoder) alu(form uint8) {
	in := d.in
	d.logicFlags()
	switch form {
	case 0, 1:
		d.modRMw(form)
		in.exec = execALUToRM
	case 2, 3:
		d.modRMw(form)
		in.exec = execALUToReg
	case 4:
		in.size, in.rm, in.imm, in.exec = 1, rAX, d.immediate(1), execALUImm
	case 5:
		in.size, in.rm, in.exec = d.sizeV(), rAX, execALUImm
		in.imm = d.immediate(min(in.size, 4))
	}
}

func (d *decoder) oneByteRest(op uint8) {
	in := d.in
	switch op {
	case 0x63:
		d.modRMv()
		in.op, in.exec = 4, execMovSX
	case 0x68:
		in.size, in.exec = d.size64(), execPushImm
		in.imm = d.immediate(min(in.size, 4))
	case 0x6a:
		in.size, in.imm, in.exec = d.size64(), d.immediate(1), execPushImm
	case 0x69:
		d.modRMv()
		in.imm, in.exec = d.immediate(min(in.size, 4)), execIMul3
		in.undefined = flagSF | flagZF | flagAF | flagPF
	case 0x6b:
		d.modRMv()
		in.imm, in.exec = d.immediate(1), execIMul3
		in.undefined = flagSF | flagZF | flagAF | flagPF
	case 0x80, 0x81, 0x83:
		d.modRMw(op)
		in.op, in.exec = d.group(), execALUImm
		d.logicFlags()
		n := uint8(1)
		if op == 0x81 {
			n = min(in.size, 4)
		}
		in.imm = d.immediate(n)
	case 0x84, 0x85:
		d.modRMw(op)
		in.exec = execTest
	case 0x86, 0x87:
		d.modRMw(op)
		in.exec = execXchg
	case 0x88, 0x89:
		d.modRMw(op)
		in.exec = execMovToRM
	case 0x8a, 0x8b:
		d.modRMw(op)
		in.exec = execMovToReg
	case 0x8c:
		d.modRMv()
		in.exec = execMovFromSeg
	case 0x8d:
		d.modRMv()
		if in.mem {
			in.exec = execLea
		}
	case 0x8f:
		d.modRM()
		in.size = d.size64()
		if d.ext == 0 && !in.mem {
			in.reg, in.exec = in.rm, execPop
		}
	case 0x90:
		in.exec = execNop
		if in.rep == repE {
			in.exec = execPause
		}
		if d.rex&1 != 0 {
			in.size, in.rm, in.reg, in.exec = d.sizeV(), r8, rAX, execXchg
		}
	case 0x98:
		in.size, in.exec = d.sizeV(), execCBW
	case 0x99:
		in.size, in.exec = d.sizeV(), execCWD
	case 0x9b:
		in.exec = execNop // FWAIT: no unmasked x87 exception in kernel mode
	case 0x9c:
		in.size, in.exec = d.size64(), execPushF
	case 0x9d:
		in.size, in.exec = d.size64(), execPopF
	case 0xa4, 0xa5, 0xa6, 0xa7, 0xaa, 0xab, 0xac, 0xad, 0xae, 0xaf:
		d.str(op)
	case 0xa8:
		in.size, in.rm, in.imm, in.exec = 1, rAX, d.immediate(1), execTestImm
	case 0xa9:
		in.size, in.rm, in.exec = d.sizeV(), rAX, execTestImm
		in.imm = d.immediate(min(in.size, 4))
	case 0xc0, 0xc1:
		d.modRMw(op)
		in.op = d.group()
		in.imm, in.exec = d.immediate(1), execShiftImm
		d.shiftFlags(in.imm != 1)
	case 0xd0, 0xd1:
		d.modRMw(op)
		in.op = d.group()
		in.imm, in.exec = 1, execShiftImm
		d.shiftFlags(false)
	case 0xd2, 0xd3:
		d.modRMw(op)
		in.op, in.exec = d.group(), execShiftCL
		d.shiftFlags(true)
	case 0xc2:
		in.ends, in.imm, in.exec = true, d.immediate(2)&0xffff, execRet
	case 0xc3:
		in.ends, in.exec = true, execRet // a 16-bit one is 64-bit here on Intel; nobody uses it
	case 0xc6, 0xc7:
		d.modRMw(op)
		if d.group() == 0 {
			in.imm, in.exec = d.immediate(min(in.size, 4)), execMovImm
		}
	case 0xc9:
		if !d.op2 {
			in.exec = execLeave
		}
	case 0xcc:
		in.own, in.exec = true, execInt3
	case 0xcf:
		if d.rex&8 != 0 {
			in.exec = execIRet
		}
	case 0xe0, 0xe1, 0xe2, 0xe3:
		in.op, in.imm, in.exec = op&3, d.immediate(1), execLoop
	case 0xe8:
		in.ends, in.imm, in.exec = true, d.immediate(4), execCall
	case 0xe9:
		in.ends, in.imm, in.exec = true, d.immediate(4), execJmp
	case 0xeb:
		in.ends, in.imm, in.exec = true, d.immediate(1), execJmp
	case 0xf4:
		in.exec = execHLT
	case 0xf5, 0xf8, 0xf9, 0xfa, 0xfb, 0xfc, 0xfd:
		in.op, in.exec = op, execFlag
	case 0xf6, 0xf7:
		d.modRMw(op)
		in.op = d.group()
		in.exec = execGroup3
		switch {
		case in.op >= 6:
			in.undefined = arithFlags
		case in.op >= 4:
			in.undefined = flagSF | flagZF | flagAF | flagPF
		}
		if in.op < 2 {
			in.imm, in.exec = d.immediate(min(in.size, 4)), execTestImm
		}
	case 0xfe, 0xff:
		d.modRMw(op)
		in.op = d.group()
		switch {
		case in.op < 2:
			in.exec = execIncDec
		case op == 0xff && (in.op == 2 || in.op == 4) && d.mode != mode64:
			in.exec = execCallJmpNarrow
		case op == 0xff && (in.op == 2 || in.op == 4):
			in.ends, in.size, in.exec = true, 8, execCallJmpRM
		case op == 0xff && in.op == 6:
			in.size, in.exec = d.size64(), execPushRM
		}
	case 0xc4, 0xc5:
		d.vex(op)
	case 0x62:
		d.evex()
	case 0xd8, 0xd9, 0xda, 0xdb, 0xdc, 0xdd, 0xde, 0xdf:
		d.x87()
	}
}

// group returns the operation that ModRM.reg selects.
func (d *decoder) group() uint8 { return d.ext }

// shiftFlags notes what a shift or rotate leaves undefined: AF, and OF for a
// count other than 1.
func (d *decoder) shiftFlags(many bool) {
	if d.in.op >= shiftSHL {
		d.in.undefined = flagAF
	}
	if many {
		d.in.undefined |= flagOF
	}
}

// str decodes the string instructions, whose destination is not a ModRM.
func (d *decoder) str(op uint8) {
	in := d.in
	in.count = true
	in.size = 1
	if op&1 != 0 {
		in.size = d.sizeV()
	}
	switch op &^ 1 {
	case 0xa4:
		in.exec = execMovs
	case 0xa6:
		in.exec = execCmps
	case 0xaa:
		in.exec = execStos
	case 0xac:
		in.exec = execLods
	case 0xae:
		in.exec = execScas
	}
	if in.addr4 {
		in.exec = nil
	}
}
