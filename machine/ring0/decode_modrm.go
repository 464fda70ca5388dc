package ring0

// modRM reads ModRM, SIB and displacement (SDM 2, 2.1.3).
func (d *decoder) modRM() {
	in := d.in
	m := d.u8()
	d.ext = m >> 3 & 7
	in.reg = d.ext | d.rex&4<<1
	rm := m & 7
	mod := m >> 6
	if mod == 3 {
		in.rm = rm | d.rex&1<<3
		return
	}
	in.mem = true
	if d.mode != mode64 {
		defer d.defaultSegment()
		if in.addr2 {
			d.modRM16(rm, mod)
			return
		}
	}
	in.base, in.index = rm|d.rex&1<<3, rZero
	switch {
	case rm == 4:
		sib := d.u8()
		in.scale = sib >> 6
		in.index = sib>>3&7 | d.rex&2<<2
		if in.index == rSP {
			in.index = rZero
		}
		in.base = sib&7 | d.rex&1<<3
		if sib&7 == 5 && mod == 0 {
			in.base = rZero
			in.disp = d.immediate(4)
			return
		}
	case rm == 5 && mod == 0:
		if in.base = rIP; d.mode != mode64 {
			in.base = rZero
		}
		in.disp = d.immediate(4)
		return
	}
	switch mod {
	case 1:
		in.disp = d.immediate(1)
		in.evexDisp = d.evexDisp
	case 2:
		in.disp = d.immediate(4)
	}
}

// defaultSegment is the stack's where the base is one of its registers, else the data's.
func (d *decoder) defaultSegment() {
	switch in := d.in; {
	case in.seg != segNone:
	case in.base == rBP || in.base == rSP:
		in.seg = segSS
	default:
		in.seg = segDS
	}
}

// modRMv is modRM for operands of 2, 4 or 8 bytes.
func (d *decoder) modRMv() {
	d.in.size = d.sizeV()
	d.modRM()
}

// modRMb is modRM for byte operands.
func (d *decoder) modRMb() {
	d.in.size = 1
	d.modRM()
	d.in.reg = d.byteReg(d.in.reg)
	if !d.in.mem {
		d.in.rm = d.byteReg(d.in.rm)
	}
}

// modRMw is modRM with the width that bit 0 of the opcode tells.
func (d *decoder) modRMw(op uint8) {
	if op&1 == 0 {
		d.modRMb()
	} else {
		d.modRMv()
	}
}

// modRM16 reads ModRM and displacement of 16-bit addresses (SDM 2, table 2-1).
func (d *decoder) modRM16(rm, mod uint8) {
	in := d.in
	bases := [8][2]uint8{{rBX, rSI}, {rBX, rDI}, {rBP, rSI}, {rBP, rDI}, {rSI, rZero}, {rDI, rZero}, {rBP, rZero}, {rBX, rZero}}
	in.base, in.index = bases[rm][0], bases[rm][1]
	switch {
	case mod == 0 && rm == 6:
		in.base = rZero
		in.disp = d.immediate(2)
	case mod == 1:
		in.disp = d.immediate(1)
	case mod == 2:
		in.disp = d.immediate(2)
	}
}
