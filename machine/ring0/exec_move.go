package ring0

func execNop(*CPU, *inst) status   { return done }
func execPause(*CPU, *inst) status { return pause }

func execMovToReg(c *CPU, in *inst) status {
	v, ok := c.source(in)
	if !ok {
		return handOver
	}
	c.set(in.reg, in.size, v)
	return done
}

func execMovToRM(c *CPU, in *inst) status { return c.setRM(in, c.get(in.reg, in.size)) }
func execMovImm(c *CPU, in *inst) status  { return c.setRM(in, in.imm) }

// execMovZX and execMovSX extend a source of in.op bytes.
func execMovZX(c *CPU, in *inst) status {
	v, ok := c.sourceSize(in, in.op)
	if !ok {
		return handOver
	}
	c.set(in.reg, in.size, v)
	return done
}

func execMovSX(c *CPU, in *inst) status {
	v, ok := c.sourceSize(in, in.op)
	if !ok {
		return handOver
	}
	c.set(in.reg, in.size, signExtend(v, in.op))
	return done
}

func execLea(c *CPU, in *inst) status {
	c.set(in.reg, in.size, c.offset(in))
	return done
}

// execMovFromSeg reads a segment selector.
func execMovFromSeg(c *CPU, in *inst) status {
	s := &c.sregs
	var v uint16
	switch in.reg & 7 {
	case 0:
		v = s.ES.Selector
	case 1:
		v = s.CS.Selector
	case 2:
		v = s.SS.Selector
	case 3:
		v = s.DS.Selector
	case 4:
		v = s.FS.Selector
	case 5:
		v = s.GS.Selector
	default:
		return handOver
	}
	if in.mem {
		return stored(c.store(c.address(in), uint64(v), 2))
	}
	c.set(in.rm, in.size, uint64(v))
	return done
}

func execXchg(c *CPU, in *inst) status {
	if !in.mem {
		a, b := c.get(in.rm, in.size), c.get(in.reg, in.size)
		c.set(in.rm, in.size, b)
		c.set(in.reg, in.size, a)
		return done
	}
	v := c.get(in.reg, in.size)
	locked := *in // XCHG with memory locks without a prefix
	locked.lock = true
	var old uint64
	if s := c.modifyAt(&locked, c.address(in), func(_ *CPU, _ *inst, o uint64) uint64 { old = o; return v }); s != done {
		return s
	}
	c.set(in.reg, in.size, old)
	return done
}

func execXadd(c *CPU, in *inst) status {
	v := c.get(in.reg, in.size)
	var old uint64
	if s := c.modify(in, func(c *CPU, in *inst, o uint64) uint64 {
		old = o
		return c.add(o, v, 0, in.size)
	}); s != done {
		return s
	}
	// With the same register twice the sum wins, which modify has written.
	if in.mem || in.rm != in.reg {
		c.set(in.reg, in.size, old)
	}
	return done
}

func execCmpxchg(c *CPU, in *inst) status {
	expect, v := c.get(rAX, in.size), c.get(in.reg, in.size)
	var old uint64
	if !in.mem { // a register that differs is not written, not even its upper half
		if old = c.get(in.rm, in.size); old == expect {
			c.set(in.rm, in.size, v)
		}
	} else if s := c.modify(in, func(_ *CPU, _ *inst, o uint64) uint64 {
		old = o
		if o == expect {
			return v
		}
		return o
	}); s != done {
		return s
	}
	c.sub(expect, old, 0, in.size)
	if old != expect {
		c.set(rAX, in.size, old)
	}
	return done
}

// execCmpxchg16 is CMPXCHG8B and, with REX.W, CMPXCHG16B.
func execCmpxchg16(c *CPU, in *inst) status {
	addr := c.address(in)
	if in.size != 8 {
		return c.compareExchange8(in, addr)
	}
	if addr&15 != 0 {
		return c.raise(vectorGP, 0)
	}
	p := c.writable(addr)
	if p == nil {
		return handOver
	}
	lo, hi, equal := cas128(p, c.r[rAX], c.r[rDX], c.r[rBX], c.r[rCX])
	if !equal {
		c.r[rAX], c.r[rDX] = lo, hi
	}
	return c.setZF(equal)
}

// compareExchange8 is CMPXCHG8B, whose operand need not be aligned.
func (c *CPU) compareExchange8(in *inst, addr uint64) status {
	want, v := c.r[rDX]<<32|c.get(rAX, 4), c.r[rCX]<<32|c.get(rBX, 4)
	var found uint64
	wide := *in
	wide.size, wide.lock = 8, true
	modify := c.modifyAt
	if !lockable(addr, 8) {
		modify = c.modifySlowly
	}
	if s := modify(&wide, addr, func(_ *CPU, _ *inst, old uint64) uint64 {
		if found = old; found == want {
			return v
		}
		return found
	}); s != done {
		return s
	}
	if found != want {
		c.set(rAX, 4, found)
		c.set(rDX, 4, found>>32)
	}
	return c.setZF(found == want)
}

func execCMov(c *CPU, in *inst) status {
	v, ok := c.source(in)
	if !ok {
		return handOver
	}
	if !c.condition(in.op) {
		v = c.get(in.reg, in.size) // a 32-bit one clears the upper half anyway
	}
	c.set(in.reg, in.size, v)
	return done
}

