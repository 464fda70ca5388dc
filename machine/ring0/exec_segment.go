package ring0

import (
	"vmm/internal/x86"
	"vmm/kvm"
)

// Instructions on segments and their tables, of a complete CPU.

// execTableLoad is LGDT (2) and LIDT (3), execTableStore SGDT (0) and SIDT (1).
func execTableLoad(c *CPU, in *inst) status {
	addr := c.address(in)
	limit, ok := c.load(addr, 2)
	if !ok {
		return handOver
	}
	size := uint8(8)
	if c.mode != mode64 {
		size = 4
	}
	base, ok := c.load(addr+2, size)
	if !ok {
		return handOver
	}
	if c.mode == mode64 && !canonical(base) {
		return c.gp0()
	}
	if c.mode != mode64 && in.size == 2 {
		base &= 0xffffff
	}
	t := kvm.DTable{Base: base, Limit: uint16(limit)}
	if in.op == 2 {
		c.sregs.GDT = t
	} else {
		c.sregs.IDT = t
	}
	return done
}

func execTableStore(c *CPU, in *inst) status {
	t := c.sregs.GDT
	if in.op == 1 {
		t = c.sregs.IDT
	}
	addr := c.address(in)
	var b [10]byte
	le.PutUint16(b[:], t.Limit)
	le.PutUint64(b[2:], t.Base)
	n := 10
	if c.mode != mode64 {
		n = 6
	}
	return stored(c.write(addr, b[:n]))
}

// execSystemLoad is LLDT (2) and LTR (3), execSystemStore SLDT (0) and STR (1).
func execSystemLoad(c *CPU, in *inst) status {
	v, ok := c.sourceSize(in, 2)
	if !ok {
		return handOver
	}
	selector := uint16(v)
	to, kind := &c.sregs.LDT, uint8(2)
	if in.op == 3 {
		to, kind = &c.sregs.TR, 9
	}
	if selector&^3 == 0 {
		if in.op == 3 {
			return c.gp0()
		}
		*to = kvm.Segment{Selector: selector, Unusable: 1}
		return done
	}
	long := c.sregs.EFER&x86.EFERLMA != 0
	d, high, fault := c.descriptor(selector&^4, 0, long)
	if fault == nil && (selector&4 != 0 || uint8(d>>40&31) != kind) {
		fault = selectorFault(vectorGP, uint32(selector)&^3)
	}
	if fault == nil && d>>47&1 == 0 {
		fault = selectorFault(vectorNP, uint32(selector)&^3)
	}
	if fault != nil {
		return c.raiseFault(in, fault)
	}
	s := segmentOf(selector, d)
	if long {
		s.Base |= high << 32
	}
	if in.op == 3 {
		s.Type |= 2 // busy
		if !c.store(c.sregs.GDT.Base+uint64(selector&^7), d|2<<40, 8) {
			return handOver
		}
	}
	*to = s
	return done
}

func execSystemStore(c *CPU, in *inst) status {
	v := uint64(c.sregs.LDT.Selector)
	if in.op == 1 {
		v = uint64(c.sregs.TR.Selector)
	}
	if in.mem {
		return stored(c.store(c.address(in), v, 2))
	}
	c.set(in.rm, in.size, v)
	return done
}

// execVerify is VERR (4) and VERW (5), execLAR loads access rights.
func execVerify(c *CPU, in *inst) status {
	v, ok := c.sourceSize(in, 2)
	if !ok {
		return handOver
	}
	s, good := c.visible(uint16(v), 0)
	if in.op == 4 {
		good = good && (s.Type&8 == 0 || s.Type&2 != 0)
	} else {
		good = good && s.Type&10 == 2
	}
	return c.setZF(good)
}

func execLAR(c *CPU, in *inst) status {
	v, ok := c.sourceSize(in, 2)
	if !ok {
		return handOver
	}
	if _, ok = c.visible(uint16(v), systemLimits|1<<callGate); ok {
		d, _, _ := c.descriptor(uint16(v), 0, false)
		c.set(in.reg, in.size, d>>32&0xf0ff00)
	}
	return c.setZF(ok)
}

// execLSLComplete is LSL of any segment that has a limit, also in the LDT and from user mode.
func execLSLComplete(c *CPU, in *inst) status {
	v, ok := c.sourceSize(in, 2)
	if !ok {
		return handOver
	}
	s, ok := c.visible(uint16(v), systemLimits)
	if ok {
		c.set(in.reg, in.size, uint64(s.Limit))
	}
	return c.setZF(ok)
}

