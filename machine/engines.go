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
	AutoEngine     Engine = "auto" // KVM, or software where this host has no KVM
	KVMEngine      Engine = "kvm"
	SoftwareEngine Engine = "software" // in this process, without KVM
)

// Engines lists them all.
var Engines = []Engine{AutoEngine, KVMEngine, SoftwareEngine}

// Open opens the engine, AutoEngine if e is empty, and returns which one it is: never
// AutoEngine. Errors of KVM are kvm.ErrAbsent, of a host that has none, and kvm.ErrDenied,
// of one that has and does not let this user in: AutoEngine is not for that.
func (e Engine) Open() (engine.System, Engine, error) { return e.open(openKVM, software.Open) }

func openKVM() (engine.System, error) {
	sys, err := kvm.Open()
	if err != nil {
		return nil, err
	}
	return engine.KVM(sys), nil
}

// open is Open with what opens the engines.
func (e Engine) open(hardware, software func() (engine.System, error)) (engine.System, Engine, error) {
	if e == SoftwareEngine {
		sys, err := software()
		return sys, e, err
	}
	sys, err := hardware()
	if err == nil || e == KVMEngine || !errors.Is(err, kvm.ErrAbsent) {
		return sys, KVMEngine, err
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
	case opened == SoftwareEngine:
		return "this host has no KVM"
	}
	return "this host has KVM"
}

// Choose returns which engine Open would open.
func (e Engine) Choose() (Engine, error) {
	sys, e, err := e.Open()
	if err != nil {
		return e, err
	}
	return e, sys.Close()
}
