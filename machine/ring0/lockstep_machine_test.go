package ring0

import (
	"bytes"
	"errors"
	"fmt"
	"testing"

	"vmm/internal/x86"
	"vmm/kvm"
)

// Lockstep holds translations to the interpreter while a machine of one CPU executes a guest.
//
// Translations are executed until Run would interpret: blocks that go to each other, however
// many. Then that is undone and interpreted from the same state, and on its way the interpreter
// must come to the state in which translations have left: the same registers, flags, memory and
// extended state. So it does not matter at which block a kick makes translations leave; and what
// has no translation, such as an access to a device, is executed once only, between two runs.
//
// No device may write to the guest's memory by itself meanwhile.
type Lockstep struct {
	Every  int    // compares one of so many runs of translations
	Differ func() // is called at the first difference, with which comparing ends

	Runs         int // of translations
	Compared     int
	Undefined    int // of those, with differences in flags without a defined value that were kept
	Instructions int // of what was compared
	Longest      int // the most of them in a run
	Jumps        int // of those instructions
	Calls        int // those that are SYSCALL and SYSRET
	Vector       int // those that use the vector registers
	Pages        int // that compared runs have written to, each run's
	Difference   error

	cpu     *CPU
	planner translator
	journal Trial
}

// Start has translations compared, of all CPUs, until stop is called.
func (l *Lockstep) Start() (stop func()) {
	runTranslations = l.run
	return func() { runTranslations = (*CPU).runTranslated }
}

// lockState is a CPU's state but for memory.
type lockState struct {
	r            [numRegs]uint64
	flags        uint64
	base         [numSegs]uint64
	kernelGSBase uint64
	sregs        kvm.Sregs

	unitHas, unitChanged bool
	xsave                [lockXSave]byte // where the unit has it
}

// lockXSave is the size of the extended state that a guest may have: x87, SSE and AVX.
const lockXSave = 832

func (s *lockState) take(c *CPU) {
	s.r, s.flags, s.base, s.kernelGSBase, s.sregs = c.r, c.flags(), c.base, c.kernelGSBase, c.sregs
	if s.unitHas, s.unitChanged = c.unitHas, c.unitChanged; s.unitHas {
		copy(s.xsave[:], c.unit.XSave[:])
	}
}

func (s *lockState) restore(c *CPU) {
	c.r, c.base, c.kernelGSBase, c.sregs = s.r, s.base, s.kernelGSBase, s.sregs
	if c.unitHas, c.unitChanged = s.unitHas, s.unitChanged; s.unitHas {
		copy(c.unit.XSave[:], s.xsave[:])
	}
	c.setMode()
	c.setFlags(s.flags)
}

// run is runTranslated, compared.
func (l *Lockstep) run(c *CPU) (one bool) {
	l.Runs++
	if l.Runs%l.Every != 0 || l.Difference != nil {
		return c.runTranslated()
	}
	l.cpu = c
	var before, after lockState
	before.take(c)
	l.journal.pages = l.journal.pages[:0]
	c.journal = &l.journal
	l.emptyTLBs()
	one = c.runTranslated()
	after.take(c)
	live := l.live()
	written := len(l.journal.pages)
	for i := range l.journal.pages {
		p := &l.journal.pages[i]
		p.after, *p.host = *p.host, p.before
	}
	before.restore(c)
	l.emptyTLBs()
	l.compare(&interpretation{to: &after, live: live, written: written})
	c.journal = nil
	// What translations leave in flags that nobody wants is for whom comes next, too.
	for i := range l.journal.pages {
		p := &l.journal.pages[i]
		if *p.host = p.before; i < written {
			*p.host = p.after
		}
	}
	after.restore(c)
	l.emptyTLBs()
	return one
}

// emptyTLBs has all pages be looked for again, by which the journal gets those written to.
func (l *Lockstep) emptyTLBs() {
	for i := range l.cpu.frame.tlbs {
		l.cpu.frame.tlbs[i].empty()
	}
	l.cpu.code = itlbEntry{}
}

// plan has the planner plan for the CPU's level.
func (l *Lockstep) plan() {
	l.planner.tlb, l.planner.smap = l.cpu.tlbNumber, l.cpu.sregs.CR4&x86.CR4SMAP != 0
	l.planner.components, _ = l.cpu.xcr0()
}

// live are the flags that are wanted at RIP: in the middle of a block, others are not exact.
func (l *Lockstep) live() uint64 {
	c, at := l.cpu, l.cpu.r[rIP]
	if !c.fetch(at) {
		c.forgetFailure()
		return arithFlags
	}
	l.plan()
	b := l.planner.plan(c.codeAt(at), maxTranslated)
	return uint64(b.live[0])
}

