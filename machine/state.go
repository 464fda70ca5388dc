package machine

import (
	"errors"
	"fmt"

	"vmm/devices"
	"vmm/kvm"
	"vmm/virtio"
)

// StateVersion is the version of State. A field that is new and may be missing
// leaves it as it is; it grows when older states cannot be loaded any more, or
// newer ones by older programs.
const StateVersion = 1

// State is all of a machine but its memory, as values. docs/snapshot-schema.md
// has its schema.
type State struct {
	Version     int               `json:"version"`
	Interpreted bool              `json:"interpreted"` // it ran where KVM interprets kernel mode
	CPUs        []CPUState        `json:"cpus"`
	Clock       uint64            `json:"clock"`  // kvmclock, in nanoseconds
	TSCKHz      int               `json:"tscKHz"` // frequency of the guest's TSC
	Chips       [][]byte          `json:"chips"`  // PIC master, PIC slave and IOAPIC, as KVM_GET_IRQCHIP has them
	PIT         kvm.PITState2     `json:"pit"`
	UART        devices.UARTState `json:"uart"`
	PM          devices.PMState   `json:"pm"`
	RTC         devices.RTCState  `json:"rtc"`
	PCIAddress  uint32            `json:"pciAddress"` // CONFIG_ADDRESS
	Virtio      []*virtio.State   `json:"virtio"`     // in the order of the devices
}

// CPUState is a vCPU, as KVM's ioctls have it.
type CPUState struct {
	CPUID     []kvm.CPUIDEntry `json:"cpuid"`     // as set
	Features  []kvm.CPUIDEntry `json:"features"`  // as the guest sees it
	Regs      kvm.Regs         `json:"regs"`      //
	Sregs     kvm.Sregs        `json:"sregs"`     //
	XSave     []byte           `json:"xsave"`     // the standard format
	XCRs      []kvm.XCR        `json:"xcrs"`      //
	MSRs      []kvm.MSREntry   `json:"msrs"`      //
	LAPIC     []byte           `json:"lapic"`     // the register page
	MPState   uint32           `json:"mpState"`   //
	Events    kvm.VCPUEvents   `json:"events"`    //
	DebugRegs kvm.DebugRegs    `json:"debugRegs"` //
	Nested    []byte           `json:"nested"`    // KVM_GET_NESTED_STATE; null without nested virtualization
}

// ErrDebugged is the error for freezing a machine that somebody debugs.
var ErrDebugged = errors.New("a debugger is attached")

// VersionError is the error for a state of another version.
type VersionError struct{ Version int }

// Error implements error.
func (e *VersionError) Error() string {
	if e.Version > StateVersion {
		return fmt.Sprintf("the state is of version %d: this vmm knows versions up to %d, a newer one is needed", e.Version, StateVersion)
	}
	return fmt.Sprintf("the state is of version %d, which this vmm cannot load any more (it knows %d)", e.Version, StateVersion)
}

// StateError is the error for a state that no machine can be made of on this host.
type StateError struct{ Err error }

// Error implements error.
func (e *StateError) Error() string { return e.Err.Error() }

// Unwrap returns what is wrong.
func (e *StateError) Unwrap() error { return e.Err }

// save returns the state of a frozen machine.
func (m *Machine) save() (*State, error) {
	s := &State{Version: StateVersion, Interpreted: m.tables != nil}
	clock, err := m.vm.Clock()
	if err != nil {
		return nil, err
	}
	s.Clock = clock.Clock
	indices, err := m.engine.MSRIndexList()
	if err != nil {
		return nil, err
	}
	for _, v := range m.cpus {
		c, err := v.save(indices)
		if err != nil {
			return nil, fmt.Errorf("saving vCPU %d: %w", v.id, err)
		}
		s.CPUs = append(s.CPUs, *c)
	}
	alignTSC(s.CPUs)
	s.TSCKHz, _ = m.cpus[0].engine.TSCKHz() // 0 where nobody knows
	for _, id := range chips {
		c, err := m.vm.IRQChip(id)
		if err != nil {
			return nil, err
		}
		s.Chips = append(s.Chips, c.State[:])
	}
	if s.PIT, err = m.vm.PIT2(); err != nil {
		return nil, err
	}
	// After the chips: what comes to these devices meanwhile raises its interrupt
	// again when it is loaded.
	s.UART, s.PM, s.RTC, s.PCIAddress = *m.uart.Save(), *m.pm.Save(), *m.rtc.Save(), m.pci.Save()
	for _, d := range m.virtio {
		v, err := d.Save()
		if err != nil {
			return nil, err
		}
		s.Virtio = append(s.Virtio, v)
	}
	return s, nil
}

// chips are the interrupt chips that KVM has a state of.
var chips = []uint32{kvm.IRQChipPICMaster, kvm.IRQChipPICSlave, kvm.IRQChipIOAPIC}

// check finds what cannot be a state of this machine.
func (s *State) check(cfg *Config) error {
	switch {
	case s.Version != StateVersion:
		return &VersionError{s.Version}
	case len(s.CPUs) != cfg.CPUs:
		return fmt.Errorf("the state has %d CPUs, the machine %d", len(s.CPUs), cfg.CPUs)
	case len(s.Chips) != len(chips):
		return errors.New("the state lacks interrupt chips")
	case len(s.Virtio) != len(cfg.Devices):
		return fmt.Errorf("the state has %d virtio devices, the machine %d", len(s.Virtio), len(cfg.Devices))
	}
	return nil
}

// loadState makes the machine what the state says; host is what this host would give
// its first CPU. The devices are suspended after that, until Run.
func (m *Machine) loadState(s *State, host []kvm.CPUIDEntry) error {
	if err := m.checkCPU(s, host); err != nil {
		return err
	}
	for i, id := range chips {
		c := &kvm.IRQChip{ChipID: id}
		copy(c.State[:], s.Chips[i])
		if err := m.vm.SetIRQChip(c); err != nil {
			return err
		}
	}
	if err := m.vm.SetPIT2(&s.PIT); err != nil {
		return err
	}
	if err := m.cpus[0].checkTSC(s.TSCKHz); err != nil {
		return err
	}
	for i, v := range m.cpus {
		if err := v.load(&s.CPUs[i]); err != nil {
			return fmt.Errorf("loading vCPU %d: %w", v.id, err)
		}
	}
	if err := m.vm.SetClock(&kvm.ClockData{Clock: s.Clock}); err != nil {
		return err
	}
	if err := errors.Join(m.uart.Load(&s.UART), m.rtc.Load(&s.RTC)); err != nil {
		return err
	}
	m.pm.Load(&s.PM)
	for i, d := range m.virtio {
		if s.Virtio[i] == nil {
			return virtio.ErrState
		}
		m.loaded++
		if err := d.Load(s.Virtio[i]); err != nil {
			return err
		}
	}
	m.pci.Load(s.PCIAddress)
	return nil
}
