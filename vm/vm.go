// Package vm is a Linux virtual machine for Go programs: a Config describes it, New makes
// it, Start boots it, and while it runs it can be looked at, changed, saved, copied and
// moved.
//
// A VM is in this process: there is no other one behind it. It needs /dev/kvm. Its
// methods can be called from any goroutine, and return ErrNotRunning where it has to run
// and does not.
package vm

import (
	"context"
	"errors"
	"io"
	"log"
	"runtime"
	"sync"

	"vmm/machine"
	"vmm/virtio"
	"vmm/virtio/rng"
)

// Errors that methods return, for errors.Is.
var (
	ErrNotRunning = errors.New("the VM is not running")
	ErrStarted    = errors.New("the VM was started already")
)

// Result tells how and why a guest ended.
type Result = machine.Result

// The ways to end.
const (
	EndStopped   = machine.EndStopped   // by Stop, Kill or Close
	EndPowerOff  = machine.EndPowerOff  // the guest switched itself off
	EndReset     = machine.EndReset     // the guest asked for a reboot
	EndCrash     = machine.EndCrash     // the guest panicked or its CPU shut down
	EndDebugExit = machine.EndDebugExit // the guest wrote to isa-debug-exit
)

// VM is a virtual machine.
type VM struct {
	cfg  Config
	opts options
	from *source // what it goes on from; nil if it boots

	mu       sync.Mutex // of the life: prepared, started, closed
	prepared bool
	started  bool
	closed   bool
	cancel   context.CancelFunc // of what runs beside the machine
	beside   sync.WaitGroup

	kernel  kernelChoice
	symbols string // of the kernel: a System.map, if known
	machine *machine.Machine
	disks   *diskSet
	console *console
	shares  *shares
	ports   *ports
	nets    *networks
	guest   *guestAgent
	space   *spaceWatch
	saver   saver
	setup   sync.Mutex // of isSetUp
	isSetUp bool       // the guest knows what a guest for commands is told before its first

	ended  chan struct{} // closed when the guest has ended and all is gone
	result Result
	err    error
}

// New makes a VM of a Config. Nothing is opened yet. The error is a *ConfigError.
func New(cfg Config, list ...Option) (*VM, error) {
	cfg.complete()
	if err := cfg.check(); err != nil {
		return nil, err
	}
	return &VM{cfg: cfg, opts: newOptions(list), ended: make(chan struct{})}, nil
}

// Config returns what the VM is made of, with defaults filled in.
func (v *VM) Config() Config { return v.cfg }

// Prepare does all that takes time before the guest can run: it makes or fetches the
// default guest's kernel if that is what is to boot, and opens disks, networks and
// /dev/kvm. Start does it if nobody has. ctx bounds it, and not the VM's life.
func (v *VM) Prepare(ctx context.Context) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.prepare(ctx)
}

func (v *VM) prepare(ctx context.Context) (err error) {
	switch {
	case v.closed:
		return ErrNotRunning
	case v.prepared:
		return nil
	}
	defer func() {
		if err != nil {
			v.from.refuse(err)
			err = errors.Join(err, v.release())
			v.closed = true
			close(v.ended)
		}
	}()
	cfg, err := v.open(ctx)
	if err != nil {
		return err
	}
	v.disks.owned = true // New closes devices when it fails
	if v.machine, err = machine.New(*cfg); err != nil {
		return v.explain(err)
	}
	v.space.attach(v.machine)
	v.saver.base = v.from.id()
	v.prepared = true
	return nil
}

// explain says of which snapshot an error is, and that a warm start has to boot.
func (v *VM) explain(err error) error {
	var state *machine.StateError
	if v.from != nil && v.from.warm && errors.As(err, &state) {
		return &ColdError{err}
	}
	return v.from.explain(err)
}

