package ring0

// Translations of what goes elsewhere, and of the stack.

// stackSlot returns the eight bytes at the guest's stack pointer, and disp behind it, as look does.
func (t *translator) stackSlot(disp int32, write bool) operand {
	t.spoilFlags()
	t.lea(hostRAX, memory(homes[rSP], disp))
	return t.look(8, write, false)
}

// moveStack adds to the guest's stack pointer, and leaves the flags alone.
func (t *translator) moveStack(by int32) { t.lea(homes[rSP], memory(homes[rSP], by)) }

func (t *translator) push(in *inst) {
	slot := t.stackSlot(-8, true)
	if in.opcode&^7 != 0x50 {
		t.storeImm(8, slot, uint32(in.imm))
	} else if homes[in.reg] != inFrame {
		t.store(8, homes[in.reg], slot)
	} else {
		slot = t.atRAX(slot)
		t.store(8, t.hold(in.reg, hostRCX), slot)
	}
	t.moveStack(-8)
}

// pushRM pushes memory.
func (t *translator) pushRM(in *inst) {
	t.load(8, hostRCX, t.access(in, 8, false))
	t.pushRCX()
}

// pushRCX pushes what is in the host's RCX, which it needs for the way to the stack.
func (t *translator) pushRCX() {
	t.store(8, hostRCX, inFrameAt(offsetTarget))
	slot := t.atRAX(t.stackSlot(-8, true))
	t.load(8, hostRCX, inFrameAt(offsetTarget))
	t.store(8, hostRCX, slot)
	t.moveStack(-8)
}

// flagsToRCX composes RFLAGS, but for RF and VM, of what is in frame. What LAHF and SETO have
// saved has the low byte in AH and OF in AL. It spoils RAX.
func (t *translator) flagsToRCX() {
	t.op(4, map0F|0xb6, hostRCX, inFrameAt(offsetFlags+1))
	t.op(4, map0F|0xb6, hostRAX, inFrameAt(offsetFlags))
	t.op(4, 0xc1, 4, register(hostRAX)) // shl eax, 11
	t.bytes(11)
	t.op(4, 0x0b, hostRCX, register(hostRAX)) // or
	t.op(4, 0x0b, hostRCX, inFrameAt(offsetSys))
	t.op(4, 0x81, extAND, register(hostRCX))
	t.u32(^uint32(flagRF | flagVM))
}

// pushFlags is PUSHF.
func (t *translator) pushFlags(*inst) {
	t.saveFlags()
	t.spoilFlags()
	t.flagsToRCX()
	t.pushRCX()
}

func (t *translator) pop(in *inst) {
	reg := holder(in.reg, hostRCX)
	t.load(8, reg, t.stackSlot(0, false))
	t.keepIn(in.reg, reg)
	if in.reg != rSP {
		t.moveStack(8)
	}
}

func (t *translator) leave(*inst) {
	t.spoilFlags()
	t.move(hostRAX, homes[rBP])
	slot := t.look(8, false, false)
	t.lea(homes[rSP], memory(homes[rBP], 8))
	t.load(8, homes[rBP], slot)
}

func (t *translator) jcc(in *inst) {
	t.needFlags()
	t.saveFlags()
	site, target := t.jumpIf(in.op), int64(t.next)+int64(in.imm)
	if target >= 0 && target < pageSize {
		t.link(site, target)
		return
	}
	t.cold = append(t.cold, func() {
		t.land(site, t.n)
		t.jumpTo(target)
	})
}

func (t *translator) jmp(in *inst) {
	t.saveFlags()
	t.jumpTo(int64(t.next) + int64(in.imm))
}

// returnAddress writes the address of the next instruction below the stack pointer.
func (t *translator) returnAddress() {
	slot := t.atRAX(t.stackSlot(-8, true))
	t.inPage(hostRCX, int32(t.next))
	t.store(8, hostRCX, slot)
}

func (t *translator) call(in *inst) {
	t.saveFlags()
	t.returnAddress()
	t.moveStack(-8)
	t.jumpTo(int64(t.next) + int64(in.imm))
}

// rmTarget puts the r/m operand into RAX.
func (t *translator) rmTarget(in *inst) {
	t.saveFlags()
	if in.mem {
		t.load(8, hostRAX, t.access(in, 8, false))
	} else {
		t.move(hostRAX, t.hold(in.rm, hostRAX))
	}
}

// jumpSite is where a jump leaves that adds to RSP.
func (t *translator) jumpSite(by int32) *exitSite {
	return &exitSite{kind: exitJump, offset: uint16(t.offset), at: uint32(by)}
}

func (t *translator) jmpRM(in *inst) {
	t.rmTarget(in)
	t.jumpFar(t.tlb, t.jumpSite(0), nil)
}

func (t *translator) callRM(in *inst) {
	t.rmTarget(in)
	t.store(8, hostRAX, inFrameAt(offsetTarget))
	if in.mem { // where the return address may be written over it, and so the instruction not be executed again
		t.move(hostRCX, hostRAX)
		t.interpretUnlessCanonical(hostRCX)
	}
	t.returnAddress()
	t.load(8, hostRAX, inFrameAt(offsetTarget))
	t.jumpFar(t.tlb, t.jumpSite(-8), func() { t.moveStack(-8) })
}

func (t *translator) ret(in *inst) {
	t.saveFlags()
	t.load(8, hostRAX, t.stackSlot(0, false))
	by := 8 + int32(in.imm)
	t.jumpFar(t.tlb, t.jumpSite(by), func() { t.moveStack(by) })
}
