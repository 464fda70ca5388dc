package native

import "sync/atomic"

// Frame is the beginning of what a Region's code works with: its address is in RSP while
// the code is executed, or 8 less in a routine that the code calls. That is how the two are told
// from each other: a Frame's address must be 8 more than a multiple of 16, with 8 bytes in
// front of it for the return address.
type Frame struct {
	// Attention gets the bit AttendRuntime when the Go runtime wants the goroutine back;
	// the code must look at it now and then, and return. Its other bits are the owner's.
	Attention atomic.Uint32
	// Trap is the number of the exception that ended the code, plus one; 0 where it was none.
	Trap uint32
	// TrapAt is the address of the instruction that trapped.
	TrapAt uint64

	hostSP uint64
	// HostRBP is what RBP must be when the code goes to Return, with RSP still the frame's
	// address: so it returns from Enter.
	HostRBP, Return uint64
	// TrapExit is where a trap sends the code.
	TrapExit uint64
}

// AttendRuntime is the bit of Frame.Attention that is the runtime's.
const AttendRuntime = 1 << 31
