package vm

import (
	"context"
	"errors"
	"io"
	"log"
	"runtime"
	"sync"
	"sync/atomic"

	"vmm/internal/jail"
	"vmm/machine"
	"vmm/storage/share"
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
	opts *options
	from *source // what it goes on from; nil if it boots

	life   context.Context         // ends when the guest has ended, and by Close
	end    context.CancelCauseFunc // of life
	beside sync.WaitGroup          // what runs beside the machine

	// confined and offline are what Confine has made of the process.
	confined, offline atomic.Bool
	begun             atomic.Pointer[jail.Begun] // for Confine

	making   sync.Mutex // Prepare, Start and Close come one after the other
	mu       sync.Mutex // of the following, for a moment at a time
	prepared bool
	started  bool
	closed   bool

	kernel  kernelChoice
	symbols string           // of the kernel: a System.map, if known
	opening *machine.Opening // of the engine, from Prepare on, or from where the VM is made of a snapshot
	machine *machine.Machine
	devices []virtio.Device // that were made for a machine which is not there yet
	disks   *diskSet
	image   *imageDisk // of a container image
	pmems   []*memory
	console *console
	shares  *shares
	health  health
	ports   *ports
	nets    *networks
	guest   *guestAgent
	leave   chan struct{} // the agent is to be asked to shut down when it is there
	space   *spaceWatch
	saver   saver
	setup   sync.Mutex // of isSetUp
	isSetUp bool       // the guest knows what a guest for commands is told before its first

	ended  chan struct{} // closed when the guest has ended and all is gone
	result Result
	err    error
}

// New makes a VM of a Config. Nothing is opened yet. The error is a *ConfigError.
func New(cfg Config, list ...Option) (*VM, error) { return newVM(cfg, newOptions(list)) }

func newVM(cfg Config, o *options) (_ *VM, err error) {
	defer o.abandon(&err)
	cfg.complete()
	if err := cfg.check(); err != nil {
		return nil, err
	}
	v := &VM{cfg: cfg, opts: o, ended: make(chan struct{}), leave: make(chan struct{}, 1)}
	v.life, v.end = context.WithCancelCause(context.Background())
	return v, nil
}

// Config returns what the VM is made of, with defaults filled in. One that was restored or received has its disks and
// shares from there, and not in its Config.
func (v *VM) Config() Config { return v.cfg }

// Prepare does all that takes time before the guest can run: it makes or fetches the
// default guest's kernel if that is what is to boot, and opens disks, networks and
// the engine. Start does it if nobody has. ctx bounds it, and not the VM's life; Close ends
// it with ErrNotRunning. It returns ErrNoGroup for a Config with Limits without WithGroup. A VM that could not be prepared is closed.
func (v *VM) Prepare(ctx context.Context) error {
	v.making.Lock()
	defer v.making.Unlock()
	return v.prepare(ctx)
}

// prepare is Prepare; making is held.
func (v *VM) prepare(ctx context.Context) (err error) {
	v.mu.Lock()
	closed, prepared := v.closed, v.prepared
	v.mu.Unlock()
	switch {
	case closed:
		return ErrNotRunning
	case prepared:
		return nil
	}
	if !v.cfg.Limits.IsZero() && v.opts.group == nil {
		v.from.refuse(ErrNoGroup)
		return errors.Join(ErrNoGroup, v.abandon())
	}
	ctx, stop := v.within(ctx)
	defer stop()
	defer func() {
		if err != nil {
			if ctx.Err() != nil { // which says it better than what was interrupted
				err = context.Cause(ctx)
			}
			v.from.refuse(err)
			err = errors.Join(err, v.abandon())
		}
	}()
	if v.opening == nil {
		v.opening = v.cfg.Engine.Begin(v.opts.notes)
	}
	v.beginConfining()
	cfg, err := v.open(ctx)
	if err != nil {
		return err
	}
	v.goOnConfining()
	v.devices = nil // they are the machine's, also if it cannot be made, as its memory is
	v.from.handOver()
	m, err := machine.New(*cfg)
	if err != nil {
		return v.explain(err)
	}
	v.space.attach(m)
	v.saver.base = v.from.id()
	v.mu.Lock()
	defer v.mu.Unlock()
	v.machine, v.prepared = m, true
	return nil
}

// within returns a context that ends with ctx and with the VM.
func (v *VM) within(ctx context.Context) (_ context.Context, stop func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	unbind := context.AfterFunc(v.life, func() { cancel(context.Cause(v.life)) })
	return ctx, func() {
		unbind()
		cancel(nil)
	}
}

// abandon closes a VM that does not run; making is held.
func (v *VM) abandon() error {
	v.mu.Lock()
	v.closed = true
	v.mu.Unlock()
	v.end(ErrNotRunning)
	var err error
	if v.machine != nil {
		err = v.machine.Close()
	}
	v.err = errors.Join(err, v.opening.Close(), v.release())
	close(v.ended)
	return v.err
}

// explain says of which snapshot an error is, and that a warm start has to boot.
func (v *VM) explain(err error) error {
	var state *machine.StateError
	if v.from != nil && v.from.warm && errors.As(err, &state) {
		var gone *share.GoneError
		return &ColdError{Err: err, Outdated: errors.As(err, &gone)}
	}
	return v.from.explain(err)
}

