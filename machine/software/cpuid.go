package software

import (
	"slices"
	"sync"

	"vmm/internal/x86"
	"vmm/kvm"
	"vmm/machine/ring0"
)

// The guest's CPU is the host's, with those features that package ring0 executes: that
// of x86-64-v3 where the host has it.

// Features of the guest, as far as the host has them, too (SDM 2, CPUID; APM 3, appendix E).
const (
	// Leaf 1, ECX: SSE3, PCLMULQDQ, SSSE3, FMA, CMPXCHG16B, SSE4.1, SSE4.2, MOVBE, POPCNT, AES,
	// AVX, F16C, RDRAND. XSAVE, x2APIC and the TSC deadline are there in any case.
	leaf1C       = 1<<0 | 1<<1 | 1<<9 | 1<<12 | 1<<13 | 1<<19 | 1<<20 | 1<<22 | 1<<23 | 1<<25 | 1<<28 | 1<<29 | 1<<30
	leaf1CAlways = 1<<21 | 1<<24 | 1<<26 | 1<<31
	// Leaf 1, EDX: FPU to PSE, TSC, MSR, PAE, CMPXCHG8B, APIC, SYSENTER, MTRR, PGE, CMOV, PAT,
	// PSE-36, CLFLUSH, MMX, FXSR, SSE, SSE2; no machine checks.
	leaf1D = 0xf | 1<<4 | 1<<5 | 1<<6 | 1<<8 | 1<<9 | 1<<11 | 1<<12 | 1<<13 | 1<<15 | 1<<16 | 1<<17 | 1<<19 | 1<<23 | 1<<24 | 1<<25 | 1<<26
	// Leaf 7, EBX: FSGSBASE, BMI1, AVX2, SMEP, BMI2, ERMS, RDSEED, ADX, SMAP, CLFLUSHOPT, CLWB, SHA.
	leaf7B = 1<<0 | 1<<3 | 1<<5 | 1<<7 | 1<<8 | 1<<9 | 1<<18 | 1<<19 | 1<<20 | 1<<23 | 1<<24 | 1<<29
	// ECX: GFNI, VAES, VPCLMULQDQ, RDPID. EDX: FSRM.
	leaf7C = 1<<8 | 1<<9 | 1<<10 | 1<<22
	leaf7D = 1 << 4
	// EDX of leaf 7: IA32_ARCH_CAPABILITIES.
	leaf7ArchCap = 1 << 29
	// Leaf 0xd, subleaf 1, EAX: XSAVEOPT, XSAVEC.
	leafD1A = 1<<0 | 1<<1
	// Leaf 0x80000001: LAHF, LZCNT, PREFETCHW, TOPOEXT; SYSCALL, NX, MMXEXT, GiB pages, RDTSCP, LM.
	leafExtC = 1<<0 | 1<<1 | 1<<5 | 1<<8 | 1<<22
	leafExtD = 1<<11 | 1<<20 | 1<<22 | 1<<26 | 1<<27 | 1<<29
	// invariantTSC is in EDX of leaf 0x80000007, ARAT in EAX of leaf 6.
	invariantTSC = 1 << 8
	alwaysTimer  = 1 << 2
	// The features of KVM's leaf: kvmclock, old and new, and that it is one for all CPUs.
	kvmFeatures = 1<<0 | 1<<3 | 1<<24
)

// hostXCR0 is the components of the extended state that a guest can have.
func hostXCR0() uint64 { return x86.XCR0() & 7 }

// components are where they lie.
var components = sync.OnceValue(func() (c [64]ring0.Component) {
	if hostXCR0()&4 != 0 {
		v := x86.CPUID(0xd, 2)
		c[2] = ring0.Component{Offset: int(v[1]), Size: int(v[0]), Align64: v[2]&2 != 0}
	}
	return c
})