// systemLimits are the types of system segments that LSL knows in long mode, as bits: an LDT,
// an available and a busy task-state segment (SDM 2, LSL). LAR knows call gates too.
const (
	systemLimits = 1<<2 | 1<<9 | 1<<11
	callGate     = 12
)

// visible reads a descriptor that the level may know of, of a code or data segment or of one of
// the system's types.
func (c *CPU) visible(selector uint16, system uint16) (kvm.Segment, bool) {
	if selector&^3 == 0 {
		return kvm.Segment{}, false
	}
	d, _, fault := c.descriptor(selector, 0, false)
	if fault != nil {
		return kvm.Segment{}, false
	}
	s := segmentOf(selector, d)
	level := max(c.cpl, uint8(selector&3))
	known := s.S != 0 || system>>s.Type&1 != 0
	return s, known && (s.S != 0 && s.Type&12 == 12 || level <= s.DPL)
}

// execMovToSeg loads a segment register; one of SS keeps interrupts off for an instruction.
func execMovToSeg(c *CPU, in *inst) status {
	v, ok := c.sourceSize(in, 2)
	if !ok {
		return handOver
	}
	if in.reg > sregGS || in.reg == sregCS {
		return c.faultAt(in, vectorUD)
	}
	if fault := c.loadSegment(in.reg, uint16(v)); fault != nil {
		return c.raiseFault(in, fault)
	}
	if in.reg == sregSS {
		return shadow
	}
	return done
}

func execPushSeg(c *CPU, in *inst) status {
	return c.push(uint64(c.segmentRegister(in.reg).Selector), in.size)
}

func execPopSeg(c *CPU, in *inst) status {
	v, ok := c.load(c.stackTop(0), in.size)
	if !ok {
		return handOver
	}
	if fault := c.loadSegment(in.reg, uint16(v)); fault != nil {
		return c.raiseFault(in, fault)
	}
	c.setSP(c.stackOffset(uint64(in.size)))
	if in.reg == sregSS {
		return shadow
	}
	return done
}

// execFarPointer is LSS, LFS, LGS, LES and LDS.
func execFarPointer(c *CPU, in *inst) status {
	addr := c.address(in)
	offset, ok1 := c.load(addr, in.size)
	selector, ok2 := c.load(addr+uint64(in.size), 2)
	if !ok1 || !ok2 {
		return handOver
	}
	if fault := c.loadSegment(in.op, uint16(selector)); fault != nil {
		return c.raiseFault(in, fault)
	}
	c.set(in.reg, in.size, offset)
	return done
}

// execFar is a far JMP or CALL (in.op 3) to the pointer in memory or in the instruction.
func execFar(c *CPU, in *inst) status {
	offset, selector := in.disp, in.imm
	if in.mem {
		addr := c.address(in)
		var ok1, ok2 bool
		offset, ok1 = c.load(addr, in.size)
		selector, ok2 = c.load(addr+uint64(in.size), 2)
		if !ok1 || !ok2 {
			return handOver
		}
	}
	back, cs, sp := c.r[rIP], c.sregs.CS.Selector, c.r[rSP]
	if in.op == 3 {
		if s := c.push(uint64(cs), in.size); s != done {
			return s
		}
		if s := c.push(back, in.size); s != done {
			c.r[rSP] = sp
			return s
		}
	}
	if fault := c.farTransfer(uint16(selector), offset); fault != nil {
		c.r[rSP] = sp
		return c.raiseFault(in, fault)
	}
	return done
}

// execRetFar is RETF.
func execRetFar(c *CPU, in *inst) status {
	n := uint64(in.size)
	offset, ok1 := c.load(c.stackTop(0), in.size)
	selector, ok2 := c.load(c.stackTop(n), 2)
	if !ok1 || !ok2 {
		return handOver
	}
	if c.sregs.CR0&x86.CR0PE != 0 && uint8(selector&3) > c.cpl {
		sp, ok1 := c.load(c.stackTop(2*n+in.imm), in.size)
		ss, ok2 := c.load(c.stackTop(3*n+in.imm), 2)
		if !ok1 || !ok2 {
			return handOver
		}
		if fault := c.outer(uint16(selector), offset, uint16(ss), sp+in.imm); fault != nil {
			return c.raiseFault(in, fault)
		}
		return done
	}
	sp := c.stackOffset(2*n + in.imm)
	if fault := c.farTransfer(uint16(selector), offset); fault != nil {
		return c.raiseFault(in, fault)
	}
	c.setSP(sp)
	return done
}

func (c *CPU) setSP(v uint64) { c.r[rSP] = v }
