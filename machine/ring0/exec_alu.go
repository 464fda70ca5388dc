package ring0

import "math/bits"

// get reads a register operand.
func (c *CPU) get(reg, size uint8) uint64 {
	switch size {
	case 8:
		return c.r[reg&31]
	case 4:
		return uint64(uint32(c.r[reg&31]))
	case 2:
		return uint64(uint16(c.r[reg&31]))
	}
	if reg&byteHigh != 0 {
		return c.r[reg&3] >> 8 & 0xff
	}
	return c.r[reg&31] & 0xff
}

// set writes a register operand; 32-bit writes clear the upper half.
func (c *CPU) set(reg, size uint8, v uint64) {
	switch size {
	case 8:
		c.r[reg&31] = v
	case 4:
		c.r[reg&31] = uint64(uint32(v))
	case 2:
		c.r[reg&31] = c.r[reg&31]&^0xffff | v&0xffff
	default:
		if reg&byteHigh != 0 {
			c.r[reg&3] = c.r[reg&3]&^0xff00 | v&0xff<<8
		} else {
			c.r[reg&31] = c.r[reg&31]&^0xff | v&0xff
		}
	}
}

// offset is the effective address before the segment's base is added.
func (c *CPU) offset(in *inst) uint64 {
	a := c.r[in.base&31] + c.r[in.index&31]<<in.scale + in.disp
	if in.addr4 {
		a = uint64(uint32(a))
	} else if in.addr2 {
		a = uint64(uint16(a))
	}
	return a
}

// address is the linear address of a memory operand.
func (c *CPU) address(in *inst) uint64 { return c.linear(in.seg, c.offset(in)) }

// linear is the linear address of an offset in a segment. Outside of 64-bit mode it has 32
// bits, and begins anew behind them: a thread's data are below the base of GS there.
func (c *CPU) linear(seg uint8, offset uint64) uint64 {
	a := c.base[seg] + offset
	if c.mode != mode64 {
		a = uint64(uint32(a))
	}
	return a
}

// source reads the r/m operand in the instruction's size.
func (c *CPU) source(in *inst) (uint64, bool) { return c.sourceSize(in, in.size) }

func (c *CPU) sourceSize(in *inst, size uint8) (uint64, bool) {
	if !in.mem {
		return c.get(in.rm, size), true
	}
	return c.load(c.address(in), size)
}

// setRM writes the r/m operand.
func (c *CPU) setRM(in *inst, v uint64) status {
	if !in.mem {
		c.set(in.rm, in.size, v)
		return done
	}
	return stored(c.store(c.address(in), v, in.size))
}

func stored(ok bool) status {
	if ok {
		return done
	}
	return handOver
}

// modify replaces the r/m operand by f of it, atomically with a lock prefix.
// f may be called several times, each time from the same flags.
func (c *CPU) modify(in *inst, f func(c *CPU, in *inst, old uint64) uint64) status {
	if !in.mem {
		c.set(in.rm, in.size, f(c, in, c.get(in.rm, in.size)))
		return done
	}
	addr := c.address(in)
	return c.modifyAt(in, addr, f)
}

func (c *CPU) modifyAt(in *inst, addr uint64, f func(c *CPU, in *inst, old uint64) uint64) status {
	if c.slow {
		return c.modifySlowly(in, addr, f)
	}
	if addr&pageMask > pageSize-uint64(in.size) || in.lock && !lockable(addr, in.size) {
		return handOver
	}
	p := c.writable(addr)
	if p == nil {
		return handOver
	}
	if !in.lock {
		storeHost(p, f(c, in, loadHost(p, in.size)), in.size)
		return done
	}
	cf := c.cf
	for {
		c.cf = cf
		old := loadHost(p, in.size)
		if cas(p, old, f(c, in, old)&sizeMask(in.size), in.size) {
			return done
		}
	}
}

// modifySlowly is modifyAt across pages, and on devices. With a lock prefix it keeps
// others of its kind out, as a bus lock does, but not the fast ones.
func (c *CPU) modifySlowly(in *inst, addr uint64, f func(c *CPU, in *inst, old uint64) uint64) status {
	c.tables.split.Lock()
	defer c.tables.split.Unlock()
	if addr&pageMask > pageSize-uint64(in.size) && (c.writable(addr) == nil || c.writable(addr+uint64(in.size)-1) == nil) {
		return handOver
	}
	old, ok := c.load(addr, in.size)
	if !ok {
		return handOver
	}
	before := c.flags()
	if !c.store(addr, f(c, in, old), in.size) {
		c.setArith(before)
		return handOver
	}
	return done
}

// result sets ZF, SF and PF of a result.
func (c *CPU) result(r uint64, size uint8) {
	s := r << (64 - 8*uint(size))
	c.zv, c.sv, c.pv = s, s, uint8(r)
}