// open opens what the VM is made of beside the machine, and returns the machine's
// configuration.
func (v *VM) open(ctx context.Context) (cfg *machine.Config, err error) {
	r := v.from
	saved := r.saved() // its disks and shares are those of before
	if !saved {
		if err := v.chooseKernel(ctx); err != nil {
			return nil, err
		}
	}
	if saved {
		v.disks, err = r.openDisks()
	} else { // who starts warm has what the Config says, whatever is in the cache
		v.disks, err = openDisks(ctx, &v.cfg)
	}
	if err != nil {
		return nil, err
	}
	var segments, pmems []savedDisk
	if saved && !r.moved {
		segments, pmems = r.vm.Segments, r.vm.Pmems
	}
	if err := v.openImage(segments); err != nil {
		return nil, r.explain(err)
	}
	if err := v.openPmems(pmems); err != nil {
		return nil, r.explain(err)
	}
	if saved {
		v.shares, err = restoreShares(r.vm.Shares, v.opts.log)
	} else if v.shares, err = openShares(&v.cfg, v.kernel.modules, v.opts.log); err == nil {
		v.shares.root.warm = r != nil
	}
	if err != nil {
		return nil, err
	}
	guest := v.shares.writable()
	if v.console, err = openConsole(v.cfg.Console, v.opts.out, guest); err != nil {
		return nil, err
	}
	if r != nil {
		cfg = r.machineConfig(&v.cfg)
	} else if cfg, err = v.bootConfig(ctx); err != nil {
		return nil, err
	}
	cfg.Console, cfg.Log = v.console, log.New(logWriter{v.opts.log}, "", 0)
	cfg.HostNotes, cfg.Engine, cfg.Opening = v.opts.notes, v.cfg.Engine, v.opening
	var terminal io.Writer
	if v.cfg.ConsoleDevice == VirtioConsole {
		terminal = v.console.virtio()
	}
	if v.ports, err = openPorts(v.cfg.Ports, terminal, guest); err != nil {
		return nil, err
	}
	if v.nets, err = openNetworks(&v.cfg, r.macs(), v.opts, guest); err != nil {
		return nil, err
	}
	if v.guest, err = openAgent(v.cfg.Vsock, r.cid(v.cfg.Name), v.toldByFirst() || r.early()); err != nil {
		return nil, err
	}
	err = v.makeDevices()
	cfg.Devices = v.devices
	return cfg, err
}

// makeDevices makes the virtio devices: the disks, in their order, come first, and before
// them the image that the root is made of.
func (v *VM) makeDevices() error {
	if v.cfg.OnNoSpace == Pause {
		v.space = &spaceWatch{log: v.opts.log}
	}
	if v.image != nil {
		d, err := v.image.makeDevice(v.cfg.CPUs, v.opts.log)
		if err != nil {
			return err
		}
		v.devices = append(v.devices, d)
	}
	for _, m := range v.pmems {
		v.devices = append(v.devices, m.device())
	}
	list, err := v.disks.devices(v.cfg.CPUs, v.space, v.opts.log)
	if v.devices = append(append(v.devices, list...), rng.New()); err != nil {
		return err
	}
	if v.ports.device != nil {
		v.devices = append(v.devices, v.ports.device)
	}
	list, err = v.nets.devices()
	if v.devices = append(v.devices, list...); err != nil {
		return err
	}
	v.devices = append(v.devices, v.shares.devices...)
	if !v.cfg.NoAgent || v.cfg.Vsock != "" {
		v.devices = append(v.devices, v.guest.device)
	}
	v.devices = append(v.devices, v.opts.devices...)
	v.opts.devices = nil
	return nil
}

// Start boots the VM, or has it go on from where it was saved, and returns when it runs.
// ctx bounds that only: the VM ends when its guest does, or by Stop, Kill or Close. The
// error is ErrStarted the second time, and ErrNotRunning after Close.
func (v *VM) Start(ctx context.Context) error {
	v.making.Lock()
	defer v.making.Unlock()
	if v.started {
		return ErrStarted
	}
	if err := v.prepare(ctx); err != nil {
		return err
	}
	if err := v.takeOver(ctx); err != nil {
		return err
	}
	v.mu.Lock()
	v.started = true
	v.mu.Unlock()
	spare(v.cfg.CPUs)
	v.console.connect(v.machine, v.input(), v.opts.in)
	v.ports.run()
	v.beside.Go(func() { v.guest.keepTime(v.life) })
	v.beside.Go(func() { v.followNames(v.life) })
	v.beside.Go(func() { v.followHealth(v.life) })
	v.beside.Go(func() { v.followShutdown(v.life) })
	if r := v.from; r != nil {
		v.beside.Go(func() { r.settle(v.life, v) })
		v.beside.Go(func() { r.probe(v.life, v) })
	}
	go v.run()
	return nil
}

// run runs the machine until it ends, and then frees all.
func (v *VM) run() {
	result, err := v.machine.Run(v.life)
	v.end(ErrNotRunning)
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
	v.begun.Swap(nil).Close()
	var errs []error
	for _, d := range v.devices {
		errs = append(errs, d.Close())
	}
	v.devices = nil
	errs = append(errs, v.opts.close())
	v.guest.close()
	errs = append(errs, v.nets.close())
	v.ports.close()
	v.console.close()
	v.disks.close()
	errs = append(errs, v.image.close(), v.shares.close())
	for _, m := range v.pmems {
		errs = append(errs, m.close())
	}
	v.from.refuse(nil)
	errs = append(errs, v.from.close())
	return errors.Join(errs...)
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
