package machine

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"vmm/internal/x86"
	"vmm/kvm"
)

// Debugger stops a machine's vCPUs and looks into them. Its methods are called one
// at a time; all but Attach, Interrupt and Wait need a machine that is stopped. vCPUs are
// numbered from 0; errors are ErrEnded, of a vCPU that is not there, and KVM's.
type Debugger struct {
	m      *Machine
	events chan DebugEvent
	stop   chan struct{} // of Interrupt

	mu       sync.Mutex // held while the machine is looked into
	attached bool
	closed   bool             // the machine is
	patches  map[uint64]patch // breakpoints in software, by their linear address
	inHW     []Breakpoint     // all others
	late     []DebugEvent     // that no Wait has returned, and that will not come again
	// armed is what the vCPUs were resumed with: they read it as they stop, also
	// while the machine ends and nobody waits for them.
	armed atomic.Pointer[armed]
}

// patch is where a breakpoint in software stands. The physical address is the one
// that was written to, whatever the linear one has become since.
type patch struct {
	gpa uint64
	old byte
}

// StopReason is why a vCPU stopped.
type StopReason int

// The reasons.
const (
	StopInterrupted StopReason = iota
	StopBreakpoint
	StopStep
	StopEnded // the machine has
)

// DebugEvent is that a vCPU stopped.
type DebugEvent struct {
	CPU    int
	Reason StopReason
	// Breakpoint is the one of a StopBreakpoint, as it was set but for one in
	// software, of which nothing but its address is known.
	Breakpoint Breakpoint
	// Addr is where it was hit: the instruction, or within the data.
	Addr uint64
}

// Debugger returns the machine's debugger.
func (m *Machine) Debugger() *Debugger { return m.debug }

func newDebugger(m *Machine) *Debugger {
	d := &Debugger{m: m, events: make(chan DebugEvent, MaxCPUs), stop: make(chan struct{}, 1), patches: map[uint64]patch{}}
	d.armed.Store(&armed{})
	return d
}

// errAttached is the error for a second debugger.
var errAttached = errors.New("a debugger is attached already")

// Attach stops the machine for a debugger. It waits for a Freeze. It is an error if there
// is a debugger already.
func (d *Debugger) Attach() error {
	d.m.freeze.Lock()
	defer d.m.freeze.Unlock()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.attached {
		return errAttached
	}
	d.attached = true
	d.m.gate.halt()
	return nil
}

// Await makes a machine that does not run yet stand still until a debugger lets it go
// on.
func (d *Debugger) Await() { d.m.gate.hold() }

// isAttached reports whether somebody debugs the machine.
func (d *Debugger) isAttached() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.attached
}

// Detach removes all breakpoints and lets the machine go on.
func (d *Debugger) Detach() {
	for addr := range d.patches {
		d.removePatch(addr)
	}
	d.inHW, d.late = nil, nil
	d.Resume(-1)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.attached = false
}

// CPUs is the number of vCPUs.
func (d *Debugger) CPUs() int { return d.m.cfg.CPUs }

// Resume lets all vCPUs go on, or, if step is one's number, that alone for one instruction;
// -1 is none. The error is ErrEnded, or KVM's.
func (d *Debugger) Resume(step int) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return ErrEnded
	}
	if d.keepLate(step < 0); len(d.events) > 0 {
		return nil // the machine stands still until Wait has told of them
	}
	select {
	case <-d.stop: // one that came too late for the last stop
	default:
	}
	a := d.newArmed()
	d.armed.Store(a)
	var only *vcpu
	for _, v := range d.m.cpus {
		if err := v.arm(a, v.id == step); err != nil {
			return err
		}
		if v.id == step {
			only = v
		}
	}
	d.m.gate.release(only)
	return nil
}

// keepLate deals with events of vCPUs that stopped beside another. One that stands
// before an instruction will stop there again. Data was touched, and is not again:
// such an event is kept until all vCPUs are to go on, and then comes first if its
// breakpoint is still there.
func (d *Debugger) keepLate(all bool) {
	for len(d.events) > 0 {
		if e := <-d.events; e.Breakpoint.ofData() {
			d.late = append(d.late, e)
		}
	}
	if !all {
		return
	}
	for _, e := range d.late {
		if slices.Contains(d.inHW, e.Breakpoint) {
			d.events <- e
		}
	}
	d.late = nil
}

// newArmed is what the vCPUs need of the breakpoints as they are now.
func (d *Debugger) newArmed() *armed {
	a := &armed{at: map[uint64]bool{}}
	for addr := range d.patches {
		a.at[addr] = true
	}
	if d.m.tables != nil { // ring0 looks before every instruction
		for _, b := range d.inHW {
			a.at[b.Addr] = true
		}
		return a
	}
	a.registers, _ = debugRegisters(d.inHW) // SetBreakpoint has tried
	return a
}

