package ring0

import (
	"crypto/rand"
	"encoding/binary"

	"vmm/internal/x86"
	"vmm/kvm"
)

// raise ends an instruction with an exception that has an error code.
func (c *CPU) raise(vector uint8, code uint32) status {
	c.Inject = Exception{Vector: vector, HasError: true, Error: code}
	return inject
}

// execInt3 raises #BP behind the instruction.
func execInt3(c *CPU, _ *inst) status {
	c.Inject = Exception{Vector: vectorBP}
	return inject
}

func execHLT(*CPU, *inst) status { return halt }

// execHandOverFlush is for what KVM does and the TLB must know of.
func execHandOverFlush(c *CPU, _ *inst) status {
	c.FlushTLB()
	c.xcr0Known = false // it may be an XSETBV
	return handOver
}

func execInvlpg(c *CPU, in *inst) status {
	c.flushPage(c.address(in))
	return stored(c.board != nil) // else KVM has to know, too
}

// execInvpcid flushes everything, which is always allowed. KVM needs no word
// of it: it drops a shadow entry when the guest's is written.
func execInvpcid(c *CPU, _ *inst) status {
	c.FlushTLB()
	return done
}

func execMovFromCR(c *CPU, in *inst) status {
	s := &c.sregs
	switch in.reg {
	case 0:
		c.r[in.rm] = s.CR0
	case 2:
		c.r[in.rm] = s.CR2
	case 3:
		c.r[in.rm] = s.CR3
	case 4:
		c.r[in.rm] = s.CR4
	}
	return done
}

// execACFlag is CLAC (0xca) and STAC (0xcb).
func execACFlag(c *CPU, in *inst) status {
	if in.op == 0xca {
		c.sys &^= flagAC
	} else {
		c.sys |= flagAC
	}
	c.updateSMAP()
	return done
}

func execSwapGS(c *CPU, _ *inst) status {
	c.base[segGS], c.kernelGSBase = c.kernelGSBase, c.base[segGS]
	return done
}

// execFSGSBase is RDFSBASE, RDGSBASE, WRFSBASE and WRGSBASE.
func execFSGSBase(c *CPU, in *inst) status {
	if c.board != nil && c.sregs.CR4&cr4FSGSBase == 0 {
		return c.faultAt(in, vectorUD)
	}
	seg := segFS + int(in.op&1)
	if in.op < 2 {
		c.set(in.rm, in.size, c.base[seg])
		return done
	}
	v := c.get(in.rm, in.size)
	if !canonical(v) {
		return c.raise(vectorGP, 0)
	}
	c.base[seg] = v
	return done
}

func execRDMSR(c *CPU, _ *inst) status {
	var v uint64
	switch uint32(c.r[rCX]) {
	case x86.MSRFSBase:
		v = c.base[segFS]
	case x86.MSRGSBase:
		v = c.base[segGS]
	case x86.MSRKernelGSBase:
		v = c.kernelGSBase
	default:
		if c.board != nil {
			return c.readMSR()
		}
		return handOver
	}
	c.r[rAX], c.r[rDX] = uint64(uint32(v)), v>>32
	return done
}

func execWRMSR(c *CPU, _ *inst) status {
	v := c.r[rDX]<<32 | c.get(rAX, 4)
	c.WrittenMSR = uint32(c.r[rCX])
	index := uint32(c.r[rCX])
	switch {
	case canonical(v):
	case c.board == nil:
		return handOver
	case isAddress(index):
		return c.gp0()
	}
	switch index {
	case x86.MSRFSBase:
		c.base[segFS] = v
	case x86.MSRGSBase:
		c.base[segGS] = v
	case x86.MSRKernelGSBase:
		c.kernelGSBase = v
	default:
		if c.board != nil {
			return c.writeMSR(v)
		}
		return handOver
	}
	return done
}

// isAddress reports whether an MSR holds a linear address.
func isAddress(index uint32) bool {
	return index >= x86.MSRFSBase && index <= x86.MSRKernelGSBase || index == x86.MSRLStar || index == x86.MSRCStar
}

func execRDTSC(c *CPU, _ *inst) status {
	t := c.host.TSC()
	c.r[rAX], c.r[rDX] = uint64(uint32(t)), t>>32
	return done
}

func (c *CPU) tscAux() (uint64, bool) {
	v, err := c.host.MSR(x86.MSRTSCAux)
	return v, err == nil
}

func execRDTSCP(c *CPU, in *inst) status {
	v, ok := c.tscAux()
	if !ok {
		return handOver
	}
	c.r[rCX] = uint64(uint32(v))
	return execRDTSC(c, in)
}

func execRDPID(c *CPU, in *inst) status {
	v, ok := c.tscAux()
	if !ok {
		return handOver
	}
	c.r[in.rm] = v
	return done
}

// execRDRand is RDRAND and RDSEED.
func execRDRand(c *CPU, in *inst) status {
	var b [8]byte
	rand.Read(b[:]) // never fails (crypto/rand)
	c.logic(1, 8)
	c.pv, c.cf = 1, 1
	c.set(in.rm, in.size, binary.NativeEndian.Uint64(b[:]))
	return done
}

// execVMCall answers every hypercall with -KVM_ENOSYS: such hosts never come
// back from one, and the guest is told of none.
func execVMCall(c *CPU, _ *inst) status {
	const enosys = 1000
	c.r[rAX] = ^uint64(enosys - 1)
	return done
}

