package ring0

import (
	"unsafe"

	"vmm/internal/x86"
	"vmm/kvm"
)

// Translations of what changes privileges or the rights of accesses, and so the TLB. Who
// leaves translated code after one of these finds the rest of the CPU's state behind: arrived
// brings it up to date.

// Bits of frame.moved: what has happened in translated code.
const (
	movedLevel  = 1 << iota // SYSCALL or SYSRET
	movedRights             // STAC or CLAC
)

// planLevel returns how to translate an instruction of level 0, or SYSCALL.
func (t *translator) planLevel(in *inst, code []byte) plan {
	kernel := t.tlb != tlbUser
	switch op := in.opcode; {
	case op == 0xcf && kernel && in.size == 8:
		return plan{emit: (*translator).iret, reads: arithFlags, leaves: true}
	case op == map0F|0x20 && kernel && !in.mem && (in.reg == 0 || in.reg == 2 || in.reg == 3 || in.reg == 4):
		return plan{emit: (*translator).fromControl}
	case op == map0F|0x05 && !kernel:
		return plan{emit: (*translator).syscall, reads: arithFlags, leaves: true}
	case op == map0F|0x07 && kernel && in.size == 8:
		return plan{emit: (*translator).sysret, reads: arithFlags, leaves: true}
	case op == map0F|0x01 && kernel && !in.mem:
		switch code[len(code)-1] {
		case 0xca, 0xcb:
			if t.smap {
				return plan{emit: (*translator).accessFlag, leaves: true}
			}
		case 0xf8:
			return plan{emit: (*translator).swapGS}
		}
	}
	return plan{}
}

func (t *translator) swapGS(*inst) {
	kernel := inFrameAt(unsafe.Offsetof(frame{}.kernelGSBase))
	t.load(8, hostRAX, segmentBase(segGS))
	t.load(8, hostRCX, kernel)
	t.store(8, hostRCX, segmentBase(segGS))
	t.store(8, hostRAX, kernel)
}

// special is where in frame a special register is.
func special(offset uintptr) operand { return inFrameAt(unsafe.Offsetof(frame{}.sregs) + offset) }

// fromControl reads a control register.
func (t *translator) fromControl(in *inst) {
	var s kvm.Sregs
	from := [...]uintptr{0: unsafe.Offsetof(s.CR0), 2: unsafe.Offsetof(s.CR2), 3: unsafe.Offsetof(s.CR3), 4: unsafe.Offsetof(s.CR4)}
	to := holder(in.rm, hostRAX)
	t.load(8, to, special(from[in.reg]))
	t.keepIn(in.rm, to)
}

// planFromSegment plans the reading of a selector, of those that SYSCALL and SYSRET leave alone.
func planFromSegment(in *inst) plan {
	switch in.reg {
	case sregES, sregDS, sregFS, sregGS:
		if !in.mem {
			return plan{emit: (*translator).fromSegment}
		}
	}
	return plan{}
}

func (t *translator) fromSegment(in *inst) {
	var s kvm.Sregs
	from := [...]uintptr{sregES: unsafe.Offsetof(s.ES), sregDS: unsafe.Offsetof(s.DS), sregFS: unsafe.Offsetof(s.FS), sregGS: unsafe.Offsetof(s.GS)}
	selector, to := special(from[in.reg]+unsafe.Offsetof(s.ES.Selector)), t.hold(in.rm, hostRAX)
	if in.size == 2 {
		t.load(2, to, selector)
	} else {
		t.op(4, map0F|0xb7, to, selector) // movzx
	}
	t.keepIn(in.rm, to)
}

// segmentBaseOf is RDFSBASE, RDGSBASE, WRFSBASE and WRGSBASE.
func (t *translator) segmentBaseOf(in *inst) {
	t.spoilFlags()
	t.op(4, 0xf7, 0, special(unsafe.Offsetof(kvm.Sregs{}.CR4))) // test
	t.u32(cr4FSGSBase)
	t.interpretIf(ifEqual)
	base := segmentBase(segFS + in.op&1)
	if in.op < 2 {
		to := holder(in.rm, hostRAX)
		t.load(in.size, to, base)
		t.keepIn(in.rm, to)
		return
	}
	from := t.hold(in.rm, hostRCX)
	if in.size == 8 {
		t.interpretUnlessCanonical(from)
		t.store(8, from, base)
		return
	}
	t.load(4, hostRAX, register(from))
	t.store(8, hostRAX, base)
}

// interpretUnlessCanonical leaves the instruction to the interpreter where a register of the host has
// no canonical address. It spoils RAX.
func (t *translator) interpretUnlessCanonical(reg uint8) {
	t.move(hostRAX, reg)
	for _, ext := range []uint8{4, 7} { // shl, sar
		t.op(8, 0xc1, ext, register(hostRAX))
		t.bytes(16)
	}
	t.op(8, 0x3b, hostRAX, register(reg)) // cmp
	t.interpretIf(ifNotEqual)
}

