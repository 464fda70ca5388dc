// Package acpi builds the tables by which a guest finds its hardware (ACPI
// 6.5): RSDP, XSDT, FADT, FACS, MADT, MCFG and a DSDT in AML.
package acpi

import (
	"encoding/binary"
	"fmt"
	"strings"
)

// AML is a piece of ACPI Machine Language (ACPI 6.5, 20).
type AML []byte

// Opcodes (20.3).
const (
	opZero       = 0x00
	opOne        = 0x01
	opName       = 0x08
	opBytePrefix = 0x0a
	opWordPrefix = 0x0b
	opDword      = 0x0c
	opString     = 0x0d
	opQword      = 0x0e
	opScope      = 0x10
	opBuffer     = 0x11
	opPackage    = 0x12
	opMethod     = 0x14
	opNotify     = 0x86
	opExt        = 0x5b
	opDevice     = 0x82
)

func join(parts ...AML) AML {
	var out AML
	for _, p := range parts {
		out = append(out, p...)
	}
	return out
}

// pkgLength puts the length in front of a body, itself included (20.2.4).
func pkgLength(body AML) AML {
	n := len(body)
	switch {
	case n+1 < 1<<6:
		return append(AML{byte(n + 1)}, body...)
	case n+2 < 1<<12:
		n += 2
		return append(AML{1<<6 | byte(n&15), byte(n >> 4)}, body...)
	case n+3 < 1<<20:
		n += 3
		return append(AML{2<<6 | byte(n&15), byte(n >> 4), byte(n >> 12)}, body...)
	}
	n += 4
	return append(AML{3<<6 | byte(n&15), byte(n >> 4), byte(n >> 12), byte(n >> 20)}, body...)
}

// path encodes a name such as "_SB_", "\_SB.PCI0" or "\_S5" (20.2.2).
func path(s string) AML {
	var out AML
	if strings.HasPrefix(s, `\`) {
		out, s = AML{'\\'}, s[1:]
	}
	segs := strings.Split(s, ".")
	switch {
	case len(segs) == 2:
		out = append(out, 0x2e)
	case len(segs) > 2:
		out = append(out, 0x2f, byte(len(segs)))
	}
	for _, seg := range segs {
		if len(seg) == 0 || len(seg) > 4 {
			panic(fmt.Sprintf("acpi: name segment %q", seg)) // a programming error
		}
		out = append(out, seg+"____"[len(seg):]...)
	}
	return out
}

// Int is an integer in its shortest form.
func Int(v uint64) AML {
	switch {
	case v == 0:
		return AML{opZero}
	case v == 1:
		return AML{opOne}
	case v < 1<<8:
		return AML{opBytePrefix, byte(v)}
	case v < 1<<16:
		return binary.LittleEndian.AppendUint16(AML{opWordPrefix}, uint16(v))
	case v < 1<<32:
		return binary.LittleEndian.AppendUint32(AML{opDword}, uint32(v))
	}
	return binary.LittleEndian.AppendUint64(AML{opQword}, v)
}

// Str is a string.
func Str(s string) AML { return append(append(AML{opString}, s...), 0) }

// EISAID is a hardware ID such as "PNP0501" as an integer (19.6.37).
func EISAID(id string) AML {
	if len(id) != 7 {
		panic("acpi: EISA ID " + id) // a programming error
	}
	v := uint32(id[0]-0x40)<<26 | uint32(id[1]-0x40)<<21 | uint32(id[2]-0x40)<<16
	for _, c := range id[3:] {
		v = v&0xffff0000 | v<<4&0xffff | uint32(strings.IndexRune("0123456789ABCDEF", c))
	}
	var be [4]byte
	binary.BigEndian.PutUint32(be[:], v)
	return Int(uint64(binary.LittleEndian.Uint32(be[:])))
}

// Name defines an object.
func Name(name string, value AML) AML { return join(AML{opName}, path(name), value) }

// Package is a list of at most 255 values.
func Package(values ...AML) AML {
	return append(AML{opPackage}, pkgLength(append(AML{byte(len(values))}, join(values...)...))...)
}

// Scope and Device hold definitions.
func Scope(name string, body ...AML) AML {
	return append(AML{opScope}, pkgLength(append(path(name), join(body...)...))...)
}

// Device defines a device.
func Device(name string, body ...AML) AML {
	return append(AML{opExt, opDevice}, pkgLength(append(path(name), join(body...)...))...)
}

// Method defines a method with a number of arguments.
func Method(name string, args uint8, body ...AML) AML {
	return append(AML{opMethod}, pkgLength(append(append(path(name), args&7), join(body...)...))...)
}

// Notify tells the drivers of a device of an event.
func Notify(device string, event uint64) AML { return join(AML{opNotify}, path(device), Int(event)) }

// Resources is a resource template for _CRS (6.4): descriptors and the end tag.
func Resources(descriptors ...AML) AML {
	b := append(join(descriptors...), 0x79, 0)
	return append(AML{opBuffer}, pkgLength(append(Int(uint64(len(b))), b...))...)
}

// IO is a range of ports (6.4.2.5).
func IO(port uint16, n uint8) AML {
	return AML{0x47, 1, byte(port), byte(port >> 8), byte(port), byte(port >> 8), 1, n}
}

// IRQ is an edge-triggered ISA interrupt (6.4.2.1).
func IRQ(n uint8) AML { return AML{0x22, byte(1 << n), byte(uint16(1) << n >> 8)} }

// Interrupt is a level-triggered, active-high, shared interrupt (6.4.3.6).
func Interrupt(gsi uint32) AML {
	return binary.LittleEndian.AppendUint32(AML{0x89, 6, 0, 0x09, 1}, gsi)
}

// EdgeInterrupt is an edge-triggered, active-high interrupt of one device (6.4.3.6).
func EdgeInterrupt(gsi uint32) AML {
	return binary.LittleEndian.AppendUint32(AML{0x89, 6, 0, 0x03, 1}, gsi)
}

// Memory32 is a fixed range of addresses (6.4.3.4).
func Memory32(base, size uint32) AML {
	out := AML{0x86, 9, 0, 1}
	out = binary.LittleEndian.AppendUint32(out, base)
	return binary.LittleEndian.AppendUint32(out, size)
}

// Kinds of address space (6.4.3.5).
const (
	spaceMemory = 0
	spaceIO     = 1
	spaceBus    = 2
)

// BusNumbers are the buses behind a host bridge, from first to last (ACPI 6.5,
// 6.4.3.5.3); IOWindow and MemoryWindow are what it passes on (.2 and .1).
func BusNumbers(first, last uint16) AML {
	return word(spaceBus, 0, first, last)
}

// IOWindow is a range of ports of a host bridge, first to last.
func IOWindow(first, last uint16) AML { return word(spaceIO, 3, first, last) }

// MemoryWindow is a range of addresses of a host bridge, first to last.
func MemoryWindow(first, last uint64) AML {
	out := AML{0x8a, 43, 0, spaceMemory, 0x0c, 1} // fixed limits; read-write, not cacheable
	for _, v := range []uint64{0, first, last, 0, last - first + 1} {
		out = binary.LittleEndian.AppendUint64(out, v)
	}
	return out
}

func word(kind, flags uint8, first, last uint16) AML {
	out := AML{0x88, 13, 0, kind, 0x0c, flags}
	for _, v := range []uint16{0, first, last, 0, last - first + 1} {
		out = binary.LittleEndian.AppendUint16(out, v)
	}
	return out
}
