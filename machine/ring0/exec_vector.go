package ring0

import "vmm/machine/native"

// SSE, AVX, AVX-512 and x87 instructions are not emulated: the host's CPU executes
// them (package native), with the guest's extended state and registers. A memory
// operand is replaced by one in memory of its own, which is copied in before and out
// after.

// vectorCode is a piece of code for package native: register-only instructions, of
// which the first may access memory.
type vectorCode struct {
	code  [native.MaxCode]byte
	piece native.Piece
	// ends are where the instructions end, in code and in the guest's.
	ends []instEnd
}

type instEnd struct {
	code int
	rip  uint64
}

const (
	scratchAlign = 64
	maxVector    = 64
	maxX87       = 108
)

// vectorForm is how to rewrite an instruction: where its ModRM is and what
// follows the address.
type vectorForm struct {
	modrm uint8 // position, 0 where there is none
	imm   uint8 // bytes behind the address
	bytes uint8 // the largest memory operand
	needs uint8 // the components that must be enabled in XCR0
}

// vectorOpcode reports whether 0x0f op is an SSE or MMX instruction, and the
// size of its immediate.
func vectorOpcode(op uint8) (imm uint8, ok bool) {
	switch {
	case op == 0x77: // EMMS has no ModRM and is not vector
		return 0, false
	case op >= 0x10 && op <= 0x17, op >= 0x28 && op <= 0x2f, op >= 0x50 && op <= 0x6f,
		op >= 0x74 && op <= 0x76, op >= 0x7c && op <= 0x7f, op >= 0xd0 && op != 0xf7 && op != 0xff: // 0xf7, MASKMOVQ, stores at rDI
		return 0, true
	case op >= 0x70 && op <= 0x73, op == 0xc2, op == 0xc4, op == 0xc5, op == 0xc6:
		return 1, true
	}
	return 0, false
}

// vector decodes the rest of an SSE instruction: opcode op of the two-byte
// map, or the maps 0x38 and 0x3a.
func (d *decoder) vector(op uint8) {
	f := vectorForm{bytes: 16}
	switch op {
	case 0x38:
		if sub := d.u8(); sub >= 0xf0 && sub != 0xf6 {
			return // MOVDIR64B, ENQCMD: memory that a register addresses
		}
	case 0x3a:
		d.in.opcode = map0F3A | uint32(d.u8())
		f.imm = 1
	default:
		var ok bool
		if f.imm, ok = vectorOpcode(op); !ok {
			return
		}
	}
	d.native(f)
}

// native decodes ModRM, address and immediate.
func (d *decoder) native(f vectorForm) {
	in := d.in
	f.modrm = uint8(d.pos)
	rm := byte(0)
	if d.pos < len(d.b) {
		rm = d.b[d.pos]
	}
	d.modRM()
	for range f.imm {
		d.u8()
	}
	if in.lock {
		return
	}
	in.form, in.own, in.exec = f, true, execVector
	in.modrm = rm
}

// vex decodes a VEX instruction (SDM 2, 2.3); op is 0xc4 or 0xc5.
func (d *decoder) vex(op uint8) {
	f := vectorForm{bytes: 32, needs: xSSE | xAVX}
	opmap, wide := uint8(1), false
	p := d.u8()
	d.rex = ^p >> 5 & 4 // R
	if op == 0xc4 {
		opmap = p & 31
		d.rex = ^p >> 5 & 7 // R, X, B
		p = d.u8()
		if wide = p&0x80 != 0; wide {
			d.rex |= 8
		}
	}
	if opmap == 2 && d.pos < len(d.b) && d.b[d.pos]&^3 == 0x90 && p&3 == 1 {
		d.gather(d.u8(), ^p>>3&15, wide, p&4 != 0)
		return
	}
	d.vexOpcode(opmap, f)
}

// evex decodes an EVEX instruction (SDM 2, 2.7).
func (d *decoder) evex() {
	p0, p1 := d.u8(), d.u8()
	d.u8() // masks and length: they do not move anything
	d.rex = ^p0 >> 5 & 7
	if p1&4 == 0 {
		d.bad = true
		return
	}
	f := vectorForm{bytes: maxVector, needs: xSSE | xAVX | xAVX512}
	d.evexDisp = true
	d.vexOpcode(p0&7, f)
}

