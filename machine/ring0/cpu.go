// Package ring0 executes guest code in userspace. It does so in two ways.
//
// Execute is for hosts whose KVM runs guest user mode natively but only interprets
// guest kernel mode, slowly and without the newer instructions. It is an executor for
// 64-bit code at privilege level 0 with two principles:
//
//   - It does only what it is sure of. An instruction that it does not know,
//     that touches anything but RAM, or that would fault is left untouched for
//     KVM to execute (StopKVM), with the machine state as before it. So there is
//     no device, interrupt or exception logic in it.
//   - What KVM cannot do on such hosts (XSAVE, CMPXCHG16B, SYSRET, ...) is done
//     here completely, faults included, with the help of a Host.
//
// Run is for a CPU that is executed here as a whole (NewComplete), with the help of
// a Board: user mode, exceptions, system calls, segments, ports and devices. It uses
// the same instructions; where Execute leaves one to KVM, Run does it in a slower way.
//
// Decoded instructions are cached by their physical address together with their
// bytes, which are compared on every execution; so self-modifying code needs hardly
// any care. Memory accesses go through a software TLB with the
// semantics of the hardware's: it may be stale until the guest invalidates it.
//
// The instruction set reference is the Intel SDM, volume 2.
package ring0

import (
	"errors"
	"sync/atomic"

	"vmm/internal/x86"
	"vmm/kvm"
	"vmm/machine/native"
)

// Register numbers as instructions encode them.
const (
	rAX = iota
	rCX
	rDX
	rBX
	rSP
	rBP
	rSI
	rDI
	r8
	r9
	r10
	r11
	r12
	r13
	r14
	r15
	// rZero reads as 0: the absent base or index of an address.
	rZero
	// rIP is the address of the next instruction while one executes.
	rIP
	numRegs
)

// Bits of RFLAGS (SDM 1, 3.4.3).
const (
	flagCF   = 1 << 0
	flagOne  = 1 << 1
	flagPF   = 1 << 2
	flagAF   = 1 << 4
	flagZF   = 1 << 6
	flagSF   = 1 << 7
	flagTF   = 1 << 8
	flagIF   = 1 << 9
	flagDF   = 1 << 10
	flagOF   = 1 << 11
	flagIOPL = 3 << 12
	flagNT   = 1 << 14
	flagRF   = 1 << 16
	flagVM   = 1 << 17
	flagAC   = 1 << 18
	flagID   = 1 << 21

	arithFlags = flagCF | flagPF | flagAF | flagZF | flagSF | flagOF
)

// Host is what the executor needs of the vCPU that it executes for.
type Host interface {
	// XSave reads and SetXSave writes the extended state in the standard
	// format; XSaveSize is its size in bytes.
	XSave(area []byte) error
	SetXSave(area []byte) error
	XSaveSize() int
	// XCR0 returns the components that the guest enabled.
	XCR0() (uint64, error)
	// MSR reads a model-specific register.
	MSR(index uint32) (uint64, error)
	// TSC returns the guest's time-stamp counter.
	TSC() uint64
}

// Component is where XSAVE keeps one state component (CPUID leaf 0xd).
type Component struct {
	Offset, Size int  // bytes, in the standard format
	Align64      bool // in the compacted format
}

// CPU is the part of a vCPU's state that kernel code computes with. It belongs
// to one goroutine.
type CPU struct {
	*frame

	// The arithmetic flags are kept as the values that they derive from.
	cf, of, af uint64 // 0 or 1
	zv         uint64 // zero: ZF is set
	sv         uint64 // its bit 63 is SF
	pv         uint8  // the byte whose even parity is PF

	knownGSBase uint64 // what the vCPU's IA32_KERNEL_GS_BASE holds
	sregsDirty  bool

	host       Host
	components [64]Component
	garea      []byte // the guest's XSAVE area
	vector     vectorCode

	// The extended state; extended.go says where it is.
	xarea       []byte
	xLoaded     bool // xarea is not older than the host's
	xChanged    bool // it is newer
	unit        *native.Unit
	unitHas     bool // the unit's is not older than xarea
	unitChanged bool // it is newer
	xcr0Value   uint64
	xcr0Known   bool

	tlb         *tlb // the one in use, of frame.tlbs
	tlbNumber   int
	translator  *translator // nil where all is interpreted
	code        itlbEntry
	global      bool   // the page that walk has found last
	noUser      bool   // SMAP forbids data accesses to user pages now
	userAccess  uint32 // pfUser at privilege level 3
	tables      *Tables
	seen        uint64 // the generation of tables that the TLB knows
	running     running
	guarded     atomic.Uint64 // the last guard that the TLBs keep
	endedGuards []uint32      // guards that have ended since; of tables.mu
	fault       pageFault
	blocked     uint64 // the table page that the last refused store hit
	bypass      bool   // stores to tables are not refused

	// Of a complete CPU (board.go); board is nil for one that KVM has the rest of.
	board        Board
	cpl          uint8
	mode         uint8
	slow         bool // the instruction is tried once more, in the slow ways
	notCanonical bool // the last access failed for that
	onDevice     bool // the last access failed at device, which is no memory
	device       uint64
	deviceData   [8]byte
	supplied     []suppliedRead
	used         int
	sent         int // writes to devices that the instruction has made
	skipped      int // of those, when it comes again
	exits        bool
	watchpoints  []Watchpoint // the debugger's, and those of own
	debuggers    int          // how many of them are the debugger's
	touched      []touched    // what the instruction has accessed of their pages
	watched      int
	lone         tlbEntry // of a page that is not to be in the TLB
	passed       uint64   // the breakpoint at which Run stopped last, plus one
	debug        [8]uint64
	own          ownBreakpoints
	// Exit is the access of a StopExit.
	Exit Exit
	// First is the exception that was raised last, which a StopShutdown began with.
	First Exception

	journal *Trial // records what is written, while one is made

	cache blocks
	fence atomic.Uint32

	// WrittenMSR is the last MSR that a WRMSR named, until the owner clears it.
	WrittenMSR uint32

	// LeavesByIRet is set where the instruction handed over is an IRET.
	LeavesByIRet bool

	// Failure is why the host could not do its part, after StopUnknown.
	Failure error

	// TrapInt3 has a complete CPU stop (StopBreakpoint) instead of raising #BP.
	TrapInt3 bool
	// Breakpoints are addresses at which Execute and Run stop; nil where there are none.
	Breakpoints map[uint64]bool

	// Inject is the exception to inject after StopInject.
	Inject Exception
}

