// Package x86 has the bits of the x86 architecture that are met in several places: in
// how a kernel is entered, where kernel mode is interpreted, and where a debugger
// looks. Sections are those of Intel's SDM, volume 3.
package x86

// Bits of CR0 (2.5).
const (
	CR0PE = 1 << 0  // protected mode
	CR0ET = 1 << 4  // always one
	CR0WP = 1 << 16 // read-only pages are for kernel mode too
	CR0PG = 1 << 31 // paging
)

// Bits of CR4 (2.5).
const (
	CR4PAE        = 1 << 5
	CR4PGE        = 1 << 7
	CR4OSFXSR     = 1 << 9
	CR4OSXMMEXCPT = 1 << 10
	CR4LA57       = 1 << 12 // page tables of five levels
	CR4OSXSAVE    = 1 << 18
	CR4SMEP       = 1 << 20 // kernel mode does not execute pages of user mode
	CR4SMAP       = 1 << 21 // nor read or write them
)

// Bits of the EFER register (2.2.1).
const (
	EFERLME = 1 << 8  // long mode, once there is paging
	EFERLMA = 1 << 10 // long mode
	EFERNXE = 1 << 11 // PTENX means something
)

// Bits of an entry of a page table (4.5).
const (
	PTEPresent  = 1 << 0
	PTEWritable = 1 << 1
	PTEUser     = 1 << 2
	PTEAccessed = 1 << 5
	PTEDirty    = 1 << 6
	PTEGlobal   = 1 << 8
	PTELarge    = 1 << 7 // PS: the page of a level above the last
	PTENX       = 1 << 63
	PTEFrame    = 0x000ffffffffff000 // the address
)

// CPUIDOSXSAVE is the bit of leaf 1 in ECX that tells that CR4 has CR4OSXSAVE (SDM 2, CPUID).
const CPUIDOSXSAVE = 1 << 27

// PageTableBits is how many bits of a linear address each level translates.
const PageTableBits = 9
