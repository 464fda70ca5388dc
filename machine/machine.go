// Package machine is one virtual machine: its memory map, its vCPUs and what
// their exits mean, its interrupts, its firmware tables, and its life.
//
// New builds a machine from a Config, and Run drives it until the guest ends
// or the context does. When Run has returned, nothing of the machine is left:
// no goroutine, no file descriptor, no memory.
package machine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"vmm/bootloader"
	"vmm/devices"
	"vmm/kvm"
	"vmm/machine/ring0"
	"vmm/virtio"
)

// MaxCPUs bounds Config.CPUs.
const MaxCPUs = 64

// Config describes a machine. The zero values of all but Kernel are good.
type Config struct {
	CPUs      int      // at most MaxCPUs; 1 if 0
	Memory    uint64   // bytes, whole pages, from MinMemory to MaxMemory; DefaultMemory if 0
	HugePages bool     // of the host's pool if that has enough, else transparent ones
	Engine    Engine   // AutoEngine if empty
	Nested    bool     // the guest may have VMs of its own; with HostCPU only
	CPUModel  CPUModel // what a guest that boots sees of the CPU; HostCPU if empty
	Kernel    *bootloader.Kernel
	Initrd    []byte // initial RAM disk, as it is; nil if there is none
	// Cmdline is the user's kernel arguments; they win over the defaults.
	Cmdline  string
	Protocol bootloader.Protocol
	// Console receives what the guest sends to its serial port; nil drops it. It must not
	// block for long: a vCPU waits.
	Console io.Writer
	// Devices are the virtio devices, in the order in which a guest finds them.
	// The machine closes them, as New does if it returns an error.
	Devices   []virtio.Device
	Transport Transport // PCI if empty
	// Log is told what the guest's drivers do wrong, from any goroutine; nil drops it.
	Log *log.Logger
	// State makes a machine that goes on where another was saved: nothing is booted
	// then, and Memory and CPUs are as there. RAM is that machine's memory.
	State *State
	RAM   []Backing
	// Received is the machine's memory in the place of RAM. It is freed with the machine,
	// and by New if that returns an error.
	Received *Memory
	// TrackDirty notes from the start which pages of memory are written to.
	TrackDirty bool
	// Prefetch are pages that the guest will use soon: they are brought in beside it.
	Prefetch WorkingSet
	// Ending is called when Run ends, while memory is still there.
	Ending func(*Memory)
	// Moved tells that the machine of State is no more: else this is a copy, whose
	// guest is told so by its VM generation ID.
	Moved bool
	// HostNotes is a file of the user's own in which machines note what kind of host
	// this is, until it boots again; without one each process finds out anew.
	HostNotes string
	// Opening is Engine, for which its Begin was called earlier with HostNotes, or nil. New
	// takes it over, also if that returns an error.
	Opening *Opening
	// Now is the clock that the guest's CMOS shows; time.Now if nil.
	Now func() time.Time
}

// DefaultMemory is Config.Memory where none is given, in bytes.
const DefaultMemory = 512 << 20

// settling is how long a machine runs before it gives back what its start needed: a guest
// that ends before that, as many do, does not wait for the collector.
const settling = 500 * time.Millisecond

// End is how a guest ended.
type End int

// The ways to end.
const (
	EndStopped   End = iota // by Stop or the context
	EndPowerOff             // the guest switched itself off
	EndReset                // the guest asked for a reboot
	EndCrash                // the guest panicked or its CPU shut down
	EndDebugExit            // the guest wrote to isa-debug-exit
)

// String implements fmt.Stringer.
func (e End) String() string {
	return [...]string{"stopped", "power off", "reset", "crash", "debug exit"}[e]
}

// Result tells how and why a guest ended.
type Result struct {
	End    End
	Detail string // of an EndCrash: what has happened; else empty or for people
	Status int    // of an EndDebugExit: 2*v+1 for the value v that was written
}