// Exception is one to inject into the guest.
type Exception struct {
	Vector   uint8
	HasError bool
	Error    uint32
	CR2      uint64 // for #PF
	Soft     bool   // by an INT instruction
	external bool
	behind   uint8 // of a Soft one, how many bytes RIP is behind the instruction's first
}

// pageFault is why the last access failed.
type pageFault struct {
	valid bool
	addr  uint64
	err   uint32
}

// Exception vectors (SDM 3, 6.3.1).
const (
	vectorBP = 3
	vectorUD = 6
	vectorGP = 13
	vectorPF = 14
	vectorAC = 17
)

// New returns an executor, to be closed. components come from CPUID leaf 0xd; tables is
// shared by all vCPUs of a VM.
func New(host Host, tables *Tables, components [64]Component) (*CPU, error) {
	unit, err := native.New()
	if err != nil {
		return nil, err
	}
	c := &CPU{frame: newFrame(), unit: unit, host: host, tables: tables, components: components,
		xarea: make([]byte, host.XSaveSize())}
	c.tlb = &c.frame.tlbs[tlbKernel]
	c.FlushTLB()
	c.cache.insts = make([]inst, 0, maxInsts)
	tables.join(c)
	return c, nil
}

// Close frees what New has taken. The executor must not be used after it.
func (c *CPU) Close() error {
	if c.translator != nil {
		return errors.Join(c.unit.Close(), c.translator.close())
	}
	return c.unit.Close()
}

// Load takes the state that KVM left after an exit. IA32_KERNEL_GS_BASE is kept
// from earlier: only kernel mode changes it.
func (c *CPU) Load(regs *kvm.Regs, sregs *kvm.Sregs) {
	r := &c.frame.r
	r[rAX], r[rBX], r[rCX], r[rDX] = regs.RAX, regs.RBX, regs.RCX, regs.RDX
	r[rSI], r[rDI], r[rSP], r[rBP] = regs.RSI, regs.RDI, regs.RSP, regs.RBP
	r[r8], r[r9], r[r10], r[r11] = regs.R8, regs.R9, regs.R10, regs.R11
	r[r12], r[r13], r[r14], r[r15] = regs.R12, regs.R13, regs.R14, regs.R15
	r[rIP] = regs.RIP
	if sregs.CR3 != c.sregs.CR3 || sregs.CR0 != c.sregs.CR0 || sregs.CR4 != c.sregs.CR4 || sregs.EFER != c.sregs.EFER {
		c.FlushTLB()
	}
	if (sregs.CR4^c.sregs.CR4)&x86.CR4SMAP != 0 {
		c.forgetTranslations()
	}
	c.ForgetSyscalls()
	c.sregs = *sregs
	c.sregsDirty = false
	if !c.xChanged && !c.unitChanged {
		c.xLoaded, c.unitHas = false, false
	}
	c.base[segFS], c.base[segGS] = sregs.FS.Base, sregs.GS.Base
	c.setMode()
	c.setFlags(regs.RFLAGS)
}

