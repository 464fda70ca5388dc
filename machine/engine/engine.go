// Package engine is what a machine needs of whoever executes its guest: a
// System makes VMs, a VM has memory, interrupt chips and VCPUs, and a VCPU runs.
//
// The methods, and the structures that they take, are those of package kvm, and
// do what its documentation and the KVM API's (api.rst) say. What is said here
// is only where an engine that is not KVM has a choice. KVM makes an engine of
// KVM; vmm/machine/software is one that needs no /dev/kvm.
package engine

import "vmm/kvm"

// System is an engine that is there for use. Its methods may be called from any
// goroutine.
type System interface {
	// CheckExtension returns what the engine has of a capability of KVM's: 0 if it is
	// missing, else 1 or a number that the capability defines.
	CheckExtension(kvm.Cap) (int, error)
	// Has reports whether a capability is there.
	Has(kvm.Cap) bool
	// SupportedCPUID returns the CPUID leaves that a guest can be given.
	SupportedCPUID() ([]kvm.CPUIDEntry, error)
	// MSRIndexList returns the MSRs that a saved CPU consists of.
	MSRIndexList() ([]uint32, error)
	CreateVM() (VM, error)
	// Close ends the use. VMs made from it live on.
	Close() error
}

// VM is a virtual machine. Its methods may be called from any goroutine, also
// while VCPUs run, but for Close: the VCPUs are closed then.
type VM interface {
	SetUserMemoryRegion(*kvm.UserspaceMemoryRegion) error
	// DirtyLog fills bitmap, one bit a page from the slot's start, with the pages that
	// the VCPUs have written since the last call.
	DirtyLog(slot uint32, bitmap []uint64) error
	// SetTSSAddr and SetIdentityMapAddr give the engine pages of guest-physical
	// addresses for itself, if it needs any.
	SetTSSAddr(gpa uint64) error
	SetIdentityMapAddr(gpa uint64) error
	// RefuseMSRs makes the guest's accesses to these MSRs faults.
	RefuseMSRs([]kvm.MSRFilterRange) error

	// CreateIRQChip makes the interrupt chips (PICs, an I/O APIC, and a local APIC a
	// VCPU), which the engine emulates, and CreatePIT2 the timer. It comes behind the
	// memory and before the VCPUs.
	CreateIRQChip() error
	CreatePIT2(kvm.PITConfig) error
	// IRQChip and VCPU.LAPIC have the interrupts of all eventfds of IRQFD that were written to
	// before.
	IRQChip(id uint32) (*kvm.IRQChip, error)
	SetIRQChip(*kvm.IRQChip) error
	PIT2() (kvm.PITState2, error)
	SetPIT2(*kvm.PITState2) error
	// IRQLine drives a pin of the chips.
	IRQLine(irq uint32, level bool) error
	SetGSIRouting([]kvm.IRQRoutingEntry) error
	IRQFD(*kvm.IRQFD) error
	IOEventFD(*kvm.IOEventFD) error

	// Clock is kvmclock's, in nanoseconds.
	Clock() (kvm.ClockData, error)
	SetClock(*kvm.ClockData) error

	// CreateVCPU makes a virtual processor; id is its APIC ID.
	CreateVCPU(id int) (VCPU, error)
	// Close frees the VM.
	Close() error
}

// VCPU is a virtual processor. All its methods belong to one OS thread, but for
// SetImmediateExit of what Shared returns.
type VCPU interface {
	// Shared returns the structure that tells of exits. It is the same one for as long
	// as the VCPU is there.
	Shared() *kvm.Run
	// Run enters the guest until the next exit, which Shared().ExitReason then tells:
	// ExitIO and ExitMMIO are completed by the next Run. It returns an error that is
	// unix.EINTR soon after SetImmediateExit, at an instruction's end, and unix.EAGAIN or
	// EINTR while it waits for an INIT or SIPI. A signal to its thread can have it return
	// EINTR too, and does where it sleeps in a system call. It allocates nothing but a
	// failure.
	Run() error
	// IOData returns the bytes of an ExitIO, Size*Count of them.
	IOData() []byte

	Regs() (kvm.Regs, error)
	SetRegs(*kvm.Regs) error
	Sregs() (kvm.Sregs, error)
	SetSregs(*kvm.Sregs) error
	DebugRegs() (kvm.DebugRegs, error)
	SetDebugRegs(*kvm.DebugRegs) error
	XCRs() (kvm.XCRs, error)
	SetXCRs(*kvm.XCRs) error
	// XSaveSize is the size of XSave's area in bytes, at least 4096; its form is the
	// standard one of the CPU's XSAVE.
	XSaveSize() int
	XSave(area []byte) error
	SetXSave(area []byte) error
	MPState() (kvm.MPState, error)
	SetMPState(kvm.MPState) error
	Events() (kvm.VCPUEvents, error)
	SetEvents(*kvm.VCPUEvents) error
	LAPIC() (kvm.LAPICState, error)
	SetLAPIC(*kvm.LAPICState) error
	// NestedState is of the guest's own VMs; unix.ENOTTY or unix.EINVAL where there are none.
	NestedState() ([]byte, error)
	SetNestedState([]byte) error

	SetCPUID([]kvm.CPUIDEntry) error
	// CPUID returns the leaves as the guest sees them.
	CPUID() ([]kvm.CPUIDEntry, error)

	MSR(index uint32) (uint64, error)
	SetMSR(index uint32, data uint64) error
	// SomeMSRs reads MSRs up to the first that cannot be read: it returns how many were.
	SomeMSRs([]kvm.MSREntry) (int, error)
	// SetSomeMSRs writes MSRs up to the first that cannot be written.
	SetSomeMSRs([]kvm.MSREntry) (int, error)
	// TSCKHz is the frequency of the guest's TSC.
	TSCKHz() (int, error)
	SetTSCKHz(khz int) error
	// TSCOffset is what is added to the host's TSC for the guest, modulo 1<<64.
	TSCOffset() (uint64, error)
	// KVMClockCtrl tells the guest that it was paused, if it has kvmclock.
	KVMClockCtrl() error

	// SetGuestDebug sets the host's breakpoints and single stepping.
	SetGuestDebug(*kvm.GuestDebug) error
	Close() error
}

// Kicker is a VCPU that a signal to its thread does not wake. Kick has Run look at once
// at what SetImmediateExit says, also where it sleeps. Safe from any goroutine until
// Close.
type Kicker interface{ Kick() }

// Writer is a VM that has to know what others than its VCPUs write to its memory: at an address,
// so many bytes, once they are written. Safe for concurrent use.
type Writer interface{ Wrote(gpa, n uint64) }
