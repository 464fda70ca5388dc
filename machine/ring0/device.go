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
	done := false
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
// instruction: it fails where the instruction has made one already, and then comes again.
func (c *CPU) out(port bool, addr, v uint64, size uint8) bool {
	storeHost(unsafe.Pointer(&c.deviceData), v, 8)
	done := false
	if port {
		done = c.board.Port(uint16(addr), c.deviceData[:size], true)
	} else {
		done = c.board.Device(addr, c.deviceData[:size], true)
	}
	if done {
		return true
	}
	if c.frame.Attention.Load()&attendExit != 0 {
		return false
	}
	c.Exit = Exit{Port: port, Addr: addr, Len: int(size), Data: c.deviceData, Write: true}
	c.frame.Attention.Or(attendExit)
	return true
}
