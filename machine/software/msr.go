package software

import (
	"sync"

	"golang.org/x/sys/unix"

	"vmm/internal/x86"
	"vmm/kvm"
	"vmm/machine/ring0"
)

// MSRs beside those of package ring0 (SDM 4; APM 2, appendix A; the KVM API's msr.rst).
const (
	msrPlatformID  = 0x17
	msrAPICBase    = 0x1b
	msrUcodeRev    = 0x8b
	msrMTRRCap     = 0xfe
	msrArchCap     = 0x10a
	msrMCGCap      = 0x179
	msrMCGStatus   = 0x17a
	msrMiscEnable  = 0x1a0
	msrMTRRBase0   = 0x200 // to 0x20f: 8 pairs
	msrMTRRFix64K  = 0x250
	msrMTRRFix16K  = 0x258 // and the next
	msrMTRRFix4K   = 0x268 // to 0x26f
	msrPAT         = 0x277
	msrMTRRDefType = 0x2ff
	msrDeadline    = 0x6e0
	msrX2APIC      = 0x800
	msrX2APICEnd   = 0x8ff
	msrHWCR        = 0xc0010015
	msrNBConfig    = 0xc001001f
	msrDEConfig    = 0xc0011029
	msrClockOld    = 0x12
	msrWallOld     = 0x11
	msrWall        = 0x4b564d00
	msrClock       = 0x4b564d01

	mtrrPairs = 8
)

// resetPAT is IA32_PAT after a reset (SDM 3, 12.12.4).
const resetPAT = 0x0007040600070406

// msrs are the MSRs that only keep what they are given.
type msrs struct {
	star, lstar, cstar, sfmask        uint64
	sysenterCS, sysenterESP, syserEIP uint64
	tscAux, pat, misc, mcgStatus      uint64
	hwcr, nbConfig, deConfig          uint64
	mtrr                              [2 * mtrrPairs]uint64
	fixed                             [11]uint64
	mtrrDefault                       uint64
}

func (m *msrs) reset() {
	const lfenceSerializes = 1 << 1 // DE_CFG
	*m = msrs{pat: resetPAT, misc: 1, deConfig: lfenceSerializes}
}

// stored returns where an MSR is kept that only keeps what it is given; nil for others.
func (m *msrs) stored(index uint32) *uint64 {
	switch index {
	case ring0.MSRStar:
		return &m.star
	case ring0.MSRLStar:
		return &m.lstar
	case ring0.MSRCStar:
		return &m.cstar
	case ring0.MSRSFMask:
		return &m.sfmask
	case ring0.MSRSysenterCS:
		return &m.sysenterCS
	case ring0.MSRSysenterESP:
		return &m.sysenterESP
	case ring0.MSRSysenterEIP:
		return &m.syserEIP
	case ring0.MSRTSCAux:
		return &m.tscAux
	case msrPAT:
		return &m.pat
	case msrMiscEnable:
		return &m.misc
	case msrMCGStatus:
		return &m.mcgStatus
	case msrHWCR:
		return &m.hwcr
	case msrNBConfig:
		return &m.nbConfig
	case msrDEConfig:
		return &m.deConfig
	case msrMTRRDefType:
		return &m.mtrrDefault
	case msrMTRRFix64K:
		return &m.fixed[0]
	case msrMTRRFix16K, msrMTRRFix16K + 1:
		return &m.fixed[1+index-msrMTRRFix16K]
	}
	switch {
	case index >= msrMTRRBase0 && index < msrMTRRBase0+2*mtrrPairs:
		return &m.mtrr[index-msrMTRRBase0]
	case index >= msrMTRRFix4K && index < msrMTRRFix4K+8:
		return &m.fixed[3+index-msrMTRRFix4K]
	}
	return nil
}

// savedMSRs are the MSRs of a saved CPU.
func savedMSRs() []uint32 {
	list := []uint32{ring0.MSRStar, ring0.MSRLStar, ring0.MSRCStar, ring0.MSRSFMask, ring0.MSRKernelGSBase, ring0.MSRSysenterCS,
		ring0.MSRSysenterESP, ring0.MSRSysenterEIP, ring0.MSRTSCAux, ring0.MSRTSC, msrPAT, msrMiscEnable, msrMCGStatus, msrHWCR, msrDEConfig,
		msrMTRRDefType, msrMTRRFix64K, msrMTRRFix16K, msrMTRRFix16K + 1, msrWall, msrClock, msrDeadline}
	for i := range uint32(2 * mtrrPairs) {
		list = append(list, msrMTRRBase0+i)
	}
	for i := range uint32(8) {
		list = append(list, msrMTRRFix4K+i)
	}
	return list
}

// ReadMSR implements ring0.Board.
func (v *vcpu) ReadMSR(index uint32) (uint64, bool) {
	if p := v.msrs.stored(index); p != nil {
		return *p, true
	}
	switch index {
	case ring0.MSREFER:
		return v.cpu.Sregs().EFER, true
	case ring0.MSRTSC:
		return v.TSC(), true
	case ring0.MSRKernelGSBase:
		return v.cpu.KernelGS(), true
	case msrAPICBase:
		return v.apic.Base(), true
	case msrMTRRCap:
		const fixed, writeCombining = 1 << 8, 1 << 10
		return mtrrPairs | fixed | writeCombining, true
	case msrArchCap:
		return archCapabilities, v.intel()
	case msrUcodeRev:
		return 0xffffffff << 32, true // newer than any that mends something
	case msrPlatformID, msrMCGCap:
		return 0, true
	case msrClock, msrClockOld:
		return v.clock.msr, true
	case msrWall, msrWallOld:
		return v.clock.wall, true
	}
	if index == msrDeadline || index >= msrX2APIC && index <= msrX2APICEnd {
		return v.apic.ReadMSR(index)
	}
	return 0, false
}