// interpretation is the way of the interpreter to where translations have left.
type interpretation struct {
	to      *lockState
	live    uint64 // flags that are wanted there
	written int    // how many of the journal's pages translations have written to

	undefined  uint16 // flags
	kept       uint16 // flags that were undefined when they were put into a register or memory
	differs    bool   // just in those
	count      int
	jumps      int
	calls      int
	vector     int
	last       [64]uint64 // where the last instructions were, by the count
	difference error      // how the state was not the same when RIP was
}

// compare interprets, and counts or notes how that ended.
func (l *Lockstep) compare(w *interpretation) {
	from := l.cpu.r[rIP]
	err := l.interpret(w)
	l.cpu.forgetFailure()
	l.Compared++
	l.Instructions += w.count
	l.Longest = max(l.Longest, w.count)
	l.Jumps += w.jumps
	l.Calls += w.calls
	l.Vector += w.vector
	l.Pages += w.written
	if w.differs {
		l.Undefined++
	}
	if err != nil {
		l.Difference = fmt.Errorf("run %d, from %#x to %#x at level %d; interpreted, after %d instructions at %#x: %w; %v; the last instructions %x",
			l.Runs, from, w.to.r[rIP], w.to.sregs.SS.DPL, w.count, l.cpu.r[rIP], err, w.difference, w.last[:min(w.count, len(w.last))])
		l.Differ()
	}
}

// maxInterpreted is more instructions than a run has.
const maxInterpreted = 400e6

// interpret goes on until the state is that in which translations have left.
func (l *Lockstep) interpret(w *interpretation) error {
	c := l.cpu
	l.plan()
	for w.count < maxInterpreted {
		insts := c.block()
		tag, calls := c.code.tag, c.cache.calls
		for i := 0; ; i++ {
			if c.r[rIP] == w.to.r[rIP] {
				if w.difference = l.differ(w); w.difference == nil {
					return nil
				}
			}
			if insts == nil {
				return errors.New("no instruction can be fetched")
			}
			next := c.r[rIP] + uint64(insts[i].len)
			if err := l.step(&insts[i], w); err != nil {
				return err
			}
			if c.r[rIP] != next {
				w.jumps++
			}
			if i+1 == len(insts) || c.r[rIP] != next || c.code.tag != tag || c.cache.calls != calls {
				break
			}
		}
	}
	return errors.New("too many instructions")
}

// step executes an instruction, the one at RIP. What has no translation must not come.
func (l *Lockstep) step(in *inst, w *interpretation) error {
	c := l.cpu
	code := c.decoded(c.r[rIP])[:in.len]
	p := l.planner.planOf(in, code)
	if p.emit == nil {
		return fmt.Errorf("% x has no translation", code)
	}
	reads := p.reads
	switch {
	case jumpsNear(in):
		if reads = conditionFlags(in.op); p.leaves {
			reads = 0
		}
	case in.opcode == opSYSCALL, in.opcode == opSYSRET:
		w.calls++
	case p.leaves:
		reads = 0
	}
	if err := w.useFlags(in, reads); err != nil {
		return err
	}
	w.undefined = w.undefined&^p.kills | in.undefined
	if p.vector {
		w.vector++
	}
	w.last[w.count%len(w.last)] = c.r[rIP]
	w.count++
	tlb := c.tlbNumber
	s := l.alone(in)
	if s == handOver && !c.refused() {
		c.slow = true
		s = c.step()
		c.slow = false
	}
	switch s {
	case done, leave, opened, shadow:
	default:
		return fmt.Errorf("% x is not done (%d): %+v, %+v", code, s, c.fault, c.Inject)
	}
	if c.tlbNumber != tlb {
		l.plan()
	}
	return nil
}

// Instructions that keep all flags elsewhere, or take them from there.
const (
	opPUSHF   = 0x9c
	opSYSCALL = map0F | 0x05
	opSYSRET  = map0F | 0x07
)

// useFlags follows flags without a defined value: nothing but what keeps all flags may read them.
func (w *interpretation) useFlags(in *inst, reads uint16) error {
	switch bad := w.undefined & reads; in.opcode {
	case opPUSHF, opSYSCALL:
		w.kept |= bad
	case opSYSRET:
		w.undefined = w.kept
	default:
		if bad != 0 {
			return fmt.Errorf("flags %#x are read that have no defined value", bad)
		}
	}
	return nil
}

