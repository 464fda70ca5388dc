package ring0

import "sync/atomic"

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
	// StopWatchpoint says that the last instruction has accessed what SetWatchpoints names.
	StopWatchpoint
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
	for n := 0; n < budget; {
		if interrupted.Load() && n > 0 {
			return n, StopBudget
		}
		if g := c.tables.generation.Load(); g != c.seen {
			c.FlushTLB()
			c.seen = g
			c.running.seen.Store(g)
		}
		insts := c.block()
		if insts == nil {
			return n, StopKVM
		}
		tag, calls := c.code.tag, c.cache.calls
		for i := range insts {
			if breaks != nil && breaks[c.r[rIP]] {
				return n, StopBreakpoint
			}
			next := c.r[rIP] + uint64(insts[i].len)
			s := c.one(&insts[i])
			n++
			switch s {
			case done:
			case shadow:
				n-- // whatever the budget, the next instruction belongs to this one
				opening = true
				continue
			case halt:
				return n, StopHalt
			case opened:
				if window {
					return n, StopBudget
				}
			case pause:
				if pauses++; pauses >= maxPauses {
					return n, StopBudget
				}
			case handOver:
				return n - 1, StopKVM
			case leave:
				return n, StopLeft
			case inject:
				return n - 1, StopInject
			case unknown:
				return n - 1, StopUnknown
			}
			if opening {
				if opening = false; window && c.InterruptsOn() {
					return n, StopBudget
				}
			}
			if n >= budget || c.r[rIP] != next || c.code.tag != tag || c.cache.calls != calls {
				break
			}
		}
	}
	return budget, StopBudget
}

// step executes the instruction at RIP.
func (c *CPU) step() status {
	insts := c.block()
	if insts == nil {
		return handOver
	}
	return c.one(&insts[0])
}

// one executes an instruction, which is the one at RIP.
func (c *CPU) one(in *inst) status {
	if in.priv&c.cpl != 0 {
		return c.gp0()
	}
	rip := c.r[rIP]
	c.r[rIP] = rip + uint64(in.len)
	s := in.exec(c, in)
	if s == done && c.mode == mode64 {
		return s
	}
	if c.mode != mode64 && s != handOver {
		c.narrowIP()
	}
	switch {
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
