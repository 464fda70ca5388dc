package ring0

// The rest of the user-visible instructions, which kernels hardly use and a complete CPU
// has to know.

func execSAHF(c *CPU, _ *inst) status {
	const mask = flagCF | flagPF | flagAF | flagZF | flagSF
	c.setArith(c.flags()&^mask | c.r[rAX]>>8&mask)
	return done
}

func execLAHF(c *CPU, _ *inst) status {
	const mask = flagCF | flagPF | flagAF | flagZF | flagSF
	c.set(rSP|byteHigh, 1, c.flags()&mask|flagOne) // rSP as a byte's number is AH
	return done
}

// execXlat is a load from a table of bytes.
func execXlat(c *CPU, in *inst) status {
	v, ok := c.load(c.linear(in.seg, (c.r[rBX]+c.r[rAX]&0xff)&in.addressMask()), 1)
	if !ok {
		return handOver
	}
	c.set(rAX, 1, v)
	return done
}

// execMovAbsolute is MOV with an address in the instruction: from (0xa0, 0xa1) and to memory.
func execMovAbsolute(c *CPU, in *inst) status {
	addr := c.linear(in.seg, in.disp)
	if in.op&2 != 0 {
		return stored(c.store(addr, c.get(rAX, in.size), in.size))
	}
	v, ok := c.load(addr, in.size)
	if !ok {
		return handOver
	}
	c.set(rAX, in.size, v)
	return done
}

// execPopRM is POP to memory, whose address is computed with the new stack pointer.
func execPopRM(c *CPU, in *inst) status {
	v, ok := c.load(c.stackTop(0), in.size)
	if !ok {
		return handOver
	}
	sp := c.r[rSP]
	c.setSP(c.stackOffset(uint64(in.size)))
	if s := c.setRM(in, v); s != done {
		c.r[rSP] = sp
		return s
	}
	return done
}

// execEnter makes a stack frame (SDM 2, ENTER); in.imm is its size and in.op the nesting
// level.
func execEnter(c *CPU, in *inst) status {
	sp, bp := c.r[rSP], c.r[rBP]
	fail := func() status { c.r[rSP], c.r[rBP] = sp, bp; return handOver }
	if c.push(bp, in.size) != done {
		return fail()
	}
	frame := c.r[rSP]
	for i := uint8(1); i < in.op; i++ {
		v, ok := c.load(c.linear(segSS, bp-uint64(i)*uint64(in.size)), in.size)
		if !ok || c.push(v, in.size) != done {
			return fail()
		}
	}
	if in.op > 0 && c.push(frame, in.size) != done {
		return fail()
	}
	c.set(rBP, in.size, frame)
	c.setSP(c.stackOffset(-in.imm))
	return done
}

// execMaskMove is MASKMOVQ and MASKMOVDQU, which store the bytes of one register that
// another selects.
func execMaskMove(c *CPU, in *inst) status {
	if !c.extended() {
		return unknown
	}
	n, at := 8, func(r uint8) int { return xOffX87Regs + 16*int(r&7) }
	if in.op == 1 {
		n, at = 16, func(r uint8) int { return xOffXMM + 16*int(r&15) }
	}
	from, mask := at(in.reg), at(in.rm)
	addr := c.linear(in.seg, c.r[rDI]&in.addressMask())
	for i := range n {
		if c.xarea[mask+i]&0x80 != 0 && !c.store(addr+uint64(i), uint64(c.xarea[from+i]), 1) {
			return handOver
		}
	}
	return done
}

// Instructions without a 64-bit form.

func execPushAll(c *CPU, in *inst) status {
	sp := c.r[rSP]
	for r := range uint8(8) {
		v := c.get(r, in.size)
		if r == rSP {
			v = sp
		}
		if c.push(v, in.size) != done {
			c.r[rSP] = sp
			return handOver
		}
	}
	return done
}

func execPopAll(c *CPU, in *inst) status {
	var v [8]uint64
	for i := range uint64(8) {
		var ok bool
		if v[7-i], ok = c.load(c.stackTop(i*uint64(in.size)), in.size); !ok {
			return handOver
		}
	}
	sp := c.stackOffset(8 * uint64(in.size))
	for r, x := range v {
		if r != rSP {
			c.set(uint8(r), in.size, x)
		}
	}
	c.setSP(sp)
	return done
}

