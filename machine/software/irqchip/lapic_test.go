package irqchip

import (
	"testing"

	"vmm/internal/x86"
	"vmm/kvm"
)

func x2(t *testing.T, l *LAPIC) {
	t.Helper()
	if !l.SetBase(l.Base() | baseX2APIC) {
		t.Fatal("no x2APIC mode")
	}
}

// ipi writes the ICR in the mode that the APIC is in.
func ipi(l *LAPIC, dest, low uint32) {
	if l.x2apic() {
		l.WriteMSR(x86.MSRX2APIC+regICR/16, uint64(dest)<<32|uint64(low))
		return
	}
	write32(l, regICR2, dest<<24)
	write32(l, regICR, low)
}

func TestDestinations(t *testing.T) {
	flat := func(t *testing.T, l *LAPIC) { write32(l, regLDR, 1<<(24+l.id)) }
	cluster := func(t *testing.T, l *LAPIC) {
		write32(l, regDFR, 0)
		write32(l, regLDR, (l.id/2<<4|1<<(l.id%2))<<24)
	}
	for _, c := range []struct {
		name  string
		mode  func(*testing.T, *LAPIC)
		dest  uint32
		low   uint32
		takes []int
	}{
		{"physical", flat, 2, 0x4051, []int{2}},
		{"physical, nobody", flat, 9, 0x4051, nil},
		{"physical broadcast", flat, 0xff, 0x4051, []int{0, 1, 2, 3}},
		{"flat", flat, 0b1010, 0x4851, []int{1, 3}},
		{"flat, all", flat, 0xff, 0x4851, []int{0, 1, 2, 3}},
		{"cluster", cluster, 0x13, 0x4851, []int{2, 3}},
		{"cluster, one", cluster, 0x02, 0x4851, []int{1}},
		{"lowest priority: one of three, by the vector", flat, 0b1110, 0x4951, []int{1}},
		{"lowest priority: the next one", flat, 0b1110, 0x4952, []int{2}},
		{"self", flat, 0, 0x44051, []int{0}},
		{"all", flat, 0, 0x84051, []int{0, 1, 2, 3}},
		{"others", flat, 0, 0xc4051, []int{1, 2, 3}},
		{"x2APIC physical", x2, 3, 0x4051, []int{3}},
		{"x2APIC broadcast", x2, 0xffffffff, 0x4051, []int{0, 1, 2, 3}},
		{"x2APIC: 0xff is an ID", x2, 0xff, 0x4051, nil},
		{"x2APIC logical", x2, 0x0000_0006, 0x4851, []int{1, 2}},
		{"x2APIC logical, another cluster", x2, 0x0001_0006, 0x4851, nil},
		{"illegal vector", flat, 2, 0x400f, nil},
	} {
		_, apics := newTestChips(t, 4)
		for _, l := range apics {
			c.mode(t, l)
		}
		ipi(apics[0], c.dest, c.low)
		var got []int
		for i, l := range apics {
			if kicked := l.cpu.(*testCPU).kicks.Load() > 0; kicked != (l.Wanted() != 0) {
				t.Errorf("%s: CPU %d: kicked %v, wanted %b", c.name, i, kicked, l.Wanted())
			}
			if v := take(l); v >= 0 {
				expect(t, c.name, v, int(c.low&0xff))
				got = append(got, i)
			}
		}
		if !same(got, c.takes) {
			t.Errorf("%s: CPUs %v, want %v", c.name, got, c.takes)
		}
	}
}

