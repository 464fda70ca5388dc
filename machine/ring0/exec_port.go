package ring0

// Ports of a complete CPU (SDM 1, 19).

// portAllowed reports whether the level may use a port: by IOPL, or by the task's map.
func (c *CPU) portAllowed(port uint16, size uint8) bool {
	if c.sregs.CR0&1 == 0 || c.mayIO() {
		return true
	}
	before := c.asKernel()
	defer c.restore(before)
	defer c.forgetFailure()
	offset, ok := c.load(c.sregs.TR.Base+tssIOMap, 2)
	if !ok {
		return false
	}
	at := offset + uint64(port)/8
	if at+1 > uint64(c.sregs.TR.Limit) {
		return false
	}
	bits, ok := c.load(c.sregs.TR.Base+at, 2)
	return ok && bits>>(port&7)&(1<<size-1) == 0
}

// port is the one that an IN or OUT names.
func (c *CPU) port(in *inst) uint16 {
	if in.op&8 != 0 { // 0xec to 0xef: in DX
		return uint16(c.r[rDX])
	}
	return uint16(in.imm)
}

func execIn(c *CPU, in *inst) status {
	p := c.port(in)
	if !c.portAllowed(p, in.size) {
		return c.gp0()
	}
	v, ok := c.in(true, uint64(p), in.size)
	if !ok {
		return handOver
	}
	c.set(rAX, in.size, v)
	return done
}

func execOut(c *CPU, in *inst) status {
	p := c.port(in)
	if !c.portAllowed(p, in.size) {
		return c.gp0()
	}
	return stored(c.out(true, uint64(p), c.get(rAX, in.size), in.size))
}
