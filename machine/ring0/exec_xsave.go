package ring0

import (
	"encoding/binary"
	"math/bits"

	"vmm/internal/x86"
)

// State components (SDM 1, 13.1) and the layout of an XSAVE area (13.4).
const (
	xX87 = 1 << 0
	xSSE = 1 << 1
	xAVX = 1 << 2
	// xAVX512 is the registers of masks, the upper halves of ZMM0 to 15, and the rest.
	xAVX512 = 1<<5 | 1<<6 | 1<<7

	xOffMXCSR   = 24
	xOffX87Regs = 32
	xOffXMM     = 160
	xEndXMM     = 416
	xOffHeader  = 512 // XSTATE_BV, XCOMP_BV
	xEndHeader  = 576
	xCompacted  = 1 << 63

	defaultMXCSR = 0x1f80
	mxcsrMask    = 0xffff // MXCSR_MASK: the others are reserved
	defaultFCW   = 0x37f
)

// Kinds of save, in inst.op.
const (
	saveStandard = iota
	saveCompact
	saveSupervisor
)

var le = binary.LittleEndian

// requested is the RFBM of an XSAVE or XRSTOR.
func (c *CPU) requested(supervisor bool) (uint64, bool) {
	x, ok := c.xcr0()
	if !ok {
		return 0, false
	}
	if supervisor {
		if xss, err := c.host.MSR(x86.MSRXSS); err == nil {
			x |= xss
		}
	}
	return x & (c.r[rDX]<<32 | c.get(rAX, 4)), true
}

// place returns where component i lies in an area, given XCOMP_BV of a
// compacted one or 0.
func (c *CPU) place(i int, xcomp uint64) int {
	if xcomp == 0 {
		return c.components[i].Offset
	}
	off := xEndHeader
	for j := 2; j <= i; j++ {
		if xcomp>>j&1 == 0 {
			continue
		}
		if c.components[j].Align64 {
			off = (off + 63) &^ 63
		}
		if j < i {
			off += c.components[j].Size
		}
	}
	return off
}

// areaSize is the extent of the components in set.
func (c *CPU) areaSize(set, xcomp uint64) int {
	n := xEndHeader
	for i := 2; i < 63; i++ {
		if set>>i&1 != 0 {
			n = max(n, c.place(i, xcomp)+c.components[i].Size)
		}
	}
	return n
}

// area returns n bytes to hold a guest's XSAVE area, valid until the next call.
func (c *CPU) area(n int) []byte {
	if n > len(c.garea) {
		c.garea = make([]byte, n)
	}
	return c.garea[:n]
}

// execXSave is XSAVE, XSAVEOPT, XSAVEC and XSAVES (SDM 1, 13.7 to 13.11).
// Components in their initial state are written too where that is allowed.
func execXSave(c *CPU, in *inst) status {
	rfbm, ok := c.requested(in.op == saveSupervisor)
	if !ok || !c.extended() {
		return handOver
	}
	addr := c.address(in)
	if addr&63 != 0 {
		return c.raise(vectorGP, 0)
	}
	std := c.xarea
	inUse := le.Uint64(std[xOffHeader:])
	if le.Uint32(std[xOffMXCSR:]) != defaultMXCSR {
		inUse |= xSSE
	}
	var xcomp uint64
	if in.op != saveStandard {
		xcomp = rfbm | xCompacted
	}
	area := c.area(c.areaSize(rfbm, xcomp))
	if !c.read(addr, area) { // what is not saved stays
		return handOver
	}
	bv := le.Uint64(area[xOffHeader:])
	bv = bv&^rfbm | inUse&rfbm
	if xcomp != 0 {
		bv = inUse & rfbm
		le.PutUint64(area[xOffHeader+8:], xcomp)
	}
	if rfbm&xX87 != 0 {
		copy(area[:xOffMXCSR], std)
		copy(area[xOffX87Regs:xOffXMM], std[xOffX87Regs:])
	}
	if rfbm&(xSSE|xAVX) != 0 {
		copy(area[xOffMXCSR:xOffX87Regs], std[xOffMXCSR:])
	}
	if rfbm&xSSE != 0 {
		copy(area[xOffXMM:xEndXMM], std[xOffXMM:])
	}
	le.PutUint64(area[xOffHeader:], bv)
	for set := rfbm &^ 3; set != 0; set &= set - 1 {
		i := bits.TrailingZeros64(set)
		from, n := c.components[i].Offset, c.components[i].Size
		if from+n > len(std) {
			return handOver
		}
		copy(area[c.place(i, xcomp):], std[from:from+n])
	}
	return stored(c.write(addr, area))
}

