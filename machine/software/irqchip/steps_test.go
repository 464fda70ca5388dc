package irqchip

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"vmm/internal/x86"
	"vmm/kvm"
)

// step is something that is done to both KVM's chips and ours.
type step struct {
	name string
	// ours and kvms return what a guest gets, which is to be the same.
	ours func() uint64
	kvms func() uint64
}

func (p *pair) out(port uint16, v byte) step {
	return step{fmt.Sprintf("out %#x, %#x", port, v),
		func() uint64 { p.chips.out(port, v); return 0 },
		func() uint64 { p.guest.out(port, v); return 0 }}
}

// in compares the bits in mask.
func (p *pair) in(port uint16, mask byte) step {
	return step{fmt.Sprintf("in %#x", port),
		func() uint64 { return uint64(p.chips.in(port) & mask) },
		func() uint64 { return uint64(p.guest.in(port) & mask) }}
}

func (p *pair) ioapicWrite(reg, v uint32) step {
	return step{fmt.Sprintf("I/O APIC %#x = %#x", reg, v),
		func() uint64 { p.chips.ioapicWrite(reg, v); return 0 },
		func() uint64 {
			p.guest.write32(ioapicBase+ioapicSelect, reg)
			p.guest.write32(ioapicBase+ioapicWindow, v)
			return 0
		}}
}

func (p *pair) ioapicRead(reg uint32) step {
	return step{fmt.Sprintf("read I/O APIC %#x", reg),
		func() uint64 { return uint64(p.chips.ioapicRead(reg)) },
		func() uint64 {
			p.guest.write32(ioapicBase+ioapicSelect, reg)
			return uint64(p.guest.read32(ioapicBase + ioapicWindow))
		}}
}

func (p *pair) apicWrite(reg, v uint32) step {
	return step{fmt.Sprintf("APIC %#x = %#x", reg, v),
		func() uint64 { write32(p.apics[0], reg, v); return 0 },
		func() uint64 { p.guest.write32(x86.LAPICBase+reg, v); return 0 }}
}

func (p *pair) apicRead(reg uint32) step {
	return step{fmt.Sprintf("read APIC %#x", reg),
		func() uint64 { return uint64(read32(p.apics[0], reg)) },
		func() uint64 { return uint64(p.guest.read32(x86.LAPICBase + reg)) }}
}

func (p *pair) wrmsr(index uint32, v uint64) step {
	return step{fmt.Sprintf("wrmsr %#x, %#x", index, v),
		func() uint64 {
			if index == 0x1b {
				return truth(p.apics[0].SetBase(v))
			}
			return truth(p.apics[0].WriteMSR(index, v))
		},
		func() uint64 { return truth(p.guest.wrmsr(index, v)) }}
}

func (p *pair) rdmsr(index uint32) step {
	return step{fmt.Sprintf("rdmsr %#x", index),
		func() uint64 { return valid(p.apics[0].ReadMSR(index)) },
		func() uint64 { return valid(p.guest.rdmsr(index)) }}
}

// valid is what there was to read, and whether there was.
func valid(v uint64, ok bool) uint64 {
	if !ok {
		return 0
	}
	return v<<1 | 1
}

func truth(b bool) uint64 {
	if b {
		return 1
	}
	return 0
}

func (p *pair) line(gsi uint32, level bool) step {
	return step{fmt.Sprintf("line %d %v", gsi, level),
		func() uint64 { p.chips.SetLine(gsi, level); return 0 },
		func() uint64 { p.guest.must(p.guest.vm.IRQLine(gsi, level)); return 0 }}
}

func (p *pair) msi(m kvm.MSI) step {
	return step{fmt.Sprintf("message %#x at %#x", m.Data, m.AddressLo),
		func() uint64 { return truth(p.chips.SignalMSI(m)) },
		func() uint64 {
			ok, err := p.guest.vm.SignalMSI(m)
			if !errors.Is(err, unix.EPERM) { // KVM's word for that it is for nobody
				p.guest.must(err)
			}
			return truth(ok)
		}}
}

func (p *pair) interrupt() step {
	ours := func() uint64 {
		l := p.apics[0]
		before := l.isr
		v := take(l)
		if p.autoEOI && l.isr != before {
			write32(l, regEOI, 0)
			l.WriteMSR(x86.MSRX2APIC+regEOI/16, 0)
		}
		return uint64(v)
	}
	return step{"interrupt", ours, func() uint64 { return uint64(p.guest.interrupt()) }}
}

// one picks one of a list.
func one[T any](p *pair, list ...T) T { return list[p.rand.IntN(len(list))] }

