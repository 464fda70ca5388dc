package ring0

import (
	"unsafe"
)

// SSE, AVX, AVX-512 and x87 instructions are not emulated: the host's CPU
// executes them, in user mode of a helper vCPU that holds nothing but them and
// their operand (Host.Native). A memory operand is replaced by one in the
// helper's scratch memory, which is copied in before and out after.

// Native is a piece of code for Host.Native: register-only instructions, of
// which the first may access Scratch.
type Native struct {
	Code [nativeCode]byte
	Len  int
	// GPR are the general registers by number.
	GPR [16]uint64
	// Flags are the arithmetic flags.
	Flags uint64
	// Scratch is the memory operand, with the alignment that it has in the
	// guest.
	Scratch [NativeScratch]byte
}

const (
	nativeCode = 512
	// NativeScratch is the size of Native.Scratch: the largest operand (of
	// FNSAVE) behind the largest misalignment.
	NativeScratch = 256
	scratchAlign  = 64
	maxVector     = 64
	maxX87        = 108
	maxVectorInst = 15
	// NativeScratchAddr is where the helper maps Scratch, so that displacements are
	// known here.
	NativeScratchAddr = 0x2000
	// NativeCodeAddr is where it maps Code.
	NativeCodeAddr = 0x1000
)

// vectorForm is how to rewrite an instruction: where its ModRM is and what
// follows the address.
type vectorForm struct {
	modrm int // position, 0 where there is none
	imm   int // bytes behind the address
	bytes int // the largest memory operand
}

