package machine

import (
	"errors"
	"runtime"
	"sync"

	"vmm/kvm"
	"vmm/machine/engine"
)

// Opening is an engine that is being opened, and a virtual machine being made in it, while
// the caller does other things: Linux waits for readers of its tables meanwhile, which takes
// milliseconds (up to 6.12 also in KVM_CREATE_VM).
type Opening struct {
	done chan struct{} // closed when what follows is there
	err  error
	made made
	once sync.Once // who takes or closes it
}

// made is what an Opening ends as.
type made struct {
	engine engine.System
	vm     engine.VM
	kind   Engine // never AutoEngine
	// interpreted: a KVM that interprets the guest's kernel mode.
	interpreted bool
	// supported is SupportedCPUID: where this host is a virtual machine itself, each leaf is
	// an exit to the host below.
	supported []kvm.CPUIDEntry
}

// Begin begins to open the engine for Config.Opening. notes is as Config.HostNotes. Close
// what no New gets.
func (e Engine) Begin(notes string) *Opening {
	o := &Opening{done: make(chan struct{})}
	go func() {
		defer close(o.done)
		o.err = o.open(e, notes)
	}()
	runtime.Gosched() // on a host with one CPU it would begin when the caller waits
	return o
}

// Close ends an opening that no New has got. Of one that a New has, and of nil, it does nothing.
func (o *Opening) Close() error {
	if o == nil {
		return nil
	}
	made, err := o.take()
	if err != nil { // nothing was opened, or another has it
		return nil
	}
	return errors.Join(made.vm.Close(), made.engine.Close())
}

var errTaken = errors.New("the engine was opened for another machine, or closed")

// take returns what was made, to the first who asks.
func (o *Opening) take() (m made, err error) {
	<-o.done
	err = errTaken
	o.once.Do(func() { m, err = o.made, o.err })
	return m, err
}

// open makes o.made.
func (o *Opening) open(e Engine, notes string) error {
	var m made
	var err error
	if m.engine, m.kind, err = e.Open(notes); err != nil {
		return err
	}
	if m.kind == KVMEngine {
		m.interpreted, err = interpretsRing0(m.engine, notes)
	}
	if err == nil {
		m.supported, err = m.engine.SupportedCPUID()
	}
	if err == nil {
		m.vm, err = m.engine.CreateVM()
	}
	if err != nil {
		return errors.Join(err, m.engine.Close())
	}
	o.made = m
	return nil
}
