package software

import (
	"errors"
	"unsafe"

	"golang.org/x/sys/unix"

	"vmm/internal/x86"
	"vmm/kvm"
	"vmm/machine/engine"
	"vmm/machine/native"
	"vmm/machine/ring0"
	"vmm/machine/software/irqchip"
)

// vcpu is a virtual processor: an executor of instructions, a local APIC, and what
// neither knows: MSRs, CPUID, clocks, and how long it sleeps. All but Kick belongs to one
// goroutine.
type vcpu struct {
	id   int
	vm   *VM
	run  kvm.Run
	cpu  *ring0.CPU
	apic *irqchip.LAPIC

	// wake has a token once the CPU was kicked while it slept, or was about to.
	wake chan struct{}

	mp      uint32    // kvm.MPStateRunnable, ...
	breakAt [4]uint64 // the debugger's registers
	breakOn uint8     // those that are in use, a bit each
	watchAt []watchRegister
	stepped bool // the debugger wants one instruction at a time
	// reading is set while the owner serves a read: the instruction comes again with it.
	reading bool
	flying  *flight // to be delivered first; nil if there is nothing
	data    [8]byte // of an ExitIO

	cpuid     []kvm.CPUIDEntry
	xsave     []byte // the extended state
	xcr0      uint64
	tscOffset uint64
	apicPage  uint64 // of the local APIC's registers, a page number
	msrs      msrs
	clock     pvclock
	seen      uint64 // of vm.generation
}

// budget is how many instructions are executed before the CPU looks at what was
// asked of it where nobody has made it look up.
const budget = 100000

// newVCPU makes a CPU as it is after a reset: CPU 0 runs, the others wait for a SIPI.
func newVCPU(vm *VM, id int) (engine.VCPU, error) {
	v := &vcpu{id: id, vm: vm, wake: make(chan struct{}, 1), xsave: make([]byte, xsaveSize), xcr0: 1}
	cpu, err := ring0.NewComplete(v, vm.tables, components())
	if err != nil {
		return nil, err
	}
	v.cpu = cpu
	if err := cpu.Translate(); err != nil && !errors.Is(err, native.ErrNoMemory) {
		return nil, errors.Join(err, cpu.Close())
	}
	v.apic = vm.chips.AddCPU(id, v)
	v.msrs.reset()
	v.setAPICBase(v.apic.Base(), v.apic.RestoreBase)
	v.reset()
	if id != 0 {
		v.mp = kvm.MPStateUninitialized
	}
	vm.add(v)
	return v, nil
}

// reset is what an INIT or power-on makes of the CPU (SDM 3, table 10-1).
func (v *vcpu) reset() {
	const family6 = 0x600 // what EDX says of the CPU
	regs := kvm.Regs{RIP: 0xfff0, RFLAGS: 2, RDX: family6}
	data := kvm.Segment{Limit: 0xffff, Type: 3, Present: 1, S: 1}
	code := data
	code.Type, code.Selector, code.Base = 11, 0xf000, 0xffff0000
	sregs := kvm.Sregs{CS: code, DS: data, ES: data, FS: data, GS: data, SS: data, CR0: 0x60000010,
		TR:  kvm.Segment{Limit: 0xffff, Type: 11, Present: 1},
		LDT: kvm.Segment{Limit: 0xffff, Type: 2, Present: 1},
		GDT: kvm.DTable{Limit: 0xffff}, IDT: kvm.DTable{Limit: 0xffff}}
	v.cpu.Reset(&regs, &sregs)
}

// Close implements engine.VCPU.
func (v *vcpu) Close() error { return v.cpu.Close() }

// Shared implements engine.VCPU.
func (v *vcpu) Shared() *kvm.Run { return &v.run }

// IOData implements engine.VCPU.
func (v *vcpu) IOData() []byte { return v.data[:v.run.IO().Size] }

// Kick implements engine.Kicker and irqchip.CPU.
func (v *vcpu) Kick() {
	v.cpu.Attend()
	select {
	case v.wake <- struct{}{}:
	default:
	}
}