// arm gives a vCPU its breakpoints, and has it stop after an instruction.
func (v *vcpu) arm(a *armed, step bool) error {
	v.stepping.Store(step)
	if v.in == nil {
		g := a.guestDebug(step)
		return v.engine.SetGuestDebug(&g)
	}
	v.in.cpu.Breakpoints = nil
	if len(a.at) > 0 && !step {
		v.in.cpu.Breakpoints = a.at
	}
	return nil
}

// debugExit deals with an exception for whose sake KVM came back: it is the
// debugger's, or the guest's own.
func (v *vcpu) debugExit(e *kvm.DebugExit) error {
	regs, err := v.engine.DebugRegs()
	if err != nil {
		return err
	}
	a, stepping := v.m.debug.armed.Load(), v.stepping.Load()
	to := a.judge(e, stepping, regs.DR7)
	if to.inject != 0 {
		if to.inject == kvm.GuestDebugInjectDB {
			regs.DR6 = regs.DR6&^dr6Breakpoints | to.causes
			if err := v.engine.SetDebugRegs(&regs); err != nil {
				return err
			}
		}
		g := a.guestDebug(stepping)
		g.Control |= to.inject
		if err := v.engine.SetGuestDebug(&g); err != nil {
			return err
		}
	}
	if to.stop {
		v.stepping.Store(false)
		v.m.debug.hit(v, to.event)
	}
	return nil
}

// Wait returns when a vCPU stops, Interrupt was called, or the machine ends.
func (d *Debugger) Wait() DebugEvent {
	var e DebugEvent
	select {
	case e = <-d.events:
	case <-d.stop:
		e.Reason = StopInterrupted
	case <-d.m.ended:
		return DebugEvent{Reason: StopEnded}
	}
	d.m.gate.halt()
	if d.m.gate.isStopped() {
		e.Reason = StopEnded
	}
	return e
}

// Interrupt makes Wait return, now or when it is called next.
func (d *Debugger) Interrupt() {
	select {
	case d.stop <- struct{}{}:
	default:
	}
}

// hit stops the machine because of a vCPU, on whose thread it runs.
func (d *Debugger) hit(v *vcpu, e DebugEvent) {
	d.m.gate.hold()
	e.CPU = v.id
	select {
	case d.events <- e:
	default:
	}
}

// cpu returns a vCPU of a machine that runs; mu is held.
func (d *Debugger) cpu(id int) (*vcpu, error) {
	if d.closed {
		return nil, ErrEnded
	}
	if id < 0 || id >= len(d.m.cpus) {
		return nil, fmt.Errorf("there is no CPU %d", id)
	}
	return d.m.cpus[id], nil
}

// close lets nobody look into the machine any more.
func (d *Debugger) close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed = true
}

// Registers returns a vCPU's registers.
func (d *Debugger) Registers(cpu int) (kvm.Regs, kvm.Sregs, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.registers(cpu)
}

// registers is Registers with mu held.
func (d *Debugger) registers(cpu int) (kvm.Regs, kvm.Sregs, error) {
	v, err := d.cpu(cpu)
	if err != nil {
		return kvm.Regs{}, kvm.Sregs{}, err
	}
	if v.in != nil && v.in.entered {
		v.in.store()
		return v.in.shared.Regs, v.in.shared.Sregs, nil
	}
	r, err := v.engine.Regs()
	if err != nil {
		return r, kvm.Sregs{}, err
	}
	s, err := v.engine.Sregs()
	return r, s, err
}

// SetRegisters sets a vCPU's general registers.
func (d *Debugger) SetRegisters(cpu int, r kvm.Regs) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	v, err := d.cpu(cpu)
	if err != nil {
		return err
	}
	if v.in == nil || !v.in.entered {
		return v.engine.SetRegs(&r)
	}
	v.in.store()
	v.in.shared.Regs = r
	v.in.shared.DirtyRegs |= kvm.SyncRegs
	v.in.cpu.Load(&v.in.shared.Regs, &v.in.shared.Sregs)
	return nil
}

// ReadMemory reads at a linear address, as a vCPU sees it, as far as it is mapped.
func (d *Debugger) ReadMemory(cpu int, addr uint64, to []byte) (int, error) {
	return d.eachPage(cpu, addr, to, d.m.mem.ReadSlice, func(memory, piece []byte) { copy(piece, memory) })
}

// WriteMemory writes at a linear address, whatever the page tables allow, as far as it is
// mapped. It returns how many bytes those were, as ReadMemory does, and an error for none.
func (d *Debugger) WriteMemory(cpu int, addr uint64, from []byte) (int, error) {
	return d.eachPage(cpu, addr, from, d.m.mem.Slice, func(memory, piece []byte) {
		copy(memory, piece)
		d.m.mem.MarkDirty(memory)
	})
}