func TestMSI(t *testing.T) {
	for _, c := range []struct {
		name  string
		m     kvm.MSI
		takes []int
	}{
		{"physical", kvm.MSI{AddressLo: 0xfee01000, Data: 0x61}, []int{1}},
		{"logical", kvm.MSI{AddressLo: 0xfee06004, Data: 0x61}, []int{1, 2}},
		{"with a hint for redirection", kvm.MSI{AddressLo: 0xfee0600c, Data: 0x61}, []int{2}},
		{"broadcast", kvm.MSI{AddressLo: 0xfeeff000, Data: 0x61}, []int{0, 1, 2}},
		{"nobody", kvm.MSI{AddressLo: 0xfee30000, Data: 0x61}, nil},
	} {
		for _, x2mode := range []bool{false, true} {
			chips, apics := newTestChips(t, 3)
			for _, l := range apics {
				write32(l, regLDR, 1<<(24+l.id))
				if x2mode {
					x2(t, l)
				}
			}
			if ok := chips.SignalMSI(c.m); ok != (c.takes != nil) {
				t.Errorf("%s: delivered: %v", c.name, ok)
			}
			var got []int
			for i, l := range apics {
				if take(l) == 0x61 {
					got = append(got, i)
				}
			}
			if !same(got, c.takes) {
				t.Errorf("%s, x2APIC %v: CPUs %v, want %v", c.name, x2mode, got, c.takes)
			}
		}
	}
}

func TestPriorities(t *testing.T) {
	_, apics := newTestChips(t, 1)
	l := apics[0]
	write32(l, regTPR, 0x50)
	expect(t, "CR8", int(l.CR8()), 5)
	for _, v := range []uint32{0x51, 0x62, 0x75} {
		ipi(l, 0, 0x44000|v)
	}
	expect(t, "the highest", take(l), 0x75)
	expect(t, "PPR", int(read32(l, regPPR)), 0x70)
	expect(t, "lower ones wait", take(l), -1)
	write32(l, regEOI, 0)
	expect(t, "after the EOI", take(l), 0x62)
	write32(l, regEOI, 0)
	expect(t, "below the TPR", take(l), -1)
	if l.Wanted() != 0 || l.Deliverable() {
		t.Errorf("wanted: %b", l.Wanted())
	}
	l.SetCR8(4)
	if !l.Deliverable() || l.Wanted() != WantInterrupt {
		t.Errorf("wanted with a lower TPR: %b", l.Wanted())
	}
	expect(t, "with a lower TPR", take(l), 0x51)
	write32(l, regEOI, 0)
	write32(l, regEOI, 0) // of nothing
	expect(t, "PPR in the end", int(read32(l, regPPR)), 0x40)
}

func TestStartup(t *testing.T) {
	_, apics := newTestChips(t, 2)
	write32(apics[1], regSpurious, 0x1ff)
	ipi(apics[0], 1, 0x4400) // NMI
	if w := apics[1].Wanted(); w != WantNMI || !apics[1].TakeNMI() || apics[1].TakeNMI() {
		t.Errorf("NMI: wanted %b", w)
	}
	ipi(apics[0], 1, 0xc500) // INIT, level, assert
	ipi(apics[0], 1, 0x8500) // INIT, level, de-assert
	if w := apics[1].Wanted(); w != WantINIT {
		t.Errorf("INIT: wanted %b", w)
	}
	ipi(apics[0], 1, 0x4608)
	if !apics[1].TakeINIT() || apics[1].TakeINIT() {
		t.Error("no INIT")
	}
	expect(t, "SVR after INIT", int(read32(apics[1], regSpurious)), 0xff)
	if v, ok := apics[1].TakeSIPI(); v != 8 || !ok {
		t.Errorf("SIPI %#x, %v", v, ok)
	}
	if _, ok := apics[1].TakeSIPI(); ok || apics[1].Wanted() != 0 {
		t.Error("a second SIPI")
	}
}

func TestBase(t *testing.T) {
	const off, x, x2 = x86.LAPICBase, x86.LAPICBase | baseEnable, x86.LAPICBase | baseEnable | baseX2APIC
	for _, c := range []struct {
		from, to uint64
		ok       bool
	}{
		{x, x2, true}, {x, off, true}, {x, x86.LAPICBase | baseX2APIC, false},
		{x2, x2, true}, {x2, x, false}, {x2, off, true}, {x2, x86.LAPICBase | baseX2APIC, false},
		{off, x, true}, {off, x2, false}, {off, off, true},
		{x, x | 1, false}, {x, x | 1<<9, false}, {x, x | 1<<52, false}, {x, 0xfed00000 | baseEnable, true},
	} {
		_, apics := newTestChips(t, 2)
		if !apics[1].RestoreBase(c.from) {
			t.Fatalf("no mode %#x", c.from)
		}
		if ok := apics[1].SetBase(c.to); ok != c.ok {
			t.Errorf("%#x to %#x: %v", c.from, c.to, ok)
		}
		want := c.from
		if c.ok {
			want = c.to
		}
		if got := apics[1].Base(); got != want {
			t.Errorf("%#x to %#x: the base is %#x", c.from, c.to, got)
		}
	}
}

