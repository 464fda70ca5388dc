package irqchip

import (
	"encoding/binary"
	"sync/atomic"
	"testing"
	"time"

	"vmm/kvm"
)

// testCPU counts its kicks.
type testCPU struct{ kicks atomic.Int32 }

func (c *testCPU) Kick() { c.kicks.Add(1) }

const testTSCKHz = 2_500_000

// newTestChips makes chips with CPUs 0 to n-1, whose local APICs software has enabled.
func newTestChips(t testing.TB, n int) (*Chips, []*LAPIC) {
	start := time.Now()
	c := New(func() uint64 { return uint64(time.Since(start)) * testTSCKHz / 1e6 }, testTSCKHz)
	t.Cleanup(c.Close)
	var apics []*LAPIC
	for id := range n {
		l := c.AddCPU(id, &testCPU{})
		write32(l, regSpurious, spuriousEnable|0xff)
		apics = append(apics, l)
	}
	return c, apics
}

func write32(l *LAPIC, reg, v uint32) {
	l.MMIO(reg, binary.LittleEndian.AppendUint32(nil, v), true)
}

func read32(l *LAPIC, reg uint32) uint32 {
	var b [4]byte
	l.MMIO(reg, b[:], false)
	return binary.LittleEndian.Uint32(b[:])
}

func (c *Chips) out(port uint16, values ...byte) {
	for _, v := range values {
		c.Port(port, []byte{v}, true)
	}
}

func (c *Chips) in(port uint16) byte {
	b := []byte{0}
	c.Port(port, b, false)
	return b[0]
}

func (c *Chips) ioapicWrite(reg, v uint32) {
	c.MMIO(ioapicBase+ioapicSelect, binary.LittleEndian.AppendUint32(nil, reg), true)
	c.MMIO(ioapicBase+ioapicWindow, binary.LittleEndian.AppendUint32(nil, v), true)
}

func (c *Chips) ioapicRead(reg uint32) uint32 {
	c.MMIO(ioapicBase+ioapicSelect, binary.LittleEndian.AppendUint32(nil, reg), true)
	var b [4]byte
	c.MMIO(ioapicBase+ioapicWindow, b[:], false)
	return binary.LittleEndian.Uint32(b[:])
}

// redirectPin writes the entry of a pin, the high half first.
func (c *Chips) redirectPin(pin uint32, e uint64) {
	c.ioapicWrite(ioapicRegRedirect+2*pin+1, uint32(e>>32))
	c.ioapicWrite(ioapicRegRedirect+2*pin, uint32(e))
}

// take takes what a CPU is to do next, -1 if there is nothing.
func take(l *LAPIC) int {
	if v, ok := l.Interrupt(); ok {
		return int(v)
	}
	return -1
}

func expect(t *testing.T, what string, got, want int) {
	t.Helper()
	if got != want {
		t.Errorf("%s: %#x, want %#x", what, got, want)
	}
}

// initPICs is what Linux does: vectors from 0x30, the master's and slave's inputs all open.
func initPICs(c *Chips, icw4 byte) {
	c.out(portMaster, 0x11)
	c.out(portMaster+1, 0x30, 1<<cascade, icw4, 0)
	c.out(portSlave, 0x11)
	c.out(portSlave+1, 0x38, cascade, icw4, 0)
}

