package machine

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"vmm/internal/x86"
	"vmm/kvm"
	"vmm/machine/engine"
	"vmm/machine/ring0"
)

// interpreter runs a vCPU on a host whose KVM interprets guest kernel mode
// (docs/hosts.md). User mode runs natively in KVM. Kernel mode is executed by
// package ring0 in this process; KVM, which is set to single-step, comes back
// from user mode after the first instruction of kernel mode, and does one
// instruction at a time where ring0 hands it over.
type interpreter struct {
	v      *vcpu
	cpu    *ring0.CPU
	shared *kvm.Run

	lstar, star uint64
	tscOffset   uint64
	// changed is set while the executor's state is newer than KVM's.
	changed bool
	// window makes the executor stop as soon as interrupts are possible: one
	// may be waiting in KVM since the budget ran out.
	window bool
	// entered is set once KVM has run the vCPU and so given its state.
	entered bool
	// halted is set while the guest sleeps in HLT.
	halted bool
	// refused is the address of an instruction that KVM could not execute, to
	// be tried by the executor: what an interrupt or exception led to.
	refused uint64
}

// budget is how many instructions kernel mode runs before KVM may deliver an
// interrupt: a fraction of a millisecond.
const budget = 10000

func newInterpreter(v *vcpu) (*interpreter, error) {
	in := &interpreter{v: v, shared: v.engine.Shared()}
	in.shared.ValidRegs = kvm.SyncRegs | kvm.SyncSregs | kvm.SyncEvents
	if err := v.engine.SetGuestDebug(&kvm.GuestDebug{Control: kvm.GuestDebugEnable | kvm.GuestDebugSingleStep}); err != nil {
		return nil, err
	}
	ids, err := v.engine.CPUID()
	if err != nil {
		return nil, err
	}
	if in.cpu, err = ring0.New(in, v.m.tables, xsaveLayout(ids)); err != nil {
		return nil, err
	}
	if err := in.readTSCOffset(); err != nil {
		in.cpu.Close()
		return nil, err
	}
	return in, nil
}

// xsaveLayout reads CPUID leaf 0xd (SDM 1, 13.2).
func xsaveLayout(ids []kvm.CPUIDEntry) (c [64]ring0.Component) {
	for _, e := range ids {
		if e.Function == 0xd && e.Index >= 2 && e.Index < 63 {
			c[e.Index] = ring0.Component{Offset: int(e.EBX), Size: int(e.EAX), Align64: e.ECX&2 != 0}
		}
	}
	return c
}

// The methods of ring0.Host.

// XSave implements ring0.Host.
func (in *interpreter) XSave(area []byte) error { return in.v.engine.XSave(area) }

// SetXSave implements ring0.Host.
func (in *interpreter) SetXSave(area []byte) error { return in.v.engine.SetXSave(area) }

// XSaveSize implements ring0.Host.
func (in *interpreter) XSaveSize() int { return in.v.engine.XSaveSize() }

// XCR0 implements ring0.Host.
func (in *interpreter) XCR0() (uint64, error) {
	x, err := in.v.engine.XCRs()
	if err != nil || x.Count == 0 {
		return 0, errors.Join(err, unix.ENOTSUP)
	}
	return x.XCR[0].Value, nil
}

// MSR implements ring0.Host.
func (in *interpreter) MSR(index uint32) (uint64, error) {
	if index == x86.MSRStar {
		return in.star, nil
	}
	return in.v.engine.MSR(index)
}

// TSC implements ring0.Host.
func (in *interpreter) TSC() uint64 { return x86.RDTSC() + in.tscOffset }

// readTSCOffset has TSC return what KVM takes for the guest's TSC. It must not be
// behind: the guest adds the time since KVM has noted the TSC for its clock, and less
// than none is centuries.
func (in *interpreter) readTSCOffset() (err error) {
	if in.tscOffset, err = in.v.engine.TSCOffset(); err != nil {
		in.tscOffset, err = measureTSCOffset(in.v.engine)
	}
	return err
}

