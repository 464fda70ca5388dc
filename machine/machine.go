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
	CPUs      int    // 1 if 0
	Memory    uint64 // bytes; 512 MiB if 0
	HugePages bool
	Kernel    *bootloader.Kernel
	Initrd    []byte
	// Cmdline is the user's kernel arguments; they win over the defaults.
	Cmdline  string
	Protocol bootloader.Protocol
	// Console receives what the guest sends to its serial port; nil drops it.
	Console io.Writer
	// Devices are the virtio devices, in the order in which a guest finds them.
	// The machine closes them.
	Devices   []virtio.Device
	Transport Transport // PCI if empty
	// Log is told what the guest's drivers do wrong; nil drops it.
	Log *log.Logger
	// Now is the clock that the guest's CMOS shows; time.Now if nil.
	Now func() time.Time
}

// DefaultMemory is Config.Memory where none is given.
const DefaultMemory = 512 << 20

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
	Detail string
	Status int // of isa-debug-exit
}

// Machine is a virtual machine.
type Machine struct {
	cfg   Config
	kvm   *kvm.System
	vm    *kvm.VM
	mem   *Memory
	cpuMu sync.Mutex // of cpus, once New has returned
	cpus  []*vcpu

	ports portBus
	mmio  mmioBus
	uart  *devices.UART
	pm    *devices.PM
	pci   *devices.PCI
	panic *panicWatcher

	shared   [ioapicPins]*sharedLine
	messages *messages
	slots    []mmioSlot
	closers  []io.Closer // the virtio devices

	// Of interpreting hosts; nil on hardware.
	tables *ring0.Tables
	helper *helper

	gate    gate
	debug   *Debugger
	ended   chan struct{} // closed when Run has returned
	profile *profiler     // nil unless asked for
	exits   [kvm.NumExitReasons]atomic.Uint64
	finish  sync.Once
	result  Result
}

// New builds a machine. Close it if it is never run.
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
	switch {
	case cfg.Kernel == nil:
		return nil, errors.New("no kernel to boot")
	case cfg.CPUs < 1 || cfg.CPUs > MaxCPUs:
		return nil, fmt.Errorf("%d CPUs: between 1 and %d are possible", cfg.CPUs, MaxCPUs)
	case cfg.Memory < MinMemory || cfg.Memory > MaxMemory:
		return nil, fmt.Errorf("%d MiB of memory: between %d MiB and %d GiB are possible", cfg.Memory>>20, MinMemory>>20, MaxMemory>>30)
	case cfg.Memory%pageSize != 0:
		return nil, fmt.Errorf("memory of %d bytes is not a whole number of pages", cfg.Memory)
	}
	m := &Machine{cfg: cfg, ended: make(chan struct{})}
	m.debug = newDebugger(m)
	m.gate.init()
	defer func() {
		if err != nil {
			m.Close()
		}
	}()
	if m.kvm, err = kvm.Open(); err != nil {
		return nil, err
	}
	if n, err := m.kvm.CheckExtension(kvm.CapMaxVCPUs); err == nil && n > 0 && cfg.CPUs > n {
		return nil, fmt.Errorf("%d CPUs: this host's KVM allows %d", cfg.CPUs, n)
	}
	interpreted, err := interpretsRing0(m.kvm)
	if err != nil {
		return nil, err
	}
	if m.mem, err = newMemory(cfg.Memory, cfg.HugePages); err != nil {
		return nil, err
	}
	if err = m.createVM(interpreted); err != nil {
		return nil, err
	}
	if err = m.addPlatform(); err != nil {
		return nil, err
	}
	if err = m.addVirtio(); err != nil {
		return nil, err
	}
	cpuid, err := m.kvm.SupportedCPUID()
	if err != nil {
		return nil, err
	}
	if interpreted {
		// The guest's own decompressor would run in interpreted mode.
		if cfg.Protocol == "" || cfg.Protocol == bootloader.Auto {
			if err = cfg.Kernel.Unpack(); err != nil {
				return nil, err
			}
		}
		if err = m.helper.start(m.vm, cpuid); err != nil {
			return nil, err
		}
		m.tables = ring0.NewTables(m.mem, m.helper.poke)
		m.cfg.Initrd = bootloader.UnpackInitrd(cfg.Initrd, int64(cfg.Memory/3))
	}
	entry, err := m.load()
	if err != nil {
		return nil, err
	}
	tscDeadline := m.kvm.Has(kvm.CapTSCDeadlineTimer)
	for id := range cfg.CPUs {
		v, err := m.newVCPU(id, guestCPUID(cpuid, id, cfg.CPUs, tscDeadline, interpreted))
		if err != nil {
			return nil, fmt.Errorf("vCPU %d: %w", id, err)
		}
		m.cpus = append(m.cpus, v)
	}
	return m, m.cpus[0].enter(entry)
}

