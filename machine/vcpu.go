package machine

import (
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"vmm/bootloader"
	"vmm/internal/x86"
	"vmm/kvm"
	"vmm/machine/engine"
)

// vcpu runs one virtual CPU on an OS thread of its own.
type vcpu struct {
	id     int
	m      *Machine
	engine engine.VCPU
	kicker engine.Kicker // the same; nil if a signal is enough
	in     *interpreter  // nil unless KVM interprets kernel mode
	// cpuid is what the engine was told that the guest sees.
	cpuid []kvm.CPUIDEntry

	mu        sync.Mutex
	tid       int // of the thread that runs it, 0 while none does
	attention attention
	// sample asks it to note where it is.
	sample atomic.Bool
	// stepping has it tell the debugger after one step.
	stepping atomic.Bool
}

// What a PC's firmware sets up: MSRs (SDM 4) and the local APIC.
const (
	featureLock     = 1 << 0 // of IA32_FEATURE_CONTROL, until a reset
	featureVMXOn    = 1 << 2 // VMXON outside of SMX
	miscFastString  = 1 << 0
	mtrrEnable      = 1 << 11
	mtrrWriteBack   = 6
	lapicLVT0       = 0x350
	lapicLVT1       = 0x360
	lapicModeExtINT = 7 << 8
	lapicModeNMI    = 4 << 8
)

func (m *Machine) newVCPU(id int, cpuid []kvm.CPUIDEntry) (*vcpu, error) {
	e, err := m.vm.CreateVCPU(id)
	if err != nil {
		return nil, err
	}
	v := &vcpu{id: id, m: m, engine: e, cpuid: cpuid, attention: attention{exit: e.Shared()}}
	v.kicker, _ = e.(engine.Kicker)
	err = e.SetCPUID(cpuid)
	if err == nil {
		err = v.initFirmwareState()
	}
	if err == nil && m.tables != nil {
		v.in, err = newInterpreter(v)
	}
	if err != nil {
		e.Close()
		return nil, err
	}
	return v, nil
}

// initFirmwareState leaves the CPU as a BIOS does.
func (v *vcpu) initFirmwareState() error {
	l, err := v.engine.LAPIC()
	if err != nil {
		return err
	}
	// The PIC's interrupts come in at LINT0, NMIs at LINT1.
	for _, e := range []struct {
		reg  int
		mode uint32
	}{{lapicLVT0, lapicModeExtINT}, {lapicLVT1, lapicModeNMI}} {
		for i := range 4 {
			l.Regs[e.reg+i] = byte(e.mode >> (8 * i))
		}
	}
	if err := v.engine.SetLAPIC(&l); err != nil {
		return err
	}
	// Best effort: not every host lets these be set, and Linux copes.
	for _, m := range firmwareMSRs(v.cpuid) {
		v.engine.SetMSR(m.Index, m.Data)
	}
	return nil
}

// firmwareMSRs is what a BIOS leaves in the MSRs of a CPU with these leaves.
func firmwareMSRs(ids []kvm.CPUIDEntry) []kvm.MSREntry {
	msrs := []kvm.MSREntry{{Index: x86.MSRMiscEnable, Data: miscFastString}, {Index: x86.MSRMTRRDefType, Data: mtrrEnable | mtrrWriteBack}}
	if leaf(ids, cpuidFeatures, 0)[2]&featureVMX != 0 {
		// Without it VMX is there but off (SDM 3C, Enabling and Entering VMX Operation). A Linux with KVM turns it on
		// itself; one without turns it off for good and shows none.
		msrs = append(msrs, kvm.MSREntry{Index: x86.MSRFeatureControl, Data: featureLock | featureVMXOn})
	}
	return msrs
}

// enter puts the CPU into the kernel's entry state.
func (v *vcpu) enter(e *bootloader.Entry) error {
	s, err := v.engine.Sregs()
	if err != nil {
		return err
	}
	e.Apply(&s)
	if err := v.engine.SetSregs(&s); err != nil {
		return err
	}
	return v.engine.SetRegs(&e.Regs)
}

func (v *vcpu) close() error {
	if v.in != nil {
		return errors.Join(v.in.cpu.Close(), v.engine.Close())
	}
	return v.engine.Close()
}

// kickSignal interrupts KVM_RUN. Go uses it for preemption and ignores it
// where it comes unexpected.
const kickSignal = unix.SIGURG

// kick makes the vCPU look soon at what is wanted of it. Safe from any goroutine.
func (v *vcpu) kick() {
	v.attention.raise(func() {
		v.mu.Lock()
		defer v.mu.Unlock()
		if v.tid != 0 {
			unix.Tgkill(unix.Getpid(), v.tid, kickSignal)
		}
		if v.kicker != nil {
			v.kicker.Kick()
		}
	})
}

func (v *vcpu) setThread(tid int) {
	v.mu.Lock()
	v.tid = tid
	v.mu.Unlock()
}

// cpuTime is what the vCPU's thread has used.
func (v *vcpu) cpuTime() time.Duration {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.tid == 0 {
		return 0
	}
	// The clock of a thread: CPUCLOCK_PERTHREAD_MASK and CPUCLOCK_SCHED of the
	// kernel's <linux/posix-timers.h>.
	const threadClock = 4 | 2
	var ts unix.Timespec
	if err := unix.ClockGettime(int32(^v.tid<<3|threadClock), &ts); err != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}

