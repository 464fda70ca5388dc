package ring0

import (
	"vmm/internal/x86"
	"vmm/kvm"
)

// Instructions that only a complete CPU executes here; elsewhere they are KVM's.

// Bits of DR6 and DR7 (SDM 3, 18.2).
const (
	dr6Step  = 1 << 14
	dr6Fixed = 0xffff0ff0
	dr7Fixed = 0x400
)

// gp0 is #GP(0).
func (c *CPU) gp0() status { return c.raise(vectorGP, 0) }

// faultAt raises a fault without an error code for the instruction.
func (c *CPU) faultAt(in *inst, vector uint8) status {
	c.r[rIP] -= uint64(in.len)
	c.Inject = Exception{Vector: vector}
	return inject
}

func execUndefined(c *CPU, in *inst) status { return c.faultAt(in, vectorUD) }

// execInt is INT n, INT3 and INTO.
func execInt(c *CPU, in *inst) status {
	c.Inject = Exception{Vector: uint8(in.imm), Soft: true, behind: in.len}
	return inject
}

func execInt1(c *CPU, _ *inst) status {
	c.Inject = Exception{Vector: vectorDB, external: true}
	return inject
}

func execCPUID(c *CPU, _ *inst) status {
	v := c.board.CPUIDOf(uint32(c.r[rAX]), uint32(c.r[rCX]))
	c.r[rAX], c.r[rBX], c.r[rCX], c.r[rDX] = uint64(v[0]), uint64(v[1]), uint64(v[2]), uint64(v[3])
	return done
}

// execSyscall enters the kernel (SDM 2, SYSCALL).
func execSyscall(c *CPU, in *inst) status {
	const efersce = 1
	if c.sregs.EFER&efersce == 0 || c.sregs.EFER&x86.EFERLMA == 0 {
		return c.faultAt(in, vectorUD)
	}
	entry := uint32(MSRLStar)
	if c.mode != mode64 {
		entry = MSRCStar
	}
	target, _ := c.host.MSR(entry)
	star, _ := c.host.MSR(MSRStar)
	mask, _ := c.host.MSR(MSRSFMask)
	flags := c.flags()
	c.r[rCX], c.r[r11] = c.r[rIP], flags&^flagRF
	sel := uint16(star>>32) &^ 3
	c.sregs.CS, c.sregs.SS = flatSegment(sel, true, 0), flatSegment(sel+8, false, 0)
	c.r[rIP] = target
	c.setFlags(flags &^ (mask | flagRF))
	c.setMode()
	return done
}

// execSysRetComplete returns to user mode, 64-bit or 32-bit (SDM 2, SYSRET).
func execSysRetComplete(c *CPU, in *inst) status {
	star, _ := c.host.MSR(MSRStar)
	sel := uint16(star>>48) | 3
	if in.size == 8 && !canonical(c.r[rCX]) {
		return c.gp0()
	}
	was := c.InterruptsOn()
	c.sregs.CS = flatSegment(sel+16, true, 3)
	c.r[rIP] = c.r[rCX]
	if in.size != 8 {
		c.sregs.CS = flatSegment(sel, true, 3)
		c.sregs.CS.L, c.sregs.CS.DB = 0, 1
		c.r[rIP] = uint64(uint32(c.r[rCX]))
	}
	c.sregs.SS = flatSegment(sel+8, false, 3)
	c.setFlags(c.r[r11]&^(flagRF|flagVM) | flagOne)
	c.setMode()
	if !was && c.InterruptsOn() {
		return opened
	}
	return done
}

// execSysenter and execSysexit are Intel's way (SDM 2, SYSENTER).
func execSysenter(c *CPU, in *inst) status {
	cs, _ := c.host.MSR(MSRSysenterCS)
	sp, _ := c.host.MSR(MSRSysenterESP)
	ip, _ := c.host.MSR(MSRSysenterEIP)
	if cs&^3 == 0 {
		return c.gp0()
	}
	sel := uint16(cs) &^ 3
	c.setFlags(c.flags() &^ (flagIF | flagVM | flagRF))
	c.sregs.CS, c.sregs.SS = flatSegment(sel, true, 0), flatSegment(sel+8, false, 0)
	c.r[rIP], c.r[rSP] = ip, sp
	c.setMode()
	return done
}

func execSysexit(c *CPU, in *inst) status {
	cs, _ := c.host.MSR(MSRSysenterCS)
	if cs&^3 == 0 {
		return c.gp0()
	}
	sel := uint16(cs)&^3 + 16
	ip, sp := c.r[rDX], c.r[rCX]
	if in.size == 8 {
		sel += 16
	} else {
		ip, sp = uint64(uint32(ip)), uint64(uint32(sp))
	}
	c.sregs.CS, c.sregs.SS = flatSegment(sel|3, true, 3), flatSegment((sel+8)|3, false, 3)
	if in.size != 8 {
		c.sregs.CS.L, c.sregs.CS.DB = 0, 1
	}
	c.r[rIP], c.r[rSP] = ip, sp
	c.setMode()
	return done
}

// execMovToCR writes a control register (SDM 3, 2.5).
func execMovToCR(c *CPU, in *inst) status {
	v := c.r[in.rm]
	if c.mode != mode64 {
		v = uint64(uint32(v))
	}
	return c.writeCR(in.reg, v)
}

// cr4Allowed are the bits of CR4 that this CPU has.
const cr4Allowed = 1<<0 | 1<<1 | 1<<2 | 1<<3 | 1<<4 | x86.CR4PAE | 1<<6 | 1<<7 | 1<<8 | x86.CR4OSFXSR | x86.CR4OSXMMEXCPT |
	cr4FSGSBase | x86.CR4OSXSAVE | x86.CR4SMEP | x86.CR4SMAP

