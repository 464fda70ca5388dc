package ring0

// Translations of vector instructions, and of those on general registers that have a VEX
// prefix. All of their bytes stay but for ModRM, what addresses memory, and the numbers of
// general registers. Only what is known to access just its operand is translated.

// coded is an instruction of that kind, taken apart.
type coded struct {
	prefixes []byte // but for those of segments
	rex      byte
	vex      bool
	third    byte // the VEX prefix's third byte
	opmap    uint8
	opcode   byte
	pp       byte // the prefix that belongs to the opcode: 0, 0x66, 0xf3 or 0xf2
	modrm    byte
	imm      []byte
	// What it does to memory, where its operand is there.
	store bool
	// Whether the operands are general registers.
	gprReg, gprRM bool
}

// takeApart returns the parts of an instruction that in was decoded from.
func takeApart(in *inst, code []byte) (v coded, ok bool) {
	p := prefixesOf(code)
	i := p.n
	v.prefixes, v.rex = p.legacy(nil), p.rex
	if n := len(v.prefixes); n > 0 {
		v.pp = v.prefixes[n-1]
	}
	if p.rexes && code[i] != 0x0f {
		return v, false // such as VEX: #UD
	}
	switch code[i] {
	case 0x0f:
		v.opmap, v.opcode = 1, code[i+1]
		if v.opcode == 0x38 || v.opcode == 0x3a {
			v.opmap, v.opcode = 2|v.opcode>>1&1, code[i+2]
		}
	case 0xc5:
		v.vex, v.opmap, v.rex, v.third, v.opcode = true, 1, ^code[i+1]>>5&4, code[i+1]&0x7f, code[i+2]
	case 0xc4:
		v.vex, v.opmap, v.rex, v.third, v.opcode = true, code[i+1]&31, ^code[i+1]>>5&7, code[i+2], code[i+3]
	default:
		return v, false
	}
	if v.vex {
		if len(v.prefixes) > 0 {
			return v, false // #UD
		}
		v.pp = [4]byte{0, 0x66, 0xf3, 0xf2}[v.third&3]
	}
	if in.form.modrm != 0 {
		v.modrm = code[in.form.modrm]
	}
	v.imm = code[len(code)-int(in.form.imm):]
	return v, true
}

// planVector returns how to translate an instruction with a vectorForm.
func (t *translator) planVector(in *inst, code []byte) plan {
	v, ok := takeApart(in, code)
	if !ok || uint64(in.form.needs)&^t.components != 0 || in.lock {
		return plan{}
	}
	if in.form.needs == 0 && v.vex {
		return t.planBMI(in, &v)
	}
	flags := false
	switch op := v.opcode; v.opmap {
	case 1:
		ok, v.store = vectorMap1(op, v.pp)
		v.gprReg = op == 0x50 || op == 0xc5 || op == 0xd7 || (op == 0x2c || op == 0x2d) && v.pp >= 0xf2
		v.gprRM = op == 0x6e || op == 0xc4 || op == 0x7e && v.pp != 0xf3 || op == 0x2a && v.pp >= 0xf2
		flags = op == 0x2e || op == 0x2f
	case 2:
		ok = vectorMap2(op, v.vex)
		flags = op == 0x17 || op == 0x0e || op == 0x0f
	case 3:
		ok, v.store = vectorMap3(op)
		v.gprRM = op >= 0x14 && op <= 0x17 || op == 0x20 || op == 0x22
	}
	if !ok || v.gprReg && in.mem {
		return plan{}
	}
	p := plan{emit: func(t *translator, in *inst) { t.coded(in, v) }, vector: true}
	if flags {
		p.kills, p.touches = arithFlags, true
	}
	return p
}

// vectorMap1 reports of opcodes behind 0x0f whether they access nothing but their operands,
// and whether they store.
func vectorMap1(op, pp byte) (ok, store bool) {
	switch {
	case op == 0x11, op == 0x13, op == 0x17, op == 0x29, op == 0x2b, op == 0x7f, op == 0xd6, op == 0xe7, op == 0x7e && pp != 0xf3:
		return true, true
	case op >= 0x10 && op <= 0x16, op >= 0x28 && op <= 0x2f, op >= 0x50 && op <= 0x77, op >= 0x7c && op <= 0x7e, op == 0xc2,
		op >= 0xc4 && op <= 0xc6, op >= 0xd0 && op <= 0xf6, op >= 0xf8 && op <= 0xfe:
		return true, false
	}
	return false, false
}

// vectorMap2 is vectorMap1 for opcodes behind 0x0f 0x38, of which none stores.
func vectorMap2(op byte, vex bool) bool {
	switch {
	case op <= 0x0b, op == 0x10, op == 0x14, op == 0x15, op == 0x17, op >= 0x1c && op <= 0x1e, op >= 0x20 && op <= 0x25,
		op >= 0x28 && op <= 0x2b, op >= 0x30 && op <= 0x35, op >= 0x37 && op <= 0x41, op >= 0xc8 && op <= 0xcf, op >= 0xdb && op <= 0xdf:
		return true
	case !vex:
		return false
	}
	return op >= 0x0c && op <= 0x0f || op == 0x13 || op == 0x16 || op >= 0x18 && op <= 0x1a || op == 0x36 || op >= 0x45 && op <= 0x47 ||
		op >= 0x58 && op <= 0x5a || op == 0x78 || op == 0x79 || op >= 0x96 && op <= 0x9f || op >= 0xa6 && op <= 0xaf || op >= 0xb6 && op <= 0xbf
}

