package machine

import (
	"slices"
	"strings"

	"vmm/kvm"
)

// CPUModel is what the guest sees of the CPU.
type CPUModel string

// The models. All but HostCPU are one set of features, and no more: what is saved of such a
// guest can be restored wherever a CPU of the same vendor has these, by any engine.
const (
	HostCPU CPUModel = "host" // all that the host and the engine have
	// X86V2 and X86V3 are levels of the psABI for x86-64 (3.1.1), with what their CPUs have
	// for a kernel.
	X86V2 CPUModel = "x86-64-v2" // up to SSE4.2; without XSAVE
	X86V3 CPUModel = "x86-64-v3" // with AVX2, BMI and FMA
)

// CPUModels lists them all.
var CPUModels = []CPUModel{HostCPU, X86V2, X86V3}

// whole reports whether that is all that the host has.
func (m CPUModel) whole() bool { return m == HostCPU || m == "" }

// ModelError is the error for a host that lacks what a model has.
type ModelError struct {
	Model   CPUModel
	Missing []string
}

// Error implements error.
func (e *ModelError) Error() string {
	return "the CPU " + string(e.Model) + " has what this host's lacks: " + strings.Join(e.Missing, ", ")
}

// wholeLeaves are what the models have as the host has it: what it is called, its caches, and what
// a machine fills in.
var wholeLeaves = []uint32{0, 2, 4, cpuidTopology, 0x40000000, 0x80000000, 0x80000002, 0x80000003, 0x80000004, 0x80000005, 0x80000006}

const (
	allBits = ^uint32(0)
	// The last leaves of each kind that the models have.
	lastLeaf    = 0xd
	lastAMDLeaf = cpuidAMDSizes
	// avxAreaSize is the size of an XSAVE area with AVX, in bytes (SDM 1, 13.4).
	avxAreaSize = 576 + 256
)

// modelLeaf is which bits the models have of a leaf.
type modelLeaf struct {
	leaf, sub uint32
	v2        [4]uint32 // EAX, EBX, ECX, EDX
	v3        [4]uint32 // these, too
}

// modelLeaves are SDM 2, CPUID, and APM 3, appendix E.
var modelLeaves = []modelLeaf{
	// SSE3, SSSE3, CMPXCHG16B, SSE4.1, SSE4.2, x2APIC, POPCNT, the deadline timer, a hypervisor; FPU, DE, PSE, TSC,
	// MSR, PAE, CMPXCHG8B, APIC, SYSENTER, MTRR, PGE, CMOV, PAT, PSE-36, CLFLUSH, MMX, FXSR, SSE, SSE2, HTT. FMA, MOVBE, XSAVE, AVX, F16C.
	{cpuidFeatures, 0,
		[4]uint32{allBits, allBits, 1<<0 | 1<<9 | 1<<13 | 1<<19 | 1<<20 | 1<<21 | 1<<23 | 1<<24 | 1<<31,
			0xd | 1<<4 | 1<<5 | 1<<6 | 1<<8 | 1<<9 | 1<<11 | 1<<12 | 1<<13 | 1<<15 | 1<<16 | 1<<17 | 1<<19 | 1<<23 | 1<<24 | 1<<25 | 1<<26 | 1<<28},
		[4]uint32{2: 1<<12 | 1<<22 | 1<<26 | 1<<28 | 1<<29}},
	{6, 0, [4]uint32{0: 1 << 2}, [4]uint32{}}, // ARAT
	// FSGSBASE, BMI1, AVX2, SMEP, BMI2, ERMS.
	{7, 0, [4]uint32{}, [4]uint32{1: 1<<0 | 1<<3 | 1<<5 | 1<<7 | 1<<8 | 1<<9}},
	// The state of x87, SSE and AVX; XSAVEOPT; where AVX's is.
	{0xd, 0, [4]uint32{}, [4]uint32{0: 7}},
	{0xd, 1, [4]uint32{}, [4]uint32{0: 1}},
	{0xd, 2, [4]uint32{}, [4]uint32{allBits, allBits, allBits, allBits}},
	// The clocks, which need no hypercall.
	{cpuidKVMFeatures, 0, [4]uint32{0: 1<<0 | 1<<3 | 1<<24}, [4]uint32{}},
	// LAHF; SYSCALL, NX, 64-bit mode. LZCNT; RDTSCP.
	{cpuidAMDFeatures, 0, [4]uint32{2: 1 << 0, 3: 1<<11 | 1<<20 | 1<<29}, [4]uint32{2: 1 << 5, 3: 1 << 27}},
	{0x80000007, 0, [4]uint32{3: 1 << 8}, [4]uint32{}}, // an invariant TSC
	{cpuidAMDSizes, 0, [4]uint32{0: allBits, 2: allBits}, [4]uint32{}},
}

// has is which bits a model has of the leaf.
func (l *modelLeaf) has(m CPUModel) [4]uint32 {
	bits := l.v2
	if m == X86V3 {
		for i := range bits {
			bits[i] |= l.v3[i]
		}
	}
	return bits
}

// restrict returns what the model has of a host's leaves.
func (m CPUModel) restrict(host []kvm.CPUIDEntry) (out []kvm.CPUIDEntry) {
	if m.whole() {
		return host
	}
	for _, e := range host {
		if !slices.Contains(wholeLeaves, e.Function) {
			i := slices.IndexFunc(modelLeaves, func(l modelLeaf) bool { return l.leaf == e.Function && l.sub == e.Index })
			if i < 0 {
				continue
			}
			bits := modelLeaves[i].has(m)
			if bits == [4]uint32{} {
				continue
			}
			e.EAX, e.EBX, e.ECX, e.EDX = e.EAX&bits[0], e.EBX&bits[1], e.ECX&bits[2], e.EDX&bits[3]
		}
		switch {
		case e.Function == 0:
			e.EAX = min(e.EAX, lastLeaf)
		case e.Function == 0xd && e.Index == 0:
			e.EBX, e.ECX = avxAreaSize, avxAreaSize
		case e.Function == 0x40000000:
			e.EAX = cpuidKVMFeatures
		case e.Function == 0x80000000:
			e.EAX = min(e.EAX, lastAMDLeaf)
		}
		out = append(out, e)
	}
	return out
}

// checkModel refuses a host that lacks what the machine's model has.
func (m *Machine) checkModel() error {
	model := m.cfg.CPUModel
	if model.whole() {
		return nil
	}
	have, err := m.cpus[0].seenOf(m.supported)
	if err != nil {
		return err
	}
	var want []kvm.CPUIDEntry
	for _, l := range modelLeaves {
		bits := l.has(model)
		want = append(want, kvm.CPUIDEntry{Function: l.leaf, Index: l.sub, Flags: kvm.CPUIDSignificantIndex,
			EAX: bits[0], EBX: bits[1], ECX: bits[2], EDX: bits[3]})
	}
	if missing := missingFeatures(want, have); missing != nil {
		return &ModelError{model, missing}
	}
	return nil
}