// vector is one that an interrupt can have. Those of the I/O APIC's edges and levels and of
// others are different ones: KVM sends edges again with the EOI of a level, and tells the I/O
// APIC only of EOIs by CPUs that its pins lead to.
func (p *pair) vector(of uint32) uint32 {
	return firstVector + 3*p.rand.Uint32N((256-firstVector)/3) + of
}

// Of whom a vector is.
const (
	ofEdge uint32 = iota
	ofLevel
	ofOthers
)

// dest is a destination. One of several, as for the lowest priority, are CPUs 1 and 2: KVM
// chooses those, too, that are not there or that software has disabled.
func (p *pair) dest(oneOf bool) uint32 {
	if oneOf {
		return one[uint32](p, 2, 6)
	}
	return one[uint32](p, 0, 1, 2, 3, 6, 0xff)
}

// pitStep leaves channel 0 without a count that would interrupt.
func (p *pair) pitStep() step {
	switch p.rand.IntN(6) {
	case 0:
		return p.out(portPITControl, one[byte](p, 0x3a, 0x1a, 0x2a, 0x00)) // of channel 0: its gate never rises
	case 1:
		return p.out(portPITControl, 0x40<<p.rand.IntN(2)|byte(p.rand.IntN(64)))
	case 2:
		return p.out(portPITControl, 0xc0|byte(p.rand.IntN(64)))
	case 3:
		return p.out(portPIT+1+uint16(p.rand.IntN(2)), byte(p.rand.Uint32()))
	case 4:
		return p.in(portPIT+uint16(p.rand.IntN(4)), 0)
	}
	if p.rand.IntN(2) == 0 {
		return p.out(portSystem, byte(p.rand.Uint32()))
	}
	return p.in(portSystem, ^byte(systemRefresh|systemOut))
}

// picStep does not poll.
func (p *pair) picStep() step {
	port := one[uint16](p, portMaster, portSlave)
	switch p.rand.IntN(8) {
	case 0:
		return p.in(port+uint16(p.rand.IntN(2)), 0xff)
	case 1:
		if p.chips.pics[0].ISR|p.chips.pics[1].ISR != 0 { // which KVM keeps
			return p.out(port, 0x20)
		}
		return p.initPIC(port)
	case 2:
		return p.out(port, ocw3Select|one[byte](p, 0, 2, 3)) // without the special mask
	case 3, 4:
		return p.out(port, byte(p.rand.IntN(8))<<5|byte(p.rand.IntN(8)))
	case 5:
		if p.rand.IntN(2) == 0 {
			return p.out(portELCR+uint16(p.rand.IntN(2)), byte(p.rand.Uint32()))
		}
		return p.in(portELCR+uint16(p.rand.IntN(2)), 0xff)
	}
	return p.out(port+1, byte(p.rand.Uint32()))
}

// initPIC initializes an 8259A. KVM looks at its inputs again only in the end.
func (p *pair) initPIC(port uint16) step {
	icw4 := byte(p.rand.IntN(2))
	steps := []step{p.out(port, icw1Init|icw4), p.out(port+1, byte(p.rand.Uint32())), p.out(port+1, 0)}
	if icw4 != 0 {
		steps = append(steps, p.out(port+1, byte(p.rand.IntN(32))))
	}
	return all(fmt.Sprintf("initialize %#x", port), append(steps, p.out(port+1, 0))...)
}

// all is several steps as one.
func all(name string, steps ...step) step {
	s := step{name: name}
	s.ours = func() (v uint64) {
		for _, s := range steps {
			v = v<<1 ^ s.ours()
		}
		return v
	}
	s.kvms = func() (v uint64) {
		for _, s := range steps {
			v = v<<1 ^ s.kvms()
		}
		return v
	}
	return s
}

func (p *pair) ioapicStep() step {
	reg := uint32(ioapicRegRedirect + 2*p.rand.IntN(ioapicPins+1))
	switch p.rand.IntN(5) {
	case 0:
		return p.ioapicRead(uint32(p.rand.IntN(0x44)))
	case 1:
		// A destination that there is, in both modes: KVM sets the remote IRR even if nobody has
		// taken the message.
		return p.ioapicWrite(reg+1, one[uint32](p, 2, 0xff)<<24)
	case 2:
		return p.ioapicWrite(uint32(p.rand.IntN(ioapicRegRedirect)), p.rand.Uint32())
	}
	mode := one(p, modeFixed, modeFixed, modeLowest)
	bits := p.rand.Uint32() & (redirectLogical | redirectLevel | redirectReadOnly | 1<<13)
	if p.rand.IntN(3) == 0 {
		bits |= redirectMasked
	}
	of := ofEdge
	if bits&redirectLevel != 0 {
		of = ofLevel
	}
	return p.ioapicWrite(reg, p.vector(of)|uint32(mode)<<8|bits)
}

