package acpi

import (
	"bytes"
	"encoding/binary"
)

// Platform is the hardware that the tables tell of.
type Platform struct {
	CPUs    int
	LAPIC   uint32
	IOAPIC  uint32
	ECAM    uint64 // of bus 0 to LastBus
	LastBus uint8
	PMTimer uint16
	// Reduced is hardware-reduced ACPI (4.1), with the ports of its sleep registers
	// (4.8.3.7); else there is fixed hardware, with its interrupt and ports (4.8.3).
	Reduced                   bool
	SleepControl, SleepStatus uint16
	SCI                       uint8
	PMEvent, PMControl        uint16
	ResetPort                 uint16
	ResetValue                uint8
	Century                   uint8 // CMOS register
	SleepOff                  uint8 // SLP_TYP of \_S5
	// DSDT is the definitions; \_S5 is added.
	DSDT AML
}

var le = binary.LittleEndian

const (
	headerSize = 36
	rsdpSize   = 36
)

// table puts the header (5.2.6) in front of a body.
func table(signature string, revision uint8, body []byte) []byte {
	b := make([]byte, headerSize, headerSize+len(body))
	copy(b, signature)
	le.PutUint32(b[4:], uint32(headerSize+len(body)))
	b[8] = revision
	copy(b[10:], "VMM   ")
	copy(b[16:], "VMMTABLE")
	le.PutUint32(b[24:], 1)
	copy(b[28:], "VMM ")
	le.PutUint32(b[32:], 1)
	b = append(b, body...)
	b[9] = checksum(b)
	return b
}

// checksum is what makes the sum of all bytes 0.
func checksum(b []byte) uint8 {
	var sum uint8
	for _, v := range b {
		sum -= v
	}
	return sum
}

// Build returns the tables as one block to be placed at base. The RSDP is at
// its start.
func (p *Platform) Build(base uint64) []byte {
	out := make([]byte, rsdpSize)
	place := func(b []byte) uint64 {
		for len(out)%64 != 0 { // the FACS needs 64, and it does no harm to others
			out = append(out, 0)
		}
		at := base + uint64(len(out))
		out = append(out, b...)
		return at
	}
	facs := place(p.facs())
	dsdt := place(table("DSDT", 2, p.dsdt()))
	var xsdt []byte
	for _, t := range [][]byte{
		table("FACP", 6, p.fadt(dsdt, facs)),
		table("APIC", 5, p.madt()),
		table("MCFG", 1, p.mcfg()),
	} {
		xsdt = le.AppendUint64(xsdt, place(t))
	}
	at := place(table("XSDT", 1, xsdt))
	// RSDP (5.2.5.3)
	copy(out, "RSD PTR ")
	copy(out[9:], "VMM   ")
	out[15] = 2
	le.PutUint32(out[20:], rsdpSize)
	le.PutUint64(out[24:], at)
	out[8] = checksum(out[:20])
	out[32] = checksum(out[:rsdpSize])
	return out
}

func (p *Platform) facs() []byte {
	b := make([]byte, 64)
	copy(b, "FACS")
	le.PutUint32(b[4:], 64)
	b[32] = 2
	return b
}

// gas is a generic address structure (5.2.3.2).
func gas(space, bits, access uint8, addr uint64) []byte {
	return le.AppendUint64([]byte{space, bits, 0, access}, addr)
}

// Bits of the FADT (5.2.9).
const (
	fadtWBINVD   = 1 << 0
	fadtProcC1   = 1 << 2
	fadtSleepBtn = 1 << 5 // no sleep button as fixed hardware
	fadtTimerExt = 1 << 8
	fadtReset    = 1 << 10
	// Without it Linux sets the interrupts of a PC's legacy devices up one by one:
	// 600 exits of a boot.
	fadtHWReduced = 1 << 20
	bootLegacyDev = 1 << 0 // legacy devices, such as the serial port
	bootNoVGA     = 1 << 2
)