// createVM makes the VM with its memory and the chips that KVM emulates.
func (m *Machine) createVM(interpreted bool) (err error) {
	if m.vm, err = m.kvm.CreateVM(); err != nil {
		return err
	}
	if err = m.vm.SetIdentityMapAddr(identityPg); err != nil {
		return err
	}
	if err = m.vm.SetTSSAddr(tssPages); err != nil {
		return err
	}
	// Memory first: behind the chips, the kernel has to wait for readers of its
	// tables, which takes milliseconds.
	if err = m.mem.register(m.vm); err != nil {
		return err
	}
	if interpreted {
		if m.helper, err = newHelper(m.vm, m.mem.Size(), m.gate.isStopped); err != nil {
			return err
		}
	}
	if err = m.vm.CreateIRQChip(); err != nil {
		return err
	}
	m.messages = newMessages(m.vm)
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
	return m.cfg.Kernel.Load(m.mem, bootloader.Params{
		E820:     m.e820(),
		RSDP:     acpiBase,
		Cmdline:  bootloader.Cmdline(append(m.virtioArgs(), defaultArgs...), m.cfg.Cmdline),
		Initrd:   m.cfg.Initrd,
		Protocol: m.cfg.Protocol,
	})
}

// defaultArgs are the kernel arguments for a machine without keyboard and
// screen: the console is the serial port, and a panic ends the VM.
var defaultArgs = []string{"console=ttyS0", "panic=-1"}

// Run starts the vCPUs and returns when the guest has ended, Stop was called
// or ctx is done. The error is the VMM's own failure, not the guest's. A
// machine runs once.
func (m *Machine) Run(ctx context.Context) (Result, error) {
	defer close(m.ended)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, m.Stop)
	defer stop()
	if m.profile != nil {
		defer m.profile.start(m.cpus)()
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
	for range m.cpus {
		failed = append(failed, <-errs)
	}
	failed = append(failed, m.Close())
	// Closing has flushed the console, where a panic may just have shown up.
	if r := &m.result; m.panic.seen() && r.End != EndPowerOff && r.End != EndDebugExit {
		*r = Result{End: EndCrash, Detail: "kernel panic"}
	}
	return m.result, errors.Join(failed...)
}

// Close frees what New made. Run does it itself.
func (m *Machine) Close() error {
	m.debug.close()
	var errs []error
	if m.uart != nil {
		errs = append(errs, m.uart.Close())
	}
	errs = append(errs, m.closeVirtio())
	for _, v := range m.cpus {
		errs = append(errs, v.close())
	}
	m.cpuMu.Lock()
	m.cpus = nil
	m.cpuMu.Unlock()
	if m.helper != nil {
		errs = append(errs, m.helper.close())
		m.helper = nil
	}
	if m.vm != nil {
		errs = append(errs, m.vm.Close())
		m.vm = nil
	}
	if m.mem != nil {
		errs = append(errs, m.mem.close())
		m.mem = nil
	}
	if m.kvm != nil {
		errs = append(errs, m.kvm.Close())
		m.kvm = nil
	}
	return errors.Join(errs...)
}

// end records how the guest ended; the first one counts.
func (m *Machine) end(r Result) {
	m.finish.Do(func() {
		m.result = r
		m.Stop()
	})
}

// Stop ends the machine as pulling the plug does.
func (m *Machine) Stop() {
	m.gate.stop()
	m.uart.Release()
}

// Pause stops all vCPUs and waits until they have; Resume lets them go on.
func (m *Machine) Pause() { m.gate.pause() }

// Resume ends a Pause.
func (m *Machine) Resume() { m.gate.resume() }

// PressPowerButton asks the guest to shut down in an orderly way.
func (m *Machine) PressPowerButton() { m.pm.PressPowerButton() }

// Input sends bytes to the guest's serial port, and waits until its FIFO has
// taken them.
func (m *Machine) Input(p []byte) error { return m.uart.Receive(p) }

// Interpreted tells whether this host's KVM interprets guest kernel mode.
func (m *Machine) Interpreted() bool { return m.tables != nil }

// CPUTimes returns how long the thread of each vCPU has been running.
func (m *Machine) CPUTimes() []time.Duration {
	m.cpuMu.Lock()
	defer m.cpuMu.Unlock()
	var out []time.Duration
	for _, v := range m.cpus {
		out = append(out, v.cpuTime())
	}
	return out
}

// Exits returns how often the vCPUs came back, by reason.
func (m *Machine) Exits() map[string]uint64 {
	out := map[string]uint64{}
	for i := range m.exits {
		if n := m.exits[i].Load(); n > 0 {
			out[kvm.ExitReason(i).String()] = n
		}
	}
	return out
}
