package ring0

import "unsafe"

// loadDevice is a load from where there is no memory, after readable has failed.
func (c *CPU) loadDevice(size uint8) (uint64, bool) {
	if c.board == nil || !c.onDevice {
		return 0, false
	}
	c.onDevice = false
	return c.in(false, c.device, size)
}

// storeDevice is a store to where there is no memory, after writable has failed.
func (c *CPU) storeDevice(v uint64, size uint8) bool {
	if c.board == nil || !c.onDevice {
		return false
	}
	c.onDevice = false
	return c.out(false, c.device, v, size)
}

// deviceThere reports whether the access that has failed last was one to a device.
func (c *CPU) deviceThere() bool {
	there := c.onDevice && c.board != nil
	c.onDevice = c.onDevice && !there
	return there
}

// deviceChunk is how many bytes of an operand a device gets at once: no more than eight, of one
// page.
func deviceChunk(addr uint64, size int) uint8 {
	return uint8(min(8, uint64(size), pageSize-addr&pageMask))
}

// in reads from a port or a device. It fails where the owner must do that: the
// instruction comes again with what Supply was given.
func (c *CPU) in(port bool, addr uint64, size uint8) (uint64, bool) {
	var b [8]byte
	if c.used < len(c.supplied) {
		b = c.supplied[c.used]
		c.used++
		return loadHost(unsafe.Pointer(&b), 8) & sizeMask(size), true
	}
	buf := c.deviceData[:size]
	clear(buf)
	var done bool
	if port {
		done = c.board.Port(uint16(addr), buf, false)
	} else {
		done = c.board.Device(addr, buf, false)
	}
	if !done {
		c.Exit = Exit{Port: port, Addr: addr, Len: int(size)}
		c.exits = true
		return 0, false
	}
	copy(b[:], buf)
	return loadHost(unsafe.Pointer(&b), 8), true
}

// out writes to a port or a device. What the owner must do is an exit behind the
// instruction. Where the instruction has made one already, it comes again after that, and what
// was written is not written again.
func (c *CPU) out(port bool, addr, v uint64, size uint8) bool {
	if c.skipped < c.sent {
		c.skipped++
		return true
	}
	storeHost(unsafe.Pointer(&c.deviceData), v, 8)
	if c.frame.Attention.Load()&attendExit != 0 {
		c.exits = true
		return false
	}
	var done bool
	if port {
		done = c.board.Port(uint16(addr), c.deviceData[:size], true)
	} else {
		done = c.board.Device(addr, c.deviceData[:size], true)
	}
	if c.sent++; done {
		c.skipped++
		return true
	}
	c.skipped++
	c.Exit = Exit{Port: port, Addr: addr, Len: int(size), Data: c.deviceData, Write: true}
	c.frame.Attention.Or(attendExit)
	return true
}
