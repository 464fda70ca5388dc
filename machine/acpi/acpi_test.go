package acpi

import (
	"bytes"
	"testing"
)

func TestAML(t *testing.T) {
	for name, c := range map[string]struct{ got, want AML }{
		"int 0":       {Int(0), AML{0}},
		"int byte":    {Int(0x42), AML{0x0a, 0x42}},
		"int word":    {Int(0x1234), AML{0x0b, 0x34, 0x12}},
		"int qword":   {Int(1 << 32), AML{0x0e, 0, 0, 0, 0, 1, 0, 0, 0}},
		"eisa id":     {EISAID("PNP0501"), AML{0x0c, 0x41, 0xd0, 0x05, 0x01}},
		"name":        {Name("_UID", Int(1)), AML("\x08_UID\x01")},
		"root path":   {path(`\_S5`), AML(`\_S5_`)},
		"dual path":   {path(`\_SB.PCI0`), AML("\\\x2e_SB_PCI0")},
		"package":     {Package(Int(5), Int(0)), AML{0x12, 5, 2, 0x0a, 5, 0}},
		"long length": {pkgLength(make(AML, 100))[:2], AML{0x46, 6}},
		"irq":         {IRQ(9), AML{0x22, 0, 2}},
	} {
		if !bytes.Equal(c.got, c.want) {
			t.Errorf("%s: % x, want % x", name, c.got, c.want)
		}
	}
}

// TestTables checks sums, lengths and pointers, with few and with many CPUs.
func TestTables(t *testing.T) {
	for i, cpus := range []int{1, 64, 300} {
		const base = 0xe0000
		p := Platform{CPUs: cpus, ECAM: 0xe0000000, LastBus: 0, SleepOff: 5, Reduced: i > 0, SleepControl: 0x60c, SCI: 9, PMEvent: 0x600,
			DSDT: Scope(`\_SB`, Device("COM1", Name("_HID", EISAID("PNP0501"))))}
		b := p.Build(base)
		at := func(addr uint64) []byte {
			tab := b[addr-base:]
			n := le.Uint32(tab[4:])
			if tab = tab[:n]; checksum(tab) != 0 {
				t.Errorf("%s: wrong sum", tab[:4])
			}
			return tab
		}
		if string(b[:8]) != "RSD PTR " || checksum(b[:20]) != 0 || checksum(b[:36]) != 0 {
			t.Fatal("RSDP")
		}
		xsdt := at(le.Uint64(b[24:]))
		var names string
		for i := 36; i < len(xsdt); i += 8 {
			tab := at(le.Uint64(xsdt[i:]))
			names += string(tab[:4]) + " "
			if string(tab[:4]) == "FACP" {
				if dsdt := at(le.Uint64(tab[140:])); string(dsdt[:4]) != "DSDT" || len(tab) != 276 ||
					p.Reduced != (le.Uint32(tab[112:])&fadtHWReduced != 0) || p.Reduced != (le.Uint64(tab[248:]) == 0x60c) ||
					p.Reduced != (le.Uint32(tab[56:]) == 0) || p.Reduced != (le.Uint16(tab[46:]) == 0) {
					t.Error("FADT")
				}
			}
		}
		if names != "FACP APIC MCFG " {
			t.Errorf("tables %s", names)
		}
	}
}
