package ring0

import (
	"vmm/internal/x86"
	"vmm/machine/native"
)

// Run executes at most budget instructions of a complete CPU. It returns StopBudget,
// StopAttention, StopExit, StopHalt, StopShutdown, StopBreakpoint, StopWatchpoint or
// StopUnknown.
func (c *CPU) Run(budget int) Stop {
	pauses := 0
	breaks := c.Breakpoints
	for n := 0; n < budget; {
		trace := false
		if a := c.frame.Attention.Load(); a != 0 {
			if stop, ok := c.attend(a); ok {
				return stop
			}
			trace = c.sys&flagTF != 0
		}
		one := !trace && c.translatable(budget) && runTranslations(c)
		insts := c.block()
		if insts == nil {
			n++
			if stop, ok := c.resolve(handOver); !ok {
				return stop
			}
			continue
		}
		tag, calls := c.code.tag, c.cache.calls
		for i := range insts {
			if breaks != nil && breaks[c.r[rIP]] && c.passed != c.r[rIP]+1 {
				c.passed = c.r[rIP] + 1
				return StopBreakpoint
			}
			c.passed = 0
			if c.own.code != 0 && c.meetsOwn() {
				n++
				if !c.debugException(0) {
					return StopShutdown
				}
				break
			}
			next, resume := c.r[rIP]+uint64(insts[i].len), c.sys&flagRF
			c.sys &^= flagRF
			s := c.one(&insts[i])
			n++
			if s != done {
				if s == pause {
					pauses++
				}
				if stop, ok := c.ended(s); !ok {
					c.sys |= resume // it is executed once more
					return stop
				}
			}
			watched := len(c.touched) > 0 && c.watch(&insts[i])
			if s == handOver || s == inject {
				c.own.met = 0
			} else if watched {
				return StopWatchpoint
			}
			if (len(c.supplied) > 0 || c.sent > 0) && s != handOver {
				c.forgetExits()
			}
			if (trace || c.own.met != 0) && s != handOver && s != inject && !c.trap(trace, s) {
				return StopShutdown
			}
			if one || c.r[rIP] != next || n >= budget || c.code.tag != tag || c.cache.calls != calls || c.frame.Attention.Load() != 0 {
				break
			}
		}
		if pauses >= maxPauses {
			return StopBudget
		}
	}
	return StopBudget
}

// forgetExits is for an instruction that has ended.
func (c *CPU) forgetExits() { c.supplied, c.used, c.sent, c.skipped = c.supplied[:0], 0, 0, 0 }

// ended deals with how an instruction ended that was not just done. It reports whether
// Run goes on.
func (c *CPU) ended(s status) (Stop, bool) {
	switch s {
	case leave, pause:
	case opened:
		c.opened()
	case shadow:
		c.opened()
		c.frame.Attention.Or(attendShadow)
	case halt:
		return StopHalt, false
	default:
		return c.resolve(s)
	}
	return 0, true
}

// attend looks at why the CPU was asked to look up. It reports whether Run returns.
func (c *CPU) attend(a uint32) (Stop, bool) {
	if a&native.AttendRuntime != 0 { // to have returned from translated code is all
		c.frame.Attention.And(^uint32(native.AttendRuntime))
	}
	if a&attendGuards != 0 {
		c.endGuards()
	}
	switch {
	case a&attendExit != 0:
		c.frame.Attention.And(^uint32(attendExit))
		return StopExit, true
	case a&attendShadow != 0:
		c.frame.Attention.And(^uint32(attendShadow))
	case a&attendOwner != 0:
		c.frame.Attention.And(^uint32(attendOwner))
		return StopAttention, true
	case c.sys&flagTF == 0:
		c.frame.Attention.And(^uint32(attendTrace))
	}
	return 0, false
}

// opened looks for an interrupt once the guest takes them again.
func (c *CPU) opened() {
	if c.board.InterruptWanted() {
		c.frame.Attention.Or(attendOwner)
	}
}

// resolve deals with an instruction that was not done. It reports whether Run goes on.
func (c *CPU) resolve(s status) (Stop, bool) {
	if s == handOver && !c.refused() {
		// Once more, in the slow ways that the fast ones leave to KVM.
		c.slow, c.used, c.skipped = true, 0, 0
		s = c.step()
		c.slow = false
		if s == done || s == leave {
			c.forgetExits()
			return 0, true
		}
	}
	c.used, c.skipped = 0, 0
	if c.exits {
		c.exits = false
		c.frame.Attention.And(^uint32(attendExit)) // it may be a write's
		return StopExit, false
	}
	c.forgetExits() // whatever comes, they are not for the next instruction
	switch {
	case s == inject && c.TrapInt3 && c.Inject.Soft && c.Inject.Vector == vectorBP:
		c.r[rIP]-- // INT3 has one byte
		return StopBreakpoint, false
	case s == inject:
		return StopShutdown, c.exception(c.Inject)
	case c.fault.valid:
		c.fault.valid = false
		e := Exception{Vector: vectorPF, HasError: true, Error: c.fault.err, CR2: c.fault.addr}
		if e.Error&pfFetch != 0 && c.sregs.EFER&x86.EFERNXE == 0 && c.sregs.CR4&x86.CR4SMEP == 0 {
			e.Error &^= pfFetch
		}
		return StopShutdown, c.exception(e)
	case c.notCanonical:
		c.notCanonical = false
		return StopShutdown, c.exception(Exception{Vector: vectorGP, HasError: true})
	}
	return StopUnknown, false
}

// refused reports whether it is known why the last instruction was not done.
func (c *CPU) refused() bool { return c.exits || c.fault.valid || c.notCanonical }

// Interrupt delivers an external interrupt, or an NMI with vector 2: the guest must
// take it now. It reports false if the CPU has shut down.
func (c *CPU) Interrupt(vector uint8) bool {
	if vector == vectorNMI {
		c.InNMI = true
	}
	return c.exception(Exception{Vector: vector, external: true})
}

// CanInterrupt reports whether the CPU takes interrupts before the next instruction.
func (c *CPU) CanInterrupt() bool {
	return c.sys&flagIF != 0 && c.frame.Attention.Load()&attendShadow == 0
}