func (p *Platform) fadt(dsdt, facs uint64) []byte {
	b := make([]byte, 276-headerSize)
	put := func(off int, v []byte) { copy(b[off-headerSize:], v) }
	u32 := func(off int, v uint32) { le.PutUint32(b[off-headerSize:], v) }
	u16 := func(off int, v uint16) { le.PutUint16(b[off-headerSize:], v) }
	u8 := func(off int, v uint8) { b[off-headerSize] = v }
	u32(36, uint32(facs))
	u32(40, uint32(dsdt))
	u32(76, uint32(p.PMTimer))
	u8(91, 4)       // PM_TMR_LEN
	u16(96, 0xfff)  // P_LVL2_LAT: no C2
	u16(98, 0xffff) // P_LVL3_LAT: no C3
	u8(108, p.Century)
	u16(109, bootLegacyDev|bootNoVGA)
	put(116, gas(1, 8, 1, uint64(p.ResetPort)))
	u8(128, p.ResetValue)
	u8(131, 3) // minor version: 6.3
	le.PutUint64(b[140-headerSize:], dsdt)
	put(208, gas(1, 32, 3, uint64(p.PMTimer)))
	flags := uint32(fadtWBINVD | fadtProcC1 | fadtTimerExt | fadtReset)
	if p.Reduced {
		flags |= fadtHWReduced
		put(244, gas(1, 8, 1, uint64(p.SleepControl)))
		put(256, gas(1, 8, 1, uint64(p.SleepStatus)))
	} else {
		flags |= fadtSleepBtn
		u16(46, uint16(p.SCI))
		u32(56, uint32(p.PMEvent))
		u32(64, uint32(p.PMControl))
		u8(88, 4) // PM1_EVT_LEN
		u8(89, 2) // PM1_CNT_LEN
		put(148, gas(1, 32, 2, uint64(p.PMEvent)))
		put(172, gas(1, 16, 2, uint64(p.PMControl)))
	}
	u32(112, flags)
	return b
}

// madt is the Multiple APIC Description Table (5.2.12).
func (p *Platform) madt() []byte {
	const (
		pcatCompat  = 1
		enabled     = 1
		edgeHigh    = 0
		levelHigh   = 0x0d
		allCPUs     = 0xff
		ioapicID    = 0
		maxXAPIC    = 255
		nmiLINT     = 1
		allCPUs32   = 0xffffffff
		x2apicEntry = 9
	)
	var b bytes.Buffer
	w := func(v ...any) {
		for _, x := range v {
			binary.Write(&b, le, x)
		}
	}
	w(p.LAPIC, uint32(pcatCompat))
	for i := range p.CPUs {
		if i < maxXAPIC {
			w([]uint8{0, 8, uint8(i), uint8(i)}, uint32(enabled))
		} else {
			w([]uint8{x2apicEntry, 16, 0, 0}, uint32(i), uint32(enabled), uint32(i))
		}
	}
	w([]uint8{1, 12, ioapicID, 0}, p.IOAPIC, uint32(0))
	w([]uint8{2, 10, 0, 0}, uint32(2), uint16(edgeHigh)) // the PIT is at pin 2
	if !p.Reduced {
		w([]uint8{2, 10, 0, p.SCI}, uint32(p.SCI), uint16(levelHigh))
	}
	w([]uint8{4, 6, allCPUs}, uint16(0), uint8(nmiLINT))
	return b.Bytes()
}

// mcfg tells where ECAM is (PCI Firmware 3.3, 4.1.2).
func (p *Platform) mcfg() []byte {
	b := make([]byte, 8+16)
	le.PutUint64(b[8:], p.ECAM)
	b[19] = p.LastBus
	return b
}

func (p *Platform) dsdt() []byte {
	off := Int(uint64(p.SleepOff))
	return join(p.DSDT, Name(`\_S5`, Package(off, off, Int(0), Int(0))))
}
