package kvm

// Regs is struct kvm_regs: the general registers.
type Regs struct {
	RAX, RBX, RCX, RDX uint64
	RSI, RDI, RSP, RBP uint64
	R8, R9, R10, R11   uint64
	R12, R13, R14, R15 uint64
	RIP, RFLAGS        uint64
}

// Segment is struct kvm_segment: a segment register with its hidden part.
type Segment struct {
	Base     uint64
	Limit    uint32
	Selector uint16
	Type     uint8
	Present  uint8
	DPL      uint8
	DB       uint8
	S        uint8
	L        uint8
	G        uint8
	AVL      uint8
	Unusable uint8
	_        uint8
}

// DTable is struct kvm_dtable: GDTR or IDTR.
type DTable struct {
	Base  uint64
	Limit uint16
	_     [3]uint16
}

// Sregs is struct kvm_sregs: the special registers.
type Sregs struct {
	CS, DS, ES, FS, GS, SS  Segment
	TR, LDT                 Segment
	GDT, IDT                DTable
	CR0, CR2, CR3, CR4, CR8 uint64
	EFER                    uint64
	APICBase                uint64
	InterruptBitmap         [4]uint64
}

// VCPUEvents is struct kvm_vcpu_events: exceptions and interrupts in flight.
type VCPUEvents struct {
	Exception struct {
		Injected     uint8
		Nr           uint8
		HasErrorCode uint8
		Pending      uint8
		ErrorCode    uint32
	}
	Interrupt struct {
		Injected uint8
		Nr       uint8
		Soft     uint8
		Shadow   uint8
	}
	NMI struct {
		Injected uint8
		Pending  uint8
		Masked   uint8
		_        uint8
	}
	SIPIVector uint32
	Flags      uint32
	SMI        struct {
		SMM          uint8
		Pending      uint8
		SMMInsideNMI uint8
		LatchedInit  uint8
	}
	TripleFault struct {
		Pending uint8
	}
	_                   [26]uint8
	ExceptionHasPayload uint8
	ExceptionPayload    uint64
}

// UserspaceMemoryRegion is struct kvm_userspace_memory_region.
type UserspaceMemoryRegion struct {
	Slot          uint32
	Flags         uint32
	GuestPhysAddr uint64
	MemorySize    uint64 // bytes; 0 removes the slot
	UserspaceAddr uint64
}

// Flags of UserspaceMemoryRegion.
const (
	MemLogDirtyPages = 1 << 0 // KVM_MEM_LOG_DIRTY_PAGES
	MemReadonly      = 1 << 1 // KVM_MEM_READONLY
)

// CPUIDEntry is struct kvm_cpuid_entry2.
type CPUIDEntry struct {
	Function           uint32
	Index              uint32
	Flags              uint32
	EAX, EBX, ECX, EDX uint32
	_                  [3]uint32
}

// CPUIDSignificantIndex marks an entry whose Index counts
// (KVM_CPUID_FLAG_SIGNIFCANT_INDEX, spelled so in the kernel).
const CPUIDSignificantIndex = 1 << 0

// MSREntry is struct kvm_msr_entry.
type MSREntry struct {
	Index uint32
	_     uint32
	Data  uint64
}

// PITConfig is struct kvm_pit_config.
type PITConfig struct {
	Flags uint32
	_     [15]uint32
}

// PITSpeakerDummy lets KVM answer port 0x61 (KVM_PIT_SPEAKER_DUMMY).
const PITSpeakerDummy = 1

// PITState2 is struct kvm_pit_state2.
type PITState2 struct {
	Channels [3]struct {
		Count         uint32
		LatchedCount  uint16
		CountLatched  uint8
		StatusLatched uint8
		Status        uint8
		ReadState     uint8
		WriteState    uint8
		WriteLatch    uint8
		RWMode        uint8
		Mode          uint8
		BCD           uint8
		Gate          uint8
		CountLoadTime int64
	}
	Flags uint32
	_     [9]uint32
}

// IRQLevel is struct kvm_irq_level.
type IRQLevel struct {
	IRQ   uint32
	Level uint32
}

// IRQChip is struct kvm_irqchip: the raw state of one in-kernel chip.
type IRQChip struct {
	ChipID uint32
	_      uint32
	State  [512]byte
}

// Chip numbers of IRQChip and of IRQRoutingEntry.
const (
	IRQChipPICMaster = 0
	IRQChipPICSlave  = 1
	IRQChipIOAPIC    = 2
)

// IRQFD is struct kvm_irqfd.
type IRQFD struct {
	FD         uint32
	GSI        uint32
	Flags      uint32
	ResampleFD uint32
	_          [16]uint8
}

// Flags of IRQFD.
const (
	IRQFDDeassign = 1 << 0 // KVM_IRQFD_FLAG_DEASSIGN
	IRQFDResample = 1 << 1 // KVM_IRQFD_FLAG_RESAMPLE
)

// IOEventFD is struct kvm_ioeventfd.
type IOEventFD struct {
	Datamatch uint64
	Addr      uint64
	Len       uint32 // 0, 1, 2, 4 or 8 bytes
	FD        int32
	Flags     uint32
	_         [36]uint8
}

