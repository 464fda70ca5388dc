package software

import (
	"sync"

	"golang.org/x/sys/unix"

	"vmm/internal/x86"
	"vmm/kvm"
)

// mtrrPairs are the ranges of variable size of the MTRRs (SDM 3, 12.11.2.3).
const mtrrPairs = 8

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
	case x86.MSRStar:
		return &m.star
	case x86.MSRLStar:
		return &m.lstar
	case x86.MSRCStar:
		return &m.cstar
	case x86.MSRSFMask:
		return &m.sfmask
	case x86.MSRSysenterCS:
		return &m.sysenterCS
	case x86.MSRSysenterESP:
		return &m.sysenterESP
	case x86.MSRSysenterEIP:
		return &m.syserEIP
	case x86.MSRTSCAux:
		return &m.tscAux
	case x86.MSRPAT:
		return &m.pat
	case x86.MSRMiscEnable:
		return &m.misc
	case x86.MSRMCGStatus:
		return &m.mcgStatus
	case x86.MSRHWCR:
		return &m.hwcr
	case x86.MSRNBConfig:
		return &m.nbConfig
	case x86.MSRDEConfig:
		return &m.deConfig
	case x86.MSRMTRRDefType:
		return &m.mtrrDefault
	case x86.MSRMTRRFix64K:
		return &m.fixed[0]
	case x86.MSRMTRRFix16K, x86.MSRMTRRFix16K + 1:
		return &m.fixed[1+index-x86.MSRMTRRFix16K]
	}
	switch {
	case index >= x86.MSRMTRRPhysBase0 && index < x86.MSRMTRRPhysBase0+2*mtrrPairs:
		return &m.mtrr[index-x86.MSRMTRRPhysBase0]
	case index >= x86.MSRMTRRFix4K && index < x86.MSRMTRRFix4K+8:
		return &m.fixed[3+index-x86.MSRMTRRFix4K]
	}
	return nil
}

// savedMSRs are the MSRs of a saved CPU.
func savedMSRs() []uint32 {
	list := []uint32{x86.MSRStar, x86.MSRLStar, x86.MSRCStar, x86.MSRSFMask, x86.MSRKernelGSBase, x86.MSRSysenterCS,
		x86.MSRSysenterESP, x86.MSRSysenterEIP, x86.MSRTSCAux, x86.MSRTSC, x86.MSRPAT, x86.MSRMiscEnable, x86.MSRMCGStatus, x86.MSRHWCR, x86.MSRDEConfig,
		x86.MSRMTRRDefType, x86.MSRMTRRFix64K, x86.MSRMTRRFix16K, x86.MSRMTRRFix16K + 1, x86.MSRKVMWallClock, x86.MSRKVMClock, x86.MSRTSCDeadline}
	for i := range uint32(2 * mtrrPairs) {
		list = append(list, x86.MSRMTRRPhysBase0+i)
	}
	for i := range uint32(8) {
		list = append(list, x86.MSRMTRRFix4K+i)
	}
	return list
}

// ReadMSR implements ring0.Board.
func (v *vcpu) ReadMSR(index uint32) (uint64, bool) {
	if p := v.msrs.stored(index); p != nil {
		return *p, true
	}
	switch index {
	case x86.MSREFER:
		return v.cpu.Sregs().EFER, true
	case x86.MSRTSC:
		return v.TSC(), true
	case x86.MSRKernelGSBase:
		return v.cpu.KernelGS(), true
	case x86.MSRAPICBase:
		return v.apic.Base(), true
	case x86.MSRMTRRCap:
		const fixed, writeCombining = 1 << 8, 1 << 10
		return mtrrPairs | fixed | writeCombining, true
	case x86.MSRArchCap:
		return archCapabilities, v.intel()
	case x86.MSRUcodeRev:
		return 0xffffffff << 32, true // newer than any that mends something
	case x86.MSRPlatformID, x86.MSRMCGCap:
		return 0, true
	case x86.MSRKVMClock, x86.MSRKVMClockOld:
		return v.clock.msr, true
	case x86.MSRKVMWallClock, x86.MSRKVMWallClockOld:
		return v.clock.wall, true
	}
	if index == x86.MSRTSCDeadline || index >= x86.MSRX2APIC && index <= x86.MSRX2APICEnd {
		return v.apic.ReadMSR(index)
	}
	return 0, false
}

// archCapabilities tells that the CPU has none of the faults that kernels work around:
// the guest's code is not what the host's CPU speculates on (SDM 4, IA32_ARCH_CAPABILITIES).
const archCapabilities = 1<<0 | 1<<3 | 1<<5 | 1<<6 | 1<<8 | 1<<13 | 1<<14 | 1<<15 | 1<<26

// WriteMSR implements ring0.Board.
func (v *vcpu) WriteMSR(index uint32, x uint64) bool {
	if index == x86.MSRPAT && !validPAT(x) {
		return false
	}
	if p := v.msrs.stored(index); p != nil {
		*p = x
		return true
	}
	switch index {
	case x86.MSRTSC:
		v.setTSC(x)
		return true
	case x86.MSRAPICBase:
		ok := v.setAPICBase(x, v.apic.SetBase)
		v.lookUp()
		return ok
	case x86.MSRUcodeRev:
		return true // how its reading begins
	case x86.MSRKVMClock, x86.MSRKVMClockOld:
		return v.setClock(x)
	case x86.MSRKVMWallClock, x86.MSRKVMWallClockOld:
		return v.setWall(x)
	}
	if index == x86.MSRTSCDeadline || index >= x86.MSRX2APIC && index <= x86.MSRX2APICEnd {
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
	case x86.MSRFSBase:
		_, s := v.registers()
		return s.FS.Base, nil
	case x86.MSRGSBase:
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
	case x86.MSRKernelGSBase:
		v.cpu.SetKernelGSBase(x)
		return nil
	case x86.MSRTSC: // of a saved machine: all of its CPUs' were one
		v.setTSCOffset(v.vm.tscs.match(x-x86.RDTSC(), v.vm.tscKHz*1000))
		return nil
	case x86.MSREFER:
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