// setZF ends an instruction that changes ZF alone.
func (c *CPU) setZF(on bool) status {
	f := c.flags() &^ flagZF
	if on {
		f |= flagZF
	}
	c.setArith(f)
	return done
}

func (c *CPU) logic(r uint64, size uint8) {
	c.result(r, size)
	c.cf, c.of, c.af = 0, 0, 0
}

func (c *CPU) add(a, b, carry uint64, size uint8) uint64 {
	r := a + b + carry
	c.result(r, size)
	out := a&b | (a|b)&^r
	top := 8*uint(size) - 1
	c.cf = out >> top & 1
	c.of = (out>>top ^ out>>(top-1)) & 1
	c.af = out >> 3 & 1
	return r
}

func (c *CPU) sub(a, b, borrow uint64, size uint8) uint64 {
	r := a - b - borrow
	c.result(r, size)
	out := ^a&b | ^(a^b)&r
	top := 8*uint(size) - 1
	c.cf = out >> top & 1
	c.of = (out>>top ^ out>>(top-1)) & 1
	c.af = out >> 3 & 1
	return r
}

// The ALU operations as opcodes number them.
const (
	aluAdd = iota
	aluOr
	aluAdc
	aluSbb
	aluAnd
	aluSub
	aluXor
	aluCmp
)

// alu does an ALU operation. Its operands may have garbage above size.
func (c *CPU) alu(op uint8, a, b uint64, size uint8) uint64 {
	switch op {
	case aluAdd:
		return c.add(a, b, 0, size)
	case aluAdc:
		return c.add(a, b, c.cf, size)
	case aluSbb:
		return c.sub(a, b, c.cf, size)
	case aluSub, aluCmp:
		return c.sub(a, b, 0, size)
	case aluOr:
		a |= b
	case aluAnd:
		a &= b
	case aluXor:
		a ^= b
	}
	c.logic(a, size)
	return a
}

func execALUToReg(c *CPU, in *inst) status {
	b, ok := c.source(in)
	if !ok {
		return handOver
	}
	r := c.alu(in.op, c.get(in.reg, in.size), b, in.size)
	if in.op != aluCmp {
		c.set(in.reg, in.size, r)
	}
	return done
}

func aluReg(c *CPU, in *inst, old uint64) uint64 {
	return c.alu(in.op, old, c.get(in.reg, in.size), in.size)
}

func aluImm(c *CPU, in *inst, old uint64) uint64 {
	return c.alu(in.op, old, in.imm, in.size)
}

func execALUToRM(c *CPU, in *inst) status {
	if in.op == aluCmp {
		a, ok := c.source(in)
		if !ok {
			return handOver
		}
		c.sub(a, c.get(in.reg, in.size), 0, in.size)
		return done
	}
	return c.modify(in, aluReg)
}

func execALUImm(c *CPU, in *inst) status {
	if in.op == aluCmp {
		a, ok := c.source(in)
		if !ok {
			return handOver
		}
		c.sub(a, in.imm, 0, in.size)
		return done
	}
	return c.modify(in, aluImm)
}

func execTest(c *CPU, in *inst) status {
	a, ok := c.source(in)
	if !ok {
		return handOver
	}
	c.logic(a&c.get(in.reg, in.size), in.size)
	return done
}

func execTestImm(c *CPU, in *inst) status {
	a, ok := c.source(in)
	if !ok {
		return handOver
	}
	c.logic(a&in.imm, in.size)
	return done
}

func incDec(c *CPU, in *inst, old uint64) uint64 {
	cf := c.cf
	var r uint64
	if in.op == 0 {
		r = c.add(old, 1, 0, in.size)
	} else {
		r = c.sub(old, 1, 0, in.size)
	}
	c.cf = cf
	return r
}

func execIncDec(c *CPU, in *inst) status { return c.modify(in, incDec) }

// execGroup3 is NOT, NEG, MUL, IMUL, DIV and IDIV.
func execGroup3(c *CPU, in *inst) status {
	switch in.op {
	case 2:
		return c.modify(in, func(_ *CPU, _ *inst, old uint64) uint64 { return ^old })
	case 3:
		return c.modify(in, func(c *CPU, in *inst, old uint64) uint64 { return c.sub(0, old, 0, in.size) })
	}
	v, ok := c.source(in)
	if !ok {
		return handOver
	}
	switch in.op {
	case 4:
		c.mul(v, in.size)
	case 5:
		c.imul(v, in.size)
	default:
		return c.div(in, v, in.op == 7)
	}
	return done
}

// setWide writes a double-width result to rDX:rAX, or AX for bytes.
func (c *CPU) setWide(hi, lo uint64, size uint8) {
	if size == 1 {
		c.set(rAX, 2, hi<<8|lo&0xff)
		return
	}
	c.set(rAX, size, lo)
	c.set(rDX, size, hi)
}