// execVerW is VERW, which kernels use to clear CPU buffers: its selector is
// always their own writable data segment.
func execVerW(c *CPU, in *inst) status {
	sel, ok := c.source(in)
	if !ok {
		return handOver
	}
	return c.setZF(sel&^7 != 0)
}

// execLSL loads the limit of a segment in the GDT, which kernels use to find
// the CPU's number (SDM 2, LSL; 3, 3.4.5).
func execLSL(c *CPU, in *inst) status {
	sel, ok := c.sourceSize(in, 2)
	if !ok {
		return handOver
	}
	const local, present, codeOrData, pages = 4, 1 << 47, 1 << 44, 1 << 55
	var d uint64
	if sel&^7 != 0 && sel&local == 0 && sel|7 <= uint64(c.sregs.GDT.Limit) {
		if d, ok = c.load(c.sregs.GDT.Base+sel&^7, 8); !ok {
			return handOver
		}
	}
	there := d&present != 0 && d&codeOrData != 0
	if there {
		limit := d&0xffff | d>>32&0xf0000
		if d&pages != 0 {
			limit = limit<<12 | 0xfff
		}
		c.set(in.reg, in.size, limit)
	}
	return c.setZF(there)
}

// execFence is LFENCE, MFENCE and SFENCE. The executor's accesses are the
// host CPU's own, in order but for later loads before earlier stores.
func execFence(c *CPU, _ *inst) status {
	c.fence.Add(1) // a locked access orders the host's
	return done
}

// flatSegment is a segment as SYSCALL and SYSRET load it (SDM 2).
func flatSegment(selector uint16, code bool, dpl uint8) kvm.Segment {
	s := kvm.Segment{Limit: 0xffffffff, Selector: selector, Type: 3, Present: 1, DPL: dpl, S: 1, G: 1, DB: 1}
	if code {
		s.Type, s.L, s.DB = 11, 1, 0
	}
	return s
}

// execSysRet returns to 64-bit user mode. The 32-bit form is left to KVM.
func execSysRet(c *CPU, in *inst) status {
	if in.size != 8 || !canonical(c.r[rCX]) {
		return handOver
	}
	star, err := c.host.MSR(x86.MSRStar)
	if err != nil {
		return handOver
	}
	sel := uint16(star >> 48)
	c.sregs.CS = flatSegment(sel+16|3, true, 3)
	c.sregs.SS = flatSegment(sel+8|3, false, 3)
	c.sregsDirty = true
	c.r[rIP] = c.r[rCX]
	c.setFlags(c.r[r11]&^(flagRF|flagVM) | flagOne)
	return leave
}

// FinishSyscall completes a SYSCALL that the host began in user mode and then
// took for a fetch of a kernel address: the exception frame of that #PF lies
// on the kernel's stack, and the handler's first instruction has been
// executed. It reports whether that is so.
func (c *CPU) FinishSyscall(lstar, star uint64) bool {
	if c.sregs.CR2 != lstar || lstar == 0 {
		return false
	}
	var frame [6]uint64 // error code, RIP, CS, RFLAGS, RSP, SS
	for i := range frame {
		v, ok := c.load(c.r[rSP]+8*uint64(i), 8)
		if !ok {
			return false
		}
		frame[i] = v
	}
	if frame[0]&(pfFetch|4) != pfFetch|4 || frame[1] != lstar || frame[2]&3 != 3 {
		return false
	}
	sel := uint16(star>>32) &^ 3
	c.sregs.CS = flatSegment(sel, true, 0)
	c.sregs.SS = flatSegment(sel+8, false, 0)
	c.sregsDirty = true
	c.r[rIP], c.r[rSP] = lstar, frame[4]
	c.setFlags(frame[3] &^ flagRF)
	return true
}

// execIRet returns from an exception or interrupt, to kernel mode or to
// 64-bit user mode. Every other return is left to KVM, which then goes on
// natively: the owner must treat it as an entry into user mode (LeavesByIRet).
func execIRet(c *CPU, _ *inst) status {
	c.LeavesByIRet = true
	var frame [5]uint64 // RIP, CS, RFLAGS, RSP, SS
	for i := range frame {
		v, ok := c.load(c.r[rSP]+8*uint64(i), 8)
		if !ok {
			return handOver
		}
		frame[i] = v
	}
	if frame[2]&(flagTF|flagVM|flagNT) != 0 || !canonical(frame[0]) || c.sys&flagNT != 0 || c.InNMI {
		return handOver
	}
	s := &c.sregs
	ended := done
	switch {
	case frame[1] == uint64(s.CS.Selector) && frame[4] == uint64(s.SS.Selector):
	case c.isUser64(frame[1], frame[4]):
		s.CS = flatSegment(uint16(frame[1]), true, 3)
		s.SS = flatSegment(uint16(frame[4]), false, 3)
		c.sregsDirty = true
		ended = leave
	default:
		return handOver
	}
	c.LeavesByIRet = false
	c.r[rIP], c.r[rSP] = frame[0], frame[3]
	c.setFlags(frame[2])
	if ended == done && c.InterruptsOn() {
		return opened
	}
	return ended
}

// isUser64 reports whether the selectors are those of SYSRET, which are flat.
func (c *CPU) isUser64(cs, ss uint64) bool {
	star, err := c.host.MSR(x86.MSRStar)
	sel := star >> 48
	return err == nil && sel != 0 && cs == sel+16|3 && ss == sel+8|3
}
