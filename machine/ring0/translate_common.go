package ring0

import (
	"unsafe"

	"vmm/machine/native"
)

// common writes the code that all blocks share, and returns where a trap ends.
func (t *translator) common(u *native.Unit) (trapExit int) {
	mask := u.ExtendedMask()
	t.enter = t.n
	t.arithmetic(4, extCMP, inFrameAt(offsetVectorsWanted), 0)
	unwanted := t.jumpIf(ifEqual)
	t.storeImm(4, inFrameAt(offsetVectorsWanted), 0)
	t.loadVectors(mask)
	t.land(unwanted, t.n)
	t.eachHome(func(guest, host uint8) { t.load(8, host, home(guest)) })
	t.load(8, hostRAX, inFrameAt(offsetAddress))
	t.op(4, 0xff, 4, inFrameAt(offsetEntry)) // jmp

	trapExit = t.n
	t.storeImm(4, inFrameAt(offsetSite), siteTrap)
	t.exit = t.n
	t.eachHome(func(guest, host uint8) { t.store(8, host, home(guest)) })
	t.arithmetic(4, extCMP, inFrameAt(offsetVectorsLoaded), 0)
	unloaded := t.jumpIf(ifEqual)
	t.storeVectors(mask)
	t.land(unloaded, t.n)
	t.load(8, rBP, inFrameAt(unsafe.Offsetof(native.Frame{}.HostRBP)))
	t.op(4, 0xff, 4, inFrameAt(unsafe.Offsetof(native.Frame{}.Return))) // jmp

	t.outBehind = t.n
	t.bytes(0x58)                            // pop rax
	t.arithmetic(8, 0, register(hostRAX), 5) // add
	number := t.jump()
	t.out = t.n
	t.bytes(0x58) // pop rax
	t.land(number, t.n)
	t.load(4, hostRAX, memory(hostRAX, 0))
	t.store(4, hostRAX, inFrameAt(offsetSite))
	t.land(t.jump(), t.exit)

	t.checkRoutines()
	for which, write := range []bool{false, true} {
		for tlb := range t.second {
			t.secondRoutine(tlb, which, write)
		}
		t.lookUpRoutines(which, write)
	}

	for tlb := range t.far {
		t.farRoutine(tlb)
	}

	t.vector = t.n
	t.arithmetic(4, extCMP, inFrameAt(calledFrame+offsetVectorsReady), 0)
	t.land(t.jumpIf(ifEqual), t.outBehind)
	t.op(4, 0x8f, 0, inFrameAt(offsetTemp)) // pop, as below
	t.store(8, rDX, inFrameAt(offsetTarget))
	t.loadVectors(mask)
	t.load(8, rDX, inFrameAt(offsetTarget))
	t.op(4, 0xff, 4, inFrameAt(offsetTemp)) // jmp
	return trapExit
}

// eachHome calls do with each register of the guest that a register of the host holds.
func (t *translator) eachHome(do func(guest, host uint8)) {
	for guest, host := range homes {
		if host != inFrame {
			do(uint8(guest), host)
		}
	}
}

// extendedState writes XSAVE64 or XRSTOR64, by the opcode's extension, for what the guest has.
// It spoils RAX, RCX and RDX.
func (t *translator) extendedState(ext uint8, mask uint64) {
	t.load(8, hostRCX, inFrameAt(unsafe.Offsetof(frame{}.xsave)))
	t.loadImm(hostRAX, mask&0xffffffff)
	t.loadImm(rDX, mask>>32)
	t.op(8, map0F|0xae, ext, memory(hostRCX, 0))
}

// loadVectors makes the vector registers the guest's.
func (t *translator) loadVectors(mask uint64) {
	const xrstor = 5
	t.extendedState(xrstor, mask)
	t.storeImm(4, inFrameAt(offsetVectorsLoaded), 1)
}

// storeVectors gives them back. They are wanted again where the block goes on.
func (t *translator) storeVectors(mask uint64) {
	const xsave, ldmxcsr = 4, 2
	t.extendedState(xsave, mask)
	for at := range int32(2) { // addresses of this process
		t.storeImm(8, memory(hostRCX, native.XSavePointers+8*at), 0)
	}
	if mask&xAVX != 0 {
		t.bytes(0xc5, 0xf8, 0x77) // vzeroupper
	}
	t.op(4, map0F|0xae, ldmxcsr, inFrameAt(unsafe.Offsetof(frame{}.mxcsr)))
	t.storeImm(4, inFrameAt(offsetVectorsLoaded), 0)
	t.storeImm(4, inFrameAt(offsetVectorsWanted), 1)
}