func TestRouting(t *testing.T) {
	msi := func(gsi, dest, vector uint32) kvm.IRQRoutingEntry {
		return kvm.IRQRoutingEntry{GSI: gsi, Type: kvm.RoutingMSI, U: [8]uint32{0xfee00000 | dest<<12, 0, vector}}
	}
	pin := func(gsi, chip, pin uint32) kvm.IRQRoutingEntry {
		return kvm.IRQRoutingEntry{GSI: gsi, Type: kvm.RoutingIRQChip, U: [8]uint32{chip, pin}}
	}
	for _, c := range []struct {
		name string
		list []kvm.IRQRoutingEntry
		ok   bool
	}{
		{"nothing", nil, true},
		{"two chips", []kvm.IRQRoutingEntry{pin(4, kvm.IRQChipPICMaster, 4), pin(4, kvm.IRQChipIOAPIC, 4)}, true},
		{"one chip twice", []kvm.IRQRoutingEntry{pin(4, kvm.IRQChipIOAPIC, 4), pin(4, kvm.IRQChipIOAPIC, 5)}, false},
		{"two messages", []kvm.IRQRoutingEntry{msi(30, 0, 0x40), msi(30, 0, 0x41)}, false},
		{"no such pin", []kvm.IRQRoutingEntry{pin(4, kvm.IRQChipPICSlave, 8)}, false},
		{"no such pin of the I/O APIC", []kvm.IRQRoutingEntry{pin(4, kvm.IRQChipIOAPIC, 24)}, false},
		{"no such chip", []kvm.IRQRoutingEntry{pin(4, 3, 0)}, false},
		{"no such kind", []kvm.IRQRoutingEntry{{GSI: 1, Type: 7}}, false},
		{"a GSI too high", []kvm.IRQRoutingEntry{msi(maxGSI, 0, 0x40)}, false},
		{"too many", make([]kvm.IRQRoutingEntry, maxGSI+1), false},
	} {
		chips, _ := newTestChips(t, 1)
		if err := chips.SetRouting(c.list); (err == nil) != c.ok {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	chips, apics := newTestChips(t, 2)
	if err := chips.SetRouting([]kvm.IRQRoutingEntry{msi(30, 1, 0x51), pin(9, kvm.IRQChipIOAPIC, 3)}); err != nil {
		t.Fatal(err)
	}
	chips.Signal(30)
	expect(t, "message", take(apics[1]), 0x51)
	chips.SetLine(30, false)
	expect(t, "a low level sends nothing", take(apics[1]), -1)
	chips.SetLine(30, true)
	expect(t, "message by its line", take(apics[1]), -1) // 0x51 is in service
	write32(apics[1], regEOI, 0)
	expect(t, "after the EOI", take(apics[1]), 0x51)
	chips.redirectPin(3, 0x61)
	chips.Signal(9)
	expect(t, "pin", take(apics[0]), 0x61)
	chips.Signal(3) // has no route any more
	chips.Signal(1 << 31)
	expect(t, "no route", take(apics[0]), -1)
}

func TestPorts(t *testing.T) {
	chips, _ := newTestChips(t, 1)
	for _, c := range []struct {
		port uint16
		ours bool
	}{{0x1f, false}, {0x20, true}, {0x21, true}, {0x22, false}, {0xa0, true}, {0xa1, true}, {0xa2, false}, {0x3f, false}, {0x40, true},
		{0x43, true}, {0x44, false}, {0x60, false}, {0x61, true}, {0x62, false}, {0x4cf, false}, {0x4d0, true}, {0x4d1, true}, {0x4d2, false}} {
		for _, write := range []bool{false, true} {
			if ok := chips.Port(c.port, make([]byte, 1), write); ok != c.ours {
				t.Errorf("port %#x, write %v: %v", c.port, write, ok)
			}
		}
	}
	if chips.Port(0x20, nil, false) {
		t.Error("an access without bytes was answered")
	}
	if chips.MMIO(ioapicBase-4, make([]byte, 4), false) || chips.MMIO(ioapicBase+ioapicSize, make([]byte, 4), false) {
		t.Error("memory beside the I/O APIC was answered")
	}
}

// TestChipState: a state goes into new chips, and out of them as it was.
func TestChipState(t *testing.T) {
	chips, _ := newTestChips(t, 1)
	initPICs(chips, 1)
	chips.out(portELCR, 0xff)
	chips.ioapicWrite(ioapicRegID, 0x05000000)
	chips.redirectPin(7, redirectMasked|redirectLevel|0x77)
	chips.SetLine(7, true)
	chips.out(portPITControl, 0xb6)
	chips.out(portPIT+2, 0x34, 0x12)
	chips.out(portSystem, 3)
	other, _ := newTestChips(t, 1)
	for id := range uint32(3) {
		s, err := chips.Chip(id)
		if err != nil {
			t.Fatal(err)
		}
		if err := other.SetChip(s); err != nil {
			t.Fatal(err)
		}
		if again, err := other.Chip(id); err != nil || *again != *s {
			t.Errorf("chip %d: %v\n%x\n%x", id, err, s.State[:220], again.State[:220])
		}
	}
	p := chips.PIT()
	other.SetPIT(&p)
	again := other.PIT()
	for i := range p.Channels {
		p.Channels[i].CountLoadTime, again.Channels[i].CountLoadTime = 0, 0
	}
	if p != again {
		t.Errorf("PIT:\n%+v\n%+v", p, again)
	}
	if _, err := chips.Chip(3); err == nil || chips.SetChip(&kvm.IRQChip{ChipID: 3}) == nil {
		t.Error("there is a chip 3")
	}
}