// open opens what the VM is made of beside the machine, and returns the machine's
// configuration.
func (v *VM) open(ctx context.Context) (cfg *machine.Config, err error) {
	r := v.from
	saved := r != nil && !r.warm // its disks and shares are those of before
	if r == nil || r.warm {
		if err := v.chooseKernel(ctx); err != nil {
			return nil, err
		}
	}
	if r != nil {
		v.disks, err = r.openDisks()
	} else {
		v.disks, err = openDisks(&v.cfg)
	}
	if err != nil {
		return nil, err
	}
	if v.console, err = openConsole(v.cfg.Console, v.opts.out); err != nil {
		return nil, err
	}
	if saved {
		v.shares, err = restoreShares(r.vm.Shares, v.opts.log)
	} else {
		v.shares, err = openShares(&v.cfg, v.kernel.modules, v.opts.log)
	}
	if err != nil {
		return nil, err
	}
	if r != nil {
		cfg = r.machineConfig(&v.cfg)
	} else if cfg, err = v.bootConfig(ctx); err != nil {
		return nil, err
	}
	cfg.Console, cfg.Log = v.console, log.New(logWriter{v.opts.log}, "", 0)
	cfg.HostNotes = v.opts.notes
	var terminal io.Writer
	if v.cfg.ConsoleDevice == VirtioConsole {
		terminal = v.console.virtio()
	}
	if v.ports, err = openPorts(v.cfg.Ports, terminal); err != nil {
		return nil, err
	}
	if v.nets, err = openNetworks(&v.cfg, r.macs(), &v.opts); err != nil {
		return nil, err
	}
	if v.guest, err = openAgent(v.cfg.Vsock, r.cid(v.cfg.Name), v.cfg.Commands() && !saved); err != nil {
		return nil, err
	}
	cfg.Devices, err = v.devices()
	return cfg, err
}

// devices makes the virtio devices: the disks, in their order, come first.
func (v *VM) devices() ([]virtio.Device, error) {
	if v.cfg.OnNoSpace == Pause {
		v.space = &spaceWatch{log: v.opts.log}
	}
	devices, err := v.disks.devices(v.cfg.CPUs, v.space, v.opts.log)
	if err != nil {
		return nil, err
	}
	devices = append(devices, rng.New())
	if v.ports.device != nil {
		devices = append(devices, v.ports.device)
	}
	nics, err := v.nets.devices()
	if err != nil {
		return nil, err
	}
	devices = append(append(devices, nics...), v.shares.devices...)
	if !v.cfg.NoAgent || v.cfg.Vsock != "" {
		devices = append(devices, v.guest.device)
	}
	return append(devices, v.opts.devices...), nil
}

// Start boots the VM, or has it go on from where it was saved, and returns when it runs.
// ctx bounds that only: the VM ends when its guest does, or by Stop, Kill or Close.
func (v *VM) Start(ctx context.Context) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.started {
		return ErrStarted
	}
	if err := v.prepare(ctx); err != nil {
		return err
	}
	if r := v.from; r != nil && r.confirm != nil {
		if err := r.confirm(); err != nil {
			return err
		}
		r.peer.Close()
		r.peer = nil
	}
	v.started = true
	life, cancel := context.WithCancel(context.Background())
	v.cancel = cancel
	spare(v.cfg.CPUs)
	v.console.connect(v.machine, v.input(), v.opts.in)
	v.ports.run()
	v.beside.Go(func() { v.guest.keepTime(life) })
	if r := v.from; r != nil {
		v.beside.Go(func() { r.settle(life, v) })
		v.beside.Go(func() { r.probe(life, v) })
	}
	go v.run(life)
	return nil
}

// run runs the machine until it ends, and then frees all.
func (v *VM) run(life context.Context) {
	result, err := v.machine.Run(life)
	v.cancel()
	v.beside.Wait()
	spare(-v.cfg.CPUs)
	v.mu.Lock()
	v.closed = true
	v.mu.Unlock()
	// Not with the lock: who saves the VM may be asking it something.
	v.result, v.err = result, errors.Join(err, v.release())
	close(v.ended)
}

