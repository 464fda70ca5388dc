package ring0

import (
	"sync/atomic"
	"unsafe"
)

const cacheSize = 1 << 15

// cached is a decoded instruction with what it was decoded from.
type cached struct {
	gpa            uint64 // of the first byte, plus one: 0 is empty
	lo, hi         uint64 // the first 16 bytes
	maskLo, maskHi uint64 // which of them belong to the instruction
	inst
}

// Stop is why Execute returned.
type Stop int

const (
	// StopBudget says that the number of instructions was reached, or that interrupts
	// have just become possible; the guest goes on anywhere.
	StopBudget Stop = iota
	// StopKVM says that KVM must execute the instruction at RIP.
	StopKVM
	// StopLeft says that the guest has left kernel mode.
	StopLeft
	// StopInject says that the exception in Inject must be injected.
	StopInject
	// StopHalt says that the CPU sleeps until an interrupt.
	StopHalt
	// StopUnknown says that neither this package nor KVM knows the instruction at RIP,
	// or that it touches what only KVM knows how to.
	StopUnknown
	// StopBreakpoint says that RIP is one of Breakpoints.
	StopBreakpoint
	// StopAttention says that somebody called Attend, or that an interrupt may be waiting.
	StopAttention
	// StopExit says that the owner must do the access in Exit.
	StopExit
	// StopShutdown says that an exception could not be delivered, nor a double fault.
	StopShutdown
)

// maxPauses is how many PAUSE instructions make Execute return early.
const maxPauses = 64

// Execute runs at most budget instructions at level 0; CanExecute must hold.
// With window it returns as soon as interrupts become possible. interrupted
// may be set from any goroutine to make it return soon.
func (c *CPU) Execute(budget int, window bool, interrupted *atomic.Bool) (executed int, stop Stop) {
	c.running.executing.Store(true)
	defer c.running.executing.Store(false)
	pauses := 0
	opening := false
	breaks := c.Breakpoints // set while the CPU stands
	for n := 0; n < budget; n++ {
		if g := c.tables.generation.Load(); g != c.seen {
			c.FlushTLB()
			c.seen = g
			c.running.seen.Store(g)
		}
		if breaks != nil && breaks[c.r[rIP]] {
			return n, StopBreakpoint
		}
		switch c.step() {
		case done:
		case shadow:
			n-- // whatever the budget, the next instruction belongs to this one
			opening = true
			continue
		case halt:
			return n + 1, StopHalt
		case opened:
			if window {
				return n + 1, StopBudget
			}
		case pause:
			if pauses++; pauses >= maxPauses {
				return n + 1, StopBudget
			}
		case handOver:
			return n, StopKVM
		case leave:
			return n + 1, StopLeft
		case inject:
			return n, StopInject
		case unknown:
			return n, StopUnknown
		}
		if opening {
			if opening = false; window && c.InterruptsOn() {
				return n + 1, StopBudget
			}
		}
		if n&63 == 0 && interrupted.Load() {
			return n + 1, StopBudget
		}
	}
	return budget, StopBudget
}

// step executes the instruction at RIP.
func (c *CPU) step() status {
	rip := c.r[rIP]
	at := rip + c.base[segCS]
	if c.code.tag != at>>12+1 && !c.fetch(at) {
		return handOver
	}
	off := at & pageMask
	in := &c.split
	if off <= pageSize-16 {
		p := unsafe.Add(c.code.host, off)
		lo, hi := *(*uint64)(p), *(*uint64)(unsafe.Add(p, 8))
		gpa := (c.code.gpa + off + 1) | uint64(c.mode)<<62
		e := &c.cache[(gpa^gpa>>15)%cacheSize]
		if e.gpa != gpa || (lo^e.lo)&e.maskLo|(hi^e.hi)&e.maskHi != 0 {
			c.decode(e, gpa, lo, hi)
		}
		in = &e.inst
	} else if !c.decodeSplit(at) {
		return handOver
	}
	if in.priv&c.cpl != 0 {
		return c.gp0()
	}
	c.r[rIP] = rip + uint64(in.len)
	s := in.exec(c, in)
	if c.mode != mode64 && s != handOver {
		c.narrowIP()
	}
	switch {
	case s == done:
	case in.own && s == handOver && c.board == nil:
		c.r[rIP] = rip
		return c.ownFailed(in)
	case s == handOver, s == unknown:
		c.r[rIP] = rip
	case s == inject && c.Inject.HasError: // a fault: the instruction is restarted
		c.r[rIP] = rip
	}
	return s
}

// narrowIP keeps the instruction pointer within 16 or 32-bit code.
func (c *CPU) narrowIP() {
	switch c.mode {
	case mode32:
		c.r[rIP] &= 0xffffffff
	case mode16:
		c.r[rIP] &= 0xffff
	}
}

// ownFailed decides what becomes of an instruction that KVM does not know and
// that could not be completed.
func (c *CPU) ownFailed(in *inst) status {
	switch {
	case c.fault.valid:
		c.fault.valid = false
		c.Inject = Exception{Vector: vectorPF, HasError: true, Error: c.fault.err, CR2: c.fault.addr}
		return inject
	case c.blocked != 0 && !c.bypass:
		// No such instruction writes to a table that is in use, so the page
		// was one, and its stale shadow does not matter.
		c.blocked, c.bypass = 0, true
		s := c.step()
		c.bypass = false
		return s
	}
	return unknown
}

// decode replaces a cache entry by the instruction in the 16 bytes lo, hi.
func (c *CPU) decode(e *cached, gpa, lo, hi uint64) {
	var b [16]byte
	le.PutUint64(b[:], lo)
	le.PutUint64(b[8:], hi)
	e.gpa, e.lo, e.hi = gpa, lo, hi
	if !c.decodeInst(b[:], &e.inst) {
		e.inst = inst{exec: c.undecoded(), len: 15}
	}
	e.maskLo, e.maskHi = ^uint64(0), 0
	if n := uint(e.len); n < 8 {
		e.maskLo = 1<<(8*n) - 1
	} else {
		e.maskHi = 1<<(8*(n-8)) - 1
	}
}

// decodeSplit decodes an instruction near the end of a page into c.split.
func (c *CPU) decodeSplit(rip uint64) bool {
	var b [16]byte
	n := copy(b[:], unsafe.Slice((*byte)(c.code.host), pageSize)[rip&pageMask:])
	if c.decodeInst(b[:n], &c.split) {
		return true
	}
	first := c.code
	ok := c.fetch((rip | pageMask) + 1)
	next := c.code
	c.code = first
	if !ok {
		return false
	}
	copy(b[n:], unsafe.Slice((*byte)(next.host), pageSize))
	if !c.decodeInst(b[:], &c.split) {
		c.split = inst{exec: c.undecoded(), len: 15}
	}
	return true
}

// decodeInst decodes an instruction as the CPU is now.
func (c *CPU) decodeInst(b []byte, in *inst) bool {
	if c.board != nil {
		return decodeComplete(b, in, c.mode)
	}
	return decode(b, in)
}

// undecoded is what becomes of an instruction that is not known.
func (c *CPU) undecoded() func(*CPU, *inst) status {
	if c.board != nil {
		return execUndefined
	}
	return execHandOver
}

func execHandOver(*CPU, *inst) status { return handOver }
