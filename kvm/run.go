package kvm

import (
	"fmt"
	"sync/atomic"
	"unsafe"
)

// ExitReason is kvm_run.exit_reason.
type ExitReason uint32

// Exit reasons, <linux/kvm.h>.
const (
	ExitUnknown       ExitReason = 0
	ExitException     ExitReason = 1
	ExitIO            ExitReason = 2
	ExitHypercall     ExitReason = 3
	ExitDebug         ExitReason = 4
	ExitHLT           ExitReason = 5
	ExitMMIO          ExitReason = 6
	ExitIRQWindowOpen ExitReason = 7
	ExitShutdown      ExitReason = 8
	ExitFailEntry     ExitReason = 9
	ExitIntr          ExitReason = 10
	ExitInternalError ExitReason = 17
	ExitSystemEvent   ExitReason = 24
	ExitIOAPICEOI     ExitReason = 26
	ExitRDMSR         ExitReason = 29
	ExitWRMSR         ExitReason = 30
	ExitDirtyRingFull ExitReason = 31
)

// NumExitReasons bounds the reasons above, for tables.
const NumExitReasons = 48

var exitNames = map[ExitReason]string{
	ExitUnknown: "unknown", ExitException: "exception", ExitIO: "io", ExitHypercall: "hypercall",
	ExitDebug: "debug", ExitHLT: "hlt", ExitMMIO: "mmio", ExitIRQWindowOpen: "irq_window_open",
	ExitShutdown: "shutdown", ExitFailEntry: "fail_entry", ExitIntr: "intr",
	ExitInternalError: "internal_error", ExitSystemEvent: "system_event",
	ExitIOAPICEOI: "ioapic_eoi", ExitRDMSR: "rdmsr", ExitWRMSR: "wrmsr",
	ExitDirtyRingFull: "dirty_ring_full",
}

// String returns the kernel's name in lower case.
func (r ExitReason) String() string {
	if n, ok := exitNames[r]; ok {
		return n
	}
	return fmt.Sprintf("exit_%d", uint32(r))
}

// Suberrors of ExitInternalError.
const (
	InternalErrorEmulation  = 1 // KVM_INTERNAL_ERROR_EMULATION
	InternalErrorSimulEx    = 2
	InternalErrorDeliveryEv = 3
)

// Types of ExitSystemEvent.
const (
	SystemEventShutdown = 1
	SystemEventReset    = 2
	SystemEventCrash    = 3
)

// Bits of Run.ValidRegs and Run.DirtyRegs (KVM_SYNC_X86_*).
const (
	SyncRegs   = 1 << 0
	SyncSregs  = 1 << 1
	SyncEvents = 1 << 2
)

// Run is struct kvm_run, shared with the kernel. Its union is read through
// the methods below, each valid only after the exit that it is named for.
type Run struct {
	RequestInterruptWindow     uint8
	immediateExit              uint8
	_                          [6]uint8
	ExitReason                 ExitReason
	ReadyForInterruptInjection uint8
	IFFlag                     uint8
	Flags                      uint16
	CR8                        uint64
	APICBase                   uint64
	union                      [256]byte
	ValidRegs                  uint64
	DirtyRegs                  uint64
	// Regs, Sregs and Events are copied out after an exit where ValidRegs asks
	// for it, and in before the next run where DirtyRegs says so.
	Regs   Regs
	Sregs  Sregs
	Events VCPUEvents
	_      [2048 - unsafe.Sizeof(Regs{}) - unsafe.Sizeof(Sregs{}) - unsafe.Sizeof(VCPUEvents{})]byte
}

// SetImmediateExit makes the next (or a racing) KVM_RUN return EINTR at once
// after it has completed pending I/O. Safe from any goroutine: the byte is
// written together with its zero neighbours in one atomic store.
func (r *Run) SetImmediateExit(on bool) {
	var v uint32
	if on {
		v = 1 << 8
	}
	atomic.StoreUint32((*uint32)(unsafe.Pointer(&r.RequestInterruptWindow)), v)
}

// ImmediateExit reports what SetImmediateExit has set. Safe from any goroutine.
func (r *Run) ImmediateExit() bool {
	return atomic.LoadUint32((*uint32)(unsafe.Pointer(&r.RequestInterruptWindow))) != 0
}

// IOExit is the union's part for ExitIO.
type IOExit struct {
	Direction  uint8 // IOIn or IOOut
	Size       uint8 // bytes: 1, 2 or 4
	Port       uint16
	Count      uint32 // of a string instruction
	DataOffset uint64 // from the start of kvm_run
}

// Values of IOExit.Direction.
const (
	IOIn  = 0
	IOOut = 1
)

// IO returns the details of an ExitIO.
func (r *Run) IO() *IOExit { return (*IOExit)(unsafe.Pointer(&r.union)) }

// MMIOExit is the union's part for ExitMMIO.
type MMIOExit struct {
	PhysAddr uint64
	Data     [8]byte
	Len      uint32
	IsWrite  uint8
}

// MMIO returns the details of an ExitMMIO.
func (r *Run) MMIO() *MMIOExit { return (*MMIOExit)(unsafe.Pointer(&r.union)) }

// MSRExit is the union's part for ExitRDMSR and ExitWRMSR.
type MSRExit struct {
	Error  uint8 // non-zero: the guest gets #GP
	_      [7]uint8
	Reason uint32
	Index  uint32
	Data   uint64
}

// MSR returns the details of an ExitRDMSR or ExitWRMSR.
func (r *Run) MSR() *MSRExit { return (*MSRExit)(unsafe.Pointer(&r.union)) }

// InternalError is the union's part for ExitInternalError.
type InternalError struct {
	Suberror uint32
	NData    uint32
	Data     [16]uint64
}

// InternalError returns the details of an ExitInternalError.
func (r *Run) InternalError() *InternalError { return (*InternalError)(unsafe.Pointer(&r.union)) }

// Instruction returns the bytes that KVM could not emulate, where it says so
// (KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES).
func (e *InternalError) Instruction() []byte {
	if e.Suberror != InternalErrorEmulation || e.NData < 3 || e.Data[0]&1 == 0 {
		return nil
	}
	b := (*[16]byte)(unsafe.Pointer(&e.Data[1]))
	return append([]byte(nil), b[1:1+min(int(b[0]), 15)]...)
}

// SystemEvent is the union's part for ExitSystemEvent.
type SystemEvent struct {
	Type  uint32
	NData uint32
	Data  [16]uint64
}

// SystemEvent returns the details of an ExitSystemEvent.
func (r *Run) SystemEvent() *SystemEvent { return (*SystemEvent)(unsafe.Pointer(&r.union)) }

// FailEntry is the union's part for ExitFailEntry.
type FailEntry struct {
	HardwareReason uint64
	CPU            uint32
}

// FailEntry returns the details of an ExitFailEntry.
func (r *Run) FailEntry() *FailEntry { return (*FailEntry)(unsafe.Pointer(&r.union)) }

// DebugExit is the union's part for ExitDebug.
type DebugExit struct {
	Exception uint32
	_         uint32
	PC        uint64
	DR6, DR7  uint64
}

// Debug returns the details of an ExitDebug.
func (r *Run) Debug() *DebugExit { return (*DebugExit)(unsafe.Pointer(&r.union)) }
