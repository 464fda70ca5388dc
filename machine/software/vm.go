package software

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"vmm/kvm"
	"vmm/machine/engine"
	"vmm/machine/ring0"
	"vmm/machine/software/irqchip"
)

// VM implements engine.VM, and ring0.Memory for its CPUs. Its interrupt chips are there from
// the beginning.
type VM struct {
	tscKHz uint64
	tscs   tscs
	chips  *irqchip.Chips
	tables *ring0.Tables
	clock  atomic.Pointer[reading]
	memory atomic.Pointer[memory]

	// generation counts what TLBs have to be emptied for; executing is held for reading by
	// CPUs while they may use their TLB.
	generation atomic.Uint64
	executing  sync.RWMutex

	mu     sync.Mutex // of the changes of memory, and of cpus; taken before executing
	cpus   []engine.Kicker
	events ioEvents
	irqs   *irqEvents
}

// newVM makes a VM without memory and CPUs.
func newVM(tscKHz uint64) (*VM, error) {
	vm := &VM{tscKHz: tscKHz, chips: irqchip.New(hostTSC, tscKHz)}
	irqs, err := newIRQEvents(vm.chips.Signal)
	if err != nil {
		vm.chips.Close()
		return nil, err
	}
	vm.irqs = irqs
	vm.tables = ring0.NewMemory(vm)
	vm.memory.Store(&memory{})
	vm.clock.Store(&reading{tsc: hostTSC()})
	return vm, nil
}

// Close implements engine.VM.
func (vm *VM) Close() error {
	err := errors.Join(vm.irqs.close(), vm.events.close())
	vm.chips.Close()
	return err
}

// CreateVCPU implements engine.VM. The error is unix.EINVAL for an ID that cannot be, and
// unix.EEXIST for one that there is already.
func (vm *VM) CreateVCPU(id int) (engine.VCPU, error) {
	if id < 0 || id >= irqchip.MaxCPUs {
		return nil, fmt.Errorf("KVM_CREATE_VCPU: CPU %d: %w", id, unix.EINVAL)
	}
	if vm.chips.HasCPU(id) {
		return nil, fmt.Errorf("KVM_CREATE_VCPU: CPU %d: %w", id, unix.EEXIST)
	}
	return newVCPU(vm, id)
}

// add has a CPU kicked when memory changes.
func (vm *VM) add(c engine.Kicker) {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	vm.cpus = append(vm.cpus, c)
}

// access serves a CPU's access to an address without memory, but for its local APIC. It
// reports false where the owner must do it.
func (vm *VM) access(gpa uint64, data []byte, write bool) (done bool) {
	return vm.chips.MMIO(gpa, data, write) || write && vm.events.written(ioAddress{gpa, false}, data)
}

// port is access for ports.
func (vm *VM) port(port uint16, data []byte, write bool) (done bool) {
	return vm.chips.Port(port, data, write) || write && vm.events.written(ioAddress{uint64(port), true}, data)
}

// SetTSSAddr implements engine.VM: no addresses are needed.
func (vm *VM) SetTSSAddr(uint64) error { return nil }

// SetIdentityMapAddr implements engine.VM.
func (vm *VM) SetIdentityMapAddr(uint64) error { return nil }

// RefuseMSRs implements engine.VM: an MSR that a machine would refuse is not there.
func (vm *VM) RefuseMSRs([]kvm.MSRFilterRange) error { return nil }

// CreateIRQChip implements engine.VM.
func (vm *VM) CreateIRQChip() error { return nil }

// CreatePIT2 implements engine.VM.
func (vm *VM) CreatePIT2(kvm.PITConfig) error { return nil }

// IRQChip implements engine.VM.
func (vm *VM) IRQChip(id uint32) (*kvm.IRQChip, error) {
	vm.irqs.settle()
	return vm.chips.Chip(id)
}

// SetIRQChip implements engine.VM.
func (vm *VM) SetIRQChip(c *kvm.IRQChip) error { return vm.chips.SetChip(c) }

// PIT2 implements engine.VM.
func (vm *VM) PIT2() (kvm.PITState2, error) { return vm.chips.PIT(), nil }

// SetPIT2 implements engine.VM.
func (vm *VM) SetPIT2(s *kvm.PITState2) error {
	vm.chips.SetPIT(s)
	return nil
}

// IRQLine implements engine.VM.
func (vm *VM) IRQLine(irq uint32, level bool) error {
	vm.chips.SetLine(irq, level)
	return nil
}

// SetGSIRouting implements engine.VM.
func (vm *VM) SetGSIRouting(entries []kvm.IRQRoutingEntry) error { return vm.chips.SetRouting(entries) }

// IOEventFD implements engine.VM.
func (vm *VM) IOEventFD(e *kvm.IOEventFD) error { return vm.events.set(e) }

// IRQFD implements engine.VM.
func (vm *VM) IRQFD(e *kvm.IRQFD) error { return vm.irqs.set(e) }
