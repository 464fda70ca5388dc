package machine

import (
	"math/bits"

	"vmm/kvm"
)

// Leaves of CPUID (SDM 2, CPUID; APM 3, E.3 and E.4).
const (
	cpuidFeatures     = 1
	cpuidPerfmon      = 0xa
	cpuidTopology     = 0xb
	cpuidTopologyV2   = 0x1f
	cpuidKVMFeatures  = 0x40000001
	cpuidAMDFeatures  = 0x80000001
	cpuidAMDSizes     = 0x80000008
	cpuidSVM          = 0x8000000a
	cpuidAMDTopology  = 0x8000001e
	cpuidAMDPerfmon   = 0x80000022
	cpuid1APICIDShift = 24
)

// Bits of the leaves above.
const (
	featureVMX        = 1 << 5  // leaf 1, ECX
	featureHypervisor = 1 << 31 // leaf 1, ECX
	featureDeadline   = 1 << 24 // leaf 1, ECX
	featureHTT        = 1 << 28 // leaf 1, EDX
	featureSVM        = 1 << 2  // leaf 0x80000001, ECX
	// PerfCtrExtCore, PerfCtrExtNB and PerfCtrExtLLC of leaf 0x80000001, ECX.
	featurePerfCtr = 1<<23 | 1<<24 | 1<<28
)

// cpuOffer is what a machine offers its guest of what the host has.
type cpuOffer struct {
	cpus int
	// tscDeadline tells that the in-kernel APIC has that timer, of which KVM's list
	// is silent.
	tscDeadline bool
	// noHypercalls tells that the guest can make none: a KVM that interprets never
	// comes back from them, and the software engine has none.
	noHypercalls bool
	nested       bool
	perfmon      bool
}

// cpuOffer is what this machine offers.
func (m *Machine) cpuOffer() cpuOffer {
	return cpuOffer{cpus: m.cfg.CPUs, tscDeadline: m.engine.Has(kvm.CapTSCDeadlineTimer), noHypercalls: m.slowKernel(),
		nested: m.cfg.Nested, perfmon: m.perfmon}
}

// cpuid is what the host supports, made fit for CPU id.
func (o *cpuOffer) cpuid(host []kvm.CPUIDEntry, id int) []kvm.CPUIDEntry {
	n := o.cpus
	out := append([]kvm.CPUIDEntry(nil), host...)
	for i := range out {
		e := &out[i]
		switch e.Function {
		case cpuidFeatures:
			e.EBX = e.EBX&0x0000ffff | uint32(n)<<16 | uint32(id)<<cpuid1APICIDShift
			e.ECX |= featureHypervisor
			if o.tscDeadline {
				e.ECX |= featureDeadline
			}
			if n > 1 {
				e.EDX |= featureHTT
			}
			if !o.nested {
				e.ECX &^= featureVMX
			}
		case cpuidAMDFeatures:
			if !o.nested {
				e.ECX &^= featureSVM
			}
			if !o.perfmon {
				e.ECX &^= featurePerfCtr
			}
		case cpuidSVM:
			if !o.nested {
				e.EAX, e.EBX, e.ECX, e.EDX = 0, 0, 0, 0
			}
		case cpuidPerfmon, cpuidAMDPerfmon:
			if !o.perfmon {
				e.EAX, e.EBX, e.ECX, e.EDX = 0, 0, 0, 0
			}
		case cpuidTopology, cpuidTopologyV2:
			topologyLeaf(e, id, n)
		case cpuidAMDSizes: // APM 3, E.4.7: cores less one, and the bits of an APIC ID
			e.ECX = e.ECX&^0xf0ff | uint32(n-1) | coreBits(n)<<12
		case cpuidAMDTopology: // APM 3, E.4.16
			e.EAX, e.EBX, e.ECX = uint32(id), uint32(id), 0
		case cpuidKVMFeatures:
			if o.noHypercalls {
				// The clocks need none.
				const clocks = 1<<0 | 1<<3 | 1<<24
				e.EAX &= clocks
			}
		}
	}
	return out
}

// offersNested reports whether a guest with these leaves can have VMs of its own.
func offersNested(ids []kvm.CPUIDEntry) bool {
	return leaf(ids, cpuidFeatures, 0)[2]&featureVMX != 0 || leaf(ids, cpuidAMDFeatures, 0)[2]&featureSVM != 0
}

// MSRs of performance counters that a guest's kernel tries where CPUID tells of
// none: of AMD's K7 and later, and Intel's P6 (SDM 4; APM 2, A.6).
var legacyCounters = []kvm.MSRFilterRange{
	{Base: 0xc0010000, NMSRs: 8}, // PerfEvtSel0 to PerfCtr3
	{Base: 0xc1, NMSRs: 2},       // PerfCtr0, PerfCtr1
	{Base: 0x186, NMSRs: 2},      // PerfEvtSel0, PerfEvtSel1
}

// offerPerfmon decides whether the guest has performance counters: as a whole, or
// not at all. A guest's access to one that it does not have is a fault then, as on
// a CPU without it; KVM would take it for a mistake, and log it.
func (m *Machine) offerPerfmon(cpuid []kvm.CPUIDEntry) error {
	if leaf(cpuid, cpuidPerfmon, 0)[0]&0xff != 0 || leaf(cpuid, cpuidAMDFeatures, 0)[2]&featurePerfCtr != 0 || m.engine.Has(kvm.CapPMUCapability) {
		m.perfmon = true
		return nil
	}
	if m.interpreted || !m.engine.Has(kvm.CapX86MSRFilter) {
		return nil
	}
	return m.vm.RefuseMSRs(legacyCounters)
}

// topologyLeaf makes all CPUs cores of one package (SDM 2, CPUID leaf 0xb).
func topologyLeaf(e *kvm.CPUIDEntry, id, n int) {
	const smt, core = 1, 2
	e.EDX = uint32(id)
	e.EAX, e.EBX, e.ECX = 0, 0, e.Index
	switch e.Index {
	case 0:
		e.EBX, e.ECX = 1, e.Index|smt<<8
	case 1:
		e.EAX = coreBits(n)
		e.EBX, e.ECX = uint32(n), e.Index|core<<8
	}
}

// coreBits is how many bits number n CPUs.
func coreBits(n int) uint32 { return uint32(bits.Len(uint(n - 1))) }
