package ring0

import (
	"unsafe"

	"vmm/kvm"
)

// The translation of IRET: that from the kernel to 64-bit code of user mode, with the segments that
// SYSRET loads without a look (SDM 2, IRET and SYSRET). What is unusual is the interpreter's.

// Descriptors of the segments that flatSegment is of user mode (SDM 3, 3.4.5).
const (
	userCodeDescriptor  = 0x00affb000000ffff
	userStackDescriptor = 0x00cff3000000ffff
)

// Places in what IRET takes from the stack.
const (
	iretIP = 8 * iota
	iretCS
	iretFlags
	iretSP
	iretSS
	iretSize
)

// iretFlagsTaken are the bits of RFLAGS that it takes here. Those that it must not find there are
// unusual: RF is for breakpoints alone, with which nothing is translated.
const (
	iretFlagsTaken   = arithFlags | flagIF | flagDF | flagIOPL | flagID
	iretFlagsUnusual = ^uint32(iretFlagsTaken | flagOne | flagRF)
)

func (t *translator) iret(*inst) {
	host := inFrameAt(offsetTarget)
	from := func(place int32) operand { return memory(hostRAX, place) }
	t.saveFlags()
	t.interpretUnlessPlain()
	t.arithmetic(4, extCMP, inFrameAt(offsetWaiting), 0) // for it may let interrupts in
	t.interpretIf(ifNotEqual)
	t.op(1, 0x80, extCMP, inFrameAt(unsafe.Offsetof(frame{}.InNMI)))
	t.bytes(0)
	t.interpretIf(ifNotEqual)
	t.op(4, 0xf7, 0, inFrameAt(offsetSys)) // test
	t.u32(iretFlagsUnusual &^ flagAC)
	t.interpretIf(ifNotEqual)
	t.interpretUnlessDataIsNull()
	t.interpretUnlessUsersAreFlat()

	t.op(4, 0x8b, hostRAX, register(homes[rSP]))
	t.arithmetic(4, extAND, register(hostRAX), pageMask)
	t.arithmetic(4, extCMP, register(hostRAX), pageSize-iretSize)
	t.interpretIf(ifAbove)
	t.move(hostRAX, homes[rSP])
	t.atRAX(t.look(8, false, false))
	t.store(8, hostRAX, host)
	t.load(8, hostRCX, from(iretCS))
	t.op(8, 0x3b, hostRCX, inFrameAt(unsafe.Offsetof(frame{}.userCode))) // cmp
	t.interpretIf(ifNotEqual)
	t.load(8, hostRCX, from(iretSS))
	t.op(8, 0x3b, hostRCX, inFrameAt(unsafe.Offsetof(frame{}.userStack))) // cmp
	t.interpretIf(ifNotEqual)
	t.op(4, 0xf7, 0, from(iretFlags)) // test
	t.u32(iretFlagsUnusual)
	t.interpretIf(ifNotEqual)
	t.load(8, hostRCX, from(iretIP))
	t.interpretUnlessCanonical(hostRCX)

	t.load(8, hostRAX, host)
	t.load(4, hostRCX, from(iretFlags))
	t.op(4, 0x81, extAND, register(hostRCX))
	t.u32(iretFlagsTaken)
	t.flagsFrom()
	t.moveTo(tlbUser, movedLevel)
	t.load(8, hostRAX, host)
	t.load(8, homes[rSP], from(iretSP))
	t.load(8, hostRAX, from(iretIP))
	t.jumpFar(tlbUser, nil, nil)
}

// interpretUnlessDataIsNull leaves the instruction to the interpreter where a data segment is loaded
// that IRET might take from user mode.
func (t *translator) interpretUnlessDataIsNull() {
	var s kvm.Sregs
	segments := [...]uintptr{unsafe.Offsetof(s.DS), unsafe.Offsetof(s.ES), unsafe.Offsetof(s.FS), unsafe.Offsetof(s.GS)}
	t.op(4, 0x33, hostRAX, register(hostRAX)) // xor
	t.loadImm(hostRCX, 1)
	for _, at := range segments {
		t.op(2, 0x0b, hostRAX, special(at+unsafe.Offsetof(s.DS.Selector))) // or
		t.op(1, 0x22, hostRCX, special(at+unsafe.Offsetof(s.DS.Unusable))) // and
	}
	t.op(4, 0x2b, hostRCX, register(hostRAX)) // sub
	t.arithmetic(4, extCMP, register(hostRCX), 1)
	t.interpretIf(ifNotEqual)
}

// interpretUnlessUsersAreFlat leaves the instruction to the interpreter where the descriptors of
// user mode's segments, which are beside each other, are not those of flat ones.
func (t *translator) interpretUnlessUsersAreFlat() {
	table := special(unsafe.Offsetof(kvm.Sregs{}.GDT))
	limit := special(unsafe.Offsetof(kvm.Sregs{}.GDT) + unsafe.Offsetof(kvm.DTable{}.Limit))
	const last = 8 - 1 - 3              // from the selector of the code
	t.op(4, map0F|0xb7, hostRCX, limit) // movzx
	t.load(8, hostRAX, inFrameAt(unsafe.Offsetof(frame{}.userCode)))
	t.arithmetic(8, 0, register(hostRAX), last) // add
	t.op(8, 0x3b, hostRAX, register(hostRCX))   // cmp
	t.interpretIf(ifAbove)
	t.load(8, hostRAX, table)
	t.op(8, 0x03, hostRAX, inFrameAt(unsafe.Offsetof(frame{}.userStack))) // add
	t.lea(hostRAX, memory(hostRAX, -3))
	t.atRAX(t.look(16, false, false))
	for i, want := range []uint64{userStackDescriptor, userCodeDescriptor} {
		t.loadImm(hostRCX, want)
		t.op(8, 0x3b, hostRCX, memory(hostRAX, int32(8*i))) // cmp
		t.interpretIf(ifNotEqual)
	}
}