func (d *decoder) vexOpcode(opmap uint8, f vectorForm) {
	op := d.u8()
	switch opmap {
	case 1:
		if op == 0x77 { // VZEROUPPER, VZEROALL
			d.in.form, d.in.own, d.in.exec = f, true, execVector
			return
		}
		if op >= 0x70 && op <= 0x73 || op == 0xc2 || op >= 0xc4 && op <= 0xc6 {
			f.imm = 1
		}
		switch {
		case op == 0xf7:
			return // VMASKMOVDQU, which stores at rDI
		case op == 0xae:
			d.vexMXCSR()
			return
		}
		if op >= 0x41 && op <= 0x4b || op >= 0x90 && op <= 0x99 {
			f.needs |= xAVX512 // on mask registers
		}
	case 2:
		if op >= 0x49 && op <= 0x4b || op >= 0x5c && op <= 0x5e || op >= 0x6c && op <= 0x6e {
			return // of AMX, with rows of memory
		}
		if op >= 0xf0 && op <= 0xf7 {
			f.needs = 0 // BMI, on general registers
		}
		if op >= 0x90 && op <= 0x93 || op >= 0xa0 && op <= 0xa3 || op == 0xc6 || op == 0xc7 {
			return // gathers and scatters
		}
	case 3:
		f.imm = 1
		if op == 0xf0 {
			f.needs = 0 // RORX
		}
	default:
		return
	}
	d.native(f)
}

// vexMXCSR decodes VLDMXCSR and VSTMXCSR, which are LDMXCSR and STMXCSR.
func (d *decoder) vexMXCSR() {
	d.modRM()
	switch in := d.in; {
	case in.mem && d.ext == 2:
		in.own, in.exec = true, execLDMXCSR
	case in.mem && d.ext == 3:
		in.own, in.exec = true, execSTMXCSR
	}
}

// x87 decodes an x87 instruction, which has a ModRM and no immediate.
func (d *decoder) x87() { d.native(vectorForm{bytes: maxX87}) }

// execVector has the host's CPU execute the instruction, together with the
// register-only ones behind it.
func execVector(c *CPU, in *inst) status {
	enabled, _ := c.xcr0()
	if uint64(in.form.needs)&^enabled != 0 {
		return c.undefined(in)
	}
	if in.evexDisp && in.mem {
		return unknown // a compressed displacement that could not be read
	}
	if !c.unitState() {
		return unknown
	}
	v, u := &c.vector, c.unit
	start := c.r[rIP] - uint64(in.len)
	copy(v.code[:in.len], c.decoded(start))
	v.piece = native.Piece{Code: v.code[:in.len]}
	var addr uint64
	at, size := 0, 0
	if in.mem {
		addr = c.address(in)
		if at, size = c.scratchIn(addr, int(in.form.bytes)); size == 0 {
			return handOver
		}
		v.rewrite(in, at)
		if !c.writesSurely(addr, size) && !c.extended() { // xarea has what to go back to
			return unknown
		}
	}
	v.ends = append(v.ends[:0], instEnd{len(v.piece.Code), c.r[rIP]})
	c.follow(enabled)
	copy(u.GPR[:], c.r[:16])
	u.Flags = c.flags()
	before := u.Scratch
	trap, ok := u.Run(&v.piece)
	if !ok && trap.Offset == 0 {
		if trap.Vector == vectorPF { // the operand goes on where nothing could be read
			c.readable(addr + uint64(size))
			return handOver
		}
		c.r[rIP] = start
		return c.trapped(trap.Vector)
	}
	if from, to := difference(before[at:at+size], u.Scratch[at:at+size]); from < to {
		if !c.write(addr+uint64(from), u.Scratch[at+from:at+to]) {
			c.unitHas = false // the state from before is in xarea
			return handOver
		}
	}
	c.unitChanged = true
	copy(c.r[:16], u.GPR[:])
	c.setArith(u.Flags)
	c.r[rIP] = v.ends[len(v.ends)-1].rip
	if ok {
		return done
	}
	for i, e := range v.ends {
		if e.code == trap.Offset {
			c.r[rIP] = v.ends[i].rip
		}
	}
	return c.trapped(trap.Vector)
}

// writesSurely reports whether a write is known to succeed.
func (c *CPU) writesSurely(addr uint64, size int) bool {
	for _, a := range [2]uint64{addr, addr + uint64(size) - 1} {
		if c.entry(a).write != a&^pageMask {
			return false
		}
	}
	return true
}

// trapped raises the exception that the host's CPU has raised at RIP.
func (c *CPU) trapped(vector uint8) status {
	c.Inject = Exception{Vector: vector}
	if vector == vectorGP || vector == vectorAC {
		c.Inject.HasError = true
	}
	return inject
}