func execBound(c *CPU, in *inst) status {
	addr := c.address(in)
	lo, ok1 := c.load(addr, in.size)
	hi, ok2 := c.load(addr+uint64(in.size), in.size)
	if !ok1 || !ok2 {
		return handOver
	}
	v := int64(signExtend(c.get(in.reg, in.size), in.size))
	if v < int64(signExtend(lo, in.size)) || v > int64(signExtend(hi, in.size)) {
		const vectorBR = 5
		return c.faultAt(in, vectorBR)
	}
	return done
}

func execInto(c *CPU, in *inst) status {
	if c.of == 0 {
		return done
	}
	in.imm = vectorOF
	return execInt(c, in)
}

// execDecimal is DAA (0x27), DAS (0x2f), AAA (0x37), AAS (0x3f), AAM (0xd4) and AAD (0xd5)
// (SDM 2).
func execDecimal(c *CPU, in *inst) status {
	al, ah := c.r[rAX]&0xff, c.r[rAX]>>8&0xff
	cf, af := c.cf, c.af
	low := al&15 > 9 || af != 0
	switch in.op {
	case 0x27, 0x2f:
		sign := uint64(1)
		if in.op == 0x2f {
			sign = ^uint64(0)
		}
		old, carry := al, uint64(0)
		if low {
			if sign == 1 && al+6 > 0xff || sign != 1 && al < 6 {
				carry = 1
			}
			carry |= cf
			al = (al + 6*sign) & 0xff
		}
		if old > 0x99 || cf != 0 {
			al, carry = (al+0x60*sign)&0xff, 1
		}
		c.logic(al, 1)
		c.cf = carry
		c.af = 0
		if low {
			c.af = 1
		}
	case 0x37, 0x3f:
		if low {
			ax := c.r[rAX] & 0xffff
			if in.op == 0x37 {
				ax += 0x106
			} else {
				ax -= 0x106
			}
			al, ah = ax&0xff, ax>>8&0xff
		}
		c.logic(al, 1)
		c.cf, c.af = 0, 0
		if low {
			c.cf, c.af = 1, 1
		}
		al &= 15
	case 0xd4:
		if in.imm&0xff == 0 {
			return c.faultAt(in, vectorDE)
		}
		ah, al = al/(in.imm&0xff), al%(in.imm&0xff)
		c.logic(al, 1)
	case 0xd5:
		al, ah = (al+ah*(in.imm&0xff))&0xff, 0
		c.logic(al, 1)
	}
	c.set(rAX, 2, ah<<8|al)
	return done
}

// Near transfers with a stack of less than 64 bits.

func execCallNarrow(c *CPU, in *inst) status {
	if s := c.push(c.r[rIP], in.size); s != done {
		return s
	}
	c.r[rIP] += in.imm
	return done
}

func execRetNarrow(c *CPU, in *inst) status {
	v, ok := c.load(c.stackTop(0), in.size)
	if !ok {
		return handOver
	}
	c.setSP(c.stackOffset(uint64(in.size) + in.imm))
	c.r[rIP] = v
	return done
}

func execCallJmpNarrow(c *CPU, in *inst) status {
	v, ok := c.source(in)
	if !ok {
		return handOver
	}
	if in.op == 2 {
		if s := c.push(c.r[rIP], in.size); s != done {
			return s
		}
	}
	c.r[rIP] = v
	return done
}

func execLeaveNarrow(c *CPU, in *inst) status {
	bp := c.r[rBP]
	if c.sregs.SS.DB == 0 {
		bp &= 0xffff
	}
	v, ok := c.load(c.linear(segSS, bp), in.size)
	if !ok {
		return handOver
	}
	c.r[rSP] = bp
	c.setSP(c.stackOffset(uint64(in.size)))
	c.set(rBP, in.size, v)
	return done
}

// execLoopNarrow is execLoop with a counter of less than 64 bits.
func execLoopNarrow(c *CPU, in *inst) status {
	size := uint8(4)
	if in.addr2 {
		size = 2
	}
	n := c.get(rCX, size)
	if in.op == 3 {
		if n == 0 {
			c.r[rIP] += in.imm
		}
		return done
	}
	n = (n - 1) & sizeMask(size)
	c.set(rCX, size, n)
	if n != 0 && (in.op == 2 || (c.zv == 0) == (in.op == 1)) {
		c.r[rIP] += in.imm
	}
	return done
}
