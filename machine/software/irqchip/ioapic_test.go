package irqchip

import "testing"

func TestIOAPICRegisters(t *testing.T) {
	c, _ := newTestChips(t, 1)
	expect(t, "version", int(c.ioapicRead(ioapicRegVersion)), 0x170011)
	c.ioapicWrite(ioapicRegID, 0xffffffff)
	expect(t, "ID", int(c.ioapicRead(ioapicRegID)), 0x0f000000)
	expect(t, "entry after a reset", int(c.ioapicRead(ioapicRegRedirect)), redirectMasked)
	c.redirectPin(23, 0xab000000_0001ffff)
	expect(t, "entry, low", int(c.ioapicRead(ioapicRegRedirect+46)), 0x1ffff&^redirectReadOnly)
	expect(t, "entry, high", int(c.ioapicRead(ioapicRegRedirect+47)), 0xab000000)
	for _, reg := range []uint32{3, 0xf, ioapicRegRedirect + 48, 0xff} {
		c.ioapicWrite(reg, 0xffffffff)
		expect(t, "no register", int(c.ioapicRead(reg)), 0xffffffff)
	}
}

func TestIOAPICLevel(t *testing.T) {
	c, apics := newTestChips(t, 1)
	l := apics[0]
	write32(l, regLVT+lvtLINT0*16, lvtMasked)
	remoteIRR := func() bool { return c.ioapicRead(ioapicRegRedirect+2*11)&redirectRemoteIRR != 0 }
	c.redirectPin(11, redirectLevel|0x71)
	c.SetLine(11, true)
	if !remoteIRR() {
		t.Error("no remote IRR while the interrupt is on its way")
	}
	expect(t, "a level", take(l), 0x71)
	c.SetLine(11, true)
	expect(t, "the same level", take(l), -1)
	write32(l, regEOI, 0)
	expect(t, "it is still there after the EOI", take(l), 0x71)
	c.SetLine(11, false)
	write32(l, regEOI, 0)
	expect(t, "and now it is not", take(l), -1)
	if remoteIRR() {
		t.Error("remote IRR is left")
	}
	c.redirectPin(11, redirectMasked|redirectLevel|0x71)
	c.SetLine(11, true)
	expect(t, "masked", take(l), -1)
	c.redirectPin(11, redirectLevel|0x71)
	expect(t, "unmasked", take(l), 0x71)
	// Linux's way to end an interrupt without an EOI: as an edge for a moment.
	c.redirectPin(11, redirectMasked|0x71)
	c.redirectPin(11, redirectMasked|redirectLevel|0x71)
	if remoteIRR() {
		t.Error("remote IRR outlived the edge mode")
	}
}

func TestIOAPICEdge(t *testing.T) {
	c, apics := newTestChips(t, 2)
	write32(apics[0], regLVT+lvtLINT0*16, lvtMasked)
	c.redirectPin(5, 1<<56|0x81) // to CPU 1
	c.SetLine(5, true)
	c.SetLine(5, true)
	expect(t, "an edge", take(apics[1]), 0x81)
	write32(apics[1], regEOI, 0)
	expect(t, "one is one", take(apics[1]), -1)
	c.SetLine(5, false)
	c.SetLine(5, true)
	expect(t, "the next", take(apics[1]), 0x81)
	write32(apics[1], regEOI, 0)
	expect(t, "not CPU 0's", take(apics[0]), -1)
	// A state tells of an edge only while it has not been sent.
	s, _ := c.Chip(2)
	other, apics := newTestChips(t, 2)
	if err := other.SetChip(s); err != nil {
		t.Fatal(err)
	}
	expect(t, "an edge that was sent before the snapshot", take(apics[1]), -1)
}

// TestSources: the i8254 and the owner pull the same line.
func TestSources(t *testing.T) {
	var l lines
	for _, c := range []struct {
		s           source
		level, want bool
	}{{fromOwner, true, true}, {fromPIT, true, true}, {fromPIT, false, true}, {fromOwner, false, false}} {
		if got := l.set(0, c.s, c.level); got != c.want {
			t.Errorf("%+v: %v", c, got)
		}
	}
}
