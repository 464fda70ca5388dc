package kvm

import "fmt"

// Cap is a KVM capability number, KVM_CAP_* in <linux/kvm.h>.
type Cap int

// The capabilities that this project asks for.
const (
	CapIRQChip            Cap = 0
	CapUserMemory         Cap = 3
	CapSetTSSAddr         Cap = 4
	CapExtCPUID           Cap = 7
	CapNrVCPUs            Cap = 9
	CapNrMemslots         Cap = 10
	CapMPState            Cap = 14
	CapCoalescedMMIO      Cap = 15
	CapIRQFD              Cap = 32
	CapPIT2               Cap = 33
	CapSetBootCPUID       Cap = 34
	CapIOEventFD          Cap = 36
	CapSetIdentityMapAddr Cap = 37
	CapAdjustClock        Cap = 39
	CapVCPUEvents         Cap = 41
	CapDebugRegs          Cap = 50
	CapEnableCap          Cap = 54
	CapXSave              Cap = 55
	CapXCRS               Cap = 56
	CapTSCControl         Cap = 60
	CapGetTSCKHz          Cap = 61
	CapMaxVCPUs           Cap = 66
	CapTSCDeadlineTimer   Cap = 72
	CapKVMClockCtrl       Cap = 76
	CapSignalMSI          Cap = 77
	CapReadonlyMem        Cap = 81
	CapSplitIRQChip       Cap = 121
	CapX86SMM             Cap = 117
	CapX2APICAPI          Cap = 129
	CapMaxVCPUID          Cap = 128
	CapImmediateExit      Cap = 136
	CapSyncRegs           Cap = 74
	CapManualDirtyLog     Cap = 168
	CapExceptionPayload   Cap = 164
	CapX86UserSpaceMSR    Cap = 188
	CapX86MSRFilter       Cap = 189
	CapDirtyLogRing       Cap = 192
	CapExitOnEmulFailure  Cap = 204
	CapXSave2             Cap = 208
	CapPMUCapability      Cap = 212
	CapX86TripleFault     Cap = 218
	CapNestedState        Cap = 157
)

var capNames = map[Cap]string{
	CapIRQChip: "IRQCHIP", CapUserMemory: "USER_MEMORY", CapSetTSSAddr: "SET_TSS_ADDR",
	CapExtCPUID: "EXT_CPUID", CapNrVCPUs: "NR_VCPUS", CapNrMemslots: "NR_MEMSLOTS",
	CapMPState: "MP_STATE", CapCoalescedMMIO: "COALESCED_MMIO", CapIRQFD: "IRQFD",
	CapPIT2: "PIT2", CapSetBootCPUID: "SET_BOOT_CPU_ID", CapIOEventFD: "IOEVENTFD",
	CapSetIdentityMapAddr: "SET_IDENTITY_MAP_ADDR", CapAdjustClock: "ADJUST_CLOCK",
	CapVCPUEvents: "VCPU_EVENTS", CapDebugRegs: "DEBUGREGS", CapEnableCap: "ENABLE_CAP",
	CapXSave: "XSAVE", CapXCRS: "XCRS", CapTSCControl: "TSC_CONTROL", CapGetTSCKHz: "GET_TSC_KHZ",
	CapMaxVCPUs: "MAX_VCPUS", CapTSCDeadlineTimer: "TSC_DEADLINE_TIMER",
	CapKVMClockCtrl: "KVMCLOCK_CTRL", CapSignalMSI: "SIGNAL_MSI", CapReadonlyMem: "READONLY_MEM",
	CapSplitIRQChip: "SPLIT_IRQCHIP", CapX86SMM: "X86_SMM", CapX2APICAPI: "X2APIC_API",
	CapMaxVCPUID: "MAX_VCPU_ID", CapImmediateExit: "IMMEDIATE_EXIT", CapSyncRegs: "SYNC_REGS",
	CapManualDirtyLog: "MANUAL_DIRTY_LOG_PROTECT2", CapExceptionPayload: "EXCEPTION_PAYLOAD",
	CapX86UserSpaceMSR: "X86_USER_SPACE_MSR", CapX86MSRFilter: "X86_MSR_FILTER",
	CapDirtyLogRing: "DIRTY_LOG_RING", CapExitOnEmulFailure: "EXIT_ON_EMULATION_FAILURE",
	CapXSave2: "XSAVE2", CapX86TripleFault: "X86_TRIPLE_FAULT_EVENT",
	CapPMUCapability: "PMU_CAPABILITY", CapNestedState: "NESTED_STATE",
}

// String returns the kernel's name without KVM_CAP_.
func (c Cap) String() string {
	if n, ok := capNames[c]; ok {
		return n
	}
	return fmt.Sprintf("CAP_%d", int(c))
}
