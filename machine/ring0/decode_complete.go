package ring0

// What the decoder knows of a complete CPU beside the rest: instructions of user mode,
// and of 16 and 32-bit code, and privileged ones that are KVM's elsewhere.

// level0 in inst.priv makes an instruction one of level 0.
const level0 = 3

// decodeComplete is decode for a complete CPU in a mode.
func decodeComplete(b []byte, in *inst, mode uint8) bool {
	return decodeAs(&decoder{b: b[:min(len(b), 15)], in: in, mode: mode, complete: true})
}

// completeByte decodes one-byte opcodes; it reports whether op is one of those.
func (d *decoder) completeByte(op uint8) bool {
	in := d.in
	switch op {
	case 0x6c, 0x6d, 0x6e, 0x6f:
		in.size, in.op, in.count = 1, op, true
		if op&1 != 0 {
			in.size = min(d.sizeV(), 4)
		}
		in.exec = execString
		d.dataSegment()
	case 0x8e:
		d.modRMv()
		in.exec = execMovToSeg
	case 0x8f:
		d.modRM()
		in.size, in.exec = d.size64(), execPopRM
	case 0x9b: // FWAIT, which raises what the x87 has in hand
		in.form, in.own, in.exec = vectorForm{bytes: 1}, true, execVector
	case 0x9e:
		in.exec = execSAHF
	case 0x9f:
		in.exec = execLAHF
	case 0xa0, 0xa1, 0xa2, 0xa3:
		in.size, in.op, in.exec = 1, op, execMovAbsolute
		if op&1 != 0 {
			in.size = d.sizeV()
		}
		d.dataSegment()
		in.disp = d.immediate(d.addressSize()) & in.addressMask()
	case 0xa4, 0xa5, 0xa6, 0xa7, 0xaa, 0xab, 0xac, 0xad, 0xae, 0xaf:
		if !in.addr4 && !in.addr2 {
			return false
		}
		d.str(op)
		in.op, in.exec = op, execString
		d.dataSegment()
	case 0xc8:
		in.imm, in.op = d.immediate(2)&0xffff, d.u8()&31
		in.size, in.exec = d.size64(), execEnter
	case 0xca, 0xcb:
		in.size, in.exec = d.sizeV(), execRetFar
		if op == 0xca {
			in.imm = d.immediate(2) & 0xffff
		}
	case 0xcc:
		in.imm, in.exec = vectorBP, execInt
	case 0xcd:
		in.imm, in.exec = d.immediate(1)&0xff, execInt
	case 0xcf:
		in.size, in.exec = d.sizeV(), execIRetComplete
	case 0xd7:
		in.exec = execXlat
		d.dataSegment()
	case 0xe0, 0xe1, 0xe2, 0xe3:
		if !in.addr4 && !in.addr2 {
			return false
		}
		in.op, in.imm, in.exec = op&3, d.immediate(1), execLoopNarrow
	case 0xe4, 0xe5, 0xe6, 0xe7, 0xec, 0xed, 0xee, 0xef:
		in.size, in.op = 1, op
		if op&1 != 0 {
			in.size = min(d.sizeV(), 4)
		}
		if op < 0xe8 {
			in.imm = d.immediate(1) & 0xff
		}
		if in.exec = execIn; op&2 != 0 {
			in.exec = execOut
		}
	case 0xf1:
		in.exec = execInt1
	case 0xf4:
		in.priv, in.exec = level0, execHLT
	case 0xff:
		return d.far()
	default:
		return d.mode != mode64 && d.narrowByte(op)
	}
	return true
}

// far decodes the far CALL and JMP of group 5.
func (d *decoder) far() bool {
	if d.pos >= len(d.b) || d.b[d.pos]>>3&7 != 3 && d.b[d.pos]>>3&7 != 5 {
		return false
	}
	d.modRMv()
	if d.in.mem {
		d.in.op, d.in.exec = d.ext, execFar
	}
	return true
}

// narrowByte decodes what 64-bit code does not have, or has with other sizes.
func (d *decoder) narrowByte(op uint8) bool {
	in := d.in
	switch {
	case op&0xf0 == 0x40: // INC, DEC
		in.size, in.rm, in.op, in.exec = d.sizeV(), op&7, op>>3&1, execIncDec
		return true
	case op < 0x20 && op&7 == 6: // PUSH ES, CS, SS, DS
		in.size, in.reg, in.exec = d.sizeV(), op>>3, execPushSeg
		return true
	case op < 0x20 && op&7 == 7:
		in.size, in.reg, in.exec = d.sizeV(), op>>3, execPopSeg
		return true
	}
	switch op {
	case 0x27, 0x2f, 0x37, 0x3f:
		in.op, in.exec = op, execDecimal
	case 0x60:
		in.size, in.exec = d.sizeV(), execPushAll
	case 0x61:
		in.size, in.exec = d.sizeV(), execPopAll
	case 0x62, 0xc4, 0xc5:
		if d.pos < len(d.b) && d.b[d.pos]>>6 == 3 {
			return false // EVEX, VEX
		}
		d.modRMv()
		switch op {
		case 0x62:
			in.exec = execBound
		case 0xc4:
			in.op, in.exec = sregES, execFarPointer
		case 0xc5:
			in.op, in.exec = sregDS, execFarPointer
		}
	case 0x63: // ARPL: nobody's
		in.exec = execUndefined
	case 0x82:
		return d.completeGroup1()
	case 0x9a, 0xea:
		in.size, in.exec = d.sizeV(), execFar
		in.disp = d.immediate(in.size) & sizeMask(in.size)
		in.imm = d.immediate(2) & 0xffff
		if in.op = 5; op == 0x9a {
			in.op = 3
		}
	case 0xc2, 0xc3:
		in.size, in.exec = d.sizeV(), execRetNarrow
		if op == 0xc2 {
			in.imm = d.immediate(2) & 0xffff
		}
	case 0xc9:
		in.size, in.exec = d.sizeV(), execLeaveNarrow
	case 0xce:
		in.exec = execInto
	case 0xd4, 0xd5:
		in.op, in.imm, in.exec = op, d.immediate(1), execDecimal
	case 0xe8:
		in.size, in.exec = d.sizeV(), execCallNarrow
		in.imm = d.immediate(in.size)
	case 0xe9:
		in.imm, in.exec = d.immediate(d.sizeV()), execJmp
	default:
		return false
	}
	return true
}