func execSetcc(c *CPU, in *inst) status {
	var v uint64
	if c.condition(in.op) {
		v = 1
	}
	return c.setRM(in, v)
}

// push writes below the stack pointer and moves it.
func (c *CPU) push(v uint64, size uint8) status {
	if c.mode != mode64 {
		if !c.store(c.stackTop(-uint64(size)), v, size) {
			return handOver
		}
		c.setSP(c.stackOffset(-uint64(size)))
		return done
	}
	sp := c.r[rSP] - uint64(size)
	if !c.store(sp, v, size) {
		return handOver
	}
	c.r[rSP] = sp
	return done
}

func execPush(c *CPU, in *inst) status    { return c.push(c.get(in.reg, in.size), in.size) }
func execPushImm(c *CPU, in *inst) status { return c.push(in.imm, in.size) }

func execPushRM(c *CPU, in *inst) status {
	v, ok := c.source(in)
	if !ok {
		return handOver
	}
	return c.push(v, in.size)
}

func execPop(c *CPU, in *inst) status {
	v, ok := c.load(c.stackTop(0), in.size)
	if !ok {
		return handOver
	}
	c.setSP(c.stackOffset(uint64(in.size)))
	c.set(in.reg, in.size, v)
	return done
}

func execLeave(c *CPU, _ *inst) status {
	v, ok := c.load(c.r[rBP], 8)
	if !ok {
		return handOver
	}
	c.r[rSP] = c.r[rBP] + 8
	c.r[rBP] = v
	return done
}

func execPushF(c *CPU, in *inst) status {
	return c.push(c.flags()&^(flagRF|flagVM), in.size)
}

// The bits that POPF changes at level 0.
const popfMask = arithFlags | flagTF | flagIF | flagDF | flagIOPL | flagNT | flagAC | flagID

// mayIO reports whether IOPL gives the level what is the kernel's by default: ports, and IF.
func (c *CPU) mayIO() bool { return c.cpl <= uint8(c.sys>>12&3) }

// execPopF is POPF (SDM 2): IF is for who may, IOPL for level 0.
func execPopF(c *CPU, in *inst) status {
	v, ok := c.load(c.stackTop(0), in.size)
	if !ok {
		return handOver
	}
	mask := uint64(popfMask)
	if !c.mayIO() {
		mask &^= flagIF
	}
	if c.cpl != 0 {
		mask &^= flagIOPL
	}
	if in.size == 2 {
		mask &= 0xffff
	}
	if c.board == nil && v&mask&flagTF != 0 {
		return handOver
	}
	c.setSP(c.stackOffset(uint64(in.size)))
	was := c.InterruptsOn()
	c.setFlags(c.flags()&^(mask|flagRF) | v&mask)
	if !was && c.InterruptsOn() {
		return opened
	}
	return done
}

func execJcc(c *CPU, in *inst) status {
	if c.condition(in.op) {
		c.r[rIP] += in.imm
	}
	return done
}

func execJmp(c *CPU, in *inst) status {
	c.r[rIP] += in.imm
	return done
}

// execLoop is LOOPNE, LOOPE, LOOP and JRCXZ.
func execLoop(c *CPU, in *inst) status {
	if in.addr4 {
		return handOver
	}
	if in.op == 3 {
		if c.r[rCX] == 0 {
			c.r[rIP] += in.imm
		}
		return done
	}
	c.r[rCX]--
	if c.r[rCX] != 0 && (in.op == 2 || (c.zv == 0) == (in.op == 1)) {
		c.r[rIP] += in.imm
	}
	return done
}

func execCall(c *CPU, in *inst) status {
	if s := c.push(c.r[rIP], 8); s != done {
		return s
	}
	c.r[rIP] += in.imm
	return done
}

func execRet(c *CPU, in *inst) status {
	v, ok := c.load(c.r[rSP], 8)
	if !ok || !canonical(v) {
		return c.noTarget(ok)
	}
	c.r[rSP] += 8 + in.imm
	c.r[rIP] = v
	return done
}

// noTarget ends a transfer whose target could not be read, or is no address.
func (c *CPU) noTarget(read bool) status {
	c.notCanonical = c.notCanonical || read
	return handOver
}

// execCallJmpRM is the indirect CALL (2) and JMP (4).
func execCallJmpRM(c *CPU, in *inst) status {
	v, ok := c.source(in)
	if !ok || !canonical(v) {
		return c.noTarget(ok)
	}
	if in.op == 2 {
		if s := c.push(c.r[rIP], 8); s != done {
			return s
		}
	}
	c.r[rIP] = v
	return done
}

// execFlag is CMC, CLC, STC, CLI, STI, CLD and STD, by opcode.
func execFlag(c *CPU, in *inst) status {
	switch in.op {
	case 0xf5:
		c.cf ^= 1
	case 0xf8:
		c.cf = 0
	case 0xf9:
		c.cf = 1
	case 0xfa:
		if !c.mayIO() {
			return c.gp0()
		}
		c.sys &^= flagIF
	case 0xfb:
		if !c.mayIO() {
			return c.gp0()
		}
		was := c.InterruptsOn()
		c.sys |= flagIF
		if !was {
			return shadow
		}
	case 0xfc:
		c.sys &^= flagDF
	case 0xfd:
		c.sys |= flagDF
	}
	return done
}
