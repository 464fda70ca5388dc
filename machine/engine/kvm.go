package engine

import "vmm/kvm"

// KVM is the engine that an open /dev/kvm is. Closing it closes that.
func KVM(sys *kvm.System) System { return kvmSystem{sys} }

// kvmSystem and kvmVM are package kvm's own but for what their methods return.
type (
	kvmSystem struct{ *kvm.System }
	kvmVM     struct{ *kvm.VM }
)

// CreateVM implements System.
func (s kvmSystem) CreateVM() (VM, error) {
	vm, err := s.System.CreateVM()
	if err != nil {
		return nil, err
	}
	return kvmVM{vm}, nil
}

// CreateVCPU implements VM.
func (vm kvmVM) CreateVCPU(id int) (VCPU, error) {
	v, err := vm.VM.CreateVCPU(id)
	if err != nil {
		return nil, err
	}
	return v, nil
}
