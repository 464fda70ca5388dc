package ring0

import (
	"vmm/internal/x86"
	"vmm/kvm"
)

// Segments and transfers between them, of a complete CPU (SDM 3, chapters 3 and 5).

// Numbers of segment registers as instructions encode them.
const (
	sregES = iota
	sregCS
	sregSS
	sregDS
	sregFS
	sregGS
)

// segmentRegister is where a segment register is kept.
func (c *CPU) segmentRegister(n uint8) *kvm.Segment {
	s := &c.sregs
	return [...]*kvm.Segment{&s.ES, &s.CS, &s.SS, &s.DS, &s.FS, &s.GS}[n]
}

// baseOf says which of c.base a segment register's is.
var baseOf = [...]uint8{sregES: segES, sregCS: segCS, sregSS: segSS, sregDS: segDS, sregFS: segFS, sregGS: segGS}

// descriptor reads a descriptor as the CPU does, and with system its upper half.
func (c *CPU) descriptor(selector uint16, external uint32, system bool) (lo, hi uint64, fault *Exception) {
	base, limit := c.sregs.GDT.Base, uint64(c.sregs.GDT.Limit)
	if selector&4 != 0 {
		base, limit = c.sregs.LDT.Base, uint64(c.sregs.LDT.Limit)
	}
	at := uint64(selector &^ 7)
	last := at + 7
	if system {
		last += 8
	}
	if last > limit || selector&4 != 0 && c.sregs.LDT.Unusable != 0 {
		return 0, 0, selectorFault(vectorGP, uint32(selector)&^3|external)
	}
	before := c.asKernel()
	defer c.restore(before)
	lo, ok := c.load(base+at, 8)
	if ok && system {
		hi, ok = c.load(base+at+8, 8)
	}
	if !ok {
		return 0, 0, c.accessFault()
	}
	return lo, hi, nil
}

// segmentOf makes a descriptor what KVM's structures hold.
func segmentOf(selector uint16, d uint64) kvm.Segment {
	bit := func(n uint) uint8 { return uint8(d >> n & 1) }
	s := kvm.Segment{Selector: selector, Base: d>>16&0xffffff | d>>32&0xff000000, Limit: uint32(d&0xffff | d>>32&0xf0000),
		Type: uint8(d >> 40 & 15), S: bit(44), DPL: uint8(d >> 45 & 3), Present: bit(47), AVL: bit(52), L: bit(53), DB: bit(54), G: bit(55)}
	if s.G != 0 {
		s.Limit = s.Limit<<12 | 0xfff
	}
	return s
}

// codeSegment reads the descriptor of a code segment.
func (c *CPU) codeSegment(selector uint16, external uint32) (kvm.Segment, *Exception) {
	code := uint32(selector)&^3 | external
	if selector&^3 == 0 {
		return kvm.Segment{}, selectorFault(vectorGP, external)
	}
	d, _, fault := c.descriptor(selector, external, false)
	if fault != nil {
		return kvm.Segment{}, fault
	}
	s := segmentOf(selector, d)
	switch {
	case s.S == 0 || s.Type&8 == 0 || s.L != 0 && s.DB != 0:
		return s, selectorFault(vectorGP, code)
	case s.Present == 0:
		return s, selectorFault(vectorNP, code)
	}
	s.Type |= 1 // accessed
	return s, nil
}

// raiseFault ends an instruction with a fault that something in it has met.
func (c *CPU) raiseFault(in *inst, e *Exception) status {
	c.r[rIP] -= uint64(in.len)
	if e.HasError { // step takes the instruction's length off
		c.r[rIP] += uint64(in.len)
	}
	c.Inject = *e
	return inject
}

// loadSegment loads a data segment register (SDM 2, MOV).
func (c *CPU) loadSegment(n uint8, selector uint16) *Exception {
	to := c.segmentRegister(n)
	if c.mode == mode16 && c.sregs.CR0&x86.CR0PE == 0 {
		to.Selector, to.Base = selector, uint64(selector)<<4
		c.base[baseOf[n]] = to.Base
		return nil
	}
	if selector&^3 == 0 {
		if n == sregSS && (c.mode != mode64 || c.cpl == 3 || uint8(selector&3) != c.cpl) {
			return selectorFault(vectorGP, 0)
		}
		dpl := uint8(0)
		if n == sregSS {
			dpl = c.cpl
		}
		*to = kvm.Segment{Selector: selector, DPL: dpl, Unusable: 1}
		c.base[baseOf[n]] = 0
		return nil
	}
	d, _, fault := c.descriptor(selector, 0, false)
	if fault != nil {
		return fault
	}
	s := segmentOf(selector, d)
	rpl, code := uint8(selector&3), uint32(selector)&^3
	readable := s.S != 0 && (s.Type&8 == 0 || s.Type&2 != 0)
	conforming := s.Type&12 == 12
	switch {
	case n == sregSS && (s.S == 0 || s.Type&10 != 2 || rpl != c.cpl || s.DPL != c.cpl),
		n != sregSS && (!readable || !conforming && (rpl > s.DPL || c.cpl > s.DPL)):
		return selectorFault(vectorGP, code)
	case s.Present == 0 && n == sregSS:
		return selectorFault(vectorSS, code)
	case s.Present == 0:
		return selectorFault(vectorNP, code)
	}
	s.Type |= 1
	*to = s
	if c.mode != mode64 || n == sregFS || n == sregGS {
		c.base[baseOf[n]] = s.Base
	}
	return nil
}

