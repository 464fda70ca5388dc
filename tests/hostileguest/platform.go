package main

import "vmm/virtio/virtiotest/hostile"

// Ports of a PC, of which vmm has some.
const (
	uart       = 0x3f8
	i8042      = 0x64
	reset      = 0xcf9
	debugExit  = 0x501
	pvpanic    = 0x505
	pmControl  = 0x604
	pmSleep    = 0x60c
	configPort = 0xcf8
	configData = 0xcfc
)

// ports are where something is, by first and last.
var ports = [][2]uint64{{uart, uart + 7}, {uart, uart + 7}, {0x70, 0x73}, {0x60, i8042}, {0x20, 0x21}, {0xa0, 0xa1}, {0x40, 0x43}, {0x61, 0x61},
	{0x600, 0x610}, {configPort, 0xcff}, {0x500, 0x508}, {0x4d0, 0x4d1}, {0x80, 0x8f}, {0, 0xffff}}

const ioapic = 0xfec00000

// places are where there is something at some address, or nothing: RAM's end, a BIOS, BARs
// that nobody has, what KVM and vmm need for themselves (machine/memory.go), 64-bit BARs,
// ends of tables.
var places = []uint64{0x9fc00, 0xa0000, 0xe0000, 0xfff00, 0xbffff000, pciWindow, pciWindow + 0x10000, 0xc8000000, 0xd0000000, 0xdffff000, ecam, ecam + 0x8000, ecam + 0xff000,
	ecam + 0x100000, mmioWindow, mmioWindow + 0xe00, 0xfe000000, ioapic, ioapic + 0x1000, lapic, lapic + 0x1000, 0xfffbc000, 0xfffbd000, 0xfffff000, 0x100000000, 0x800000000, 0xffffffff8}

// attackPlatform does one thing to what is not virtio.
func (c *cpu) attackPlatform() {
	r := &c.rand
	switch n := r.IntN(1000); {
	case n < 500:
		p := hostile.Pick(r, ports)
		c.port(p[0] + r.Uint64N(p[1]-p[0]+1))
	case n < 600:
		out(configPort, 1<<31|uint64(r.Uint32N(1<<13)), 4)
		c.port(configData + r.Uint64N(4))
	case n < 700:
		c.access(ecam + r.Uint64N(9)<<15 + r.Uint64N(0x1000))
	case n < 780: // but seldom what stops CPUs
		if at := lapic + r.Uint64N(0x40)<<4; at != lapicICR || r.IntN(1000) == 0 {
			c.access(at)
		}
	case n < 790: // an interrupt to any CPU, as any vector
		store(lapicICRHigh, r.Uint64N(4)<<24, 4)
		store(lapicICR, 32+r.Uint64N(224)+r.Uint64N(4)<<18, 4)
	case n < 870: // a redirection entry, mostly of a plain interrupt
		v := uint64(r.Uint32())
		if r.IntN(1000) > 0 {
			v = v&^0x700 | 0x20
		}
		store(ioapic, r.Uint64N(0x44), 4)
		store(ioapic+0x10, v, 4)
	case n < 960:
		c.access(hostile.Pick(r, places) + r.Uint64N(0x1000))
	case n < 990:
		c.oddAccess(hostile.Pick(r, places) + r.Uint64N(0x1000))
	case n < 995 && c.id == 0:
		startSecond()
	case n == 995:
		writeMSR(hostile.Pick(r, msrs), hostile.Pick(r, hostile.Sizes))
	case n == 996 && r.IntN(100) == 0:
		execute(hostile.Pick(r, places))
	}
}

// msrs are IA32_TSC, the x2APIC's EOI and self IPI, MTRRs, KVM's clock and steal time, and
// one that is none.
var msrs = []uint64{0x10, 0x80b, 0x83f, 0x200, 0x2ff, 0x4b564d00, 0x4b564d01, 0x4b564d03, 0x12345}

// access reads or writes somewhere, in any size and alignment.
func (c *cpu) access(at uint64) {
	n := uint64(1) << c.rand.IntN(4)
	if c.rand.IntN(2) == 0 {
		load(at, n)
	} else {
		store(at, hostile.Pick(&c.rand, hostile.Sizes), n)
	}
}

// oddAccess does it as no driver does.
func (c *cpu) oddAccess(at uint64) {
	r := &c.rand
	v := r.Uint64()
	switch r.IntN(8) {
	case 0:
		exchange(at, v)
	case 1:
		change(at, v)
	case 2:
		push(at&^7, v)
	case 3, 4:
		copyBytes(at, hostile.Pick(r, places), r.Uint64N(64))
	case 5, 6:
		copyBytes(devices[0].target.Base, at, r.Uint64N(64))
	case 7:
		if r.IntN(1000) == 0 { // where kernel mode is interpreted, this may be beyond it
			wide(at)
		}
	}
}

// port reads or writes a port, mostly without ending the VM.
func (c *cpu) port(port uint64) {
	r := &c.rand
	if port >= uart && port < uart+8 && printing.Load() {
		return
	}
	n, v := uint64(1)<<r.IntN(3), uint64(r.Uint32())
	if r.IntN(3) == 0 {
		v = hostile.Pick(r, hostile.Sizes)
	}
	if r.IntN(2) == 0 {
		in(port, n)
		return
	}
	for at := range n {
		if deadly(port+at, v>>(8*at)) && r.IntN(3000) > 0 {
			return
		}
	}
	base := devices[0].target.Base
	switch many := r.IntN(40); {
	case many > 1:
		out(port, v, n)
	case many == 0:
		ins(port, base, r.Uint64N(64))
	case !deadly(port, ^uint64(0)):
		outs(port, base, r.Uint64N(64))
	}
}

// deadly tells whether a value that is written to a port may end the VM.
func deadly(port, v uint64) bool {
	const resetLine, resetCPU, panicked = 0xfe, 1 << 2, 1 << 0
	switch port {
	case i8042:
		return byte(v) == resetLine
	case reset:
		return v&resetCPU != 0
	case pvpanic:
		return v&panicked != 0
	case debugExit, pmControl - 2, pmControl - 1, pmControl, pmControl + 1, pmSleep:
		return true
	}
	return false
}
