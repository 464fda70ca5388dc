package ring0

import (
	"sync/atomic"

	"vmm/internal/x86"
	"vmm/kvm"
)

// Board is what surrounds a CPU that is executed here as a whole, in user mode and
// with all exceptions, and not in turns with KVM. Its methods are called by the CPU's
// own goroutine.
type Board interface {
	Host
	// Port and Device serve an access to a port, or to a physical address that is no
	// memory. They report false where the CPU's owner must do it (StopExit).
	Port(port uint16, data []byte, write bool) bool
	Device(gpa uint64, data []byte, write bool) bool
	// CPUIDOf returns EAX, EBX, ECX and EDX of a leaf.
	CPUIDOf(leaf, sub uint32) [4]uint32
	// ReadMSR and WriteMSR report false for what is a fault.
	ReadMSR(index uint32) (uint64, bool)
	WriteMSR(index uint32, v uint64) bool
	// SetXCR0 reports false for what is a fault.
	SetXCR0(v uint64) bool
	CR8() uint64
	SetCR8(uint64)
	// InterruptWanted reports whether an interrupt may be waiting.
	InterruptWanted() bool
}

// Exit is an access for the CPU's owner, of a StopExit.
type Exit struct {
	Port  bool   // to a port; else to memory
	Addr  uint64 // the port or the physical address
	Data  [8]byte
	Len   int
	Write bool
}

// Bits of CPU.attention: why Run must look up before the next instruction.
const (
	attendOwner  = 1 << iota // the owner wants it
	attendExit               // an access is for the owner
	attendTrace              // RFLAGS.TF may be set
	attendShadow             // the last instruction keeps interrupts off for one more
	attendGuards             // guards of pages have ended
)

// NewComplete returns a CPU that is executed as a whole. tables holds its memory.
func NewComplete(board Board, tables *Tables, components [64]Component) (*CPU, error) {
	c, err := New(board, tables, components)
	if err != nil {
		return nil, err
	}
	c.board = board
	return c, nil
}

// NewMemory returns the tables of a machine whose memory KVM has no shadow of.
func NewMemory(mem Memory) *Tables {
	return &Tables{mem: mem, guards: guards{of: make([]atomic.Uint64, guardPages)}, roots: map[uint64]uint64{}, writes: map[uint64]int{}}
}

// Attend has Run return soon with StopAttention. Safe from any goroutine.
func (c *CPU) Attend() { c.frame.Attention.Or(attendOwner) }

// setMode follows what decides over the mode: CS, SS, CR0 and EFER.
func (c *CPU) setMode() {
	if c.board == nil {
		return
	}
	s := &c.sregs
	was := c.mode
	c.cpl = 0
	switch {
	case s.CR0&x86.CR0PE == 0:
		c.mode = mode16
	default:
		c.cpl = s.SS.DPL
		switch {
		case s.EFER&x86.EFERLMA != 0 && s.CS.L != 0:
			c.mode = mode64
		case s.CS.DB != 0:
			c.mode = mode32
		default:
			c.mode = mode16
		}
	}
	c.userAccess = 0
	if c.cpl == 3 {
		c.userAccess = pfUser
	}
	c.code = itlbEntry{}
	if c.mode != was || c.mode != mode64 {
		c.setBases()
	}
	c.updateSMAP()
}

// setBases follows the segments: in 64-bit mode only FS and GS have a base.
func (c *CPU) setBases() {
	s := &c.sregs
	c.base[segES], c.base[segCS], c.base[segSS], c.base[segDS] = 0, 0, 0, 0
	if c.mode != mode64 {
		c.base[segES], c.base[segCS], c.base[segSS], c.base[segDS] = s.ES.Base, s.CS.Base, s.SS.Base, s.DS.Base
	}
}

// Modes of the code segment.
const (
	mode64 = iota
	mode32
	mode16
)

// Reset puts the CPU into the state of an INIT (SDM 3, table 10-1); KVM's structures
// say it whole.
func (c *CPU) Reset(regs *kvm.Regs, sregs *kvm.Sregs) {
	c.Load(regs, sregs)
	c.FlushTLB()
	c.InNMI = false
}

// Sregs are the special registers, but for the bases of FS and GS.
func (c *CPU) Sregs() *kvm.Sregs { return &c.sregs }

// KernelGS is IA32_KERNEL_GS_BASE.
func (c *CPU) KernelGS() uint64 { return c.kernelGSBase }

// Supply gives what the owner has read for the last Exit. The instruction is executed
// again with it.
func (c *CPU) Supply(data []byte) {
	var r suppliedRead
	copy(r[:], data)
	c.supplied = append(c.supplied, r)
}

type suppliedRead [8]byte

// ForgetExtended tells that the host's extended state was changed by its owner.
func (c *CPU) ForgetExtended() {
	c.xLoaded, c.xChanged, c.unitHas, c.unitChanged, c.xcr0Known = false, false, false, false, false
}

// SetWaiting tells whether an interrupt is waiting until the guest takes it.
func (c *CPU) SetWaiting(on bool) {
	c.frame.waiting = 0
	if on {
		c.frame.waiting = 1
	}
}

// Deliver delivers an exception or interrupt that was in flight. It reports false if the
// CPU has shut down. For that of an INT3, RIP is the instruction's own.
func (c *CPU) Deliver(e Exception, external bool) bool {
	e.external = external
	if e.Soft && e.Vector == vectorBP {
		c.r[rIP]++
		e.behind = 1
	}
	return c.exception(e)
}

// Shadowed reports whether the last instruction keeps interrupts off for one more, as STI and
// a move to SS do (SDM 3, 6.8).
func (c *CPU) Shadowed() bool { return c.frame.Attention.Load()&attendShadow != 0 }

// SetShadowed tells whether it does, of a state that is loaded.
func (c *CPU) SetShadowed(on bool) {
	if on {
		c.frame.Attention.Or(attendShadow)
	} else {
		c.frame.Attention.And(^uint32(attendShadow))
	}
}