func (d *Debugger) eachPage(cpu int, addr uint64, data []byte, slice func(gpa, n uint64) ([]byte, error), do func(memory, piece []byte)) (n int, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	_, s, err := d.registers(cpu)
	if err != nil {
		return 0, err
	}
	for n < len(data) {
		gpa, ok := translate(d.m.mem, &s, addr)
		if !ok {
			break
		}
		k := min(len(data)-n, int(pageSize-addr%pageSize))
		memory, err := slice(gpa, uint64(k))
		if err != nil {
			break // a device's
		}
		do(memory, data[n:n+k])
		n, addr = n+k, addr+uint64(k)
	}
	if n == 0 && len(data) > 0 {
		return 0, errNothing(addr)
	}
	return n, nil
}

// int3 is the instruction of a breakpoint in software.
const int3 = 0xcc

// errNoWatch is the error for breakpoints of data where ring0 executes the guest.
var errNoWatch = errors.New("there are no watchpoints on this host, whose KVM interprets the guest's kernel mode")

// SetBreakpoint stops every vCPU that is about to execute what is at an address, or
// has touched the data there. One in software is a change of memory, as that vCPU
// sees it. It is an error where nothing is mapped at the address, where the CPU's four debug
// registers (SDM 3, 17.2) are taken or cannot watch so many bytes, and for data where KVM
// interprets the guest's kernel.
func (d *Debugger) SetBreakpoint(cpu int, b Breakpoint) error {
	switch {
	case b.Kind == BreakSoftware:
		return d.setPatch(cpu, b.Addr)
	case slices.Contains(d.inHW, b):
		return nil
	}
	next := append(slices.Clone(d.inHW), b)
	if d.m.tables == nil {
		if _, err := debugRegisters(next); err != nil {
			return err
		}
	} else if b.ofData() {
		return errNoWatch
	}
	d.inHW = next
	return nil
}

// ClearBreakpoint takes a breakpoint back.
func (d *Debugger) ClearBreakpoint(b Breakpoint) error {
	if b.Kind == BreakSoftware {
		return d.removePatch(b.Addr)
	}
	d.inHW = slices.DeleteFunc(d.inHW, func(c Breakpoint) bool { return c == b })
	return nil
}

func (d *Debugger) setPatch(cpu int, addr uint64) error {
	if _, there := d.patches[addr]; there {
		return nil
	}
	if d.m.tables != nil { // ring0 needs no int3
		d.patches[addr] = patch{}
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	_, s, err := d.registers(cpu)
	if err != nil {
		return err
	}
	gpa, ok := translate(d.m.mem, &s, addr)
	b, err := d.m.mem.Slice(gpa, 1)
	if !ok || err != nil {
		return errNothing(addr)
	}
	d.patches[addr] = patch{gpa, b[0]}
	b[0] = int3
	d.m.mem.MarkDirty(b)
	return nil
}

// removePatch gives an instruction its first byte back, unless the guest has put
// another in its place meanwhile.
func (d *Debugger) removePatch(addr uint64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	p, there := d.patches[addr]
	delete(d.patches, addr)
	if !there || d.m.tables != nil {
		return nil
	}
	if d.closed {
		return ErrEnded
	}
	b, err := d.m.mem.Slice(p.gpa, 1)
	if err == nil && b[0] == int3 {
		b[0] = p.old
		d.m.mem.MarkDirty(b)
	}
	return err
}

// errNothing is the error for an address without memory.
func errNothing(addr uint64) error { return fmt.Errorf("nothing is mapped at %#x", addr) }

// translate finds the guest-physical address of a linear one by the guest's page
// tables, of 4 or 5 levels, or none.
func translate(mem *Memory, s *kvm.Sregs, addr uint64) (uint64, bool) {
	if s.CR0&x86.CR0PG == 0 {
		return addr, true
	}
	if s.EFER&x86.EFERLMA == 0 {
		return 0, false // 32-bit paging: Linux leaves it within instructions
	}
	levels := 4
	if s.CR4&x86.CR4LA57 != 0 {
		levels = 5
	}
	table := s.CR3 & x86.PTEFrame
	for level := levels; level > 0; level-- {
		shift := 12 + x86.PageTableBits*(level-1)
		b, err := mem.Slice(table+8*(addr>>shift&(1<<x86.PageTableBits-1)), 8)
		if err != nil {
			return 0, false
		}
		e := binary.LittleEndian.Uint64(b)
		if e&x86.PTEPresent == 0 {
			return 0, false
		}
		if level == 1 || level <= 3 && e&x86.PTELarge != 0 {
			mask := uint64(1)<<shift - 1
			return e&x86.PTEFrame&^mask | addr&mask, true
		}
		table = e & x86.PTEFrame
	}
	return 0, false
}
