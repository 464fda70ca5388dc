package ring0

// The guest's own debug registers (SDM 3, 17.2). A breakpoint of instructions has all
// interpreted while it is armed; one of data is a watchpoint whose page is not in the TLB, as
// a debugger's. There are none of ports (CR4.DE), nor of accesses to debug registers (DR7.GD).

// Bits of DR6 and DR7.
const (
	dr6Step  = 1 << 14
	dr6Fixed = 0xffff0ff0
	dr7Fixed = 0x400
)

// ownBreakpoints are what is armed in the debug registers.
type ownBreakpoints struct {
	code    uint8    // registers with the address of an instruction, as bits
	numbers [4]uint8 // of the data's, which are CPU.watchpoints behind the debugger's
	met     uint8    // data's that were met, as bits: an exception is due
}

// DebugRegister returns one of DR0 to DR7, of the guest's own.
func (c *CPU) DebugRegister(n int) uint64 { return c.debug[n] }

// SetDebugRegister sets one.
func (c *CPU) SetDebugRegister(n int, v uint64) {
	c.debug[n] = v
	if n != 6 {
		c.setWatchpoints(c.watchpoints[:c.debuggers])
	}
}

// armOwn adds the data's breakpoints to the watchpoints, which are the debugger's.
func (c *CPU) armOwn(w []Watchpoint) []Watchpoint {
	const execute, write, access = 0, 1, 3
	c.own.code = 0
	for i := range 4 {
		control := c.debug[7] >> (16 + 4*i) & 15
		kind, size := control&3, [4]uint64{1, 2, 8, 4}[control>>2]
		switch {
		case c.debug[7]>>(2*i)&3 == 0:
		case kind == execute:
			c.own.code |= 1 << i
		case kind == write, kind == access:
			c.own.numbers[len(w)-c.debuggers] = uint8(i)
			w = append(w, Watchpoint{Addr: c.debug[i] &^ (size - 1), Size: size, Reads: kind == access})
		}
	}
	return w
}

// meetsOwn reports whether the instruction at RIP has a breakpoint, and says so in DR6.
func (c *CPU) meetsOwn() bool {
	if c.sys&flagRF != 0 {
		return false
	}
	met := uint64(0)
	for i := range 4 {
		if c.own.code>>i&1 != 0 && c.debug[i] == c.linear(segCS, c.r[rIP]) {
			met |= 1 << i
		}
	}
	c.debug[6] |= met
	return met != 0
}

// trap raises what is due behind an instruction, for a step or for data. What MOV SS and POP SS
// have met waits for the instruction behind them (SDM 3, 6.8.3). It reports false if the CPU
// has shut down.
func (c *CPU) trap(step bool, s status) bool {
	if !step && s == shadow {
		return true
	}
	bits := uint64(0)
	if step {
		bits = dr6Step
	}
	return c.debugException(bits)
}

// debugException raises #DB, with bits in DR6, and for what else is due: a second one would come
// within the handler of the first. It reports false if the CPU has shut down.
func (c *CPU) debugException(bits uint64) bool {
	c.debug[6] |= bits | uint64(c.own.met)
	c.own.met = 0
	return c.exception(Exception{Vector: vectorDB})
}

func execMovFromDR(c *CPU, in *inst) status {
	c.r[in.rm] = c.debug[debugRegister(in.reg)]
	return done
}

func execMovToDR(c *CPU, in *inst) status {
	v := c.r[in.rm]
	n := debugRegister(in.reg)
	if n >= 6 && v>>32 != 0 {
		return c.gp0()
	}
	switch n {
	case 6:
		v = v&0x1e00f | dr6Fixed
	case 7:
		v = v&^0xd800 | dr7Fixed
	}
	c.SetDebugRegister(int(n), v)
	return done
}

// debugRegister is the one that a number means: 4 and 5 are 6 and 7.
func debugRegister(n uint8) uint8 {
	if n == 4 || n == 5 {
		n += 2
	}
	return n & 7
}
