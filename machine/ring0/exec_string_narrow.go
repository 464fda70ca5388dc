package ring0

// String instructions element by element: with addresses of less than 64 bits, and those
// of ports. The fast ones are in exec_string.go.

// addressMask is what an address size leaves of an offset.
func (in *inst) addressMask() uint64 {
	switch {
	case in.addr2:
		return 0xffff
	case in.addr4:
		return 0xffffffff
	}
	return ^uint64(0)
}

// advance moves an index register by an element.
func (c *CPU) advance(reg uint8, in *inst) {
	m := in.addressMask()
	v := (c.r[reg] + c.stride(in.size)) & m
	if m == 0xffff {
		v |= c.r[reg] &^ m
	}
	c.r[reg] = v
}

// execString is all string instructions; in.op is the opcode.
func execString(c *CPU, in *inst) status {
	mask := in.addressMask()
	if in.rep != repNone && c.r[rCX]&mask == 0 {
		return done
	}
	src, dst := c.linear(in.seg, c.r[rSI]&mask), c.linear(segES, c.r[rDI]&mask)
	compares := false
	switch in.op &^ 1 {
	case 0xa4: // MOVS
		v, ok := c.load(src, in.size)
		if !ok || !c.store(dst, v, in.size) {
			return handOver
		}
	case 0xa6: // CMPS
		a, ok1 := c.load(src, in.size)
		b, ok2 := c.load(dst, in.size)
		if !ok1 || !ok2 {
			return handOver
		}
		c.sub(a, b, 0, in.size)
		compares = true
	case 0xaa: // STOS
		if !c.store(dst, c.get(rAX, in.size), in.size) {
			return handOver
		}
	case 0xac: // LODS
		v, ok := c.load(src, in.size)
		if !ok {
			return handOver
		}
		c.set(rAX, in.size, v)
	case 0xae: // SCAS
		v, ok := c.load(dst, in.size)
		if !ok {
			return handOver
		}
		c.sub(c.get(rAX, in.size), v, 0, in.size)
		compares = true
	case 0x6c, 0x6e: // INS, OUTS
		if s := c.portString(in, src, dst); s != done {
			return s
		}
	}
	if kind := in.op &^ 1; kind != 0xaa && kind != 0xae && kind != 0x6c {
		c.advance(rSI, in)
	}
	if kind := in.op &^ 1; kind != 0xac && kind != 0x6e {
		c.advance(rDI, in)
	}
	if in.rep == repNone {
		return done
	}
	left := (c.r[rCX] - 1) & mask
	if mask == 0xffff {
		c.r[rCX] = c.r[rCX]&^mask | left
	} else {
		c.r[rCX] = left
	}
	if left != 0 && (!compares || (c.zv == 0) == (in.rep == repE)) {
		c.r[rIP] -= uint64(in.len)
	}
	return done
}

// portString does an element of INS or OUTS.
func (c *CPU) portString(in *inst, src, dst uint64) status {
	p := uint16(c.r[rDX])
	if !c.portAllowed(p, in.size) {
		return c.gp0()
	}
	if in.op&^1 == 0x6e {
		v, ok := c.load(src, in.size)
		return stored(ok && c.out(true, uint64(p), v, in.size))
	}
	if c.writable(dst) == nil { // before the port is read, which may change something
		return handOver
	}
	v, ok := c.in(true, uint64(p), in.size)
	return stored(ok && c.store(dst, v, in.size))
}
