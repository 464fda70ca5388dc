package main

import (
	"math/rand/v2"
	"unsafe"

	"vmm/virtio/virtiotest/hostile"
)

// device is a virtio device, with memory of its own.
type device struct {
	// registers and config are where its registers and its configuration space begin.
	registers, config uint64
	target            hostile.Target
	sizes             [hostile.MaxQueues]uint16
	elsewhere         [8]uint32
}

const maxDevices = 8

var (
	devices [maxDevices]device
	found   int
	// memory has one part more than devices, to begin where it likes.
	memory [(maxDevices + 1) * hostile.MemorySize]byte
)

// Where vmm has them.
const (
	ecam       = 0xe0000000
	pciWindow  = 0xc0000000
	mmioWindow = 0xfd000000
	mmioSize   = 0x1000
	mmioMagic  = 0x74726976
)

// Device types (5), and what PCI's device IDs begin at (4.1.2.1).
const (
	virtioVendor = 0x1af4
	virtioPCI    = 0x1040
)

var requests = [...]func(*rand.Rand, []byte) int{1: hostile.Frame, 2: hostile.Disk, 3: hostile.Console, 4: hostile.Any, 19: hostile.Vsock, 26: hostile.FS}

// findDevices looks for devices on the PCI bus, and where MMIO ones are.
func findDevices() {
	for slot := uint64(1); slot < 32; slot++ {
		config := ecam + slot<<15
		if id := load(config, 4); id&0xffff == virtioVendor && id>>16 > virtioPCI {
			store(config+4, 6, 2)
			bar := load(config+0x10, 4) &^ 0xf
			addDevice(id>>16-virtioPCI, bar, config)
		}
	}
	for i := range uint64(maxDevices) {
		at := mmioWindow + mmioSize*i
		if id := load(at+8, 4); load(at, 4) == mmioMagic && id != 0 {
			addDevice(id, at, 0)
		}
	}
}

// addDevice adds a device of a type; config is 0 for one that is not on the PCI bus.
func addDevice(id, registers, config uint64) {
	if found == maxDevices {
		return
	}
	d := &devices[found]
	d.registers, d.config = registers, config
	t := &d.target
	t.Bus, t.PCI, t.BAR = d, config != 0, uint32(registers)
	first := hostile.MemorySize - uint64(uintptr(unsafe.Pointer(&memory)))%hostile.MemorySize
	t.Memory = memory[first+uint64(found)*hostile.MemorySize:][:hostile.MemorySize]
	t.Base = uint64(uintptr(unsafe.Pointer(&t.Memory[0])))
	// Over the next device, memory, the configuration spaces, the local APIC, and nowhere.
	d.elsewhere = [8]uint32{0, 0xffffffff, t.BAR, t.BAR + 0x10000, uint32(t.Base), ecam, lapic, pciWindow + 0x1000}
	t.Elsewhere = d.elsewhere[:]
	t.Request = hostile.Any
	if id < uint64(len(requests)) && requests[id] != nil {
		t.Request = requests[id]
	}
	count := 0
	for ; count < hostile.MaxQueues; count++ {
		if d.sizes[count] = t.MaxQueueSize(count); d.sizes[count] == 0 {
			break
		}
	}
	if t.Sizes = d.sizes[:count]; count > 0 {
		found++
	}
}

// attackDevice does n things to a device.
func (c *cpu) attackDevice(d *device, n int) {
	a := hostile.Attacker{Target: &d.target, ID: c.id, Rand: &c.rand}
	for range n {
		a.Do()
	}
}

// Write implements hostile.Bus.
func (d *device) Write(at, v uint64, n int) { store(d.registers+at, v, uint64(n)) }

// Read implements hostile.Bus.
func (d *device) Read(at uint64, n int) uint64 { return load(d.registers+at, uint64(n)) }

// WriteConfig implements hostile.Bus.
func (d *device) WriteConfig(at uint64, v uint32, n int) { store(d.config+at, uint64(v), uint64(n)) }

// ReadConfig implements hostile.Bus.
func (d *device) ReadConfig(at uint64, n int) uint32 { return uint32(load(d.config+at, uint64(n))) }

// Kick implements hostile.Bus: it notifies a queue that may be none, whether or not the
// device is set up.
func (d *device) Kick(r *rand.Rand) { d.target.Notify(r.IntN(len(d.sizes))) }

// Yield implements hostile.Bus.
func (d *device) Yield() { breathe(8) }
