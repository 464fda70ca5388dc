package software

import "vmm/kvm"

// reading is what a VM's kvmclock showed at a time of the host's time-stamp counter. From
// there on it counts by that counter, as the guest reckons it.
type reading struct {
	tsc         uint64
	nanoseconds uint64
}

// clockAt is what kvmclock shows at a time of the host's time-stamp counter, in
// nanoseconds.
func (vm *VM) clockAt(tsc uint64) uint64 {
	r := vm.clock.Load()
	return r.nanoseconds + scaled(max(tsc, r.tsc)-r.tsc, 1e6, vm.tscKHz)
}

// Clock implements engine.VM.
func (vm *VM) Clock() (kvm.ClockData, error) {
	return kvm.ClockData{Clock: vm.clockAt(hostTSC())}, nil
}

// SetClock implements engine.VM.
func (vm *VM) SetClock(c *kvm.ClockData) error {
	vm.clock.Store(&reading{hostTSC(), c.Clock})
	return nil
}
