package machine

import (
	"errors"
	"fmt"
	"io"

	"vmm/machine/acpi"
	"vmm/virtio"
)

// Transport is how a guest finds its virtio devices.
type Transport string

// The transports.
const (
	PCI  Transport = "pci"  // the default
	MMIO Transport = "mmio" // by ACPI's LNRO0005
	// MMIOCmdline is MMIO by virtio_mmio.device= in the kernel's arguments,
	// for kernels that do without ACPI.
	MMIOCmdline Transport = "mmio-cmdline"
)

// Transports lists them all.
var Transports = []Transport{PCI, MMIO, MMIOCmdline}

const (
	virtioMMIOBase = 0xfd000000
	// barSpacing keeps the BARs apart, in pages of their own.
	barSpacing = 64 << 10
)

// isaPins are the pins of a PC that no platform device uses: those that a
// kernel without ACPI knows.
var isaPins = []int{5, 10, 11, 12, 3, 7, 6, 14, 15}

// mmioSlot is a virtio device on the MMIO transport, for the guest to be told.
type mmioSlot struct {
	base uint64
	pin  int
}

// addVirtio puts the configured devices on their buses.
func (m *Machine) addVirtio() error {
	for i, d := range m.cfg.Devices {
		var err error
		if m.cfg.Transport == "" || m.cfg.Transport == PCI {
			err = m.addPCI(d)
		} else {
			err = m.addMMIO(i, d)
		}
		if err != nil {
			return fmt.Errorf("virtio device %d: %w", i, err)
		}
	}
	return nil
}

func (m *Machine) addPCI(d virtio.Device) error {
	f := virtio.NewPCI(d, m.mem, m, m.warn)
	m.virtio = append(m.virtio, f)
	slot, err := m.pci.Add(f)
	if err != nil {
		return err
	}
	gsi := pciGSI(slot)
	f.Place(pciWindow+uint32(slot)*barSpacing, uint8(gsi), &sharedPin{line: m.line(gsi)})
	return nil
}

// pciGSI is the interrupt of a device number's INTA.
func pciGSI(slot int) int { return pciPin + slot%pciPins }

// pciRouting is _PRT (ACPI 6.5, 6.2.13): a line a device number.
func pciRouting() acpi.AML {
	var routes []acpi.AML
	for slot := 1; slot < 32; slot++ {
		routes = append(routes, acpi.Package(acpi.Int(uint64(slot)<<16|0xffff), acpi.Int(0), acpi.Int(0), acpi.Int(uint64(pciGSI(slot)))))
	}
	return acpi.Name("_PRT", acpi.Package(routes...))
}

func (m *Machine) addMMIO(i int, d virtio.Device) error {
	slot := mmioSlot{virtioMMIOBase + uint64(i)*virtio.MMIOSize, pciPin + i%pciPins}
	if m.cfg.Transport == MMIOCmdline {
		slot.pin = isaPins[i%len(isaPins)]
	}
	f := virtio.NewMMIO(d, m.mem, m, slot.base, &sharedPin{line: m.line(slot.pin)}, m.warn)
	m.virtio = append(m.virtio, f)
	m.slots = append(m.slots, slot)
	return m.mmio.add(fmt.Sprintf("virtio-mmio %d", i), slot.base, virtio.MMIOSize, f)
}

// virtioAML describes the devices that are not on PCI.
func (m *Machine) virtioAML() []acpi.AML {
	var out []acpi.AML
	for i, s := range m.slots {
		if m.cfg.Transport == MMIO {
			out = append(out, acpi.Device(fmt.Sprintf("VR%02X", i),
				acpi.Name("_HID", acpi.Str("LNRO0005")), acpi.Name("_UID", acpi.Int(uint64(i))), acpi.Name("_CCA", acpi.Int(1)),
				acpi.Name("_CRS", acpi.Resources(acpi.Memory32(uint32(s.base), virtio.MMIOSize), acpi.Interrupt(uint32(s.pin))))))
		}
	}
	return out
}

// transportArgs are the kernel arguments for Config.Transport. Linux looks for functions
// of old chipsets, by which it works around their faults, before it looks at the bus as
// such; without pci=noearly that is 240 exits of a boot on an AMD CPU, 80 on others.
func (m *Machine) transportArgs() []string {
	switch m.cfg.Transport {
	case "", PCI:
		return []string{"pci=noearly"}
	case MMIOCmdline:
		var out []string
		for _, s := range m.slots {
			out = append(out, fmt.Sprintf("virtio_mmio.device=%d@%#x:%d", virtio.MMIOSize, s.base, s.pin))
		}
		return out
	}
	return nil
}

// warn tells what a guest's driver did wrong.
func (m *Machine) warn(err error) { m.cfg.Log.Print(err) }

// closeVirtio stops the devices, while memory and VM are still there. Memory of devices goes
// last, when no queue is served that could have it in a request.
func (m *Machine) closeVirtio() error {
	var errs []error
	var last []io.Closer
	for i, d := range m.cfg.Devices {
		var c io.Closer = d // where New came not so far
		if i < len(m.virtio) {
			c = m.virtio[i]
		}
		if _, ok := d.(virtio.Mapper); !ok {
			errs = append(errs, c.Close())
			continue
		}
		if i < len(m.virtio) {
			m.virtio[i].Suspend()
		}
		last = append(last, c)
	}
	for _, c := range last {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}