// Machine is a virtual machine. Its methods may be called from any goroutine, at any
// time: also those of a machine that has ended, which then do nothing.
type Machine struct {
	cfg  Config
	life life         // who uses what follows does so in its use, but for vCPUs
	free func() error // release, once

	made
	mem  *Memory
	cpus []*vcpu

	ports portBus
	mmio  mmioBus
	uart  *devices.UART
	pm    *devices.PM
	rtc   *devices.RTC
	pci   *devices.PCI
	watch *panicWatch
	// driven is set once the guest has started a virtio device.
	driven atomic.Bool

	shared  [ioapicPins]*sharedLine
	routing *routingTable
	slots   []mmioSlot
	dirtyMu sync.Mutex // of TrackDirty and TakeDirty: one at a time
	virtio  []virtio.BusDevice
	freeze  sync.Mutex // of Freeze: one at a time, and no debugger comes meanwhile
	loaded  int        // devices, by a State: they are suspended until Run; freeze

	perfmon bool // the guest has performance counters

	// Of interpreting hosts; nil on hardware.
	tables *ring0.Tables
	helper *helper

	gate    gate
	debug   *Debugger
	ended   chan struct{} // closed when all is released
	profile *profiler     // nil unless asked for
	exits   [kvm.NumExitReasons]atomic.Uint64
	finish  sync.Once
	result  Result
	shutAt  string // where a CPU shut down, if that was the end
}

// New builds a machine. Close it if it is never run. The error is a *StateError if
// Config.State is what is wrong; one of KVM's own is of package kvm.
func New(cfg Config) (_ *Machine, err error) {
	if cfg.CPUs == 0 {
		cfg.CPUs = 1
	}
	if cfg.Memory == 0 {
		cfg.Memory = DefaultMemory
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = log.New(io.Discard, "", 0)
	}
	if cfg.Console == nil {
		cfg.Console = io.Discard
	}
	if cfg.Opening == nil {
		cfg.Opening = cfg.Engine.Begin(cfg.HostNotes)
	}
	m := newMachine(cfg)
	m.mem = cfg.Received
	defer func() {
		if err != nil {
			cfg.Opening.Close()
			m.Close()
		}
	}()
	switch {
	case cfg.Kernel == nil && cfg.State == nil:
		return nil, errors.New("no kernel to boot")
	case cfg.CPUs < 1 || cfg.CPUs > MaxCPUs:
		return nil, fmt.Errorf("%d CPUs: between 1 and %d are possible", cfg.CPUs, MaxCPUs)
	case cfg.Memory < MinMemory || cfg.Memory > MaxMemory:
		return nil, fmt.Errorf("%d MiB of memory: between %d MiB and %d GiB are possible", cfg.Memory>>20, MinMemory>>20, MaxMemory>>30)
	case cfg.Memory%pageSize != 0:
		return nil, fmt.Errorf("memory of %d bytes is not a whole number of pages", cfg.Memory)
	}
	if cfg.State != nil {
		if err := cfg.State.check(&cfg); err != nil {
			return nil, &StateError{err}
		}
	}
	if m.mem != nil && m.mem.size != cfg.Memory {
		return nil, fmt.Errorf("%d bytes of memory were received, not %d", m.mem.size, cfg.Memory)
	}
	if m.mem == nil {
		if m.mem, err = newMemory(cfg.Memory, cfg.HugePages, cfg.RAM...); err != nil {
			return nil, err
		}
	}
	if cfg.TrackDirty {
		m.mem.track()
	}
	if m.made, err = cfg.Opening.take(); err != nil {
		return nil, err
	}
	if n, err := m.engine.CheckExtension(kvm.CapMaxVCPUs); err == nil && n > 0 && cfg.CPUs > n {
		return nil, fmt.Errorf("%d CPUs: the engine %s allows %d on this host", cfg.CPUs, m.kind, n)
	}
	if len(cfg.Prefetch) > 0 {
		m.life.users.Go(func() { m.mem.prefetch(cfg.Prefetch) })
	}
	if err = m.addMemory(); err != nil {
		return nil, err
	}
	if err = m.addPlatform(); err != nil {
		return nil, err
	}
	if err = m.addVirtio(); err != nil {
		return nil, err
	}
	if err = m.mapDevices(); err != nil {
		return nil, err
	}
	if err = m.offerPerfmon(cfg.CPUModel.restrict(m.supported)); err != nil {
		return nil, err
	}
	if m.interpreted {
		if err = m.helper.start(m.vm, m.supported); err != nil {
			return nil, err
		}
		m.tables = ring0.NewTables(m.mem, m.helper.poke)
	}
	if cfg.State != nil {
		if err = m.restore(); err != nil {
			return nil, &StateError{err}
		}
		return m, nil
	}
	return m, m.boot()
}

