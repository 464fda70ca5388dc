package x86

// MSRs, by their numbers (SDM 4, 2.1).
const (
	MSRPlatformID     = 0x17       // IA32_PLATFORM_ID
	MSRTSC            = 0x10       // IA32_TIME_STAMP_COUNTER
	MSRAPICBase       = 0x1b       // IA32_APIC_BASE
	MSRFeatureControl = 0x3a       // IA32_FEATURE_CONTROL
	MSRTSCAdjust      = 0x3b       // IA32_TSC_ADJUST
	MSRUcodeRev       = 0x8b       // IA32_BIOS_SIGN_ID: the microcode's revision
	MSRSMBase         = 0x9e       // IA32_SMBASE
	MSRPlatformInfo   = 0xce       // MSR_PLATFORM_INFO
	MSRMTRRCap        = 0xfe       // IA32_MTRRCAP
	MSRArchCap        = 0x10a      // IA32_ARCH_CAPABILITIES
	MSRSysenterCS     = 0x174      // IA32_SYSENTER_CS
	MSRSysenterESP    = 0x175      // IA32_SYSENTER_ESP
	MSRSysenterEIP    = 0x176      // IA32_SYSENTER_EIP
	MSRMCGCap         = 0x179      // IA32_MCG_CAP
	MSRMCGStatus      = 0x17a      // IA32_MCG_STATUS
	MSRMCGCtl         = 0x17b      // IA32_MCG_CTL
	MSRMiscEnable     = 0x1a0      // IA32_MISC_ENABLE
	MSRMTRRPhysBase0  = 0x200      // IA32_MTRR_PHYSBASE0; its mask and further pairs follow
	MSRMTRRFix64K     = 0x250      // IA32_MTRR_FIX64K_00000
	MSRMTRRFix16K     = 0x258      // IA32_MTRR_FIX16K_80000, and the next
	MSRMTRRFix4K      = 0x268      // IA32_MTRR_FIX4K_C0000, to 0x26f
	MSRPAT            = 0x277      // IA32_PAT
	MSRMTRRDefType    = 0x2ff      // IA32_MTRR_DEF_TYPE
	MSRTSCDeadline    = 0x6e0      // IA32_TSC_DEADLINE: arms a timer of the local APIC
	MSRX2APIC         = 0x800      // the first of the registers of a local APIC in x2APIC mode
	MSRX2APICEnd      = 0x8ff      // and the last
	MSRXSS            = 0xda0      // IA32_XSS
	MSREFER           = 0xc0000080 // IA32_EFER
	MSRStar           = 0xc0000081 // IA32_STAR
	MSRLStar          = 0xc0000082 // IA32_LSTAR
	MSRCStar          = 0xc0000083 // IA32_CSTAR
	MSRSFMask         = 0xc0000084 // IA32_FMASK
	MSRFSBase         = 0xc0000100 // IA32_FS_BASE
	MSRGSBase         = 0xc0000101 // IA32_GS_BASE
	MSRKernelGSBase   = 0xc0000102 // IA32_KERNEL_GS_BASE
	MSRTSCAux         = 0xc0000103 // IA32_TSC_AUX
)

// MSRs of AMD's (APM 2, appendix A, and the processor programming references).
const (
	MSRTSCRatio = 0xc0000104 // TSC_RATIO, for guests of the guest's
	MSRHWCR     = 0xc0010015 // HWCR
	MSRNBConfig = 0xc001001f // NB_CFG
	MSRDEConfig = 0xc0011029 // DE_CFG: how LFENCE works and other decoding does
)

// MSRs of KVM's paravirtual devices (the kernel's Documentation/virt/kvm/x86/msr.rst).
const (
	MSRKVMWallClockOld = 0x11       // MSR_KVM_WALL_CLOCK
	MSRKVMClockOld     = 0x12       // MSR_KVM_SYSTEM_TIME
	MSRKVMWallClock    = 0x4b564d00 // MSR_KVM_WALL_CLOCK_NEW
	MSRKVMClock        = 0x4b564d01 // MSR_KVM_SYSTEM_TIME_NEW
	MSRKVMPollControl  = 0x4b564d05 // MSR_KVM_POLL_CONTROL
)

// LAPICBase is where the registers of a local APIC are after a reset (SDM 3, 10.4.1).
const LAPICBase = 0xfee0_0000