// Flags of IOEventFD.
const (
	IOEventFDDatamatch = 1 << 0 // KVM_IOEVENTFD_FLAG_DATAMATCH
	IOEventFDPIO       = 1 << 1 // KVM_IOEVENTFD_FLAG_PIO
	IOEventFDDeassign  = 1 << 2 // KVM_IOEVENTFD_FLAG_DEASSIGN
)

// MSI is struct kvm_msi.
type MSI struct {
	AddressLo uint32
	AddressHi uint32
	Data      uint32
	Flags     uint32
	DevID     uint32
	_         [12]uint8
}

// IRQRoutingEntry is struct kvm_irq_routing_entry. U holds the union:
// {irqchip, pin} for RoutingIRQChip, {address_lo, address_hi, data, devid}
// for RoutingMSI.
type IRQRoutingEntry struct {
	GSI   uint32
	Type  uint32
	Flags uint32
	_     uint32
	U     [8]uint32
}

// Types of IRQRoutingEntry.
const (
	RoutingIRQChip = 1 // KVM_IRQ_ROUTING_IRQCHIP
	RoutingMSI     = 2 // KVM_IRQ_ROUTING_MSI
)

// FPU is struct kvm_fpu: x87 and SSE state.
type FPU struct {
	FPR        [8][16]uint8
	FCW        uint16
	FSW        uint16
	FTWX       uint8
	_          uint8
	LastOpcode uint16
	LastIP     uint64
	LastDP     uint64
	XMM        [16][16]uint8
	MXCSR      uint32
	_          uint32
}

// XCR is struct kvm_xcr.
type XCR struct {
	Number uint32
	_      uint32
	Value  uint64
}

// XCRs is struct kvm_xcrs.
type XCRs struct {
	Count uint32
	Flags uint32
	XCR   [16]XCR
	_     [16]uint64
}

// LAPICState is struct kvm_lapic_state: the local APIC's register page.
type LAPICState struct {
	Regs [1024]byte
}

// DebugRegs is struct kvm_debugregs.
type DebugRegs struct {
	DB    [4]uint64
	DR6   uint64
	DR7   uint64
	Flags uint64
	_     [9]uint64
}

// GuestDebug is struct kvm_guest_debug.
type GuestDebug struct {
	Control  uint32
	_        uint32
	DebugReg [8]uint64
}

// Bits of GuestDebug.Control.
const (
	GuestDebugEnable     = 1 << 0  // KVM_GUESTDBG_ENABLE
	GuestDebugSingleStep = 1 << 1  // KVM_GUESTDBG_SINGLESTEP
	GuestDebugUseSWBP    = 1 << 16 // KVM_GUESTDBG_USE_SW_BP
	GuestDebugUseHWBP    = 1 << 17 // KVM_GUESTDBG_USE_HW_BP
	GuestDebugInjectDB   = 1 << 18 // KVM_GUESTDBG_INJECT_DB
	GuestDebugInjectBP   = 1 << 19 // KVM_GUESTDBG_INJECT_BP
)

// MPState is struct kvm_mp_state.
type MPState struct{ State uint32 }

// Values of MPState on x86.
const (
	MPStateRunnable      = 0
	MPStateUninitialized = 1
	MPStateInitReceived  = 2
	MPStateHalted        = 3
	MPStateSIPIReceived  = 4
)

// ClockData is struct kvm_clock_data: the VM's kvmclock in nanoseconds.
type ClockData struct {
	Clock    uint64
	Flags    uint32
	_        uint32
	Realtime uint64
	HostTSC  uint64
	_        [4]uint32
}

// DeviceAttr is struct kvm_device_attr.
type DeviceAttr struct {
	Flags uint32
	Group uint32
	Attr  uint64
	Addr  uint64 // address of the value
}

// DirtyLog is struct kvm_dirty_log.
type DirtyLog struct {
	Slot   uint32
	_      uint32
	Bitmap uint64 // address of the bitmap
}

// ClearDirtyLog is struct kvm_clear_dirty_log.
type ClearDirtyLog struct {
	Slot      uint32
	NumPages  uint32
	FirstPage uint64
	Bitmap    uint64
}

// Translation is struct kvm_translation.
type Translation struct {
	LinearAddress   uint64
	PhysicalAddress uint64
	Valid           uint8
	Writeable       uint8
	Usermode        uint8
	_               [5]uint8
}

// EnableCap is struct kvm_enable_cap.
type EnableCap struct {
	Cap   uint32
	Flags uint32
	Args  [4]uint64
	_     [64]uint8
}

// MSRFilter is struct kvm_msr_filter.
type MSRFilter struct {
	Flags  uint32
	_      uint32
	Ranges [16]MSRFilterRange
}

// MSRFilterRange is struct kvm_msr_filter_range. A clear bit in the bitmap at
// address Bitmap denies the access, so that it exits to userspace.
type MSRFilterRange struct {
	Flags  uint32
	NMSRs  uint32
	Base   uint32
	_      uint32
	Bitmap uint64
}

// Flags of MSRFilterRange.
const (
	MSRFilterRead  = 1 << 0 // KVM_MSR_FILTER_READ
	MSRFilterWrite = 1 << 1 // KVM_MSR_FILTER_WRITE
)