// completeGroup1 is opcode 0x82, another 0x80.
func (d *decoder) completeGroup1() bool {
	d.modRMb()
	d.in.op, d.in.exec = d.group(), execALUImm
	d.in.imm = d.immediate(1)
	return true
}

// completeTwo decodes opcodes behind 0x0f; it reports whether op is one of those.
func (d *decoder) completeTwo(op uint8) bool {
	in := d.in
	switch op {
	case 0x00:
		d.modRMv()
		switch in.op = d.ext; d.ext {
		case 0, 1:
			in.exec = execSystemStore
		case 2, 3:
			in.priv, in.exec = level0, execSystemLoad
		case 4, 5:
			in.exec = execVerify
		}
	case 0x01:
		return d.completeGroup7()
	case 0x02:
		d.modRMv()
		in.exec = execLAR
	case 0x03:
		d.modRMv()
		in.exec = execLSLComplete
	case 0x05:
		in.exec = execSyscall
	case 0x06:
		in.priv, in.exec = level0, execCLTS
	case 0x07:
		in.size, in.priv, in.exec = d.sizeV(), level0, execSysRetComplete
	case 0x08, 0x09: // INVD, WBINVD
		in.priv, in.exec = level0, execNop
	case 0x0b, 0xb9, 0xff:
		in.exec = execUndefined
	case 0x20, 0x21, 0x22, 0x23:
		d.modRM()
		if in.mem { // its mod is ignored
			return true
		}
		in.priv = level0
		switch {
		case op == 0x21:
			in.exec = execMovFromDR
		case op == 0x23:
			in.exec = execMovToDR
		case op == 0x20 && in.reg == 8:
			in.exec = execMovFromCR8
		case op == 0x20 && (in.reg == 0 || in.reg == 2 || in.reg == 3 || in.reg == 4):
			in.exec = execMovFromCR
		case op == 0x22 && (in.reg == 0 || in.reg == 2 || in.reg == 3 || in.reg == 4 || in.reg == 8):
			in.exec = execMovToCR
		}
	case 0x30:
		in.priv, in.exec = level0, execWRMSR
	case 0x32:
		in.priv, in.exec = level0, execRDMSR
	case 0x33: // RDPMC: there are no counters
		in.exec = func(c *CPU, _ *inst) status { return c.gp0() }
	case 0x34:
		in.exec = execSysenter
	case 0x35:
		in.size, in.priv, in.exec = d.sizeV(), level0, execSysexit
	case 0xa0, 0xa8:
		in.size, in.reg, in.exec = d.size64(), sregFS+op>>3&1, execPushSeg
	case 0xa1, 0xa9:
		in.size, in.reg, in.exec = d.size64(), sregFS+op>>3&1, execPopSeg
	case 0xa2:
		in.exec = execCPUID
	case 0xb2, 0xb4, 0xb5:
		d.modRMv()
		if in.op = op - 0xb0; in.mem {
			in.exec = execFarPointer
		}
	case 0xf7:
		d.modRM()
		if d.dataSegment(); !in.mem {
			in.exec = execMaskMove
			if d.op2 {
				in.op = 1
			}
		}
	default:
		return false
	}
	return true
}

// completeGroup7 decodes what is behind 0x0f 0x01.
func (d *decoder) completeGroup7() bool {
	in := d.in
	m := uint8(0)
	if d.pos < len(d.b) {
		m = d.b[d.pos]
	}
	d.modRMv()
	in.op = d.ext
	switch {
	case in.mem && d.ext < 2:
		in.exec = execTableStore
	case in.mem && d.ext < 4:
		in.priv, in.exec = level0, execTableLoad
	case d.ext == 4:
		in.exec = execSMSW
	case d.ext == 6:
		in.priv, in.exec = level0, execLMSW
	case in.mem && d.ext == 7:
		in.priv, in.exec = level0, execInvlpg
	case m == 0xca || m == 0xcb:
		in.priv, in.op, in.exec = level0, m, execACFlag
	case m == 0xd0:
		in.exec = execXGetBV
	case m == 0xd1:
		in.priv, in.exec = level0, execXSetBV
	case m == 0xf8:
		in.priv, in.exec = level0, execSwapGS
	case m == 0xf9:
		in.exec = execRDTSCP
	}
	return true
}

// addressSize is the size of an address in the instruction, in bytes.
func (d *decoder) addressSize() uint8 {
	switch {
	case d.in.addr2:
		return 2
	case d.in.addr4:
		return 4
	}
	return 8
}

// dataSegment makes the data segment the one of an implicit address, where none is given.
func (d *decoder) dataSegment() {
	if d.mode != mode64 && d.in.seg == segNone {
		d.in.seg = segDS
	}
}