// execXRstor is XRSTOR and XRSTORS (SDM 1, 13.8 and 13.12).
func execXRstor(c *CPU, in *inst) status {
	supervisor := in.reg&7 == 3
	rfbm, ok := c.requested(supervisor)
	if !ok || !c.extended() {
		return handOver
	}
	addr := c.address(in)
	if addr&63 != 0 {
		return c.raise(vectorGP, 0)
	}
	var head [xEndHeader]byte
	if !c.read(addr, head[:]) {
		return handOver
	}
	bv, xcomp := le.Uint64(head[xOffHeader:]), le.Uint64(head[xOffHeader+8:])
	switch {
	case xcomp != 0 && xcomp&xCompacted == 0,
		xcomp == 0 && supervisor,
		xcomp != 0 && bv&^xcomp != 0:
		return c.raise(vectorGP, 0)
	}
	area := c.area(c.areaSize(rfbm&bv, xcomp))
	if !c.read(addr, area) {
		return handOver
	}
	std := c.xarea
	load := bv & rfbm
	inUse := le.Uint64(std[xOffHeader:])&^rfbm | load
	// x87 and SSE share the legacy region; what is not loaded is initialized.
	if rfbm&xX87 != 0 {
		clear(std[:xOffMXCSR])
		clear(std[xOffX87Regs:xOffXMM])
		le.PutUint16(std, defaultFCW)
		if load&xX87 != 0 {
			copy(std[:xOffMXCSR], area)
			copy(std[xOffX87Regs:xOffXMM], area[xOffX87Regs:])
		}
	}
	if rfbm&xSSE != 0 {
		clear(std[xOffXMM:xEndXMM])
		if load&xSSE != 0 {
			copy(std[xOffXMM:xEndXMM], area[xOffXMM:])
		}
	}
	if rfbm&(xSSE|xAVX) != 0 {
		mxcsr := le.Uint32(area[xOffMXCSR:])
		if xcomp != 0 && load&(xSSE|xAVX) == 0 {
			mxcsr = defaultMXCSR
		}
		if mxcsr&^mxcsrMask != 0 {
			return c.raise(vectorGP, 0)
		}
		le.PutUint32(std[xOffMXCSR:], mxcsr)
		if mxcsr != defaultMXCSR {
			inUse |= xSSE // else KVM would not take MXCSR over
		}
	}
	for set := rfbm &^ 3; set != 0; set &= set - 1 {
		i := bits.TrailingZeros64(set)
		to, n := c.components[i].Offset, c.components[i].Size
		if to+n > len(std) {
			return handOver
		}
		clear(std[to : to+n])
		if load>>i&1 != 0 {
			copy(std[to:to+n], area[c.place(i, xcomp):])
		}
	}
	le.PutUint64(std[xOffHeader:], inUse)
	c.xModified()
	return done
}

// execFXSave and execFXRstor handle the legacy region alone (SDM 2).
func execFXSave(c *CPU, in *inst) status {
	if !c.extended() {
		return handOver
	}
	return stored(c.write(c.address(in), c.xarea[:xEndXMM]))
}

func execFXRstor(c *CPU, in *inst) status {
	var area [xEndXMM]byte
	if !c.read(c.address(in), area[:]) || !c.extended() {
		return handOver
	}
	if le.Uint32(area[xOffMXCSR:])&^mxcsrMask != 0 {
		return c.raise(vectorGP, 0)
	}
	copy(c.xarea, area[:])
	return c.setLegacy()
}

// setLegacy writes xarea back with x87 and SSE in use.
func (c *CPU) setLegacy() status {
	le.PutUint64(c.xarea[xOffHeader:], le.Uint64(c.xarea[xOffHeader:])|xX87|xSSE)
	c.xModified()
	return done
}

func execLDMXCSR(c *CPU, in *inst) status {
	v, ok := c.load(c.address(in), 4)
	if !ok || !c.extended() {
		return handOver
	}
	if v&^mxcsrMask != 0 {
		return c.raise(vectorGP, 0)
	}
	le.PutUint32(c.xarea[xOffMXCSR:], uint32(v))
	return c.setLegacy()
}

func execSTMXCSR(c *CPU, in *inst) status {
	if !c.extended() {
		return handOver
	}
	return stored(c.store(c.address(in), uint64(le.Uint32(c.xarea[xOffMXCSR:])), 4))
}

func execXGetBV(c *CPU, _ *inst) status {
	v, ok := c.xcr0()
	if !ok || uint32(c.r[rCX]) != 0 {
		return handOver
	}
	c.r[rAX], c.r[rDX] = uint64(uint32(v)), v>>32
	return done
}