// newMachine makes a machine that has nothing yet.
func newMachine(cfg Config) *Machine {
	m := &Machine{cfg: cfg, ended: make(chan struct{})}
	m.free = sync.OnceValue(m.release)
	m.debug = newDebugger(m)
	m.gate.init()
	return m
}

// addCPUs makes the vCPUs; ids says what each sees by CPUID.
func (m *Machine) addCPUs(ids func(id int) []kvm.CPUIDEntry) error {
	for id := range m.cfg.CPUs {
		v, err := m.newVCPU(id, ids(id))
		if err != nil {
			return fmt.Errorf("vCPU %d: %w", id, err)
		}
		m.cpus = append(m.cpus, v)
	}
	return nil
}

// boot makes the machine enter its kernel.
func (m *Machine) boot() error {
	if m.slowKernel() { // the guest's own decompressor takes longer than this process
		if p := m.cfg.Protocol; p == "" || p == bootloader.Auto {
			if err := m.cfg.Kernel.Unpack(); err != nil {
				return err
			}
		}
		m.cfg.Initrd = bootloader.UnpackInitrd(m.cfg.Initrd, int64(m.cfg.Memory/3))
	}
	entry, err := m.load()
	if err != nil {
		return err
	}
	m.cfg.Kernel, m.cfg.Initrd = nil, nil // the guest has them; here they are memory that nobody needs
	offer, seen := m.cpuOffer(), m.cfg.CPUModel.restrict(m.supported)
	if err := m.addCPUs(func(id int) []kvm.CPUIDEntry { return offer.cpuid(seen, id) }); err != nil {
		return err
	}
	if err := m.checkModel(); err != nil {
		return err
	}
	return m.cpus[0].enter(entry)
}

// restore makes the machine go on from Config.State.
func (m *Machine) restore() error {
	s := m.cfg.State
	offer := m.cpuOffer()
	offer.nested, offer.perfmon = true, true // as far as the host has them
	host := offer.cpuid(m.supported, 0)
	if err := m.addCPUs(func(id int) []kvm.CPUIDEntry { return s.CPUs[id].CPUID }); err != nil {
		return err
	}
	return m.loadState(s, host)
}

// addMemory gives the VM its memory and the chips that the engine emulates.
func (m *Machine) addMemory() (err error) {
	if err = m.vm.SetIdentityMapAddr(identityPg); err != nil {
		return err
	}
	if err = m.vm.SetTSSAddr(tssPages); err != nil {
		return err
	}
	m.mem.tell(m.vm)
	// Memory first: behind the chips, the kernel has to wait for readers of its
	// tables, which takes milliseconds.
	if err = m.mem.register(m.vm); err != nil {
		return err
	}
	if m.interpreted {
		if m.helper, err = newHelper(m.vm, m.mem.Size(), m.gate.closed.Load); err != nil {
			return err
		}
	}
	if err = m.vm.CreateIRQChip(); err != nil {
		return err
	}
	m.routing = newRoutingTable(m.vm)
	return m.vm.CreatePIT2(kvm.PITConfig{Flags: kvm.PITSpeakerDummy})
}

// load puts the firmware's tables and the kernel into memory.
func (m *Machine) load() (*bootloader.Entry, error) {
	tables := m.firmware()
	to, err := m.mem.Slice(acpiBase, uint64(len(tables)))
	if err != nil || uint64(len(tables)) > biosEnd-acpiBase {
		return nil, errors.New("the ACPI tables do not fit") // with MaxCPUs they do
	}
	copy(to, tables)
	if generationID < acpiBase+len(tables) {
		return nil, errors.New("the ACPI tables leave no room") // with MaxCPUs they do
	}
	if err := m.writeGeneration(); err != nil {
		return nil, err
	}
	entry, err := m.mem.Slice(resetEntry, uint64(len(resetCode)))
	if err != nil {
		return nil, err
	}
	copy(entry, resetCode)
	return m.cfg.Kernel.Load(m.mem, bootloader.Params{
		E820:     m.e820(),
		RSDP:     acpiBase,
		Cmdline:  bootloader.Cmdline(append(m.transportArgs(), defaultArgs...), m.cfg.Cmdline),
		Initrd:   m.cfg.Initrd,
		Protocol: m.cfg.Protocol,
	})
}

