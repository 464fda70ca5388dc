// Package native executes short pieces of machine code on the host's own CPU, in
// this process, with registers of the caller's: how an emulator has instructions
// done that it knows to be harmless and does not want to imitate, as those of
// SSE, AVX and the x87.
//
// A piece runs to its end or traps; a trap (an undefined opcode, an exception of
// the floating-point unit, a misaligned operand) is told to the caller and is no
// harm. What a piece must never do is what no trap stops: transfer control out
// of itself, make a system call, or access memory other than Context.Scratch. To see to
// that is the caller's part.
//
// Code is written through one mapping of a memory file and executed through
// another, so that no page is ever writable and executable at once. All mappings
// are made with the first Unit: a process that may not make executable memory
// later can still use them.
package native