// archCapabilities tells that the CPU has none of the faults that kernels work around:
// the guest's code is not what the host's CPU speculates on (SDM 4, IA32_ARCH_CAPABILITIES).
const archCapabilities = 1<<0 | 1<<3 | 1<<5 | 1<<6 | 1<<8 | 1<<13 | 1<<14 | 1<<15 | 1<<26

// WriteMSR implements ring0.Board.
func (v *vcpu) WriteMSR(index uint32, x uint64) bool {
	if index == msrPAT && !validPAT(x) {
		return false
	}
	if p := v.msrs.stored(index); p != nil {
		*p = x
		return true
	}
	switch index {
	case ring0.MSRTSC:
		v.setTSC(x)
		return true
	case msrAPICBase:
		ok := v.setAPICBase(x, v.apic.SetBase)
		v.lookUp()
		return ok
	case msrUcodeRev:
		return true // how its reading begins
	case msrClock, msrClockOld:
		return v.setClock(x)
	case msrWall, msrWallOld:
		return v.setWall(x)
	}
	if index == msrDeadline || index >= msrX2APIC && index <= msrX2APICEnd {
		ok := v.apic.WriteMSR(index, x)
		v.lookUp()
		return ok
	}
	return false
}

// validPAT reports whether all of its eight types exist.
func validPAT(x uint64) bool {
	for i := range 8 {
		if t := x >> (8 * i) & 0xff; t > 7 || t == 2 || t == 3 {
			return false
		}
	}
	return true
}

func (v *vcpu) setTSC(x uint64) { v.setTSCOffset(x - x86.RDTSC()) }

func (v *vcpu) setTSCOffset(offset uint64) {
	v.tscOffset = offset
	v.apic.SetTSCOffset(offset)
	v.clock.publish(v)
}

// tscs keeps the CPUs' time-stamp counters together that a machine's owner sets to the same
// value, one after the other.
type tscs struct {
	mu     sync.Mutex
	set    bool
	offset uint64
}

// match returns the offset that a CPU gets for which this one was computed: that of the CPU
// before, if that is less than a second off, as with KVM.
func (t *tscs) match(offset, second uint64) uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	if d := offset - t.offset; !t.set || d > second && -d > second {
		t.set, t.offset = true, offset
	}
	return t.offset
}

// setAPICBase changes IA32_APIC_BASE by one of the local APIC's methods.
func (v *vcpu) setAPICBase(x uint64, set func(uint64) bool) bool {
	if !set(x) {
		return false
	}
	v.apicPage = x >> 12 & (1<<40 - 1)
	return true
}

// MSR implements engine.VCPU and ring0.Host.
func (v *vcpu) MSR(index uint32) (uint64, error) {
	switch index {
	case ring0.MSRFSBase:
		_, s := v.registers()
		return s.FS.Base, nil
	case ring0.MSRGSBase:
		_, s := v.registers()
		return s.GS.Base, nil
	}
	x, ok := v.ReadMSR(index)
	if !ok {
		return 0, unix.EINVAL
	}
	return x, nil
}

// SetMSR implements engine.VCPU.
func (v *vcpu) SetMSR(index uint32, x uint64) error {
	v.cpu.ForgetSyscalls()
	switch index {
	case ring0.MSRKernelGSBase:
		v.cpu.SetKernelGSBase(x)
		return nil
	case ring0.MSRTSC: // of a saved machine: all of its CPUs' were one
		v.setTSCOffset(v.vm.tscs.match(x-x86.RDTSC(), v.vm.tscKHz*1000))
		return nil
	case ring0.MSREFER:
		_, s := v.registers()
		s.EFER = x
		return v.SetSregs(&s)
	}
	if !v.WriteMSR(index, x) {
		return unix.EINVAL
	}
	return nil
}

// SomeMSRs implements engine.VCPU.
func (v *vcpu) SomeMSRs(list []kvm.MSREntry) (int, error) {
	for i := range list {
		x, err := v.MSR(list[i].Index)
		if err != nil {
			return i, nil
		}
		list[i].Data = x
	}
	return len(list), nil
}

// SetSomeMSRs implements engine.VCPU.
func (v *vcpu) SetSomeMSRs(list []kvm.MSREntry) (int, error) {
	for i, m := range list {
		if v.SetMSR(m.Index, m.Data) != nil {
			return i, nil
		}
	}
	return len(list), nil
}

// TSCKHz implements engine.VCPU.
func (v *vcpu) TSCKHz() (int, error) { return int(v.vm.tscKHz), nil }

// SetTSCKHz implements engine.VCPU: the counter is the host's, and runs as that does.
func (v *vcpu) SetTSCKHz(khz int) error {
	if khz != int(v.vm.tscKHz) {
		return unix.EINVAL
	}
	return nil
}

// TSCOffset implements engine.VCPU.
func (v *vcpu) TSCOffset() (uint64, error) { return v.tscOffset, nil }
