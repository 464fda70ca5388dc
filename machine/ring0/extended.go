package ring0

import (
	"math/bits"

	"vmm/machine/native"
)

// The vCPU's extended state is where it was used last: at the host, in xarea, or in
// the unit that executes vector instructions. It moves when another needs it.

// extended brings the extended state to xarea. Who changes it there calls xModified.
func (c *CPU) extended() bool {
	if !c.xLoaded {
		if c.Failure = c.host.XSave(c.xarea); c.Failure != nil {
			return false
		}
		c.xLoaded = true
	}
	if c.unitChanged {
		c.eachUnitPart(func(from, to []byte) { copy(to, from) }, c.unit.XSave[:], c.xarea)
		bv := le.Uint64(c.xarea[xOffHeader:])&^native.Components | le.Uint64(c.unit.XSave[xOffHeader:])&native.Components
		if le.Uint32(c.xarea[xOffMXCSR:]) != defaultMXCSR {
			bv |= xSSE // else KVM would not take MXCSR over
		}
		le.PutUint64(c.xarea[xOffHeader:], bv)
		c.unitChanged, c.xChanged = false, true
	}
	return true
}

// xModified tells that xarea was changed.
func (c *CPU) xModified() { c.xChanged, c.unitHas = true, false }

// unitState brings the extended state to the unit.
func (c *CPU) unitState() bool {
	if c.unitHas {
		return true
	}
	if !c.extended() {
		return false
	}
	c.eachUnitPart(func(from, to []byte) { copy(to, from) }, c.xarea, c.unit.XSave[:])
	c.unitHas = true
	return true
}

// eachUnitPart calls do with each part of two XSAVE areas that the unit has.
func (c *CPU) eachUnitPart(do func(a, b []byte), a, b []byte) {
	do(a[:xOffHeader], b[:xOffHeader])
	for set := uint64(native.Components &^ 3); set != 0; set &= set - 1 {
		p := c.components[bits.TrailingZeros64(set)]
		if end := p.Offset + p.Size; p.Size > 0 && end <= len(a) && end <= len(b) {
			do(a[p.Offset:end], b[p.Offset:end])
		}
	}
}

// StoreExtended gives the host the extended state, if that is newer here.
func (c *CPU) StoreExtended() error {
	if !c.unitChanged && !c.xChanged {
		return nil
	}
	if !c.extended() {
		return c.Failure
	}
	c.xChanged = false
	return c.host.SetXSave(c.xarea)
}

// xcr0 is the components that the guest has enabled.
func (c *CPU) xcr0() (uint64, bool) {
	if !c.xcr0Known {
		v, err := c.host.XCR0()
		if err != nil {
			return 0, false
		}
		c.xcr0Value, c.xcr0Known = v, true
	}
	return c.xcr0Value, true
}