// measureTSCOffset is kvm.VCPU.TSCOffset for hosts that do not tell it: what it returns
// is the offset, or a little more.
func measureTSCOffset(v engine.VCPU) (offset uint64, err error) {
	shortest := ^uint64(0)
	for range 16 { // the thread may lose its CPU on the way
		before := x86.RDTSC()
		t, err := v.MSR(x86.MSRTSC)
		if err != nil {
			return 0, err
		}
		if took := x86.RDTSC() - before; took < shortest {
			shortest, offset = took, t-before
		}
	}
	return offset, nil
}

// run takes the guest a step further: in kernel mode until something is up,
// in user mode until it leaves it.
func (in *interpreter) run() error {
	switch {
	case in.cpu.User():
		return in.user()
	case in.halted, in.delivering():
		return in.step()
	case in.cpu.CanExecute():
		return in.kernel()
	}
	return in.step() // real and protected mode, and what ring0 declines
}

// delivering reports whether KVM was interrupted with an exception or interrupt
// in hand: it must be delivered where the guest is now, not later.
func (in *interpreter) delivering() bool {
	ev := &in.shared.Events
	return ev.Exception.Injected != 0 || ev.Exception.Pending != 0 || ev.Interrupt.Injected != 0 || ev.NMI.Injected != 0
}

// kernel executes kernel mode.
func (in *interpreter) kernel() error {
	in.changed = true
	refused := in.refused
	in.refused = 0
	most := budget
	if in.v.stepping.Load() {
		most = 1
	}
	n, stop := in.cpu.Execute(most, in.window, &in.v.attention.wanted)
	if ev := &in.shared.Events; n > 0 && ev.Interrupt.Shadow != 0 {
		// Of a MOV SS or STI that KVM did and that now lies behind. KVM would
		// emulate an instruction of user mode for its sake, and knows few.
		ev.Interrupt.Shadow = 0
		in.shared.DirtyRegs |= kvm.SyncEvents
	}
	switch stop {
	case ring0.StopBudget:
		if in.v.stepping.Load() {
			return nil
		}
		if n < budget || in.cpu.InterruptsOn() {
			in.window = false
		}
		if !in.cpu.InterruptsOn() {
			in.window = true
			return nil
		}
		return in.step() // which delivers an interrupt, if there is one
	case ring0.StopKVM:
		if n == 0 && refused != 0 && refused == in.cpu.RIP() {
			return in.v.unknownInstruction(in.cpu.Code())
		}
		if in.cpu.LeavesByIRet {
			in.cpu.LeavesByIRet = false
			return in.user()
		}
		return in.step()
	case ring0.StopHalt:
		// HLT under single-stepping does not sleep, so KVM is told that the
		// CPU does.
		in.halted = true
		if err := in.v.engine.SetMPState(kvm.MPState{State: kvm.MPStateHalted}); err != nil {
			return err
		}
		return in.step()
	case ring0.StopBreakpoint:
		in.v.m.debug.hit(in.v, DebugEvent{Reason: StopBreakpoint, Breakpoint: Breakpoint{Kind: BreakSoftware, Addr: in.cpu.RIP()}, Addr: in.cpu.RIP()})
		return nil
	case ring0.StopInject:
		in.inject(in.cpu.Inject)
		return in.step()
	case ring0.StopUnknown:
		return errors.Join(in.v.unknownInstruction(in.cpu.Code()), in.cpu.Failure)
	}
	return nil
}

// inject makes KVM deliver an exception before the next instruction.
func (in *interpreter) inject(e ring0.Exception) {
	ev := &in.shared.Events
	ev.Exception.Injected, ev.Exception.Nr = 1, e.Vector
	ev.Exception.HasErrorCode, ev.Exception.ErrorCode = 0, e.Error
	if e.HasError {
		ev.Exception.HasErrorCode = 1
	}
	if e.CR2 != 0 {
		in.cpu.SetCR2(e.CR2)
	}
	in.shared.DirtyRegs |= kvm.SyncEvents
}

