package ring0

import (
	"vmm/internal/x86"
	"vmm/kvm"
)

// Exceptions and interrupts of a complete CPU (SDM 3, chapter 6).

// Vectors beside those of cpu.go (SDM 3, 6.3.1).
const (
	vectorDE  = 0
	vectorDB  = 1
	vectorNMI = 2
	vectorOF  = 4
	vectorNM  = 7
	vectorDF  = 8
	vectorTS  = 10
	vectorNP  = 11
	vectorSS  = 12
)

// Bits of a selector's error code (SDM 3, 6.13).
const (
	errExternal = 1 << 0
	errIDT      = 1 << 1
)

// contributory reports whether a vector is of the class whose second one is a double
// fault (SDM 3, table 6-4).
func contributory(v uint8) bool { return v == vectorDE || v >= vectorTS && v <= vectorGP }

// exception delivers e, and what its delivery raises. It reports false if that ends in
// a triple fault.
func (c *CPU) exception(e Exception) bool {
	c.First = e
	for {
		if e.Vector == vectorPF && !e.external {
			c.sregs.CR2 = e.CR2
		}
		next := c.deliver(&e)
		if next == nil {
			return true
		}
		switch {
		case e.Vector == vectorDF && !e.external:
			return false
		case e.external || e.Soft:
			c.r[rIP] -= uint64(e.behind)
			e = *next
		case contributory(e.Vector) && contributory(next.Vector),
			e.Vector == vectorPF && (contributory(next.Vector) || next.Vector == vectorPF):
			e = Exception{Vector: vectorDF, HasError: true}
		default:
			e = *next
		}
	}
}

// fault returns an exception with an error code, for deliver and its like.
func selectorFault(vector uint8, code uint32) *Exception {
	return &Exception{Vector: vector, HasError: true, Error: code}
}

// accessFault is the exception for an access of the CPU's own that has failed.
func (c *CPU) accessFault() *Exception {
	if c.fault.valid {
		c.fault.valid = false
		return &Exception{Vector: vectorPF, HasError: true, Error: c.fault.err, CR2: c.fault.addr}
	}
	c.notCanonical = false
	return selectorFault(vectorSS, 0)
}

// privileges are what the CPU may do, to be set for accesses of its own and given back.
type privileges struct {
	userAccess uint32
	noUser     bool
}

// asKernel makes the accesses that follow those of level 0 (SDM 3, 4.6.1.2); the result
// gives the level back.
func (c *CPU) asKernel() privileges {
	p := privileges{c.userAccess, c.noUser}
	c.userAccess, c.noUser = 0, c.sregs.CR4&x86.CR4SMAP != 0
	c.chooseTLB()
	return p
}

func (c *CPU) restore(p privileges) {
	c.userAccess, c.noUser = p.userAccess, p.noUser
	c.chooseTLB()
}

// deliver enters the handler of an exception in long mode (SDM 3, 6.14). Where it
// fails nothing has changed, and the exception that it has met is returned.
func (c *CPU) deliver(e *Exception) *Exception {
	if c.sregs.EFER&x86.EFERLMA == 0 {
		return selectorFault(vectorGP, 0) // an operating system without long mode: not here
	}
	before := c.asKernel()
	next := c.enterHandler(e)
	if next != nil {
		c.restore(before)
		return next
	}
	c.setMode()
	return nil
}

func (c *CPU) enterHandler(e *Exception) *Exception {
	s := &c.sregs
	code := uint32(e.Vector)<<3 | errIDT
	if !e.Soft {
		code |= errExternal
	}
	at := uint64(e.Vector) * 16
	if at+15 > uint64(s.IDT.Limit) {
		return selectorFault(vectorGP, code)
	}
	lo, ok1 := c.load(s.IDT.Base+at, 8)
	hi, ok2 := c.load(s.IDT.Base+at+8, 8)
	if !ok1 || !ok2 {
		return c.accessFault()
	}
	const interruptGate, trapGate = 14, 15
	kind := lo >> 40 & 31
	switch {
	case kind != interruptGate && kind != trapGate, e.Soft && uint8(lo>>45&3) < c.cpl:
		return selectorFault(vectorGP, code)
	case lo>>47&1 == 0:
		return selectorFault(vectorNP, code)
	}
	selector := uint16(lo >> 16)
	cs, next := c.codeSegment(selector, errExternal)
	if next != nil {
		return next
	}
	if cs.DPL > c.cpl || cs.L == 0 {
		return selectorFault(vectorGP, uint32(selector)&^3|errExternal)
	}
	level := cs.DPL
	if cs.Type&4 != 0 { // conforming
		level = c.cpl
	}
	stack := c.r[rSP]
	if ist := lo >> 32 & 7; ist != 0 {
		stack, ok1 = c.load(s.TR.Base+tssIST+8*(ist-1), 8)
	} else if level < c.cpl {
		stack, ok1 = c.load(s.TR.Base+tssRSP0+8*uint64(level), 8)
	}
	if !ok1 {
		return c.accessFault()
	}
	stack &^= 15
	flags := c.flags()
	if !e.external && !e.Soft && e.Vector != vectorDB {
		flags |= flagRF
	}
	frame := [6]uint64{c.r[rIP], uint64(s.CS.Selector), flags, c.r[rSP], uint64(s.SS.Selector)}
	from := frame[:5]
	if e.HasError {
		frame = [6]uint64{uint64(e.Error), frame[0], frame[1], frame[2], frame[3], frame[4]}
		from = frame[:]
	}
	sp := stack - 8*uint64(len(from))
	for i := len(from) - 1; i >= 0; i-- {
		if !c.store(sp+8*uint64(i), from[i], 8) {
			return c.accessFault()
		}
	}
	c.r[rSP] = sp
	c.r[rIP] = lo&0xffff | lo>>32&0xffff0000 | hi<<32
	cs.Selector = selector&^3 | uint16(level)
	s.CS = cs
	if level != c.cpl {
		s.SS = kvm.Segment{Selector: uint16(level), DPL: level, Unusable: 1}
	}
	flags &^= flagTF | flagNT | flagRF | flagVM
	if kind == interruptGate {
		flags &^= flagIF
	}
	c.setFlags(flags)
	return nil
}

// Places in the task-state segment of long mode (SDM 3, 7.7).
const (
	tssRSP0  = 4
	tssIST   = 36
	tssIOMap = 102
)
