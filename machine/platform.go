package machine

import (
	"crypto/rand"

	"vmm/bootloader"
	"vmm/devices"
	"vmm/internal/x86"
	"vmm/machine/acpi"
)

// The platform's ports and interrupts.
const (
	portUART    = 0x3f8
	portRTC     = 0x70
	portI8042   = 0x60
	portPCI     = 0xcf8
	portPCIData = 0xcfc
	portReset   = 0xcf9
	portPM      = 0x600
	portDebug   = 0x501
	portPVPanic = 0x505

	irqUART = 4
	irqSCI  = 9 // of ACPI's fixed hardware
	// Of generic event devices (ACPI 6.5, 5.6.9): on a PC the mouse's and the
	// coprocessor's.
	irqPower      = 12
	irqGeneration = 13
)

// addPlatform puts the devices of a PC on the buses.
func (m *Machine) addPlatform() error {
	m.watch = &panicWatch{out: m.cfg.Console}
	m.uart = devices.NewUART(irqLine{m, irqUART}, m.watch)
	m.pm = devices.NewPM(irqLine{m, irqSCI}, eventLine{irqLine{m, irqPower}}, func() { m.end(Result{End: EndPowerOff}) })
	m.rtc = devices.NewRTC(m.cfg.Now)
	m.pci = devices.NewPCI()
	reset := func() { m.end(Result{End: EndReset}) }
	add := func(name string, port, n uint64, d PortDevice) error { return m.ports.add(name, port, n, d) }
	for _, err := range []error{
		add("uart", portUART, devices.UARTPorts, m.uart),
		add("rtc", portRTC, devices.RTCPorts, m.rtc),
		add("i8042", portI8042, devices.I8042Ports, &devices.I8042{Reset: reset}),
		// The reset register lies inside CONFIG_ADDRESS: a register is found by
		// the first port of an access.
		add("pci-address", portPCI, 1, devices.PCIAddressPort{PCI: m.pci}),
		add("reset", portReset, 1, &devices.ResetControl{Reset: reset}),
		add("pci-data", portPCIData, devices.PCIDataPorts, devices.PCIDataPort{PCI: m.pci}),
		add("pm", portPM, devices.PMPorts, m.pm),
		add("debug-exit", portDebug, 1, &devices.DebugExit{Exit: func(status int) {
			m.end(Result{End: EndDebugExit, Status: status})
		}}),
		add("pvpanic", portPVPanic, 1, &devices.PVPanic{Panic: func() {
			m.end(Result{End: EndCrash, Detail: "kernel panic"})
		}}),
		m.mmio.add("pci-ecam", ecamBase, ecamSize, m.pci),
		m.mmio.add("pci-memory", pciWindow, ecamBase-pciWindow, devices.PCIWindow{PCI: m.pci, Base: pciWindow}),
	} {
		if err != nil {
			return err
		}
	}
	return nil
}

// resetCode is all that there is of a BIOS: who jumps to its entry wants a reset.
var resetCode = []byte{
	0xba, portReset & 0xff, portReset >> 8, // mov dx, portReset
	0xb0, devices.ResetValue, // mov al, ResetValue
	0xee,       // out dx, al
	0xf4,       // hlt
	0xeb, 0xfd, // jmp to the hlt
}

// firmware returns the ACPI tables, to be placed at acpiBase.
func (m *Machine) firmware() []byte {
	p := acpi.Platform{
		CPUs:    m.cfg.CPUs,
		LAPIC:   x86.LAPICBase,
		IOAPIC:  ioapicBase,
		ECAM:    ecamBase,
		LastBus: pciBuses - 1,
		PMTimer: portPM + devices.PMTimer,

		Reduced:      m.reducedACPI(),
		SCI:          irqSCI,
		PMEvent:      portPM + devices.PMEvent,
		PMControl:    portPM + devices.PMControl,
		SleepControl: portPM + devices.PMSleepControl,
		SleepStatus:  portPM + devices.PMSleepStatus,

		ResetPort:  portReset,
		ResetValue: devices.ResetValue,
		Century:    devices.RTCCentury,
		SleepOff:   devices.PMSleepOff,
		DSDT:       m.dsdt(),
	}
	return p.Build(acpiBase)
}

// reducedACPI reports whether the guest has hardware-reduced ACPI. Linux gives numbers
// only to interrupts that ACPI tells it of then, and so none to those of devices on
// its command line.
func (m *Machine) reducedACPI() bool { return m.cfg.Transport != MMIOCmdline }

