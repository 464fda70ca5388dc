package ring0

import (
	"vmm/machine/native"
)

// frame is what translated code works with: it has its address in a register. Only the CPU
// itself uses it, but for attention.
type frame struct {
	native.Frame

	// r holds the general registers by number, and RIP in r[rIP].
	r [numRegs]uint64
	// base is of segments, by segNone, segFS, ...
	base [numSegs]uint64

	tlbs [numTLBs]tlb
}

// The TLBs, by what the accesses may do.
const (
	tlbKernel    = iota
	tlbUser      // at privilege level 3
	tlbKernelAll // of kernel mode, to pages of user mode, too
	numTLBs
)

// chooseTLB has accesses use the TLB of what they may do.
func (c *CPU) chooseTLB() {
	switch {
	case c.userAccess != 0:
		c.tlb = &c.frame.tlbs[tlbUser]
	case c.noUser:
		c.tlb = &c.frame.tlbs[tlbKernel]
	default:
		c.tlb = &c.frame.tlbs[tlbKernelAll]
	}
}