// farTransfer is a far JMP, CALL or RET to a code segment of the same level.
func (c *CPU) farTransfer(selector uint16, offset uint64) *Exception {
	if c.sregs.CR0&x86.CR0PE == 0 {
		c.sregs.CS.Selector, c.sregs.CS.Base = selector, uint64(selector)<<4
		c.r[rIP] = offset
		c.setMode()
		c.setBases()
		return nil
	}
	cs, fault := c.codeSegment(selector, 0)
	if fault != nil {
		return fault
	}
	if conforming := cs.Type&4 != 0; conforming && cs.DPL > c.cpl || !conforming && cs.DPL != c.cpl {
		return selectorFault(vectorGP, uint32(selector)&^3)
	}
	if c.sregs.EFER&x86.EFERLMA != 0 && cs.L != 0 && !canonical(offset) {
		return selectorFault(vectorGP, 0)
	}
	cs.Selector = selector&^3 | uint16(c.cpl)
	c.sregs.CS = cs
	c.r[rIP] = offset
	c.setMode()
	c.setBases()
	return nil
}

// outer is a return to a code segment, and with a stack to its level: the end of IRET
// and of a far RET to another level.
func (c *CPU) outer(selector uint16, offset uint64, ss uint16, sp uint64) *Exception {
	cs, fault := c.codeSegment(selector, 0)
	if fault != nil {
		return fault
	}
	level, code := uint8(selector&3), uint32(selector)&^3
	conforming := cs.Type&4 != 0
	if level < c.cpl || conforming && cs.DPL > level || !conforming && cs.DPL != level {
		return selectorFault(vectorGP, code)
	}
	if cs.L != 0 && !canonical(offset) {
		return selectorFault(vectorGP, 0)
	}
	stack := kvm.Segment{Selector: ss, DPL: level, Unusable: 1}
	if ss&^3 == 0 {
		if level == 3 || cs.L == 0 || uint8(ss&3) != level {
			return selectorFault(vectorGP, 0)
		}
	} else {
		d, _, fault := c.descriptor(ss, 0, false)
		if fault != nil {
			return fault
		}
		stack = segmentOf(ss, d)
		switch {
		case stack.S == 0 || stack.Type&10 != 2 || stack.DPL != level || uint8(ss&3) != level:
			return selectorFault(vectorGP, uint32(ss)&^3)
		case stack.Present == 0:
			return selectorFault(vectorSS, uint32(ss)&^3)
		}
	}
	lower := level > c.cpl
	c.sregs.CS, c.sregs.SS = cs, stack
	c.r[rIP], c.r[rSP] = offset, sp
	if lower { // what is not for the outer level is taken from it
		for _, n := range []uint8{sregES, sregDS, sregFS, sregGS} {
			s := c.segmentRegister(n)
			if s.Selector&^3 == 0 {
				s.Selector = 0
			}
			if s.Unusable == 0 && s.DPL < level && s.Type&12 != 12 {
				*s = kvm.Segment{Unusable: 1}
				c.base[baseOf[n]] = 0
			}
		}
	}
	c.setMode()
	c.setBases()
	return nil
}

// execIRetComplete is IRET of a complete CPU outside virtual-8086 mode (SDM 2, IRET).
func execIRetComplete(c *CPU, in *inst) status {
	size := in.size
	var frame [5]uint64 // RIP, CS, RFLAGS, RSP, SS
	n := 5
	real := c.sregs.CR0&x86.CR0PE == 0
	if c.mode != mode64 {
		n = 3
	}
	read := func(from, to int) bool {
		for i := from; i < to; i++ {
			v, ok := c.load(c.stackTop(uint64(i)*uint64(size)), size)
			if !ok {
				return false
			}
			frame[i] = v
		}
		return true
	}
	if !read(0, n) {
		return handOver
	}
	if c.mode != mode64 && !real && uint8(frame[1]&3) > c.cpl {
		if n = 5; !read(3, n) {
			return handOver
		}
	}
	mask := uint64(arithFlags | flagTF | flagDF | flagNT | flagAC | flagID)
	if c.own.code != 0 { // RF is for breakpoints alone
		mask |= flagRF
	}
	if c.mayIO() {
		mask |= flagIF
	}
	if c.cpl == 0 {
		mask |= flagIOPL
	}
	if size == 2 {
		mask &= 0xffff
	}
	was := c.InterruptsOn()
	flags := c.flags()&^(mask|flagRF) | frame[2]&mask
	var fault *Exception
	switch {
	case real:
		c.setSP(c.stackOffset(uint64(n) * uint64(size)))
		fault = c.farTransfer(uint16(frame[1]), frame[0])
	case c.sys&flagNT != 0 && c.sregs.EFER&x86.EFERLMA != 0:
		fault = selectorFault(vectorGP, 0)
	case n == 3:
		sp := c.stackOffset(uint64(n) * uint64(size))
		fault = c.outer(uint16(frame[1]), frame[0], c.sregs.SS.Selector, sp)
	default:
		fault = c.outer(uint16(frame[1]), frame[0], uint16(frame[4]), frame[3])
	}
	if fault != nil {
		return c.raiseFault(in, fault)
	}
	c.InNMI = false
	c.setFlags(flags)
	if !was && c.InterruptsOn() {
		return opened
	}
	return done
}

// stackTop is the linear address n bytes above the stack pointer.
func (c *CPU) stackTop(n uint64) uint64 {
	sp := c.stackOffset(n)
	if c.mode != mode64 && c.sregs.SS.DB == 0 {
		sp = uint64(uint16(sp))
	}
	return c.linear(segSS, sp)
}

// stackOffset is the stack pointer n bytes above the one that is there; the upper half stays
// where the stack has 16 bits.
func (c *CPU) stackOffset(n uint64) uint64 {
	switch {
	case c.mode == mode64:
		return c.r[rSP] + n
	case c.sregs.SS.DB != 0:
		return uint64(uint32(c.r[rSP] + n))
	}
	return c.r[rSP]&^0xffff | uint64(uint16(c.r[rSP]+n))
}
