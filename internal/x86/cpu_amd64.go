package x86

// RDTSC reads the host's time-stamp counter.
//
//go:noescape
func RDTSC() uint64

// CPUID returns EAX, EBX, ECX and EDX of a leaf of the host's CPU (SDM 2, CPUID).
func CPUID(leaf, sub uint32) [4]uint32 {
	a, b, c, d := cpuid(leaf, sub)
	return [4]uint32{a, b, c, d}
}

// XCR0 returns the components of the extended state that the host's kernel has enabled,
// 0 if it has no XSAVE.
func XCR0() uint64 {
	if _, _, c, _ := cpuid(1, 0); c&CPUIDOSXSAVE == 0 {
		return 0
	}
	return xgetbv()
}

func cpuid(leaf, sub uint32) (a, b, c, d uint32)
func xgetbv() uint64