const (
	cr0NW, cr0CD = 1 << 29, 1 << 30
	cr0TS        = 1 << 3
	cr4FSGSBase  = 1 << 16
)

func (c *CPU) writeCR(n uint8, v uint64) status {
	s := &c.sregs
	switch n {
	case 0:
		switch {
		case v>>32 != 0, v&x86.CR0PG != 0 && v&x86.CR0PE == 0, v&cr0NW != 0 && v&cr0CD == 0:
			return c.gp0()
		case v&x86.CR0PG != 0 && s.CR0&x86.CR0PG == 0 && s.EFER&x86.EFERLME != 0:
			if s.CR4&x86.CR4PAE == 0 || s.CS.L != 0 {
				return c.gp0()
			}
			s.EFER |= x86.EFERLMA
		case v&x86.CR0PG != 0 && s.EFER&x86.EFERLME == 0:
			return unknown // page tables of 32-bit systems
		case v&x86.CR0PG == 0 && s.CR0&x86.CR0PG != 0:
			if c.mode == mode64 {
				return c.gp0()
			}
			s.EFER &^= x86.EFERLMA
		}
		changed := s.CR0 ^ v
		s.CR0 = v | x86.CR0ET
		if changed&(x86.CR0PG|x86.CR0WP|x86.CR0PE) != 0 {
			c.FlushTLB()
			c.setMode()
		}
	case 2:
		s.CR2 = v
	case 3:
		if v>>52 != 0 {
			return c.gp0()
		}
		s.CR3 = v
		c.FlushTLB()
	case 4:
		if v&^cr4Allowed != 0 || v&x86.CR4PAE == 0 && s.EFER&x86.EFERLMA != 0 {
			return c.gp0()
		}
		s.CR4 = v
		c.FlushTLB()
		c.updateSMAP()
	case 8:
		if v>>4 != 0 {
			return c.gp0()
		}
		c.board.SetCR8(v)
		c.opened()
	}
	return done
}

func execMovFromCR8(c *CPU, in *inst) status {
	c.r[in.rm] = c.board.CR8()
	return done
}

// execLMSW loads the lower bits of CR0, and cannot clear PE.
func execLMSW(c *CPU, in *inst) status {
	v, ok := c.sourceSize(in, 2)
	if !ok {
		return handOver
	}
	return c.writeCR(0, c.sregs.CR0&^14|v&15)
}

func execSMSW(c *CPU, in *inst) status {
	if in.mem {
		return stored(c.store(c.address(in), c.sregs.CR0&0xffff, 2))
	}
	c.set(in.rm, in.size, c.sregs.CR0)
	return done
}

func execCLTS(c *CPU, _ *inst) status {
	c.sregs.CR0 &^= cr0TS
	return done
}

// execMovFromDR and execMovToDR keep the debug registers; breakpoints in them do not
// trigger here.
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
	c.debug[n] = v
	return done
}

// debugRegister is the one that a number means: 4 and 5 are 6 and 7.
func debugRegister(n uint8) uint8 {
	if n == 4 || n == 5 {
		n += 2
	}
	return n & 7
}

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
	s, ok := c.visible(uint16(v))
	good := ok && s.S != 0
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
	if _, ok = c.visible(uint16(v)); ok {
		d, _, _ := c.descriptor(uint16(v), 0, false)
		c.set(in.reg, in.size, d>>32&0xf0ff00)
	}
	return c.setZF(ok)
}

// visible reads a descriptor that the level may know of.
func (c *CPU) visible(selector uint16) (kvm.Segment, bool) {
	if selector&^3 == 0 {
		return kvm.Segment{}, false
	}
	d, _, fault := c.descriptor(selector, 0, false)
	if fault != nil {
		return kvm.Segment{}, false
	}
	s := segmentOf(selector, d)
	level := max(c.cpl, uint8(selector&3))
	return s, s.S != 0 && s.Type&12 == 12 || level <= s.DPL
}

func (c *CPU) setZF(on bool) status {
	f := c.flags() &^ flagZF
	if on {
		f |= flagZF
	}
	c.setArith(f)
	return done
}

func execInvlpgComplete(c *CPU, in *inst) status {
	c.flushPage(c.address(in))
	return done
}

func execXSetBV(c *CPU, _ *inst) status {
	if uint32(c.r[rCX]) != 0 || !c.board.SetXCR0(c.r[rDX]<<32|c.get(rAX, 4)) {
		return c.gp0()
	}
	c.xcr0Known = false
	return done
}

func (c *CPU) readMSR() status {
	v, ok := c.board.ReadMSR(uint32(c.r[rCX]))
	if !ok {
		return c.gp0()
	}
	c.r[rAX], c.r[rDX] = uint64(uint32(v)), v>>32
	return done
}

func (c *CPU) writeMSR(v uint64) status {
	index := uint32(c.r[rCX])
	if index == MSREFER {
		return c.writeEFER(v)
	}
	if !c.board.WriteMSR(index, v) {
		return c.gp0()
	}
	c.opened()
	return done
}

// writeEFER writes the extended feature register (SDM 3, 2.2.1).
func (c *CPU) writeEFER(v uint64) status {
	const allowed = 1 | x86.EFERLME | x86.EFERLMA | x86.EFERNXE
	s := &c.sregs
	if v&^allowed != 0 || (v^s.EFER)&x86.EFERLME != 0 && s.CR0&x86.CR0PG != 0 {
		return c.gp0()
	}
	s.EFER = v&^x86.EFERLMA | s.EFER&x86.EFERLMA
	c.FlushTLB()
	return done
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
