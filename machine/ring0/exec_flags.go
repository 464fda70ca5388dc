package ring0

// Flags that a privilege level may or may not change, of a complete CPU.

// execFlagComplete is CLI and STI, which IOPL allows.
func execFlagComplete(c *CPU, in *inst) status {
	if c.cpl > uint8(c.sys>>12&3) {
		return c.gp0()
	}
	return execFlag(c, in)
}

// execPopFComplete is POPF (SDM 2): IF is for who may, IOPL for level 0.
func execPopFComplete(c *CPU, in *inst) status {
	v, ok := c.load(c.stackTop(0), in.size)
	if !ok {
		return handOver
	}
	mask := uint64(popfMask)
	if c.cpl > uint8(c.sys>>12&3) {
		mask &^= flagIF
	}
	if c.cpl != 0 {
		mask &^= flagIOPL
	}
	if in.size == 2 {
		mask &= 0xffff
	}
	c.setSP(c.stackOffset(uint64(in.size)))
	was := c.InterruptsOn()
	c.setFlags(c.flags()&^(mask|flagRF) | v&mask)
	if !was && c.InterruptsOn() {
		return opened
	}
	return done
}