// alone executes an instruction without the vector instructions behind it, which the
// interpreter would take along.
func (l *Lockstep) alone(in *inst) status {
	c := l.cpu
	code, calls := c.cache.code, c.cache.calls
	c.cache.code = code[:c.r[rIP]-c.cache.at+uint64(in.len)]
	s := c.one(in)
	if c.cache.calls == calls {
		c.cache.code = code
	}
	return s
}

// differ tells how the state differs from that in which translations have left.
func (l *Lockstep) differ(w *interpretation) error {
	c, to := l.cpu, w.to
	w.differs = false
	for i := range c.r {
		if !w.same(c.r[i], to.r[i]) && i != rZero {
			return fmt.Errorf("register %d: %#x, interpreted %#x", i, to.r[i], c.r[i])
		}
	}
	compared := w.live&^uint64(w.undefined) | ^uint64(arithFlags)
	if f := (c.flags() ^ to.flags) & compared; f != 0 {
		return fmt.Errorf("flags %#x, interpreted %#x: %#x differ", to.flags, c.flags(), f)
	}
	if c.base != to.base || c.kernelGSBase != to.kernelGSBase {
		return fmt.Errorf("bases %x %x, interpreted %x %x", to.base, to.kernelGSBase, c.base, c.kernelGSBase)
	}
	if c.sregs != to.sregs {
		return fmt.Errorf("special registers %+v, interpreted %+v", to.sregs, c.sregs)
	}
	for i := range l.journal.pages {
		p := &l.journal.pages[i]
		want := &p.before
		if i < w.written {
			want = &p.after
		}
		if *p.host == *want {
			continue
		}
		for k := 0; k < pageSize; k += 8 {
			if x, y := le.Uint64(p.host[k:]), le.Uint64(want[k:]); !w.same(x, y) {
				return fmt.Errorf("memory at %#x of page %d of %d: %#x, interpreted %#x", k, i, w.written, y, x)
			}
		}
	}
	return l.differExtended(to)
}

// same reports whether numbers are the same, but for flags that were undefined when they were kept.
func (w *interpretation) same(a, b uint64) bool {
	w.differs = w.differs || a != b
	return (a^b)&^uint64(w.kept) == 0
}

// differExtended is differ for the extended state.
func (l *Lockstep) differExtended(to *lockState) error {
	c := l.cpu
	switch {
	case !to.unitHas && c.unitChanged:
		return errors.New("just the interpreter has changed the extended state")
	case !to.unitHas:
		return nil
	case !c.unitState():
		return c.Failure
	}
	for _, part := range [][2]int{{0, 6}, {24, 28}, {32, 416}, {576, lockXSave}} { // FCW, FSW and FTW; MXCSR; the registers
		for i := part[0]; i < part[1]; i++ {
			if x, y := to.xsave[i], c.unit.XSave[i]; x != y {
				return fmt.Errorf("extended state at %d: %#x, interpreted %#x", i, x, y)
			}
		}
	}
	return nil
}

// TestLockstepDifference: a translation that does something else is found, in registers and in memory.
func TestLockstepDifference(t *testing.T) {
	for name, code := range map[string][]byte{
		"register": {0xb8, 0x21, 0x43, 0x65, 0x07, 0xf4},                               // mov eax, 0x07654321; hlt
		"memory":   {0xc7, 0x03, 0x21, 0x43, 0x65, 0x07, 0xf4},                         // mov dword [rbx], 0x07654321; hlt
		"vector":   {0xb8, 0x21, 0x43, 0x65, 0x07, 0x66, 0x0f, 0x6e, 0xc0, 0x31, 0xc0}, // mov eax, 0x07654321; movd xmm0, eax; xor eax, eax
	} {
		t.Run(name, func(t *testing.T) {
			c, called := lockCPU(t, true), false
			l := &Lockstep{Every: 1, Differ: func() { called = true }}
			defer l.Start()()
			run := func() {
				layOut(c, append(code, 0xf4), lockCode, lockMode{}, kvm.Regs{RBX: lockData, RIP: lockCode, RFLAGS: flagOne}, 1)
				if stop := c.Run(100); stop != StopHalt {
					t.Fatalf("stopped by %v", stop)
				}
			}
			if run(); l.Difference != nil || l.Compared != 1 || l.Instructions == 0 {
				t.Fatalf("%d compared, %d instructions: %v", l.Compared, l.Instructions, l.Difference)
			}
			made := c.translator.b[:c.translator.n]
			made[bytes.Index(made, []byte{0x21, 0x43, 0x65, 0x07})]++ // behind it, the guest's code is compared
			if run(); l.Difference == nil || !called {
				t.Error("the difference is not found")
			}
			t.Log(l.Difference)
		})
	}
}
