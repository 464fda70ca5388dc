package machine

import (
	"errors"
	"fmt"

	"vmm/kvm"
	"vmm/machine/engine"
	"vmm/machine/software"
)

// Engine is what executes the guest.
type Engine string

// The engines.
const (
	// AutoEngine is KVM where that has the hardware execute all of a guest, else software:
	// on a host without KVM, and on one whose KVM interprets the guest's kernel.
	AutoEngine     Engine = "auto"
	KVMEngine      Engine = "kvm"
	SoftwareEngine Engine = "software" // in this process, without KVM
)

// Engines lists them all.
var Engines = []Engine{AutoEngine, KVMEngine, SoftwareEngine}

// Open opens the engine, AutoEngine if e is empty, and returns which one it is: never
// AutoEngine. notes is as Config.HostNotes. Errors of KVM are kvm.ErrAbsent, of a host that has
// none, and kvm.ErrDenied, of one that has and does not let this user in: AutoEngine is not for
// that.
func (e Engine) Open(notes string) (engine.System, Engine, error) {
	interprets := func(sys engine.System) (bool, error) { return interpretsRing0(sys, notes) }
	return e.open(openKVM, software.Open, interprets)
}

func openKVM() (engine.System, error) {
	sys, err := kvm.Open()
	if err != nil {
		return nil, err
	}
	return engine.KVM(sys), nil
}

// open is Open with what opens the engines, and what tells of a KVM whether it interprets.
func (e Engine) open(hardware, software func() (engine.System, error), interprets func(engine.System) (bool, error)) (engine.System, Engine, error) {
	if e == SoftwareEngine {
		sys, err := software()
		return sys, e, err
	}
	sys, err := hardware()
	if e == KVMEngine || err != nil && !errors.Is(err, kvm.ErrAbsent) {
		return sys, KVMEngine, err
	}
	if err == nil {
		// A KVM of which nothing can be found out is tried, and tells why itself.
		if slow, err := interprets(sys); err != nil || !slow {
			return sys, KVMEngine, nil
		}
		other, err := software()
		if err != nil {
			return sys, KVMEngine, nil
		}
		return other, SoftwareEngine, sys.Close()
	}
	sys, why := software()
	if why != nil {
		err = fmt.Errorf("%w; and without KVM: %w", err, why)
		return nil, SoftwareEngine, err
	}
	return sys, SoftwareEngine, nil
}

// Why says for people why Open has opened an engine for e.
func (e Engine) Why(opened Engine) string {
	switch {
	case e == opened:
		return "asked for"
	case opened == SoftwareEngine && foundInterpreting():
		return "this host's KVM interprets the guest's kernel"
	case opened == SoftwareEngine:
		return "this host has no KVM"
	}
	return "this host has KVM"
}

// Choose returns which engine Open would open.
func (e Engine) Choose(notes string) (Engine, error) {
	sys, e, err := e.Open(notes)
	if err != nil {
		return e, err
	}
	return e, sys.Close()
}
