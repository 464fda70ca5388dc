package irqchip

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"vmm/internal/x86"
	"vmm/kvm"
)

// pair are the chips that are compared.
type pair struct {
	t     *testing.T
	rand  *rand.Rand
	chips *Chips
	apics []*LAPIC
	guest *kvmGuest
	done  []string
	// autoEOI is set where KVM ends an interrupt of a local APIC's by delivering it. It does so
	// on hosts that interpret kernel mode.
	autoEOI bool
}

// newPair makes both, with all local APICs enabled by software, and their timers masked: when
// they expire depends on the time.
func newPair(t *testing.T, seed uint64) *pair {
	p := &pair{t: t, rand: rand.New(rand.NewPCG(seed, 0)), guest: newKVMGuest(t)}
	p.chips, p.apics = newTestChips(t, chipsCPUs)
	for id, v := range p.guest.cpus {
		s, err := v.LAPIC()
		p.guest.must(err)
		binary.LittleEndian.PutUint32(s.Regs[regSpurious:], spuriousEnable|0xff)
		binary.LittleEndian.PutUint32(s.Regs[regLDR:], 1<<(24+id))
		p.guest.must(v.SetLAPIC(&s))
		write32(p.apics[id], regLDR, 1<<(24+id))
	}
	p.probeEOI()
	for pin := range uint32(ioapicPins) {
		reg := ioapicRegRedirect + 2*pin + 1
		p.do(p.ioapicWrite(reg, 2<<24))
	}
	return p
}

// probeEOI finds out about autoEOI.
func (p *pair) probeEOI() {
	const vector = 0x21
	_, err := p.guest.vm.SignalMSI(kvm.MSI{AddressLo: x86.LAPICBase, Data: vector})
	p.guest.must(err)
	if got := p.guest.interrupt(); got != vector {
		p.t.Fatalf("interrupt %#x, want %#x", got, vector)
	}
	p.autoEOI = p.guest.read32(x86.LAPICBase+regISR+0x10) == 0
	p.guest.write32(x86.LAPICBase+regEOI, 0)
}

func (p *pair) do(s step) {
	p.t.Helper()
	ours, kvms := s.ours(), s.kvms()
	if p.done = append(p.done, fmt.Sprintf("%s: %#x", s.name, kvms)); ours != kvms {
		p.fail("the guest gets %#x, of KVM %#x", ours, kvms)
	}
	p.compare()
}

func (p *pair) fail(format string, args ...any) {
	p.t.Helper()
	for id := range uint32(2) {
		ours, _ := p.chips.Chip(id)
		kvms, _ := p.guest.vm.IRQChip(id)
		p.t.Logf("chip %d: %x, of KVM %x", id, ours.State[:16], kvms.State[:16])
	}
	for _, s := range p.done[max(len(p.done)-25, 0):] {
		p.t.Log(s)
	}
	p.t.Fatalf("after %d steps: %s", len(p.done), fmt.Sprintf(format, args...))
}

// compare compares the states, but for times.
func (p *pair) compare() {
	p.t.Helper()
	g := p.guest
	for id := range uint32(3) {
		ours, err := p.chips.Chip(id)
		g.must(err)
		kvms, err := g.vm.IRQChip(id)
		g.must(err)
		if ours.State != kvms.State {
			p.fail("chip %d:\n%x\nof KVM:\n%x", id, ours.State[:24+8*ioapicPins], kvms.State[:24+8*ioapicPins])
		}
	}
	for id, l := range p.apics {
		ours := l.State()
		kvms, err := g.cpus[id].LAPIC()
		g.must(err)
		for reg := 0; reg < lapicRegisters; reg += 16 {
			a, b := binary.LittleEndian.Uint32(ours.Regs[reg:]), binary.LittleEndian.Uint32(kvms.Regs[reg:])
			if reg != regCurrent && reg != regPPR && reg != regEOI && reg != regESR && a != b {
				p.fail("APIC %d, register %#x: %#x, of KVM %#x", id, reg, a, b)
			}
		}
	}
	ours := p.chips.PIT()
	kvms, err := g.vm.PIT2()
	g.must(err)
	if a, b := untimed(ours), untimed(kvms); a != b {
		p.fail("PIT:\n%+v\nof KVM:\n%+v", a, b)
	}
}

// untimed is an i8254's state without what depends on the time.
func untimed(s kvm.PITState2) kvm.PITState2 {
	for i := range s.Channels {
		ch := &s.Channels[i]
		ch.CountLoadTime, ch.LatchedCount = 0, 0
		ch.Status &^= 1 << 7 // the output
	}
	return s
}

// TestAgainstKVM does the same random things to KVM's chips and ours.
func TestAgainstKVM(t *testing.T) {
	for name, kinds := range map[string][]func(*pair) step{
		"pit":    {(*pair).pitStep},
		"pic":    {(*pair).picStep, (*pair).sourceStep},
		"ioapic": {(*pair).ioapicStep, (*pair).sourceStep},
		"lapic":  {(*pair).apicStep, (*pair).sourceStep},
		"all":    {(*pair).picStep, (*pair).ioapicStep, (*pair).apicStep, (*pair).pitStep, (*pair).sourceStep},
	} {
		t.Run(name, func(t *testing.T) {
			for seed := range uint64(3) {
				p := newPair(t, seed)
				p.compare()
				for range 400 {
					p.do(one(p, kinds...)(p))
				}
			}
		})
	}
}

// TestX2APICAgainstKVM is TestAgainstKVM for MSRs.
func TestX2APICAgainstKVM(t *testing.T) {
	bases := []uint64{0xfee00000, 0xfee00800, 0xfee00c00, 0xfee00400, 0xfee00900, 0xfee00d00, 0xfee00801, 0xfee00a00}
	for seed := range uint64(3) {
		p := newPair(t, seed)
		for range 400 {
			reg := one(p, slices.Concat(apicRegisters, []uint32{regEOI, regAPR, regSelfIPI, 0x040})...)
			index := x86.MSRX2APIC + reg/16
			switch p.rand.IntN(5) {
			case 0:
				// In x2APIC mode KVM keeps the ICR's destination elsewhere, and finds there what was
				// left in it.
				base := one(p, bases...)
				p.do(all(fmt.Sprintf("base %#x", base), p.wrmsr(0x1b, base), p.wrmsr(x86.MSRX2APIC+regICR/16, 0x10007<<32|icrAssert|0x31)))
			case 1:
				if reg != regPPR {
					p.do(p.rdmsr(index))
				}
			case 2:
				p.do(p.physicalStep())
			case 3:
				p.do(p.wrmsr(x86.MSRX2APIC+regEOI/16, 0))
			case 4:
				p.do(p.x2apicWrite(reg, index))
			}
		}
	}
}
