package ring0

// twoByte decodes the opcodes behind 0x0f (SDM 2, table A-3).
func (d *decoder) twoByte() {
	in := d.in
	op := d.u8()
	in.opcode = map0F | uint32(op)
	switch {
	case d.complete && d.completeTwo(op):
	case op&0xf0 == 0x40:
		d.modRMv()
		in.op, in.exec = op&15, execCMov
	case op&0xf0 == 0x80:
		in.op, in.imm, in.exec = op&15, d.immediate(d.jumpSize()), execJcc
	case op&0xf0 == 0x90:
		d.modRMb()
		in.op, in.exec = op&15, execSetcc
	case op&0xf8 == 0xc8 && !d.op2:
		in.size, in.rm, in.exec = d.sizeV(), op&7|d.rex&1<<3, execBSwap
	default:
		d.twoByteRest(op)
	}
}

// jumpSize is the size of a near jump's displacement in bytes.
func (d *decoder) jumpSize() uint8 {
	if d.mode == mode64 {
		return 4
	}
	return d.sizeV()
}

func (d *decoder) twoByteRest(op uint8) {
	in := d.in
	switch op {
	case 0x00:
		d.modRM()
		if d.ext == 5 {
			in.size, in.own, in.exec = 2, true, execVerW
		}
	case 0x01:
		d.group7()
	case 0x03:
		d.modRMv()
		in.own, in.exec = true, execLSL
	case 0x07:
		in.size, in.own, in.exec = d.sizeV(), true, execSysRet
	case 0x0d, 0x18, 0x19, 0x1a, 0x1b, 0x1c, 0x1d, 0x1e, 0x1f:
		d.modRM()
		in.exec = execNop // prefetches, ENDBR, NOP
	case 0x20:
		d.modRM()
		if r := in.reg; r == 0 || r == 2 || r == 3 || r == 4 {
			in.exec = execMovFromCR
		}
	case 0x22, 0x23:
		d.modRM()
		in.exec = execHandOverFlush
	case 0x30:
		in.exec = execWRMSR
	case 0x31:
		in.exec = execRDTSC
	case 0x32:
		in.exec = execRDMSR
	case 0x38:
		d.threeByte38()
	case 0x3a:
		d.vector(0x3a)
	case 0x77: // EMMS
		in.form, in.own, in.exec = vectorForm{bytes: 1}, true, execVector
	case 0xa0, 0xa1, 0xa8, 0xa9:
		return
	case 0xa3, 0xab, 0xb3, 0xbb:
		d.modRMv()
		in.op, in.exec = op>>3&3, execBitReg
		in.undefined = arithFlags &^ (flagCF | flagZF)
	case 0xba:
		d.modRMv()
		if d.ext >= 4 {
			in.op, in.imm, in.exec = in.reg&3, d.immediate(1), execBitImm
			in.undefined = arithFlags &^ (flagCF | flagZF)
		}
	case 0xa4, 0xac:
		d.modRMv()
		in.op, in.imm, in.exec = op, d.immediate(1), execShiftDouble
		in.undefined = flagAF | flagOF
	case 0xa5, 0xad:
		d.modRMv()
		in.op, in.exec = op, execShiftDouble
		in.undefined = flagAF | flagOF
	case 0xae:
		d.group15()
	case 0xaf:
		d.modRMv()
		in.exec = execIMul2
		in.undefined = flagSF | flagZF | flagAF | flagPF
	case 0xb0, 0xb1:
		d.modRMw(op)
		in.exec = execCmpxchg
	case 0xb6, 0xb7, 0xbe, 0xbf:
		d.extend(op)
	case 0xb8:
		if in.rep == repE {
			d.modRMv()
			in.own, in.exec = true, execPopcnt
		}
	case 0xbc, 0xbd:
		d.modRMv()
		in.op, in.own, in.exec = op, true, execBitScan
		in.undefined = arithFlags &^ flagZF
		if in.rep == repE {
			in.undefined &^= flagCF
		}
	case 0xc0, 0xc1:
		d.modRMw(op)
		in.exec = execXadd
	case 0xc3:
		d.modRMv()
		if in.mem && !d.op2 {
			in.exec = execMovToRM // MOVNTI
		}
	case 0xc7:
		d.group9()
	default:
		d.vector(op)
	}
}

// extend decodes MOVZX and MOVSX, whose source has its own size in op.
func (d *decoder) extend(op uint8) {
	in := d.in
	d.modRMv()
	in.op = 1 + op&1
	if in.op == 1 && !in.mem {
		in.rm = d.byteReg(in.rm)
	}
	if in.exec = execMovZX; op >= 0xbe {
		in.exec = execMovSX
	}
}

func (d *decoder) group7() {
	in := d.in
	m := d.u8()
	d.pos--
	d.modRM()
	in.own = true
	switch m {
	case 0xc1, 0xd9: // VMCALL, VMMCALL
		in.exec = execVMCall
	case 0xca, 0xcb: // CLAC, STAC
		in.op, in.exec = m, execACFlag
	case 0xd0:
		in.exec = execXGetBV
	case 0xd1:
		in.own, in.exec = false, execHandOverFlush // XSETBV
	case 0xf8:
		in.exec = execSwapGS
	case 0xf9:
		in.exec = execRDTSCP
	default:
		in.own = false
		if in.mem && d.ext == 7 {
			in.exec = execInvlpg
		}
	}
}

func (d *decoder) group9() {
	in := d.in
	d.modRMv()
	in.own = true
	switch {
	case d.ext == 1 && in.mem:
		in.exec = execCmpxchg16
	case d.ext == 3 && in.mem:
		in.exec = execXRstor
	case (d.ext == 4 || d.ext == 5) && in.mem:
		in.op, in.exec = saveCompact, execXSave
		if d.ext == 5 {
			in.op = saveSupervisor
		}
	case d.ext == 7 && !in.mem && in.rep == repE:
		in.exec = execRDPID
	case d.ext >= 6 && !in.mem:
		in.exec = execRDRand
	}
}

func (d *decoder) group15() {
	in := d.in
	d.modRMv()
	in.own = true
	if !in.mem {
		switch {
		case in.rep == repE && d.ext < 4:
			in.op, in.exec = d.ext, execFSGSBase
		case d.ext >= 5:
			in.exec = execFence
		}
		return
	}
	switch in.reg & 7 {
	case 0:
		in.exec = execFXSave
	case 1:
		in.exec = execFXRstor
	case 2:
		in.exec = execLDMXCSR
	case 3:
		in.exec = execSTMXCSR
	case 4, 6:
		if in.exec = execXSave; d.op2 {
			in.exec = execNop // CLWB
		}
	case 5:
		in.exec = execXRstor
	case 7:
		in.exec = execNop // CLFLUSH, CLFLUSHOPT: caches are coherent
	}
}

func (d *decoder) threeByte38() {
	in := d.in
	op := d.u8()
	in.opcode = map0F38 | uint32(op)
	switch {
	case op == 0x82 && d.op2:
		d.modRM()
		if in.mem {
			in.own, in.exec = true, execInvpcid
		}
	case (op == 0xf0 || op == 0xf1) && in.rep == repNE:
		d.in.size = d.sizeV()
		d.modRM()
		in.own, in.exec = true, execCRC32
		if in.op = in.size; op == 0xf0 {
			in.op = 1
			if !in.mem {
				in.rm = d.byteReg(in.rm)
			}
		}
	case op == 0xf0 || op == 0xf1:
		d.modRMv()
		if in.mem {
			in.op, in.own, in.exec = op&1, true, execMovbe
		}
	default:
		d.pos--
		d.vector(0x38)
	}
}