// dsdt describes what a guest cannot find by itself.
func (m *Machine) dsdt() acpi.AML {
	hid := func(id string) acpi.AML { return acpi.Name("_HID", acpi.EISAID(id)) }
	crs := func(r ...acpi.AML) acpi.AML { return acpi.Name("_CRS", acpi.Resources(r...)) }
	// An interrupt that tells a device's driver of its event.
	event := func(name string, uid uint64, irq uint32, of string) acpi.AML {
		return acpi.Device(name, acpi.Name("_HID", acpi.Str("ACPI0013")), acpi.Name("_UID", acpi.Int(uid)), crs(acpi.EdgeInterrupt(irq)),
			acpi.Method("_EVT", 1, acpi.Notify(of, 0x80)))
	}
	var button acpi.AML // else fixed hardware
	if m.reducedACPI() {
		button = append(acpi.Device("PWRB", hid("PNP0C0C")), event("GED1", 1, irqPower, `\_SB.PWRB`)...)
	}
	window := m.pciWindow64()
	return acpi.Scope(`\_SB`, append(m.virtioAML(),
		acpi.Device("PCI0", hid("PNP0A08"), acpi.Name("_CID", acpi.EISAID("PNP0A03")),
			acpi.Name("_UID", acpi.Int(0)), acpi.Name("_SEG", acpi.Int(0)), acpi.Name("_BBN", acpi.Int(0)), pciRouting(),
			crs(acpi.BusNumbers(0, pciBuses-1),
				acpi.IO(portPCI, 8),
				acpi.IOWindow(0x1000, 0xffff),
				acpi.MemoryWindow(pciWindow, ecamBase-1),
				acpi.MemoryWindow(window, window+pciWindow64Size-1))),
		// What the firmware keeps for itself; Linux wants ECAM to be there.
		acpi.Device("MBRD", hid("PNP0C02"), acpi.Name("_UID", acpi.Int(0)),
			crs(acpi.Memory32(ecamBase, ecamSize), acpi.IO(portPM, devices.PMPorts))),
		acpi.Device("COM1", hid("PNP0501"), acpi.Name("_UID", acpi.Int(0)),
			crs(acpi.IO(portUART, devices.UARTPorts), acpi.IRQ(irqUART))),
		acpi.Device("RTC0", hid("PNP0B00"), crs(acpi.IO(portRTC, devices.RTCPorts), acpi.IRQ(8))),
		// The VM generation ID (Microsoft, "Virtual Machine Generation ID") and the
		// device that tells of its changes (ACPI 6.5, 5.6.9).
		acpi.Device("VGEN", acpi.Name("_HID", acpi.Str("VMMVGID")), acpi.Name("_CID", acpi.Str("VM_Gen_Counter")),
			acpi.Name("_DDN", acpi.Str("VM_Gen_Counter")), acpi.Name("ADDR", acpi.Package(acpi.Int(generationID), acpi.Int(0)))),
		event("GED0", 0, irqGeneration, `\_SB.VGEN`),
		button,
		acpi.Device("PEVT", acpi.Name("_HID", acpi.Str("QEMU0001")), crs(acpi.IO(portPVPanic, 1))),
	)...)
}

// generationID is where the guest's VM generation ID is, in what the firmware keeps
// for itself.
const (
	generationID     = biosEnd - pageSize
	generationIDSize = 16
)

// writeGeneration gives the guest a VM generation ID that no other has.
func (m *Machine) writeGeneration() error {
	id, err := m.mem.Slice(generationID, generationIDSize)
	if err != nil {
		return err
	}
	rand.Read(id) // never fails
	m.mem.MarkDirty(id)
	return nil
}

// newGeneration gives the guest another VM generation ID, and tells it so: it must
// not use again what should be there only once, such as its random numbers.
func (m *Machine) newGeneration() error {
	if err := m.writeGeneration(); err != nil {
		return err
	}
	line := eventLine{irqLine{m, irqGeneration}}
	line.Set(true)
	line.Set(false)
	return nil
}

// pciWindow64Size is the 64-bit memory of PCI devices, above all RAM.
const pciWindow64Size = 32 << 30

func (m *Machine) pciWindow64() uint64 {
	return (max(m.mem.Size(), highRAM) + pciWindow64Size - 1) &^ (pciWindow64Size - 1)
}

// e820 is the guest's memory map.
func (m *Machine) e820() []bootloader.E820 {
	low := min(m.mem.size, lowRAMEnd)
	out := []bootloader.E820{
		{Addr: 0, Size: ebdaBase, Type: bootloader.E820RAM},
		{Addr: ebdaBase, Size: 0xa0000 - ebdaBase, Type: bootloader.E820Reserved},
		{Addr: acpiBase, Size: biosEnd - acpiBase, Type: bootloader.E820Reserved},
		{Addr: biosEnd, Size: low - biosEnd, Type: bootloader.E820RAM},
		{Addr: ecamBase, Size: ecamSize, Type: bootloader.E820Reserved},
		{Addr: helperBase, Size: highRAM - helperBase, Type: bootloader.E820Reserved},
	}
	if m.mem.size > low {
		out = append(out, bootloader.E820{Addr: highRAM, Size: m.mem.size - low, Type: bootloader.E820RAM})
	}
	return out
}