// supportedCPUID is what a guest can be given.
func supportedCPUID() []kvm.CPUIDEntry {
	var out []kvm.CPUIDEntry
	add := func(function, index uint32, flags uint32, v [4]uint32) {
		out = append(out, kvm.CPUIDEntry{Function: function, Index: index, Flags: flags, EAX: v[0], EBX: v[1], ECX: v[2], EDX: v[3]})
	}
	const indexed = kvm.CPUIDSignificantIndex
	host := func(leaf uint32) [4]uint32 { return x86.CPUID(leaf, 0) }
	v := host(0)
	most := v[0]
	v[0] = min(most, 0xd)
	add(0, 0, 0, v)
	v = host(1)
	v[2], v[3] = v[2]&leaf1C|leaf1CAlways, v[3]&leaf1D
	add(1, 0, 0, v)
	if most >= 2 {
		add(2, 0, 0, host(2))
	}
	for i := range uint32(8) { // caches, where this leaf tells of them
		v := x86.CPUID(4, i)
		if most < 4 || v[0]&31 == 0 {
			break
		}
		v[0] &= 0x3ff // one core, one thread
		add(4, i, indexed, v)
	}
	add(6, 0, 0, [4]uint32{alwaysTimer})
	if most >= 7 {
		v = host(7)
		d := v[3] & leaf7D
		if isIntel(host(0)) {
			d |= leaf7ArchCap
		}
		add(7, 0, indexed, [4]uint32{0, v[1] & leaf7B, v[2] & leaf7C, d})
	}
	add(0xb, 0, indexed, [4]uint32{})
	add(0xb, 1, indexed, [4]uint32{})
	d := [4]uint32{uint32(hostXCR0()), legacyXSave, legacyXSave}
	if hostXCR0()&4 != 0 {
		c := components()[2]
		d[1], d[2] = uint32(c.Offset+c.Size), uint32(c.Offset+c.Size)
	}
	add(0xd, 0, indexed, d)
	add(0xd, 1, indexed, [4]uint32{x86.CPUID(0xd, 1)[0] & leafD1A})
	if hostXCR0()&4 != 0 {
		add(0xd, 2, indexed, x86.CPUID(0xd, 2))
	}
	// "KVMKVMKVM" (the KVM API's cpuid.rst): it tells of kvmclock.
	add(0x40000000, 0, 0, [4]uint32{0x40000001, 0x4b4d564b, 0x564b4d56, 0x4d})
	add(0x40000001, 0, 0, [4]uint32{kvmFeatures})
	v = host(0x80000000)
	last := min(v[0], 0x8000001e)
	v[0] = last
	add(0x80000000, 0, 0, v)
	for leaf := uint32(0x80000001); leaf <= last; leaf++ {
		v := host(leaf)
		switch leaf {
		case 0x80000001:
			v[2], v[3] = v[2]&leafExtC, v[3]&leafExtD
		case 0x80000002, 0x80000003, 0x80000004, 0x80000005, 0x80000006: // the name, and caches
		case 0x80000007:
			v = [4]uint32{3: v[3] & invariantTSC}
		case 0x80000008:
			v = [4]uint32{v[0]&0xff | 48<<8}
		case 0x8000001d:
			for i := range uint32(8) {
				v := x86.CPUID(leaf, i)
				if v[0]&31 == 0 {
					break
				}
				v[0] &= 0x3ff
				add(leaf, i, indexed, v)
			}
			continue
		case 0x8000001e:
			v = [4]uint32{}
		default:
			continue
		}
		add(leaf, 0, 0, v)
	}
	return out
}

// legacyXSave is the size of an area with x87 and SSE alone, with its header.
const legacyXSave = 576

// isIntel reports whether the vendor's string in leaf 0 is that of Intel.
func isIntel(v [4]uint32) bool { return v[1] == 0x756e6547 }

func (v *vcpu) intel() bool { return isIntel(v.CPUIDOf(0, 0)) }

// CPUIDOf returns what the guest gets of a leaf.
func (v *vcpu) CPUIDOf(leaf, sub uint32) [4]uint32 {
	i := slices.IndexFunc(v.cpuid, func(e kvm.CPUIDEntry) bool {
		return e.Function == leaf && (e.Flags&kvm.CPUIDSignificantIndex == 0 || e.Index == sub)
	})
	if i < 0 {
		return [4]uint32{}
	}
	return v.visible(&v.cpuid[i])
}

// visible is a leaf with what depends on the CPU's state.
func (v *vcpu) visible(e *kvm.CPUIDEntry) [4]uint32 {
	r := [4]uint32{e.EAX, e.EBX, e.ECX, e.EDX}
	switch {
	case e.Function == 1:
		if r[2] &^= x86.CPUIDOSXSAVE; v.cpu.Sregs().CR4&x86.CR4OSXSAVE != 0 {
			r[2] |= x86.CPUIDOSXSAVE
		}
	case e.Function == 0xd && e.Index <= 1: // what the enabled components take
		size := uint32(legacyXSave)
		if c := components()[2]; v.xcr0&4 != 0 {
			size = uint32(c.Offset + c.Size)
		}
		r[1] = size
	}
	return r
}

// CPUID implements engine.VCPU.
func (v *vcpu) CPUID() ([]kvm.CPUIDEntry, error) {
	out := slices.Clone(v.cpuid)
	for i := range out {
		e := &out[i]
		r := v.visible(e)
		e.EAX, e.EBX, e.ECX, e.EDX = r[0], r[1], r[2], r[3]
	}
	return out, nil
}
