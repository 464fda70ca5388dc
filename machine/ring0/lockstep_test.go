package ring0

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"vmm/internal/x86"
	"vmm/kvm"
)

// Two complete CPUs, of which one interprets all and the other translates all, with the same
// programs: both must come to the same registers, flags, memory, extended state and exceptions.

// Where the machine of these tests has what; all pages but the last ones are mapped to
// themselves.
const (
	lockPages    = 48
	lockTables   = 0x1000 // PML4, PDPT, PD, PT
	lockGDT      = 0x5000
	lockIDT      = 0x6000
	lockTSS      = 0x7000
	lockHandlers = 0x8000 // an exception's vector at 16 times it: HLT
	lockSyscall  = 0x9000 // STAC and more
	lockStack    = 0xafe0 // of exceptions
	lockCode     = 0x10000
	lockCodeEnd  = 0x13000 // which cannot be written to
	lockData     = 0x20000 // pages with all rights, but for execution, around these:
	lockReadOnly = 0x23000
	lockMissing  = 0x25000
	lockKernel   = 0x27000
	lockDataEnd  = 0x29000
	lockDevice   = 0x29000
)

// lockBoard is testBoard with extended state that the host has.
type lockBoard struct{ testBoard }

func (b *lockBoard) XCR0() (uint64, error) { return x86.XCR0() & 7, nil }

// lockMode is what a program of these tests runs as.
type lockMode struct {
	user, smap bool
}