// spare gives Go's scheduler a place more for each virtual CPU: one that is in KVM_RUN
// keeps its place for up to milliseconds, and the devices' goroutines would wait for it.
func spare(n int) {
	spareMu.Lock()
	defer spareMu.Unlock()
	runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) + n)
}

var spareMu sync.Mutex

// release closes what was opened and no machine has freed. It waits for whoever saves
// the VM.
func (v *VM) release() error {
	v.saver.mu.Lock()
	defer v.saver.mu.Unlock()
	v.guest.close()
	err := v.nets.close()
	v.ports.close()
	v.console.close()
	v.disks.close()
	v.from.refuse(nil)
	v.from.close()
	return err
}

// Wait returns how the guest has ended, once it has and nothing of it is left. The error
// is the VM's own failure, or ctx's.
func (v *VM) Wait(ctx context.Context) (Result, error) {
	select {
	case <-v.ended:
		return v.result, v.err
	case <-ctx.Done():
		return Result{}, context.Cause(ctx)
	}
}

// Done is closed when the guest has ended and nothing of it is left.
func (v *VM) Done() <-chan struct{} { return v.ended }

// Kill ends the VM at once, as pulling the plug does.
func (v *VM) Kill() {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.started && !v.closed {
		v.machine.Stop()
	}
}

// Stop asks the guest to shut down, by its agent or by the power button, and waits until
// it has. If ctx ends before, the VM is ended and ctx's error returned.
func (v *VM) Stop(ctx context.Context) error {
	if err := v.Shutdown(ctx); err != nil {
		return err
	}
	_, err := v.Wait(ctx)
	if ctx.Err() != nil {
		v.Kill()
		<-v.ended
	}
	return err
}

// Shutdown asks the guest to shut down, and does not wait.
func (v *VM) Shutdown(ctx context.Context) error {
	if err := v.running(); err != nil {
		return err
	}
	if v.guest.alive() && v.guest.client().Shutdown(ctx) == nil {
		return nil
	}
	v.machine.PressPowerButton()
	return nil
}

// PressPowerButton asks the guest to shut down as a PC's button does.
func (v *VM) PressPowerButton() {
	if v.running() == nil {
		v.machine.PressPowerButton()
	}
}

// Close ends the VM if it runs, and frees all of it. It can be called at any time, and
// more than once.
func (v *VM) Close() error {
	v.mu.Lock()
	switch {
	case v.closed:
	case v.started:
		v.machine.Stop()
	default:
		v.closed = true
		var err error
		if v.machine != nil {
			err = v.machine.Close()
		}
		v.err = errors.Join(err, v.release())
		close(v.ended)
	}
	v.mu.Unlock()
	<-v.ended
	return v.err
}

// Refuse closes a VM that a Receiver has made and that cannot run here, and tells the
// other side why.
func (v *VM) Refuse(why error) error {
	v.mu.Lock()
	if !v.started {
		v.from.refuse(why)
	}
	v.mu.Unlock()
	return v.Close()
}

// running returns ErrNotRunning unless the VM runs.
func (v *VM) running() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if !v.started || v.closed {
		return ErrNotRunning
	}
	return nil
}

// made reports whether Prepare has made the VM, which may have ended since.
func (v *VM) made() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.prepared
}

// input is where the console's input goes.
func (v *VM) input() func([]byte) error {
	if v.cfg.ConsoleDevice == VirtioConsole {
		return func(b []byte) error { return v.ports.device.Receive(0, b) }
	}
	return v.machine.Input
}

// logWriter tells lines of a logger as errors.
type logWriter struct{ log func(error) }

// Write implements io.Writer.
func (w logWriter) Write(b []byte) (int, error) {
	w.log(errors.New(string(b[:len(b)-1])))
	return len(b), nil
}