// run executes the guest until the machine's end.
func (v *vcpu) run() error {
	// The thread is not given back: KVM ties the vCPU to it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	v.setThread(unix.Gettid())
	defer v.setThread(0)
	v.m.gate.join(v)
	defer v.m.gate.leave(v)

	step := v.runNative
	if v.in != nil {
		step = v.in.run
	}
	for {
		v.attention.take()
		// A gate that closes from here on is one of which attention will tell: the
		// vCPU must not stand before it unsettled.
		if v.m.gate.closed.Load() {
			if err := v.settle(); err != nil {
				return fmt.Errorf("vCPU %d: %w", v.id, err)
			}
			if !v.m.gate.pass(v) {
				return nil
			}
		}
		if v.sample.Load() {
			v.sample.Store(false)
			v.m.profile.add(v)
		}
		if err := step(); err != nil {
			return fmt.Errorf("vCPU %d: %w", v.id, err)
		}
		if v.in != nil && v.stepping.Swap(false) {
			v.m.debug.hit(v, DebugEvent{Reason: StopStep})
		}
	}
}

// runNative enters the guest once and handles the exit.
func (v *vcpu) runNative() error {
	switch err := v.engine.Run(); {
	case err == nil:
		return v.handleExit()
	case interruptedRun(err):
		return nil
	default:
		return err
	}
}

// interruptedRun reports whether KVM_RUN only came back early: for a signal, or
// because a vCPU waits for its INIT.
func interruptedRun(err error) bool {
	return errors.Is(err, unix.EINTR) || errors.Is(err, unix.EAGAIN)
}

// countExit counts the exit that just happened.
func (v *vcpu) countExit() {
	if r := v.engine.Shared().ExitReason; r < kvm.NumExitReasons {
		v.m.exits[r].Add(1)
	}
}

// handleExit does what the guest waits for.
func (v *vcpu) handleExit() error {
	run := v.engine.Shared()
	v.countExit()
	switch run.ExitReason {
	case kvm.ExitIO:
		v.portIO(run.IO())
	case kvm.ExitMMIO:
		e := run.MMIO()
		v.m.mmio.access(e.PhysAddr, e.Data[:min(e.Len, 8)], e.IsWrite != 0)
	case kvm.ExitDebug:
		if v.in == nil { // else it is the interpreter's own
			return v.debugExit(run.Debug())
		}
	case kvm.ExitIntr, kvm.ExitIRQWindowOpen, kvm.ExitHLT:
	case kvm.ExitShutdown:
		where := v.where()
		v.m.finish.Do(func() {
			v.m.shutAt = where
			v.m.Stop()
		})
	case kvm.ExitSystemEvent:
		v.systemEvent(run.SystemEvent())
	case kvm.ExitFailEntry:
		e := run.FailEntry()
		return fmt.Errorf("the CPU refused the guest's state: hardware reason %#x on CPU %d: %s", e.HardwareReason, e.CPU, v.where())
	case kvm.ExitInternalError:
		return v.internalError(run.InternalError())
	default:
		return fmt.Errorf("KVM exit %v, which nothing here asks for: %s", run.ExitReason, v.where())
	}
	return nil
}

// portIO serves an IN or OUT, also of a string instruction.
func (v *vcpu) portIO(e *kvm.IOExit) {
	data, size := v.engine.IOData(), int(e.Size)
	for size > 0 && len(data) >= size {
		v.m.ports.access(e.Port, data[:size], e.Direction == kvm.IOOut)
		data = data[size:]
	}
}

func (v *vcpu) systemEvent(e *kvm.SystemEvent) {
	switch e.Type {
	case kvm.SystemEventShutdown:
		v.m.end(Result{End: EndPowerOff})
	case kvm.SystemEventReset:
		v.m.end(Result{End: EndReset})
	default:
		v.m.end(Result{End: EndCrash, Detail: fmt.Sprintf("system event %d", e.Type)})
	}
}

// where says for an error message where the guest is.
func (v *vcpu) where() string {
	r, err := v.engine.Regs()
	if err != nil {
		return err.Error()
	}
	s, err := v.engine.Sregs()
	if err != nil {
		return err.Error()
	}
	if v.in != nil && v.in.changed { // KVM's is older
		r.RIP = v.in.cpu.RIP()
	}
	return fmt.Sprintf("RIP %#x, %s", r.RIP, cpuMode(&s))
}

// cpuMode names the CPU's mode and privilege level.
func cpuMode(s *kvm.Sregs) string {
	mode := "real mode"
	switch {
	case s.EFER&x86.EFERLMA != 0 && s.CS.L == 1:
		mode = "64-bit mode"
	case s.EFER&x86.EFERLMA != 0:
		mode = "compatibility mode"
	case s.CR0&x86.CR0PE != 0:
		mode = "protected mode"
	}
	return fmt.Sprintf("%s, ring %d", mode, s.CS.Selector&3)
}

// internalError describes what KVM could not do.
func (v *vcpu) internalError(e *kvm.InternalError) error {
	if code := e.Instruction(); code != nil {
		return v.unknownInstruction(code)
	}
	return fmt.Errorf("KVM internal error %d %x: %s", e.Suberror, e.Data[:min(e.NData, 16)], v.where())
}