func TestX2APIC(t *testing.T) {
	_, apics := newTestChips(t, 20)
	l := apics[18]
	if _, ok := l.ReadMSR(x86.MSRX2APIC + regID/16); ok {
		t.Error("MSRs in xAPIC mode")
	}
	x2(t, l)
	if b := read32(l, regVersion); b != 0xffffffff {
		t.Errorf("memory in x2APIC mode: %#x", b)
	}
	for _, c := range []struct {
		reg       uint32
		write     uint64
		readable  bool
		writeable bool
		read      uint64
	}{
		{regID, 0, true, false, 18},
		{regVersion, 0, true, false, 0x50014},
		{regLDR, 0, true, false, 1<<16 | 1<<2},
		{regDFR, 0, false, false, 0},
		{regTPR, 0x20, true, true, 0x20},
		{regTPR, 1 << 32, true, false, 0x20},
		{regPPR, 0, true, false, 0x20},
		{regEOI, 0, false, true, 0},
		{regEOI, 1, false, false, 0},
		{regESR, 0, true, true, 0},
		{regESR, 1, true, false, 0},
		{regICR, 7<<32 | 0x4051, true, true, 7<<32 | 0x4051},
		{regICR, 1 << 20, true, false, 7<<32 | 0x4051},
		{regICR2, 0, false, false, 0},
		{regSelfIPI, 0x100, false, false, 0},
		{regSelfIPI, 0x41, false, true, 0},
		{regIRR + 2*16, 0, true, false, 1 << 1},
		{regCurrent, 0, true, false, 0},
		{regAPR, 0, false, false, 0},
		{0xff0, 0, false, false, 0},
	} {
		if ok := l.WriteMSR(x86.MSRX2APIC+c.reg/16, c.write); ok != c.writeable {
			t.Errorf("write of %#x to register %#x: %v", c.write, c.reg, ok)
		}
		if v, ok := l.ReadMSR(x86.MSRX2APIC + c.reg/16); ok != c.readable || ok && v != c.read {
			t.Errorf("register %#x: %#x, %v; want %#x", c.reg, v, ok, c.read)
		}
	}
}

func TestErrors(t *testing.T) {
	_, apics := newTestChips(t, 2)
	l := apics[0]
	write32(l, regLVT+lvtError*16, 0x45)
	ipi(l, 1, 0x4003)
	expect(t, "error interrupt", take(l), 0x45)
	write32(l, regEOI, 0)
	expect(t, "ESR before it is written", int(read32(l, regESR)), 0)
	read32(l, 0x40)
	write32(l, regESR, 0)
	expect(t, "ESR", int(read32(l, regESR)), errSendVector|errRegister)
	write32(l, regESR, 0)
	expect(t, "ESR, second", int(read32(l, regESR)), 0)
	// An entry for errors that is wrong itself comes to an end.
	write32(l, regLVT+lvtError*16, 0x01)
	ipi(l, 1, 0x4003)
	write32(l, regESR, 0)
	expect(t, "ESR, a wrong entry", int(read32(l, regESR)), errSendVector|errReceiveVector)
}

func TestDisabled(t *testing.T) {
	_, apics := newTestChips(t, 1)
	l := apics[0]
	write32(l, regLVT+lvtTimer*16, 0x40)
	write32(l, regSpurious, 0xff)
	expect(t, "the LVT is masked", int(read32(l, regLVT+lvtTimer*16)), lvtMasked|0x40)
	write32(l, regLVT+lvtTimer*16, 0x41)
	expect(t, "and stays so", int(read32(l, regLVT+lvtTimer*16)), lvtMasked|0x41)
	ipi(l, 0, 0x44051)
	expect(t, "no interrupt", int(read32(l, regIRR+2*16)), 0)
}