func (c *CPU) mul(v uint64, size uint8) {
	hi, lo := bits.Mul64(c.get(rAX, size), v)
	if size < 8 {
		hi = lo >> (8 * uint(size))
		lo &= sizeMask(size)
	}
	c.setWide(hi, lo, size)
	c.mulFlags(hi != 0, lo, size)
}

// mulFlags sets CF and OF; the others are undefined and follow the result.
func (c *CPU) mulFlags(overflow bool, lo uint64, size uint8) {
	c.logic(lo, size)
	if overflow {
		c.cf, c.of = 1, 1
	}
}

func signExtend(v uint64, size uint8) uint64 {
	sh := 64 - 8*uint(size)
	return uint64(int64(v<<sh) >> sh)
}

// imul64 is the signed 128-bit product.
func imul64(a, b uint64) (hi, lo uint64) {
	hi, lo = bits.Mul64(a, b)
	if int64(a) < 0 {
		hi -= b
	}
	if int64(b) < 0 {
		hi -= a
	}
	return hi, lo
}

func (c *CPU) imul(v uint64, size uint8) {
	hi, lo := imul64(signExtend(c.get(rAX, size), size), signExtend(v, size))
	overflow := signExtend(lo, size) != lo || hi != uint64(int64(lo)>>63)
	if size < 8 {
		hi = lo >> (8 * uint(size))
	}
	c.setWide(hi, lo, size)
	c.mulFlags(overflow, lo, size)
}

func (c *CPU) imulTo(in *inst, a, b uint64) {
	hi, lo := imul64(signExtend(a, in.size), signExtend(b, in.size))
	overflow := signExtend(lo, in.size) != lo || hi != uint64(int64(lo)>>63)
	c.set(in.reg, in.size, lo)
	c.mulFlags(overflow, lo, in.size)
}

func execIMul2(c *CPU, in *inst) status {
	v, ok := c.source(in)
	if !ok {
		return handOver
	}
	c.imulTo(in, c.get(in.reg, in.size), v)
	return done
}

func execIMul3(c *CPU, in *inst) status {
	v, ok := c.source(in)
	if !ok {
		return handOver
	}
	c.imulTo(in, v, in.imm)
	return done
}

// divideError raises #DE, where KVM does not.
func (c *CPU) divideError(in *inst) status {
	if c.board == nil {
		return handOver
	}
	return c.faultAt(in, vectorDE)
}

// div divides rDX:rAX.
func (c *CPU) div(in *inst, v uint64, signed bool) status {
	size := in.size
	lo, hi := c.get(rAX, size), c.get(rDX, size)
	if size == 1 {
		lo, hi = c.get(rAX, 2)&0xff, c.get(rAX, 2)>>8
	}
	if size < 8 { // fits one 64-bit division
		lo |= hi << (8 * uint(size))
		hi = 0
		if signed {
			lo = signExtend(lo, 2*size)
			hi = uint64(int64(lo) >> 63)
		}
	}
	var q, r uint64
	if signed {
		var ok bool
		if q, r, ok = idiv128(hi, lo, signExtend(v, size)); !ok || signExtend(q, size) != q {
			return c.divideError(in)
		}
	} else {
		if v == 0 || hi >= v {
			return c.divideError(in)
		}
		if q, r = bits.Div64(hi, lo, v); q&^sizeMask(size) != 0 {
			return c.divideError(in)
		}
	}
	if size == 1 {
		c.set(rAX, 2, q&0xff|r&0xff<<8)
	} else {
		c.set(rAX, size, q)
		c.set(rDX, size, r)
	}
	return done
}

// idiv128 is signed division truncating towards zero; ok is false where the
// quotient does not fit.
func idiv128(hi, lo, v uint64) (q, r uint64, ok bool) {
	negN, negD := int64(hi) < 0, int64(v) < 0
	if negN {
		lo, hi = -lo, ^hi
		if lo == 0 {
			hi++
		}
	}
	if negD {
		v = -v
	}
	if v == 0 || hi >= v {
		return 0, 0, false
	}
	q, r = bits.Div64(hi, lo, v)
	if negN != negD {
		if q > 1<<63 {
			return 0, 0, false
		}
		q = -q
	} else if q >= 1<<63 {
		return 0, 0, false
	}
	if negN {
		r = -r
	}
	return q, r, true
}

func execCBW(c *CPU, in *inst) status {
	c.set(rAX, in.size, signExtend(c.r[rAX], in.size/2))
	return done
}

func execCWD(c *CPU, in *inst) status {
	c.set(rDX, in.size, uint64(int64(signExtend(c.r[rAX], in.size))>>63))
	return done
}
