package ring0

// The gathers of AVX2 load from addresses that a vector register holds, so that no operand
// can be copied in before: they are done here element by element (SDM 2, VPGATHERDD and
// those that follow it).

// gather is what a gather's encoding says beside its ModRM.
type gather struct {
	mask      uint8 // the register whose elements' highest bits say which are loaded
	index     uint8
	wide      bool  // 256 bits
	indexSize uint8 // bytes
}

// gather decodes one: op is 0x90 to 0x93, w and l are VEX.W and VEX.L.
func (d *decoder) gather(op, vvvv uint8, w, l bool) {
	in := d.in
	sib := d.pos + 1
	d.modRM()
	if !in.mem || sib >= len(d.b) || d.b[sib-1]&7 != 4 {
		d.bad = true
		return
	}
	g := gather{mask: vvvv, index: d.b[sib]>>3&7 | d.rex&2<<2, wide: l, indexSize: 4}
	if op&1 != 0 {
		g.indexSize = 8
	}
	in.size = 4
	if w {
		in.size = 8
	}
	in.index = rZero
	in.gather, in.form, in.own, in.exec = g, vectorForm{bytes: 32, needs: xSSE | xAVX}, true, execGather
}

// vectorPart is where bytes off to off+n of a 256-bit register are in xarea; they lie in
// one half.
func (c *CPU) vectorPart(reg uint8, off, n int) []byte {
	at := xOffXMM + 16*int(reg) + off
	if off >= 16 {
		at = c.components[2].Offset + 16*int(reg) + off - 16
	}
	return c.xarea[at : at+n]
}

func execGather(c *CPU, in *inst) status {
	enabled, _ := c.xcr0()
	g := &in.gather
	if uint64(in.form.needs)&^enabled != 0 || in.reg == g.mask || in.reg == g.index || g.mask == g.index {
		return c.undefined(in)
	}
	if !c.extended() || c.components[2].Size == 0 {
		return unknown
	}
	size, indexSize := int(in.size), int(g.indexSize)
	n := 16
	if g.wide {
		n = 32
	}
	count := n / max(size, indexSize)
	base := c.r[in.base] + in.disp
	for i := range count {
		mask := c.vectorPart(g.mask, i*size, size)
		if mask[size-1]&0x80 == 0 {
			continue
		}
		index := signExtend(loadBytes(c.vectorPart(g.index, i*indexSize, indexSize)), g.indexSize)
		addr := base + index<<in.scale
		if in.addr4 {
			addr = uint64(uint32(addr))
		}
		v, ok := c.load(c.linear(in.seg, addr), in.size)
		if !ok { // what has been loaded stays, and its mask says so
			c.gathered()
			return handOver
		}
		storeBytes(c.vectorPart(in.reg, i*size, size), v)
		clear(mask)
	}
	// What is above the elements is cleared in both registers.
	for off := count * size; off < 32; off += size {
		clear(c.vectorPart(in.reg, off, size))
		clear(c.vectorPart(g.mask, off, size))
	}
	for off := 0; off < count*size; off += size {
		clear(c.vectorPart(g.mask, off, size))
	}
	c.gathered()
	return done
}

// gathered notes that vector registers were changed.
func (c *CPU) gathered() {
	le.PutUint64(c.xarea[xOffHeader:], le.Uint64(c.xarea[xOffHeader:])|xSSE|xAVX)
	c.xModified()
}

func loadBytes(b []byte) uint64 {
	if len(b) == 8 {
		return le.Uint64(b)
	}
	return uint64(le.Uint32(b))
}

func storeBytes(b []byte, v uint64) {
	if len(b) == 8 {
		le.PutUint64(b, v)
	} else {
		le.PutUint32(b, uint32(v))
	}
}