// apicRegisters are those that can be read.
var apicRegisters = []uint32{regID, regVersion, regTPR, regPPR, regLDR, regDFR, regSpurious, regISR + 0x30, regTMR + 0x50, regIRR + 0x70, regICR, regICR2,
	regLVT, regLVT + 0x30, regInitial, regDivide}

func (p *pair) apicStep() step {
	switch p.rand.IntN(9) {
	case 0:
		return p.apicRead(one(p, apicRegisters...))
	case 1:
		return p.apicWrite(regTPR, p.rand.Uint32N(8)<<4)
	case 2:
		return p.apicWrite(one[uint32](p, regLDR, regDFR), one(p, p.rand.Uint32(), 0xffffffff, 0x0fffffff, 0x01000000))
	case 3:
		if p.rand.IntN(8) == 0 {
			return p.apicWrite(regSpurious, p.rand.Uint32())
		}
		return p.apicWrite(regSpurious, spuriousEnable|0xff)
	case 4:
		i := p.rand.Uint32N(lvtEntries)
		v := p.rand.Uint32() & lvtWritable[i]
		if i == lvtLINT0 {
			v = v&^lvtMode | uint32(modeExtINT)<<8
		} else {
			v |= lvtMasked
		}
		return p.apicWrite(regLVT+i*16, v)
	case 5:
		return p.apicWrite(one[uint32](p, regInitial, regDivide), p.rand.Uint32())
	case 6:
		return p.apicWrite(regICR2, one[uint32](p, 0, 1, 2, 3, 6, 0xff)<<24)
	}
	if p.rand.IntN(2) == 0 {
		return p.apicWrite(regEOI, 0)
	}
	mode := one(p, modeFixed, modeFixed, modeLowest)
	icr := p.vector(ofOthers) | uint32(mode)<<8 | p.rand.Uint32()&(icrLogical|icrBusy|icrLevel) | icrAssert
	if mode == modeFixed {
		icr |= p.rand.Uint32N(4) << 18
	}
	dest := p.dest(mode == modeLowest)
	return all(fmt.Sprintf("IPI %#x to %#x", icr, dest), p.apicWrite(regICR2, dest<<24), p.apicWrite(regICR, icr))
}

func (p *pair) sourceStep() step {
	switch p.rand.IntN(4) {
	case 0:
		mode, hint := one(p, modeFixed, modeLowest), p.rand.Uint32()&8
		dest := p.dest(mode == modeLowest || hint != 0)
		return p.msi(kvm.MSI{AddressLo: x86.LAPICBase | dest<<12 | hint | p.rand.Uint32()&4,
			Data: p.vector(ofOthers) | uint32(mode)<<8 | p.rand.Uint32()&0xc000})
	case 1:
		return p.interrupt()
	}
	return p.lineStep()
}

// lineStep leaves out the i8254's line, and the one that is the 8259As' own.
func (p *pair) lineStep() step {
	gsi := 1 + p.rand.Uint32N(ioapicPins-1)
	if gsi == cascade {
		gsi = 1
	}
	return p.line(gsi, p.rand.IntN(2) == 0)
}

// physicalStep leaves out logical destinations, for which all local APICs have to be in the
// same mode.
func (p *pair) physicalStep() step {
	switch p.rand.IntN(3) {
	case 0:
		return p.msi(kvm.MSI{AddressLo: x86.LAPICBase | one[uint32](p, 0, 1, 2, 3, 0xff)<<12, Data: p.vector(ofOthers) | p.rand.Uint32()&0xc000})
	case 1:
		return p.interrupt()
	}
	return p.lineStep()
}

// x2apicWrite leaves out what SDM and KVM disagree on.
func (p *pair) x2apicWrite(reg, index uint32) step {
	v := uint64(p.rand.Uint32())
	switch {
	case reg == regICR:
		v = uint64(one[uint32](p, 0, 1, 2, 3, 7, 0x10007, 0xffffffff))<<32 | v&(3<<18|icrLogical|icrLevel) | icrAssert | uint64(p.vector(ofOthers))
	case reg == regSelfIPI:
		v = uint64(p.vector(ofOthers)) | v&0x100
	case reg == regTPR:
		v &= 0x70
	case reg == regSpurious:
		v |= spuriousEnable
	case reg == regEOI:
		v = 0
	case reg >= regLVT && reg < regInitial:
		v = v&uint64(lvtWritable[(reg-regLVT)/16]) | lvtMasked
	}
	if p.rand.IntN(10) == 0 && reg != regICR {
		v |= 1 << 40
	}
	return p.wrmsr(index, v)
}