// lockCPU returns a CPU of these tests.
func lockCPU(t testing.TB, translated bool) *CPU {
	t.Helper()
	b := &lockBoard{testBoard{devices: map[uint64]byte{}}}
	c, err := NewComplete(b, NewMemory(make(lockRAM, lockPages)), [64]Component{2: {Offset: 576, Size: 256}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if translated {
		if err := c.Translate(); err != nil {
			t.Skip(err)
		}
	}
	return c
}

// lockRAM is their memory.
type lockRAM [][pageSize]byte

func (m lockRAM) Size() uint64 { return uint64(len(m)) * pageSize }
func (m lockRAM) Page(gpa uint64) *[pageSize]byte {
	if gpa >= m.Size() {
		return nil
	}
	return &m[gpa>>12]
}
func (m lockRAM) Mapped(uint64, bool) *[pageSize]byte { return nil }
func (m lockRAM) WritePage(uint64)                    {}

// lockMemory is a CPU's memory.
func lockMemory(c *CPU) lockRAM { return c.tables.mem.(lockRAM) }

// layOut makes a CPU's memory that of a machine with a program at an address, and begins it.
func layOut(c *CPU, code []byte, at uint64, mode lockMode, regs kvm.Regs, fill byte) {
	mem := lockMemory(c)
	clear(mem)
	const rights = x86.PTEPresent | x86.PTEWritable | x86.PTEUser
	for i := range 3 {
		le.PutUint64(mem[1+i][:], uint64(lockTables+0x1000*(i+1))|rights)
	}
	for i := range uint64(lockPages) {
		entry := i<<12 | x86.PTEPresent | x86.PTEWritable
		switch a := i << 12; {
		case a >= lockCode && a < lockCodeEnd:
			entry = a | x86.PTEPresent
			if mode.user {
				entry |= x86.PTEUser
			}
		case a == lockMissing:
			entry = 0
		case a == lockReadOnly:
			entry = a | x86.PTEPresent | x86.PTEUser | x86.PTENX
		case a == lockDevice:
			entry = 0xfe000000 | rights | x86.PTENX
		case a >= lockData && a < lockDataEnd && a != lockKernel:
			entry = a | rights | x86.PTENX
		case a >= lockData:
			entry |= x86.PTENX
		}
		le.PutUint64(mem[4][8*i:], entry)
	}
	for i, d := range []uint64{0, 0x00af9b000000ffff, 0x00cf93000000ffff, 0x00cffb000000ffff, 0x00cff3000000ffff, 0x00affb000000ffff} {
		le.PutUint64(mem[lockGDT>>12][8*i:], d)
	}
	for v := range uint64(256) {
		h, ist := lockHandlers+16*v, uint64(1)
		le.PutUint64(mem[lockIDT>>12][16*v:], h&0xffff|8<<16|ist<<32|0x8e<<40|h>>16<<48)
		mem[lockHandlers>>12][16*v] = 0xf4
	}
	mem[0][0] = 0xf4
	copy(mem[lockSyscall>>12][:], []byte{
		0x0f, 0x01, 0xcb, 0x48, 0x8b, 0x03, // stac; mov rax, [rbx]
		0x83, 0xfb, 1, 0x75, 1, 0xf4, // cmp ebx, 1; jne +1; hlt
		0x48, 0x0f, 0x07}) // sysretq
	le.PutUint64(mem[lockTSS>>12][tssRSP0:], lockStack)
	le.PutUint64(mem[lockTSS>>12][tssIST:], lockStack)
	le.PutUint16(mem[lockTSS>>12][tssIOMap:], 0xffff)
	x := uint32(fill) + 1
	for a := uint64(lockData); a < lockDataEnd; a += 4 { // numbers of all kinds
		x = x*1664525 + 1013904223
		v := x
		if x>>28 < 8 {
			v = x >> 24 & 7
		}
		le.PutUint32(mem[a>>12][a&pageMask:], v)
	}
	for i, b := range code {
		mem[(at+uint64(i))>>12][(at+uint64(i))&pageMask] = b
	}
	s := kvm.Sregs{CR3: lockTables, CR0: x86.CR0PG | x86.CR0WP | x86.CR0PE, CR4: x86.CR4PAE, EFER: x86.EFERLMA | x86.EFERLME | x86.EFERNXE | 1,
		CS: flatSegment(8, true, 0), SS: flatSegment(0x10, false, 0), GDT: kvm.DTable{Base: lockGDT, Limit: 0xfff},
		IDT: kvm.DTable{Base: lockIDT, Limit: 0xfff}, TR: kvm.Segment{Base: lockTSS, Limit: 0x67}}
	if mode.smap || mode.user {
		s.CR4 |= cr4FSGSBase
	}
	if mode.smap {
		s.CR4 |= x86.CR4SMAP | x86.CR4SMEP
	}
	if mode.user {
		s.CS, s.SS = flatSegment(0x2b, true, 3), flatSegment(0x23, false, 3)
	}
	s.FS.Base, s.GS.Base = lockData+0x800, lockData+0x1ff0
	b := c.board.(*lockBoard)
	b.msrs = map[uint32]uint64{x86.MSRStar: 0x001b_0008_0000_0000, x86.MSRLStar: lockSyscall, x86.MSRSFMask: flagIF | flagAC | flagTF}
	b.area = [4096]byte{}
	le.PutUint16(b.area[:], 0x37f)
	le.PutUint32(b.area[xOffMXCSR:], defaultMXCSR)
	for i := xOffXMM; i < xEndXMM; i++ {
		b.area[i] = byte(i) * (fill | 1)
	}
	le.PutUint64(b.area[xOffHeader:], 7)
	c.ForgetExtended()
	c.SetKernelGSBase(lockData + 0x100)
	c.First, c.Exit = Exception{Vector: 0xff}, Exit{}
	c.supplied, c.exits, c.InNMI, c.WrittenMSR = c.supplied[:0], false, false, 0
	for n := range c.debug {
		c.SetDebugRegister(n, 0)
	}
	c.own.met, c.touched = 0, nil
	c.forgetFailure()
	c.frame.Attention.Store(0)
	c.Reset(&regs, &s)
}

// lockPair is the two CPUs.
type lockPair struct {
	plain, quick *CPU
	compared     int // programs
	steps        int // instructions of those
	trace        []string
	setUp        func(lockRAM) // changes the memory that a program finds, if it is not nil
}

func newLockPair(t testing.TB) *lockPair {
	return &lockPair{plain: lockCPU(t, false), quick: lockCPU(t, true)}
}

const lockSteps = 600

// step interprets a program, an instruction at a time. undefined are the flags that have no
// defined value in the end. It reports false where the program goes on for long, or computes
// with such flags.
func (p *lockPair) step() (stop Stop, undefined uint16, ok bool) {
	c := p.plain
	p.trace = p.trace[:0]
	planner := &translator{components: 7, smap: c.sregs.CR4&x86.CR4SMAP != 0}
	for range lockSteps {
		planner.tlb = c.tlbNumber
		var in inst
		reads, code := uint16(arithFlags), c.Code()
		ok := decodeComplete(code, &in, mode64)
		if len(p.trace) >= 40 {
			p.trace = p.trace[20:]
		}
		p.trace = append(p.trace, fmt.Sprintf("%#x: % x", c.r[rIP], code[:in.len]))
		if in.opcode == map0F|0xc7 && !in.mem {
			return 0, 0, false // random numbers
		}
		if ok {
			if pl := planner.planOf(&in, code[:in.len]); pl.emit != nil {
				if reads = pl.reads; in.opcode&^0xf == 0x70 || in.opcode&^0xf == map0F|0x80 {
					reads = conditionFlags(in.op)
				}
				if pl.leaves && in.priv == 0 && in.opcode != map0F|0x05 {
					reads = 0
				}
				if in.undefined != 0 || pl.touches {
					defined := pl.kills &^ in.undefined
					if undefined&reads != 0 {
						return 0, 0, false
					}
					undefined, reads = undefined&^defined|in.undefined, 0
				}
			} else if in.form != (vectorForm{}) || in.opcode == 0xf4 || in.opcode == 0xd2 || in.opcode == 0xd3 {
				if reads = 0; in.opcode < 0x100 && in.opcode != 0xf4 && (in.op == 2 || in.op == 3) { // RCL, RCR
					reads = flagCF
				}
				if undefined&reads != 0 {
					return 0, 0, false
				}
				undefined |= in.undefined
				reads = 0
			}
		}
		if undefined&reads != 0 {
			return 0, 0, false
		}
		p.steps++
		if stop = c.Run(1); stop != StopBudget {
			return stop, undefined, true
		}
		if c.First.Vector != 0xff { // what is in the handlers is HLT
			undefined = arithFlags
		}
	}
	return 0, 0, false
}

// check runs a program on both CPUs, and again from where it has come to if it halts. It
// returns how they differ.
func (p *lockPair) check(code []byte, at uint64, mode lockMode, regs kvm.Regs, fill byte) error {
	for _, c := range []*CPU{p.plain, p.quick} {
		layOut(c, code, at, mode, regs, fill)
		if p.setUp != nil {
			p.setUp(lockMemory(c))
		}
		c.Changed(1 + int32(fill%4))
	}
	stop, undefined, ok := p.step()
	if !ok {
		return nil
	}
	p.compared++
	guard := time.AfterFunc(20*time.Second, p.quick.Attend) // else a fault could have it go on for ever
	got := p.quick.Run(1 << 30)
	guard.Stop()
	if got != stop {
		return fmt.Errorf("%v at %#x, interpreted %v at %#x; exceptions %+v, %+v, exit %+v\n%s", got, p.quick.r[rIP], stop, p.plain.r[rIP], p.quick.First, p.plain.First, p.plain.Exit, strings.Join(p.trace, "\n"))
	}
	if stop != StopHalt {
		undefined = arithFlags // they may be older in the middle of a block
	}
	if stop != StopExit { // what was begun and not done
		p.quick.Exit, p.plain.Exit = Exit{}, Exit{}
	}
	if err := p.differ(undefined); err != nil {
		return fmt.Errorf("stopped by %v: %w\n%s", stop, err, strings.Join(p.trace, "\n"))
	}
	return nil
}

// differ tells how the CPUs differ.
func (p *lockPair) differ(undefined uint16) error {
	a, b := p.quick, p.plain
	if x, y := a.First, b.First; x != y || a.Exit != b.Exit || a.sregs.CR2 != b.sregs.CR2 {
		return fmt.Errorf("exception %+v, interpreted %+v; exits %+v, %+v; RIP %#x, %#x", x, y, a.Exit, b.Exit, a.r[rIP], b.r[rIP])
	}
	faulted := a.First.Vector != 0xff
	if faulted {
		undefined = arithFlags
		for _, c := range []*CPU{a, b} { // of what is pushed, too
			at := c.r[rSP] + 16
			if c.First.HasError {
				at += 8
			}
			if page := lockMemory(c); at >= lockStack-0x40 && at < lockStack {
				le.PutUint64(page[at>>12][at&pageMask:], le.Uint64(page[at>>12][at&pageMask:])&^arithFlags)
				// A translated CALL to no address has written where it would have returned to.
				for i := uint64(0); i < 8 && c.First.Vector == vectorGP; i++ {
					if a := le.Uint64(page[at>>12][at&pageMask+8:]) - 8 + i; a>>12 < lockPages {
						page[a>>12][a&pageMask] = 0
					}
				}
			}
		}
	}
	for i := range a.r {
		if a.r[i] != b.r[i] && i != rZero {
			return fmt.Errorf("register %d: %#x, interpreted %#x (RIP %#x, %#x; %+v)", i, a.r[i], b.r[i], a.r[rIP], b.r[rIP], a.First)
		}
	}
	if f := (a.flags() ^ b.flags()) &^ uint64(undefined); f != 0 {
		return fmt.Errorf("flags that differ: %#x, RIP %#x", f, a.r[rIP])
	}
	if a.cpl != b.cpl || a.base != b.base || a.kernelGSBase != b.kernelGSBase || a.sregs.CS != b.sregs.CS || a.sregs.SS != b.sregs.SS || a.tlbNumber != b.tlbNumber {
		return fmt.Errorf("level %d, bases %x %x, TLB %d; interpreted %d, %x %x, %d", a.cpl, a.base, a.kernelGSBase, a.tlbNumber, b.cpl, b.base, b.kernelGSBase, b.tlbNumber)
	}
	for i := range lockMemory(a) {
		if i >= 1 && i <= 4 || i >= otherTables>>12 && i < otherTables>>12+4 {
			continue // what was read or written in advance may differ
		}
		x, y := &lockMemory(a)[i], &lockMemory(b)[i]
		for k := 0; *x != *y; k++ {
			if x[k] != y[k] {
				return fmt.Errorf("memory at %#x: %#x, interpreted %#x (RIP %#x)", i<<12|k, x[k], y[k], a.r[rIP])
			}
		}
	}
	for _, c := range []*CPU{a, b} {
		if err := c.StoreExtended(); err != nil {
			return err
		}
	}
	x, y := a.board.(*lockBoard).area[:], b.board.(*lockBoard).area[:]
	for _, part := range [][2]int{{0, 2}, {24, 28}, {32, 416}, {576, 832}} { // FCW, MXCSR, the registers
		if !bytes.Equal(x[part[0]:part[1]], y[part[0]:part[1]]) {
			return fmt.Errorf("extended state at %d:\n% x\n% x", part[0], x[part[0]:part[1]], y[part[0]:part[1]])
		}
	}
	return nil
}
