package irqchip

import (
	"testing"

	"vmm/internal/x86"
)

// ints are the interrupts that the PICs have for CPU 0, until there is none; they are not ended.
func ints(l *LAPIC) (out []int) {
	for {
		v := take(l)
		if v < 0 {
			return out
		}
		out = append(out, v)
	}
}

func same(a, b []int) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

func TestPIC(t *testing.T) {
	up := func(c *Chips, lines ...uint32) {
		for _, n := range lines {
			c.SetLine(n, true)
		}
	}
	down := func(c *Chips, lines ...uint32) {
		for _, n := range lines {
			c.SetLine(n, false)
		}
	}
	for _, c := range []struct {
		name string
		icw4 byte
		do   func(*Chips, *LAPIC)
		want []int
	}{
		{"one", 1, func(c *Chips, l *LAPIC) { up(c, 4) }, []int{0x34}},
		{"the higher priority first, the lower waits", 1, func(c *Chips, l *LAPIC) { up(c, 4, 1) }, []int{0x31}},
		{"the higher interrupts the lower", 1, func(c *Chips, l *LAPIC) { up(c, 4); take(l); up(c, 1) }, []int{0x31}},
		{"slave", 1, func(c *Chips, l *LAPIC) { up(c, 9) }, []int{0x39}},
		{"slave, then master below it", 1, func(c *Chips, l *LAPIC) {
			up(c, 9, 3)
			take(l)
			c.out(portSlave, 0x20)
			c.out(portMaster, 0x20)
		}, []int{0x33}},
		{"the slave's second waits for the master's EOI", 1, func(c *Chips, l *LAPIC) { up(c, 9); take(l); up(c, 8) }, nil},
		{"special fully nested: it does not", 0x11, func(c *Chips, l *LAPIC) { up(c, 9); take(l); up(c, 8) }, []int{0x38}},
		{"masked", 1, func(c *Chips, l *LAPIC) { c.out(portMaster+1, 1<<4); up(c, 4) }, nil},
		{"unmasked later", 1, func(c *Chips, l *LAPIC) { c.out(portMaster+1, 1<<4); up(c, 4); c.out(portMaster+1, 0) }, []int{0x34}},
		{"an edge is kept when the line falls", 1, func(c *Chips, l *LAPIC) { up(c, 4); down(c, 4) }, []int{0x34}},
		{"no second edge without a fall", 1, func(c *Chips, l *LAPIC) { up(c, 4); take(l); c.out(portMaster, 0x20); up(c, 4) }, nil},
		{"a level goes with its line", 1, func(c *Chips, l *LAPIC) { c.out(portELCR, 1<<4); up(c, 4); down(c, 4) }, nil},
		{"a level comes again", 1, func(c *Chips, l *LAPIC) {
			c.out(portELCR, 1<<4)
			up(c, 4)
			take(l)
			c.out(portMaster, 0x64) // specific EOI of 4
		}, []int{0x34}},
		{"automatic EOI", 3, func(c *Chips, l *LAPIC) { up(c, 4, 5) }, []int{0x34, 0x35}},
		{"automatic EOI that rotates", 3, func(c *Chips, l *LAPIC) {
			c.out(portMaster, 0x80)
			up(c, 4)
			take(l)
			up(c, 3, 5)
		}, []int{0x35, 0x33}},
		{"rotation by EOI", 1, func(c *Chips, l *LAPIC) {
			up(c, 4)
			take(l)
			c.out(portMaster, 0xa0)
			up(c, 3, 5)
		}, []int{0x35}},
		{"set priority", 1, func(c *Chips, l *LAPIC) { c.out(portMaster, 0xc4); up(c, 3, 5) }, []int{0x35}},
		{"special mask: lower ones pass a masked one in service", 1, func(c *Chips, l *LAPIC) {
			up(c, 1)
			take(l)
			c.out(portMaster+1, 1<<1)
			c.out(portMaster, 0x68)
			up(c, 5)
		}, []int{0x35}},
		{"special mask: an EOI leaves the masked one", 1, func(c *Chips, l *LAPIC) {
			up(c, 1)
			take(l)
			c.out(portMaster+1, 1<<1)
			c.out(portMaster, 0x68, 0x20, 0x48) // EOI, then no special mask any more
			up(c, 5)
		}, nil},
		{"LINT0 masked", 1, func(c *Chips, l *LAPIC) { write32(l, regLVT+lvtLINT0*16, lvtMasked|0x700); up(c, 4) }, nil},
		{"LINT0 opened later", 1, func(c *Chips, l *LAPIC) {
			write32(l, regLVT+lvtLINT0*16, lvtMasked|0x700)
			up(c, 4)
			write32(l, regLVT+lvtLINT0*16, 0x700)
		}, []int{0x34}},
		{"LINT0 fixed", 1, func(c *Chips, l *LAPIC) { write32(l, regLVT+lvtLINT0*16, 0x99); up(c, 4) }, []int{0x99}},
		{"without APIC", 1, func(c *Chips, l *LAPIC) { l.SetBase(x86.LAPICBase | baseBSP); up(c, 4) }, []int{0x34}},
	} {
		chips, apics := newTestChips(t, 1)
		initPICs(chips, c.icw4)
		c.do(chips, apics[0])
		if got := ints(apics[0]); !same(got, c.want) {
			t.Errorf("%s: %#x, want %#x", c.name, got, c.want)
		}
		if w := apics[0].Wanted(); w&WantInterrupt != 0 {
			t.Errorf("%s: %b is wanted in the end", c.name, w)
		}
	}
}

func TestPICRegisters(t *testing.T) {
	chips, apics := newTestChips(t, 1)
	initPICs(chips, 1)
	chips.out(portMaster+1, 1<<5)
	chips.SetLine(3, true)
	chips.SetLine(5, true)
	expect(t, "IMR", int(chips.in(portMaster+1)), 1<<5)
	expect(t, "IRR", int(chips.in(portMaster)), 1<<3|1<<5)
	take(apics[0])
	chips.out(portMaster, 0x0b)
	expect(t, "ISR", int(chips.in(portMaster)), 1<<3)
	chips.out(portMaster, 0x0a)
	expect(t, "IRR again", int(chips.in(portMaster)), 1<<5)
	chips.out(portMaster, 0x20, 0x0c)
	expect(t, "poll without an interrupt", int(chips.in(portMaster)), 7)
	chips.SetLine(1, true)
	chips.out(portMaster, 0x0c)
	expect(t, "poll", int(chips.in(portMaster)), 0x81)
	chips.out(portMaster, 0x0b)
	expect(t, "ISR after the poll", int(chips.in(portMaster)), 1<<1)
	chips.out(portELCR, 0xff)
	chips.out(portELCR+1, 0xff)
	expect(t, "ELCR", int(chips.in(portELCR)), 0xf8)
	expect(t, "slave's ELCR", int(chips.in(portELCR+1)), 0xde)
}