// Run implements engine.VCPU.
func (v *vcpu) Run() error {
	if v.reading {
		v.reading = false
		data := v.data[:]
		if v.run.ExitReason == kvm.ExitMMIO {
			data = v.run.MMIO().Data[:]
		}
		v.cpu.Supply(data)
		if v.stop(v.finish()) {
			return nil
		}
	}
	for {
		if v.run.ImmediateExit() {
			return unix.EINTR
		}
		stop := v.enter()
		switch {
		case v.stop(stop):
			return nil
		case v.mp != kvm.MPStateRunnable && stop == ring0.StopAttention: // it had nothing to wake for
			<-v.wake // an interrupt, an INIT or a SIPI, or the owner
		case v.stepped && stop == ring0.StopBudget:
			v.debugExit(vectorDB, dr6Step)
			return nil
		}
	}
}

// finish executes the instruction again whose read was served. Whoever wants something of
// the CPU waits for that.
func (v *vcpu) finish() ring0.Stop {
	v.vm.executing.RLock()
	defer v.vm.executing.RUnlock()
	v.cpu.Begin()
	defer v.cpu.End()
	v.catchUp()
	return v.cpu.Run(1)
}

// catchUp takes over what has changed in the VM: what translations lead to, and kvmclock.
func (v *vcpu) catchUp() {
	if g := v.vm.generation.Load(); g != v.seen {
		v.cpu.ForgetMemory()
		v.seen = g
	}
	if r := v.vm.clock.Load(); r != v.clock.from {
		v.clock.publish(v)
	}
}

// enter executes until something is up, with what the guest has translated at that time.
func (v *vcpu) enter() ring0.Stop {
	v.vm.executing.RLock()
	defer v.vm.executing.RUnlock()
	v.cpu.Begin()
	defer v.cpu.End()
	v.catchUp()
	if !v.attend() {
		return ring0.StopShutdown
	}
	v.cpu.SetWaiting(v.apic.Wanted() != 0)
	switch {
	case v.mp != kvm.MPStateRunnable:
		return ring0.StopAttention
	case v.stepped:
		return v.cpu.Run(1)
	}
	return v.cpu.Run(budget)
}

// breakpoint tells the debugger of one: an INT3, or an instruction in hardware's registers.
func (v *vcpu) breakpoint() {
	for i := range v.breakAt {
		if v.breakOn&(1<<i) != 0 && v.breakAt[i] == v.cpu.RIP() {
			v.debugExit(vectorDB, 1<<i)
			return
		}
	}
	v.debugExit(vectorBP, 0)
}

// attend takes what the local APIC has for the CPU. It reports false if the CPU has shut
// down over it.
func (v *vcpu) attend() bool {
	if f := v.flying; f != nil {
		v.flying = nil
		return v.cpu.Deliver(f.Exception, f.external)
	}
	if v.apic.Wanted() == 0 {
		return true
	}
	if v.apic.TakeINIT() {
		v.reset()
		v.mp = kvm.MPStateInitReceived
		if v.id == 0 { // the boot processor begins anew
			v.mp = kvm.MPStateRunnable
		}
	}
	if v.mp == kvm.MPStateInitReceived || v.mp == kvm.MPStateUninitialized {
		if vector, ok := v.apic.TakeSIPI(); ok {
			v.start(vector)
		}
		return true
	}
	if !v.cpu.InNMI && v.apic.TakeNMI() {
		v.mp = kvm.MPStateRunnable
		return v.cpu.Interrupt(vectorNMI)
	}
	if v.cpu.CanInterrupt() {
		if vector, ok := v.apic.Interrupt(); ok {
			v.mp = kvm.MPStateRunnable
			return v.cpu.Interrupt(vector)
		}
	}
	return true
}

// start begins where a start-up IPI says (SDM 3, 10.4.4.1).
func (v *vcpu) start(vector uint8) {
	regs, sregs := v.registers()
	regs.RIP = 0
	sregs.CS.Selector, sregs.CS.Base = uint16(vector)<<8, uint64(vector)<<12
	v.cpu.Load(&regs, &sregs)
	v.mp = kvm.MPStateRunnable
}

const dr6Step = 1 << 14