// user runs user mode natively.
func (in *interpreter) user() error {
	in.cpu.EnterUser()
	err := in.enter()
	in.cpu.LeaveUser()
	// SYSCALL arrives as a page fault of the kernel's entry. KVM has executed
	// the first instruction of the fault's handler, or could not, or was
	// interrupted before it.
	if in.cpu.CanExecute() && in.cpu.FinishSyscall(in.lstar, in.star) {
		in.v.countExit()
		in.changed = true
		return nil
	}
	return in.after(err)
}

// step lets KVM do one instruction of kernel mode, or deliver an interrupt.
// An interrupted step may have been done or not, so what follows from the
// instruction must do no harm in either case.
func (in *interpreter) step() error {
	err := in.enter()
	if e := in.cpu.Stored(); e != nil && !errors.Is(e, errAbandoned) {
		return e
	}
	if in.cpu.WrittenMSR != 0 {
		if e := in.wrote(in.cpu.WrittenMSR); e != nil {
			return e
		}
		in.cpu.WrittenMSR = 0
	}
	return in.after(err)
}

// wrote keeps what is known of an MSR that the guest has written.
func (in *interpreter) wrote(msr uint32) (err error) {
	switch msr {
	case x86.MSRLStar:
		in.lstar, err = in.v.engine.MSR(msr)
	case x86.MSRStar:
		in.star, err = in.v.engine.MSR(msr)
	case x86.MSRTSC, x86.MSRTSCAdjust:
		err = in.readTSCOffset()
	}
	return err
}

// store makes the executor's state what KVM takes when it is entered.
func (in *interpreter) store() {
	if !in.changed {
		return
	}
	in.shared.DirtyRegs |= kvm.SyncRegs
	if in.cpu.Store(&in.shared.Regs, &in.shared.Sregs) {
		in.shared.DirtyRegs |= kvm.SyncSregs
	}
	in.changed = false
}

// flush makes the executor's state what KVM takes, all of it.
func (in *interpreter) flush() error {
	if !in.changed {
		return nil
	}
	if err := in.cpu.StoreExtended(); err != nil {
		return err
	}
	in.store()
	if gs, changed := in.cpu.KernelGSBase(); changed {
		return in.v.engine.SetMSR(x86.MSRKernelGSBase, gs)
	}
	return nil
}

// enter gives the state to KVM, runs it once and takes the state back.
func (in *interpreter) enter() error {
	if err := in.flush(); err != nil {
		return err
	}
	err := in.v.engine.Run()
	in.entered = true
	// KVM sets bits for an interrupt in hand and never clears them here; to
	// give them back would raise it again. Events tells of it too.
	in.shared.Sregs.InterruptBitmap = [4]uint64{}
	in.cpu.Load(&in.shared.Regs, &in.shared.Sregs)
	in.halted = in.halted && err != nil
	in.cpu.InNMI = in.shared.Events.NMI.Masked != 0
	return err
}

// after deals with the exit of an enter that returned err.
func (in *interpreter) after(err error) error {
	switch {
	case err != nil && interruptedRun(err):
		return nil
	case err != nil:
		return err
	}
	if in.shared.ExitReason == kvm.ExitInternalError && in.cpu.CanExecute() &&
		in.shared.InternalError().Instruction() != nil {
		in.v.countExit()
		in.refused = in.cpu.RIP()
		return nil
	}
	if err := in.v.handleExit(); err != nil {
		return err
	}
	switch in.shared.ExitReason {
	case kvm.ExitIO, kvm.ExitMMIO:
		// In user mode the next run completes it and goes on; kernel mode needs
		// the state that the instruction leaves.
		if !in.cpu.User() {
			return in.complete()
		}
	}
	return nil
}

// complete lets KVM finish the instruction whose access was served.
func (in *interpreter) complete() error {
	release := in.v.attention.hold()
	err := in.enter()
	release()
	return in.after(err) // without an error: a further part of the instruction, or its single step
}

// unknownInstruction is the error for what neither KVM nor ring0 can do.
func (v *vcpu) unknownInstruction(code []byte) error {
	who := "this host's KVM"
	if v.m.kind == SoftwareEngine {
		who = "the software engine"
	}
	return fmt.Errorf("%s cannot execute the guest's instruction with the bytes % x: %s; "+
		"try a kernel without it, or a host with hardware virtualization", who, code, v.where())
}