// defaultArgs are the kernel arguments for a machine without keyboard and
// screen: the console is the serial port, and a panic ends the VM.
// It reboots by ACPI: a kernel that can be started by EFI, which this one was not, takes
// hardware-reduced ACPI for a reason to try EFI and then the BIOS, and ACPI no more.
var defaultArgs = []string{"console=ttyS0", "panic=-1", "reboot=a"}

// Run starts the vCPUs and returns when the guest has ended, Stop or Close was
// called, or ctx is done. The error is the VMM's own failure, not the guest's, and
// ErrEnded if the machine was closed. A machine runs once.
func (m *Machine) Run(ctx context.Context) (Result, error) {
	if err := m.life.start(); err != nil {
		return Result{}, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, m.Stop)
	defer stop()
	m.resumeLoaded()
	if m.cfg.State != nil && !m.cfg.Moved {
		if err := m.newGeneration(); err != nil {
			return Result{}, errors.Join(err, m.free())
		}
	}
	stopProfile := func() {}
	if m.profile != nil {
		stopProfile = m.profile.start(m.cpus)
	}
	errs := make(chan error, len(m.cpus))
	for _, v := range m.cpus {
		go func() {
			err := v.run()
			m.Stop() // one vCPU's end is the machine's
			errs <- err
		}()
	}
	var failed []error
	settled := time.After(settling)
	for len(failed) < len(m.cpus) {
		select {
		case err := <-errs:
			failed = append(failed, err)
		case <-settled:
			// What the start needed, such as the kernel's file, is far more than what a running
			// machine does, and the collector would keep it for minutes. Twice: what is in a
			// sync.Pool, as the buffers of decompressors are, outlasts one collection.
			runtime.GC()
			debug.FreeOSMemory()
		}
	}
	stopProfile() // before its vCPUs go
	if m.cfg.Ending != nil {
		m.cfg.Ending(m.mem)
	}
	failed = append(failed, m.free())
	// Closing has flushed the console, where a panic may just have shown up.
	if m.shutAt != "" {
		m.result = m.tripleFault(m.shutAt)
	}
	if r := &m.result; m.watch.panicked.Load() && r.End != EndPowerOff && r.End != EndDebugExit {
		*r = Result{End: EndCrash, Detail: "kernel panic"}
	}
	return m.result, errors.Join(failed...)
}

// resumeLoaded lets the devices go on that a State has.
func (m *Machine) resumeLoaded() {
	m.freeze.Lock()
	defer m.freeze.Unlock()
	for _, d := range m.virtio[:m.loaded] {
		d.Resume()
	}
	m.loaded = 0
}

// end records how the guest ended; the first one counts.
func (m *Machine) end(r Result) {
	m.finish.Do(func() {
		m.result = r
		m.Stop()
	})
}

// Input sends bytes to the guest's serial port, and waits until its FIFO has
// taken them: io.ErrClosedPipe if the machine ends before that.
func (m *Machine) Input(p []byte) error { return m.uart.Receive(p) }

// Engine returns what executes the guest: KVMEngine or SoftwareEngine.
func (m *Machine) Engine() Engine { return m.kind }

// Interpreted reports whether the engine is a KVM that interprets guest kernel mode.
func (m *Machine) Interpreted() bool { return m.interpreted }

// slowKernel reports whether kernel mode is far from as fast as this process is.
func (m *Machine) slowKernel() bool { return m.interpreted || m.kind == SoftwareEngine }

// CPUTimes returns how long the thread of each vCPU has been running, nil if the
// machine has ended.
func (m *Machine) CPUTimes() (out []time.Duration) {
	m.life.use(func() error {
		for _, v := range m.cpus {
			out = append(out, v.cpuTime())
		}
		return nil
	})
	return out
}

// Exits returns how often the vCPUs came back from KVM_RUN, by reason.
func (m *Machine) Exits() map[string]uint64 {
	out := map[string]uint64{}
	for i := range m.exits {
		if n := m.exits[i].Load(); n > 0 {
			out[kvm.ExitReason(i).String()] = n
		}
	}
	return out
}