// stop makes of a stop what the owner is told. It reports whether Run returns.
func (v *vcpu) stop(s ring0.Stop) bool {
	switch s {
	case ring0.StopHalt:
		v.mp = kvm.MPStateHalted
	case ring0.StopExit:
		v.exit(&v.cpu.Exit)
		return true
	case ring0.StopShutdown:
		v.shutdown()
		return true
	case ring0.StopBreakpoint:
		v.breakpoint()
		return true
	case ring0.StopWatchpoint:
		v.debugExit(vectorDB, 1<<v.watchAt[v.cpu.Watched()].number)
		return true
	case ring0.StopUnknown:
		v.unknown()
		return true
	}
	return false
}

// exit tells the owner of an access.
func (v *vcpu) exit(e *ring0.Exit) {
	v.reading = !e.Write
	if e.Port {
		v.run.ExitReason = kvm.ExitIO
		io := v.run.IO()
		*io = kvm.IOExit{Direction: kvm.IOIn, Size: uint8(e.Len), Port: uint16(e.Addr), Count: 1}
		if v.data = [8]byte{}; e.Write {
			io.Direction, v.data = kvm.IOOut, e.Data
		}
		return
	}
	v.run.ExitReason = kvm.ExitMMIO
	m := v.run.MMIO()
	*m = kvm.MMIOExit{PhysAddr: e.Addr, Len: uint32(e.Len)}
	if e.Write {
		m.IsWrite, m.Data = 1, e.Data
	}
}

func (v *vcpu) shutdown() { v.run.ExitReason = kvm.ExitShutdown }

// debugExit tells the debugger of an exception that is its own.
func (v *vcpu) debugExit(vector uint32, dr6 uint64) {
	v.run.ExitReason = kvm.ExitDebug
	*v.run.Debug() = kvm.DebugExit{Exception: vector, PC: v.cpu.RIP(), DR6: dr6}
}

// unknown tells of an instruction that nothing here executes.
func (v *vcpu) unknown() {
	v.run.ExitReason = kvm.ExitInternalError
	e := v.run.InternalError()
	*e = kvm.InternalError{Suberror: kvm.InternalErrorEmulation, NData: 3, Data: [16]uint64{1}}
	b := (*[16]byte)(unsafe.Pointer(&e.Data[1]))
	code := v.cpu.Code()
	b[0] = uint8(copy(b[1:], code))
}

// The methods of ring0.Host and ring0.Board.

// TSC implements ring0.Host.
func (v *vcpu) TSC() uint64 { return x86.RDTSC() + v.tscOffset }

// XCR0 implements ring0.Host.
func (v *vcpu) XCR0() (uint64, error) { return v.xcr0, nil }

// SetXCR0 implements ring0.Board (SDM 1, 13.3).
func (v *vcpu) SetXCR0(x uint64) bool {
	const x87, sse, avx = 1, 2, 4
	if x&x87 == 0 || x&^hostXCR0() != 0 || x&avx != 0 && x&sse == 0 {
		return false
	}
	v.xcr0 = x
	return true
}

// Port implements ring0.Board.
func (v *vcpu) Port(port uint16, data []byte, write bool) bool {
	return v.vm.port(port, data, write)
}

// Device implements ring0.Board.
func (v *vcpu) Device(gpa uint64, data []byte, write bool) bool {
	if gpa>>12 == v.apicPage {
		v.apic.MMIO(uint32(gpa&0xfff), data, write)
		if write {
			v.lookUp()
		}
		return true
	}
	return v.vm.access(gpa, data, write)
}

// lookUp has the CPU look at what its APIC has for it before the next instruction.
func (v *vcpu) lookUp() {
	if v.apic.Wanted() != 0 {
		v.cpu.Attend()
	}
}

// CR8 implements ring0.Board.
func (v *vcpu) CR8() uint64 { return v.apic.CR8() }

// SetCR8 implements ring0.Board.
func (v *vcpu) SetCR8(x uint64) { v.apic.SetCR8(x) }

// InterruptWanted implements ring0.Board.
func (v *vcpu) InterruptWanted() bool { return v.apic.Wanted() != 0 }

// errState is the error for a state that no CPU can have.
var errState = errors.New("no state of a CPU")