// vectorOpcode reports whether 0x0f op is an SSE or MMX instruction, and the
// size of its immediate.
func vectorOpcode(op uint8) (imm int, ok bool) {
	switch {
	case op == 0x77: // EMMS has no ModRM and is not vector
		return 0, false
	case op >= 0x10 && op <= 0x17, op >= 0x28 && op <= 0x2f, op >= 0x50 && op <= 0x6f,
		op >= 0x74 && op <= 0x76, op >= 0x7c && op <= 0x7f, op >= 0xd0 && op != 0xff:
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
		d.u8()
	case 0x3a:
		d.u8()
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
	f.modrm = d.pos
	rm := byte(0)
	if d.pos < len(d.b) {
		rm = d.b[d.pos]
	}
	d.modRM()
	for range f.imm {
		d.u8()
	}
	if in.lock || in.mem && in.addr4 {
		return
	}
	in.form, in.own, in.exec = f, true, execVector
	in.modrm = rm
}

// vex decodes a VEX instruction (SDM 2, 2.3); op is 0xc4 or 0xc5.
func (d *decoder) vex(op uint8) {
	f := vectorForm{bytes: 32}
	opmap := uint8(1)
	p := d.u8()
	d.rex = ^p >> 5 & 4 // R
	if op == 0xc4 {
		opmap = p & 31
		d.rex = ^p >> 5 & 7 // R, X, B
		p = d.u8()
		if p&0x80 != 0 {
			d.rex |= 8
		}
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
	f := vectorForm{bytes: maxVector}
	d.evexDisp = true
	d.vexOpcode(p0&7, f)
}

func (d *decoder) vexOpcode(opmap uint8, f vectorForm) {
	op := d.u8()
	switch opmap {
	case 1:
		if op == 0x77 { // VZEROUPPER, VZEROALL
			d.in.form, d.in.own, d.in.exec = vectorForm{}, true, execVector
			return
		}
		if op >= 0x70 && op <= 0x73 || op == 0xc2 || op >= 0xc4 && op <= 0xc6 {
			f.imm = 1
		}
	case 2:
		if op >= 0x90 && op <= 0x93 || op >= 0xa0 && op <= 0xa3 || op == 0xc6 || op == 0xc7 {
			return // gathers and scatters
		}
	case 3:
		f.imm = 1
	default:
		return
	}
	d.native(f)
}

// x87 decodes an x87 instruction, which has a ModRM and no immediate.
func (d *decoder) x87() { d.native(vectorForm{bytes: maxX87}) }

// execVector has the host's CPU execute the instruction, together with the
// register-only ones behind it.
func execVector(c *CPU, in *inst) status {
	n := &c.native
	n.Len = 0
	start := c.r[rIP] - uint64(in.len)
	var code [maxVectorInst]byte
	if !c.codeAt(start, code[:in.len]) {
		return handOver
	}
	var addr uint64
	size := 0
	if in.mem {
		if in.evexDisp {
			return unknown // a compressed displacement that could not be read
		}
		addr = c.address(in)
		size = c.scratchIn(addr, in.form.bytes)
		if size == 0 {
			return handOver
		}
		n.rewrite(code[:in.len], in, addr&(scratchAlign-1))
	} else {
		n.Len = copy(n.Code[:], code[:in.len])
	}
	end := c.follow(n)
	copy(n.GPR[:], c.r[:16])
	n.Flags = c.flags() & arithFlags
	before := n.Scratch
	if c.Failure = c.host.Native(n); c.Failure != nil {
		return unknown
	}
	at := addr & (scratchAlign - 1)
	if from, to := difference(before[at:at+uint64(size)], n.Scratch[at:at+uint64(size)]); from < to {
		if !c.write(addr+uint64(from), n.Scratch[at+uint64(from):at+uint64(to)]) {
			return handOver // nothing has changed but the helper
		}
	}
	if c.Failure = c.host.NativeDone(); c.Failure != nil {
		return unknown
	}
	copy(c.r[:16], n.GPR[:])
	c.setArith(n.Flags)
	c.r[rIP] = end
	return done
}

// codeAt reads instruction bytes.
func (c *CPU) codeAt(addr uint64, to []byte) bool {
	if addr>>12+1 == c.code.tag && addr&pageMask+uint64(len(to)) <= pageSize {
		copy(to, unsafe.Slice((*byte)(unsafe.Add(c.code.host, addr&pageMask)), len(to)))
		return true
	}
	return c.read(addr, to)
}

// scratchIn copies a memory operand of up to size bytes in, and returns how
// many could be read: those of the next page may not exist.
func (c *CPU) scratchIn(addr uint64, size int) int {
	at := addr & (scratchAlign - 1)
	if c.read(addr, c.native.Scratch[at:at+uint64(size)]) {
		return size
	}
	size = min(size, int(pageSize-addr&pageMask))
	if !c.read(addr, c.native.Scratch[at:at+uint64(size)]) {
		return 0
	}
	return size
}

// rewrite puts the instruction into Code with its memory operand replaced by
// one in Scratch, addressed relative to RIP.
func (n *Native) rewrite(code []byte, in *inst, at uint64) {
	f := in.form
	k := copy(n.Code[:], code[:f.modrm])
	for i := range k { // segment overrides are not for the scratch memory
		if i < 4 && (n.Code[i] == 0x64 || n.Code[i] == 0x65) {
			n.Code[i] = 0x3e
			continue
		}
		break
	}
	n.Code[k] = in.modrm&0x38 | 5
	end := k + 5 + f.imm
	le.PutUint32(n.Code[k+1:], uint32(NativeScratchAddr+at-(NativeCodeAddr+uint64(end))))
	copy(n.Code[k+5:end], code[len(code)-f.imm:])
	n.Len = end
}

// follow appends the register-only vector instructions at RIP and returns the
// address behind them.
func (c *CPU) follow(n *Native) uint64 {
	rip := c.r[rIP]
	var next inst
	for n.Len+maxVectorInst <= nativeCode-16 {
		if rip>>12+1 != c.code.tag {
			break
		}
		b := unsafe.Slice((*byte)(c.code.host), pageSize)[rip&pageMask:]
		if !decode(b, &next) || next.form == (vectorForm{}) || next.mem {
			break
		}
		n.Len += copy(n.Code[n.Len:], b[:next.len])
		rip += uint64(next.len)
	}
	return rip
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
