package ring0

import "vmm/internal/x86"

// Instructions that only a complete CPU executes here; elsewhere they are KVM's.

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
	entry := uint32(x86.MSRLStar)
	if c.mode != mode64 {
		entry = x86.MSRCStar
	}
	target, _ := c.host.MSR(entry)
	star, _ := c.host.MSR(x86.MSRStar)
	mask, _ := c.host.MSR(x86.MSRSFMask)
	flags := c.flags()
	c.r[rCX], c.r[r11] = c.r[rIP], flags&^flagRF
	c.kernelSegments(star)
	c.r[rIP] = target
	c.setFlags(flags &^ (mask | flagRF))
	c.setMode()
	if entry == x86.MSRLStar {
		c.syscalls(target, mask)
	}
	return done
}

// kernelSegments and userSegments are CS and SS after SYSCALL, and after SYSRET to 64-bit code.
func (c *CPU) kernelSegments(star uint64) {
	sel := uint16(star>>32) &^ 3
	c.sregs.CS, c.sregs.SS = flatSegment(sel, true, 0), flatSegment(sel+8, false, 0)
}

func (c *CPU) userSegments(star uint64) {
	sel := uint16(star>>48) | 3
	c.sregs.CS, c.sregs.SS = flatSegment(sel+16, true, 3), flatSegment(sel+8, false, 3)
}

// execSysRetComplete returns to user mode, 64-bit or 32-bit (SDM 2, SYSRET).
func execSysRetComplete(c *CPU, in *inst) status {
	star, _ := c.host.MSR(x86.MSRStar)
	if in.size == 8 && !canonical(c.r[rCX]) {
		return c.gp0()
	}
	was := c.InterruptsOn()
	c.userSegments(star)
	c.r[rIP] = c.r[rCX]
	if in.size != 8 {
		c.sregs.CS = flatSegment(uint16(star>>48)|3, true, 3)
		c.sregs.CS.L, c.sregs.CS.DB = 0, 1
		c.r[rIP] = uint64(uint32(c.r[rCX]))
	}
	c.setFlags(c.r[r11]&sysretFlags | flagOne)
	c.setMode()
	if !was && c.InterruptsOn() {
		return opened
	}
	return done
}

// sysretFlags are the bits of RFLAGS that SYSRET takes from R11 (SDM 2, SYSRET).
const sysretFlags = 0x3c7fd7

// execSysenter and execSysexit are Intel's way (SDM 2, SYSENTER).
func execSysenter(c *CPU, in *inst) status {
	cs, _ := c.host.MSR(x86.MSRSysenterCS)
	sp, _ := c.host.MSR(x86.MSRSysenterESP)
	ip, _ := c.host.MSR(x86.MSRSysenterEIP)
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
	cs, _ := c.host.MSR(x86.MSRSysenterCS)
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
		c.flushLocal()
	case 4:
		if v&^cr4Allowed != 0 || v&x86.CR4PAE == 0 && s.EFER&x86.EFERLMA != 0 {
			return c.gp0()
		}
		if (s.CR4^v)&x86.CR4SMAP != 0 {
			c.forgetTranslations()
		}
		s.CR4 = v
		c.ForgetSyscalls()
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

func execXSetBV(c *CPU, _ *inst) status {
	if uint32(c.r[rCX]) != 0 || !c.board.SetXCR0(c.r[rDX]<<32|c.get(rAX, 4)) {
		return c.gp0()
	}
	c.xcr0Known = false
	c.forgetTranslations()
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
	switch index {
	case x86.MSRStar, x86.MSRLStar, x86.MSRSFMask:
		c.ForgetSyscalls()
	case x86.MSREFER:
		c.ForgetSyscalls()
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