// undefined raises #UD for an instruction that is not enabled.
func (c *CPU) undefined(in *inst) status {
	c.r[rIP] -= uint64(in.len)
	return c.trapped(vectorUD)
}

// decoded returns the bytes that the instruction at rip was decoded from, and those behind
// it in its block.
func (c *CPU) decoded(rip uint64) []byte { return c.cache.code[rip-c.cache.at:] }

// scratchIn copies a memory operand of up to size bytes in, and returns where it is in
// the unit's scratch memory and how many bytes could be read, 0 if none. Those of the next
// page may not exist, and not be the instruction's: then the operand is put at the end of
// the scratch memory, where it traps if they are.
func (c *CPU) scratchIn(addr uint64, size int) (at, read int) {
	at = int(addr & (scratchAlign - 1))
	if c.read(addr, c.unit.Scratch[at:at+size]) {
		return at, size
	}
	size = min(size, int(pageSize-addr&pageMask))
	at = native.ScratchSize - size
	c.forgetFailure()
	if !c.read(addr, c.unit.Scratch[at:]) {
		return at, 0
	}
	return at, size
}

// rewrite replaces the memory operand by one in the unit's scratch memory.
func (v *vectorCode) rewrite(in *inst, at int) {
	n := int(in.form.imm)
	var imm [1]byte
	copy(imm[:], v.code[int(in.len)-n:in.len])
	modrm := v.fewPrefixes(int(in.form.modrm))
	v.code[modrm] = in.modrm&0x38 | 5 // relative to RIP
	le.PutUint32(v.code[modrm+1:], uint32(at))
	end := modrm + 5 + copy(v.code[modrm+5:], imm[:n])
	v.piece = native.Piece{Code: v.code[:end], ScratchAt: modrm + 1, ScratchEnd: end}
}

// fewPrefixes leaves out the prefixes that the instruction does without, so that it is not longer
// than one may be when it has a displacement. It returns where ModRM is, which was at modrm.
func (v *vectorCode) fewPrefixes(modrm int) int {
	p := prefixesOf(v.code[:modrm])
	var few [maxInst]byte
	code := p.legacy(few[:0])
	if p.rex != 0 {
		code = append(code, p.rex)
	}
	n := len(code) + modrm - p.n
	copy(v.code[:], append(code, v.code[p.n:modrm]...))
	return n
}

// prefixes are those of a vector or x87 instruction that count where its operand is elsewhere: not
// those of segments (the host's FS has a base), nor of 32-bit addresses.
type prefixes struct {
	wide  bool // 0x66
	rep   byte // the last of 0xf2 and 0xf3
	rex   byte // in front of the opcode
	rexes bool // there is one, perhaps in front of other prefixes, where it does not count
	n     int  // how many bytes they all are
}

// prefixesOf returns those at the beginning of code.
func prefixesOf(code []byte) (p prefixes) {
	for ; p.n < len(code); p.n++ {
		b := code[p.n]
		switch b {
		case 0x66:
			p.wide = true
		case 0xf2, 0xf3:
			p.rep = b
		case 0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65, 0x67:
		default:
			if b&0xf0 != 0x40 {
				return p
			}
			p.rex, p.rexes = b, true
			continue
		}
		p.rex = 0
	}
	return p
}

// legacy appends all but REX to b.
func (p *prefixes) legacy(b []byte) []byte {
	if p.wide {
		b = append(b, 0x66)
	}
	if p.rep != 0 {
		b = append(b, p.rep)
	}
	return b
}

// follow appends the register-only vector instructions at RIP.
func (c *CPU) follow(enabled uint64) {
	rip := c.r[rIP]
	var next inst
	v := &c.vector
	for len(v.piece.Code)+maxInst <= len(v.code) && rip < c.cache.at+uint64(len(c.cache.code)) {
		b := c.decoded(rip)
		if !c.decodeInst(b, &next) || next.form == (vectorForm{}) || next.mem || uint64(next.form.needs)&^enabled != 0 {
			break
		}
		n := len(v.piece.Code)
		v.piece.Code = v.code[:n+copy(v.code[n:], b[:next.len])]
		rip += uint64(next.len)
		v.ends = append(v.ends, instEnd{len(v.piece.Code), rip})
	}
}

// difference returns the range in which a and b differ.
func difference(a, b []byte) (from, to int) {
	for from < len(a) && a[from] == b[from] {
		from++
	}
	for to = len(a); to > from && a[to-1] == b[to-1]; {
		to--
	}
	return from, to
}