// vectorMap3 is vectorMap1 for opcodes behind 0x0f 0x3a.
func vectorMap3(op byte) (ok, store bool) {
	switch {
	case op >= 0x14 && op <= 0x17, op == 0x19, op == 0x39:
		return true, true
	case op <= 0x0f, op == 0x18, op >= 0x20 && op <= 0x22, op == 0x38, op >= 0x40 && op <= 0x46, op >= 0x4a && op <= 0x4c,
		op == 0xcc, op == 0xce, op == 0xcf, op == 0xdf:
		return true, false
	}
	return false, false
}

// coded writes an instruction with other operands.
func (t *translator) coded(in *inst, v coded) {
	rex, modrm := v.rex, v.modrm
	hasModRM := in.form.modrm != 0
	rm := register(modrm & 7)
	if in.mem {
		rm = t.access(in, int(in.form.bytes), v.store)
		rex &^= 3
	} else if t.keep != 0 { // it may trap
		t.saveFlags()
	}
	if v.gprRM && !in.mem {
		h := t.hold(in.rm, hostRAX)
		rex, rm = rex&^1|h>>3, register(h&7)
	}
	if v.gprReg {
		h := holder(in.reg, hostRCX)
		rex, modrm = rex&^4|h>>3<<2, modrm&^0x38|h&7<<3
	}
	t.mayTrap()
	if v.vex {
		t.bytes(0xc4, ^rex<<5&0xe0|v.opmap, v.third)
	} else {
		t.bytes(v.prefixes...)
		if rex != 0 {
			t.bytes(0x40 | rex&15)
		}
		t.bytes(0x0f)
		if v.opmap > 1 {
			t.bytes([4]byte{2: 0x38, 3: 0x3a}[v.opmap])
		}
	}
	t.bytes(v.opcode)
	if hasModRM {
		t.modRM(modrm>>3, rm)
	}
	t.bytes(v.imm...)
	if v.gprReg {
		t.keepIn(in.reg, holder(in.reg, hostRCX))
	}
	if v.gprRM && !in.mem && v.store { // PEXTR and its like
		t.keepIn(in.rm, holder(in.rm, hostRAX))
	}
}

// planBMI plans an instruction on general registers with a VEX prefix.
func (t *translator) planBMI(in *inst, v *coded) plan {
	third := ^v.third >> 3 & 15
	op := v.opcode
	frames := 0
	for _, r := range []uint8{in.reg, third} {
		if homes[r] == inFrame {
			frames++
		}
	}
	in.size = 4
	if v.third&0x80 != 0 {
		in.size = 8
	}
	p := plan{emit: func(t *translator, in *inst) { t.bmi(in, *v, third) }}
	switch {
	case v.third&4 != 0: // L, #UD
		return plan{}
	case v.opmap == 3 && op == 0xf0 && v.pp == 0xf2 && third == 0: // RORX, which has no third one
		return p
	case v.opmap != 2:
		return plan{}
	case op == 0xf7 && v.pp != 0, op == 0xf5 && v.pp >= 0xf2: // SHLX and its like, PDEP, PEXT
		return p
	case op == 0xf6 && v.pp == 0xf2 && frames < 2: // MULX
		return p
	case op == 0xf2 && v.pp == 0, op == 0xf3 && v.pp == 0, op == 0xf5 && v.pp == 0, op == 0xf7 && v.pp == 0:
		if op == 0xf3 && (in.modrm>>3&7 < 1 || in.modrm>>3&7 > 3) {
			return plan{}
		}
		p.kills, p.touches = arithFlags, true
		return p
	}
	return plan{}
}

// bmi writes an instruction on general registers with a VEX prefix, of which third is the
// one that the prefix has.
func (t *translator) bmi(in *inst, v coded, third uint8) {
	rm := t.rmBeside(in, false, true)
	var reg, other uint8
	group := v.opmap == 2 && v.opcode == 0xf3 // BLSR and its like: the prefix's is written
	rorx := v.opmap == 3
	mulx := v.opmap == 2 && v.opcode == 0xf6
	switch {
	case group:
		reg, other = in.modrm>>3&7, holder(third, hostRCX)
	case rorx:
		reg = holder(in.reg, hostRCX)
	case mulx:
		reg, other = holder(in.reg, hostRCX), holder(third, hostRCX)
	default:
		reg, other = holder(in.reg, hostRCX), t.hold(third, hostRCX)
	}
	if rorx {
		other = 0
	}
	rex := reg >> 3 << 2
	modrm := reg & 7 << 3
	if rm.mem {
		modrm |= hostRAX
	} else {
		rex |= rm.reg >> 3
		modrm |= 0xc0 | rm.reg&7
	}
	t.mayTrap()
	t.bytes(0xc4, ^rex<<5&0xe0|v.opmap, v.third&^0x78|^other<<3&0x78, v.opcode, modrm)
	t.bytes(v.imm...)
	if group {
		t.keepIn(third, other)
		return
	}
	if mulx {
		t.keepIn(third, other)
	}
	t.keepIn(in.reg, reg)
}
