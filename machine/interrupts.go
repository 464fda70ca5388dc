package machine

import (
	"errors"
	"sync"

	"vmm/devices"
	"vmm/kvm"
	"vmm/machine/engine"
	"vmm/virtio"
)

// The pins of the interrupt chips (in KVM: GSI and IOAPIC pin are the same).
const (
	ioapicPins = 24
	picPins    = 16
	pciPin     = 16 // the first of those that PCI functions share
	pciPins    = ioapicPins - pciPin
)

// irqLine drives a pin of the in-kernel interrupt chips.
type irqLine struct {
	m   *Machine
	irq uint32
}

// Set implements devices.IRQ. It fails only once the VM is gone.
func (l irqLine) Set(level bool) { l.m.vm.IRQLine(l.irq, level) }

// eventLine is the edge-triggered interrupt of a generic event device (ACPI 6.5, 5.6.9), at a pin of the slave
// 8259A. A guest has edges when it has set up an interrupt chip for the pin: before, nobody waits for them, and the
// 8259A, which no firmware has masked, would keep one. A guest that goes by the I/O APIC alone had it as an exception,
// of the vectors that the 8259A begins with, when it enables interrupts for the first time.
type eventLine struct{ irqLine }

// Set implements devices.IRQ.
func (l eventLine) Set(level bool) {
	if !level || l.taken() {
		l.irqLine.Set(level)
	}
}

func (l eventLine) taken() bool {
	slave, err := l.m.vm.IRQChip(kvm.IRQChipPICSlave)
	if err != nil {
		return false // the VM is gone
	}
	ioapic, err := l.m.vm.IRQChip(kvm.IRQChipIOAPIC)
	return err == nil && takesEdges(slave, ioapic, l.irq)
}

// takesEdges reports whether the guest has set up an interrupt chip for a pin of the slave 8259A, by the chips' states.
func takesEdges(slave, ioapic *kvm.IRQChip, pin uint32) bool {
	const (
		vectorBase = 5  // struct kvm_pic_state, irq_base
		firstFree  = 32 // vectors below are exceptions' (SDM 3, 6.2)
		redirect   = 24 // struct kvm_ioapic_state, redirtbl: 8 bytes a pin
		maskByte   = 2  // of an entry, and its bit (82093AA data sheet, 3.2.4)
		maskBit    = 1 << 0
	)
	return slave.State[vectorBase] >= firstFree || ioapic.State[redirect+8*pin+maskByte]&maskBit == 0
}

// sharedLine is a level-triggered line that several devices pull.
type sharedLine struct {
	line irqLine
	mu   sync.Mutex
	by   int
}

// sharedPin is one device's hold on a shared line.
type sharedPin struct {
	line *sharedLine
	on   bool // line's mu
}

// Set implements devices.IRQ.
func (p *sharedPin) Set(level bool) {
	l := p.line
	l.mu.Lock()
	defer l.mu.Unlock()
	if level == p.on {
		return
	}
	p.on = level
	if level {
		l.by++
	} else {
		l.by--
	}
	if level && l.by == 1 || !level && l.by == 0 {
		l.line.Set(level)
	}
}

// line returns the IOAPIC's pin, for several devices.
func (m *Machine) line(n int) *sharedLine {
	if m.shared[n] == nil {
		m.shared[n] = &sharedLine{line: irqLine{m, uint32(n)}}
	}
	return m.shared[n]
}

// routingTable is KVM's table from GSIs to interrupts: the chips' pins, and above
// them a message each.
type routingTable struct {
	vm engine.VM

	mu     sync.Mutex
	routes []kvm.IRQRoutingEntry // of the pins, then of GSI ioapicPins + i
	free   []uint32              // GSIs that were given back
}

// msi is one GSI with its eventfd.
type msi struct {
	table *routingTable
	gsi   uint32
	event *virtio.Event
	bound bool // to the GSI: only once it has a route
}

func newRoutingTable(vm engine.VM) *routingTable {
	t := &routingTable{vm: vm}
	for pin := range uint32(ioapicPins) {
		if pin < picPins {
			chip := uint32(kvm.IRQChipPICMaster) + pin/8
			t.routes = append(t.routes, kvm.IRQRoutingEntry{GSI: pin, Type: kvm.RoutingIRQChip, U: [8]uint32{chip, pin % 8}})
		}
		t.routes = append(t.routes, kvm.IRQRoutingEntry{GSI: pin, Type: kvm.RoutingIRQChip, U: [8]uint32{kvm.IRQChipIOAPIC, pin}})
	}
	return t
}

// pinRoutes is how many routes are those of pins: below 16 both chips see a pin.
const pinRoutes = ioapicPins + picPins

// NewMSI implements virtio.Host.
func (m *Machine) NewMSI() (devices.MSI, error) {
	event, err := virtio.NewEvent()
	if err != nil {
		return nil, err
	}
	t := m.routing
	t.mu.Lock()
	defer t.mu.Unlock()
	s := &msi{table: t, event: event}
	if n := len(t.free); n > 0 {
		s.gsi, t.free = t.free[n-1], t.free[:n-1]
	} else {
		s.gsi = ioapicPins + uint32(len(t.routes)-pinRoutes)
		t.routes = append(t.routes, kvm.IRQRoutingEntry{GSI: s.gsi, Type: kvm.RoutingMSI})
	}
	return s, nil
}

// Route implements devices.MSI.
func (s *msi) Route(address uint64, data uint32) error {
	t := s.table
	t.mu.Lock()
	defer t.mu.Unlock()
	t.routes[pinRoutes+s.gsi-ioapicPins].U = [8]uint32{uint32(address), uint32(address >> 32), data}
	if err := t.vm.SetGSIRouting(t.routes); err != nil {
		return err
	}
	if s.bound {
		return nil
	}
	err := t.vm.IRQFD(&kvm.IRQFD{FD: uint32(s.event.FD()), GSI: s.gsi})
	s.bound = err == nil
	return err
}

// Signal implements devices.MSI.
func (s *msi) Signal() { s.event.Signal() }

// Close implements devices.MSI.
func (s *msi) Close() error {
	t := s.table
	t.mu.Lock()
	defer t.mu.Unlock()
	var err error
	if s.bound {
		err = t.vm.IRQFD(&kvm.IRQFD{FD: uint32(s.event.FD()), GSI: s.gsi, Flags: kvm.IRQFDDeassign})
	}
	t.free = append(t.free, s.gsi)
	return errors.Join(err, s.event.Close())
}

// SetIOEvent implements virtio.Host.
func (m *Machine) SetIOEvent(e virtio.IOEvent, fd int, on bool) error {
	k := kvm.IOEventFD{Addr: e.Address, Len: e.Size, FD: int32(fd)}
	if e.Value != virtio.AnyValue {
		k.Datamatch, k.Flags = uint64(e.Value), kvm.IOEventFDDatamatch
	}
	if on {
		m.driven.Store(true)
	} else {
		k.Flags |= kvm.IOEventFDDeassign
	}
	return m.vm.IOEventFD(&k)
}