// Store gives the state back for KVM. It reports whether the special
// registers have changed since Load.
func (c *CPU) Store(regs *kvm.Regs, sregs *kvm.Sregs) (sregsChanged bool) {
	r := &c.frame.r
	regs.RAX, regs.RBX, regs.RCX, regs.RDX = r[rAX], r[rBX], r[rCX], r[rDX]
	regs.RSI, regs.RDI, regs.RSP, regs.RBP = r[rSI], r[rDI], r[rSP], r[rBP]
	regs.R8, regs.R9, regs.R10, regs.R11 = r[r8], r[r9], r[r10], r[r11]
	regs.R12, regs.R13, regs.R14, regs.R15 = r[r12], r[r13], r[r14], r[r15]
	regs.RIP = r[rIP]
	regs.RFLAGS = c.flags()
	if c.sregs.FS.Base != c.base[segFS] || c.sregs.GS.Base != c.base[segGS] {
		c.sregs.FS.Base, c.sregs.GS.Base = c.base[segFS], c.base[segGS]
		c.sregsDirty = true
	}
	changed := c.sregsDirty
	*sregs = c.sregs
	c.sregsDirty = false
	return changed
}

// KernelGSBase returns IA32_KERNEL_GS_BASE and whether it differs from the
// vCPU's, which must then be written.
func (c *CPU) KernelGSBase() (v uint64, changed bool) {
	changed = c.kernelGSBase != c.knownGSBase
	c.knownGSBase = c.kernelGSBase
	return c.kernelGSBase, changed
}

// SetKernelGSBase tells what the vCPU's IA32_KERNEL_GS_BASE holds.
func (c *CPU) SetKernelGSBase(v uint64) { c.kernelGSBase, c.knownGSBase = v, v }

// RIP returns the address of the next instruction.
func (c *CPU) RIP() uint64 { return c.r[rIP] }

// CanExecute reports whether the state is one that this package executes: level
// 0, 64-bit code, 4-level paging.
func (c *CPU) CanExecute() bool {
	s := &c.sregs
	return s.EFER&x86.EFERLMA != 0 && s.CS.L == 1 && s.SS.DPL == 0 && s.CS.Selector&3 == 0 &&
		s.CR4&x86.CR4LA57 == 0 && c.sys&(flagTF|flagVM|flagNT) == 0
}

// User reports whether the state is at privilege level 3.
func (c *CPU) User() bool { return c.sregs.CS.Selector&3 == 3 && c.sregs.EFER&x86.EFERLMA != 0 }

// InterruptsOn reports whether the guest accepts interrupts.
func (c *CPU) InterruptsOn() bool { return c.sys&flagIF != 0 }

func (c *CPU) flags() uint64 {
	f := c.sys | flagOne | c.cf | c.af<<4 | c.of<<11 | c.sv>>63<<7
	if c.zv == 0 {
		f |= flagZF
	}
	if parityEven(c.pv) {
		f |= flagPF
	}
	return f
}

func (c *CPU) setFlags(f uint64) {
	c.sys = f &^ (arithFlags | flagOne)
	c.setArith(f)
	c.updateSMAP()
	if f&flagTF != 0 {
		c.frame.Attention.Or(attendTrace)
	}
}

func (c *CPU) setArith(f uint64) {
	c.cf = f & flagCF
	c.af = f >> 4 & 1
	c.of = f >> 11 & 1
	c.sv = f >> 7 << 63
	c.zv = ^f & flagZF
	c.pv = 1
	if f&flagPF != 0 {
		c.pv = 0
	}
}

// updateSMAP follows CR4.SMAP and RFLAGS.AC (SDM 3, 4.6.1).
func (c *CPU) updateSMAP() {
	c.noUser = c.sregs.CR4&x86.CR4SMAP != 0 && c.sys&flagAC == 0 && c.userAccess == 0
	c.chooseTLB()
}

func parityEven(b uint8) bool {
	b ^= b >> 4
	return 0x9669>>(b&15)&1 != 0
}

// condition evaluates the 16 conditions of Jcc, SETcc and CMOVcc.
func (c *CPU) condition(cc uint8) bool {
	var v bool
	switch cc >> 1 {
	case 0:
		v = c.of != 0
	case 1:
		v = c.cf != 0
	case 2:
		v = c.zv == 0
	case 3:
		v = c.cf != 0 || c.zv == 0
	case 4:
		v = c.sv>>63 != 0
	case 5:
		v = parityEven(c.pv)
	case 6:
		v = c.sv>>63 != c.of
	case 7:
		v = c.zv == 0 || c.sv>>63 != c.of
	}
	return v != (cc&1 != 0)
}

// SetCR2 sets the address of a page fault to inject.
func (c *CPU) SetCR2(addr uint64) {
	c.sregs.CR2 = addr
	c.sregsDirty = true
}

// Code returns the bytes of the instruction at RIP, as far as they can be
// read; for messages.
func (c *CPU) Code() []byte {
	var b [15]byte
	for n := len(b); n > 0; n-- {
		if c.read(c.r[rIP], b[:n]) {
			return b[:n]
		}
		c.forgetFailure()
	}
	return nil
}