func TestAccesses(t *testing.T) {
	_, apics := newTestChips(t, 1)
	l := apics[0]
	for _, c := range []struct {
		off  uint32
		want []byte
	}{
		{regVersion, []byte{0x14}}, {regVersion + 2, []byte{5}}, {regVersion, []byte{0x14, 0, 5, 0}}, {regVersion + 2, []byte{5, 0}},
		{regVersion + 2, []byte{0, 0, 0, 0}}, {regVersion + 4, []byte{0}}, {regVersion, make([]byte, 8)}, {0xffc, make([]byte, 4)},
	} {
		b := make([]byte, len(c.want))
		b[0] = 0xcc
		if l.MMIO(c.off, b, false); string(b) != string(c.want) {
			t.Errorf("%d bytes at %#x: %x, want %x", len(b), c.off, b, c.want)
		}
	}
	for _, n := range []int{1, 2, 8} {
		l.MMIO(regTPR, []byte{0x20, 0, 0, 0, 0, 0, 0, 0}[:n], true)
	}
	expect(t, "TPR after writes of other sizes", int(read32(l, regTPR)), 0)
}

func TestLAPICState(t *testing.T) {
	for _, x2mode := range []bool{false, true} {
		_, apics := newTestChips(t, 3)
		_, others := newTestChips(t, 3)
		l, o := apics[2], others[2]
		if x2mode {
			x2(t, l)
		} else {
			write32(l, regLDR, 0x04000000)
			write32(l, regDFR, 0)
		}
		ipi(l, 0, 0x44051)
		take(l)
		ipi(l, 1, 0x440e1)
		l.SetCR8(3)
		l.mu.Lock()
		for i := range l.lvt {
			l.writeLVT(uint32(i), 0xffffffff)
		}
		l.mu.Unlock()
		s := l.State()
		o.RestoreBase(l.Base())
		if err := o.SetState(&s); err != nil {
			t.Fatal(err)
		}
		if again := o.State(); again != s {
			t.Errorf("x2APIC %v:\n%x\n%x", x2mode, s.Regs, again.Regs)
		}
		expect(t, "the interrupt that was on its way", take(o), 0xe1)
		if apics[1].SetState(&s) == nil {
			t.Error("the state of another APIC was taken")
		}
	}
}

// TestNoAllocations: an interrupt makes no garbage.
func TestNoAllocations(t *testing.T) {
	chips, apics := newTestChips(t, 2)
	l := apics[1]
	initPICs(chips, 3)
	chips.redirectPin(11, 1<<56|redirectLevel|0x71)
	if err := chips.SetRouting([]kvm.IRQRoutingEntry{
		{GSI: 30, Type: kvm.RoutingMSI, U: [8]uint32{0xfee01000, 0, 0x51}},
		{GSI: 11, Type: kvm.RoutingIRQChip, U: [8]uint32{kvm.IRQChipIOAPIC, 11}},
		{GSI: 4, Type: kvm.RoutingIRQChip, U: [8]uint32{kvm.IRQChipPICMaster, 4}},
	}); err != nil {
		t.Fatal(err)
	}
	eoi := make([]byte, 4)
	for name, f := range map[string]func(){
		"message": func() { chips.Signal(30); take(l); l.MMIO(regEOI, eoi, true) },
		"level":   func() { chips.SetLine(11, true); take(l); chips.SetLine(11, false); l.MMIO(regEOI, eoi, true) },
		"PIC":     func() { chips.Signal(4); take(apics[0]) },
		"IPI":     func() { apics[0].send(1<<56 | 0x4061); take(l); l.MMIO(regEOI, eoi, true) },
	} {
		if n := testing.AllocsPerRun(100, f); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

func BenchmarkMSI(b *testing.B) {
	chips, apics := newTestChips(b, 4)
	eoi := make([]byte, 4)
	b.ReportAllocs()
	for b.Loop() {
		chips.SignalMSI(kvm.MSI{AddressLo: 0xfee01000, Data: 0x51})
		apics[1].Interrupt()
		apics[1].MMIO(regEOI, eoi, true)
	}
}