// flagsFrom sets the guest's flags to those in the host's ECX, but for RF and VM. It spoils
// RAX and RCX.
func (t *translator) flagsFrom() {
	t.move(hostRAX, hostRCX)
	t.op(4, 0xc1, 5, register(hostRAX)) // shr eax, 11
	t.bytes(11)
	t.arithmetic(4, extAND, register(hostRAX), 1)
	t.bytes(0x88, 0xcc) // mov ah, cl
	t.store(2, hostRAX, inFrameAt(offsetFlags))
	t.op(4, 0x81, extAND, register(hostRCX))
	t.u32(^uint32(arithFlags | flagOne | flagRF | flagVM))
	t.store(8, hostRCX, inFrameAt(offsetSys))
}

// moveTo has the blocks that follow use a TLB. It spoils the host's flags.
func (t *translator) moveTo(tlb int, why int32) {
	t.arithmetic(4, extOR, inFrameAt(unsafe.Offsetof(frame{}.moved)), why) // beside what has happened before
	t.storeImm(4, inFrameAt(unsafe.Offsetof(frame{}.movedTo)), uint32(tlb))
}

// interpretIf leaves the instruction to the interpreter where the host's condition is met.
func (t *translator) interpretIf(condition uint8) {
	at, site := t.jumpIf(condition), exitSite{kind: exitInterpret, offset: uint16(t.offset)}
	t.cold = append(t.cold, func() { t.land(at, t.stub(site)) })
}

// interpretUnlessPlain leaves SYSCALL and SYSRET to the interpreter where they do not go
// between 64-bit user mode and what syscalls has found.
func (t *translator) interpretUnlessPlain() {
	t.arithmetic(8, extCMP, inFrameAt(offsetSyscall), 0)
	t.interpretIf(ifEqual)
}

func (t *translator) syscall(*inst) {
	t.saveFlags()
	t.interpretUnlessPlain()
	t.flagsToRCX()
	t.move(homes[r11], hostRCX)
	t.load(8, hostRAX, inFrameAt(unsafe.Offsetof(frame{}.syscallMask)))
	t.op(8, 0xf7, 2, register(hostRAX)) // not
	t.op(4, 0x23, hostRCX, register(hostRAX))
	t.flagsFrom()
	t.inPage(homes[rCX], int32(t.next))
	t.moveTo(tlbKernel, movedLevel)
	t.load(8, hostRAX, inFrameAt(offsetSyscall))
	t.jumpFar(tlbKernel, nil, nil)
}

func (t *translator) sysret(*inst) {
	t.saveFlags()
	t.interpretUnlessPlain()
	t.arithmetic(4, extCMP, inFrameAt(offsetWaiting), 0) // for it may let interrupts in
	t.interpretIf(ifNotEqual)
	t.op(4, 0xf7, 0, register(homes[r11])) // test
	t.u32(flagTF | flagRF | flagVM)
	t.interpretIf(ifNotEqual)
	t.interpretUnlessCanonical(homes[rCX])
	t.move(hostRCX, homes[r11])
	t.op(4, 0x81, extAND, register(hostRCX))
	t.u32(sysretFlags)
	t.flagsFrom()
	t.moveTo(tlbUser, movedLevel)
	t.move(hostRAX, homes[rCX])
	t.jumpFar(tlbUser, nil, nil)
}

// accessFlag is STAC or CLAC.
func (t *translator) accessFlag(in *inst) {
	t.saveFlags()
	tlb := tlbKernel
	if in.op == 0xcb {
		tlb = tlbKernelAll
		t.op(4, 0x81, extOR, inFrameAt(offsetSys))
		t.u32(flagAC)
	} else {
		t.op(4, 0x81, extAND, inFrameAt(offsetSys))
		t.u32(^uint32(flagAC))
	}
	t.moveTo(tlb, movedRights)
	t.inPage(hostRAX, int32(t.next))
	t.jumpFar(tlb, nil, nil)
}

// arrived brings the CPU's state up to date with where translated code has gone.
func (c *CPU) arrived() {
	if c.frame.moved&movedLevel != 0 {
		star, _ := c.host.MSR(x86.MSRStar)
		if c.frame.movedTo == tlbUser {
			c.userSegments(star)
		} else {
			c.kernelSegments(star)
		}
	}
	c.frame.moved = 0
	c.setMode()
}

// syscalls lets translated code do SYSCALL and SYSRET, where they are usual ones.
func (c *CPU) syscalls(target, mask uint64) {
	star, _ := c.host.MSR(x86.MSRStar)
	if c.mode == mode64 && mask&flagAC != 0 && c.noUser && star>>48&4 == 0 { // with selectors of the GDT
		f := c.frame
		f.syscallTarget, f.syscallMask = target, mask
		f.userStack = star>>48 | 3 + 8
		f.userCode = f.userStack + 8
	}
}

// ForgetSyscalls tells that the MSRs of SYSCALL may have changed.
func (c *CPU) ForgetSyscalls() { c.frame.syscallTarget = 0 }
