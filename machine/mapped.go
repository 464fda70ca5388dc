package machine

import (
	"fmt"
	"unsafe"

	"vmm/internal/vmem"
	"vmm/kvm"
	"vmm/machine/engine"
	"vmm/virtio"
)

// Memory of devices lies above all RAM and the window of PCI devices.

// mappedSlot is the first memory slot of it: below are RAM's and the helper's.
const mappedSlot = helperSlot + 1

// mapping is a device's memory in the guest.
type mapping struct {
	gpa      uint64
	host     []byte
	readOnly bool
}

// mapDevices gives the guest the memory that its devices have.
func (m *Machine) mapDevices() error {
	next := m.pciWindow64() + pciWindow64Size
	for i, d := range m.cfg.Devices {
		d, ok := d.(virtio.Mapper)
		if !ok {
			continue
		}
		host, readOnly := d.HostMemory()
		align := uint64(vmem.HugePage)
		if len(host) >= vmem.GiantPage {
			align = vmem.GiantPage
		}
		p := mapping{gpa: (next + align - 1) &^ (align - 1), host: host, readOnly: readOnly}
		next = p.gpa + uint64(len(host))
		if bits := physicalBits(m.supported); next > 1<<bits {
			return fmt.Errorf("virtio device %d: %d MiB of memory are more than this host's CPU has addresses for (%d bits)", i, len(host)>>20, bits)
		}
		if err := m.mem.addMapping(m.vm, p); err != nil {
			return fmt.Errorf("virtio device %d: memory in the guest: %w", i, err)
		}
		d.Place(p.gpa)
	}
	return nil
}

// physicalBits is how many bits a guest-physical address has (CPUID 0x80000008, EAX).
func physicalBits(cpuid []kvm.CPUIDEntry) uint {
	for _, e := range cpuid {
		if e.Function == 0x80000008 {
			return uint(e.EAX & 0xff)
		}
	}
	return 36 // what a CPU without that leaf has
}

// addMapping gives the guest memory that is not RAM. What it writes where it may only
// read is an exit to nobody.
func (m *Memory) addMapping(vm engine.VM, p mapping) error {
	flags := uint32(0)
	if p.readOnly {
		flags = kvm.MemReadonly
	}
	if err := vm.SetUserMemoryRegion(&kvm.UserspaceMemoryRegion{
		Slot: mappedSlot + uint32(len(m.mapped)), Flags: flags, GuestPhysAddr: p.gpa, MemorySize: uint64(len(p.host)),
		UserspaceAddr: uint64(uintptr(unsafe.Pointer(&p.host[0])))}); err != nil {
		return err
	}
	m.mapped = append(m.mapped, p)
	return nil
}

// findMapped returns the n bytes at an address of one mapping, which can be written to if
// write is set; nil if there is none.
func (m *Memory) findMapped(gpa, n uint64, write bool) []byte {
	for i := range m.mapped {
		p := &m.mapped[i]
		off, size := gpa-p.gpa, uint64(len(p.host))
		if gpa >= p.gpa && off < size && n <= size-off && !(write && p.readOnly) {
			return p.host[off : off+n : off+n]
		}
	}
	return nil
}

// Mapped implements ring0.Memory.
func (m *Memory) Mapped(gpa uint64, write bool) *[pageSize]byte {
	if b := m.findMapped(gpa&^(pageSize-1), pageSize, write); b != nil {
		return (*[pageSize]byte)(b)
	}
	return nil
}
