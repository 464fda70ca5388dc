// Package software is the engine that needs no /dev/kvm: it executes the guest's
// instructions in this process (package ring0), and has the interrupt chips of a PC
// (package irqchip).
//
// It is used like KVM, by the interfaces of package engine, and a saved machine can go
// on in either.
package software

import (
	"vmm/internal/x86"
	"vmm/machine/engine"
	"vmm/machine/native"
)

// Open returns the engine. Safe for concurrent use. It fails where this process may have no
// executable memory of its own, which is the system's error, and with native.ErrNoXSave on a
// CPU without XSAVE.
func Open() (engine.System, error) {
	unit, err := native.New()
	if err != nil {
		return nil, err
	}
	return newSystem(), unit.Close()
}

// hostTSC reads the host's time-stamp counter.
func hostTSC() uint64 { return x86.RDTSC() }
