package machine

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"

	"vmm/kvm"
)

// Debugger stops a machine's vCPUs and looks into them. Its methods are called one
// at a time; all but Attach, Interrupt and Wait need a machine that is stopped.
type Debugger struct {
	m      *Machine
	events chan DebugEvent
	stop   chan struct{} // of Interrupt

	mu       sync.Mutex // held while the machine is looked into
	attached bool
	closed   bool // the machine is
	// Of a host whose KVM executes kernel mode natively:
	patched map[uint64]byte // what a breakpoint in software stands on
	inHW    []uint64        // breakpoints in debug registers
	// Else:
	breaks map[uint64]bool
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
}

// Debugger returns the machine's debugger.
func (m *Machine) Debugger() *Debugger { return m.debug }

func newDebugger(m *Machine) *Debugger {
	return &Debugger{m: m, events: make(chan DebugEvent, MaxCPUs), stop: make(chan struct{}, 1),
		patched: map[uint64]byte{}, breaks: map[uint64]bool{}}
}

// errAttached is the error for a second debugger.
var errAttached = errors.New("a debugger is attached already")

// Attach stops the machine for a debugger, of which there can be one.
func (d *Debugger) Attach() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.attached {
		return errAttached
	}
	d.attached = true
	d.m.gate.pause()
	return nil
}

// isAttached tells whether somebody debugs the machine.
func (d *Debugger) isAttached() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.attached
}

// Detach removes all breakpoints and lets the machine go on.
func (d *Debugger) Detach() {
	for addr := range d.patched {
		d.removePatch(0, addr)
	}
	d.inHW = nil
	clear(d.breaks)
	d.Resume(-1)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.attached = false
}

// CPUs is the number of vCPUs.
func (d *Debugger) CPUs() int { return d.m.cfg.CPUs }

// Resume lets all vCPUs go on, or one alone for one instruction.
func (d *Debugger) Resume(step int) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return errClosed
	}
	for len(d.events) > 0 {
		<-d.events // of CPUs that stopped beside: they will again
	}
	select {
	case <-d.stop: // one that came too late for the last stop
	default:
	}
	d.m.cpuMu.Lock()
	cpus := d.m.cpus
	d.m.cpuMu.Unlock()
	var only *vcpu
	for _, v := range cpus {
		if err := d.arm(v, v.id == step); err != nil {
			return err
		}
		if v.id == step {
			only = v
		}
	}
	d.m.gate.resumeOnly(only)
	return nil
}

// arm gives a vCPU its breakpoints, and has it stop after an instruction.
func (d *Debugger) arm(v *vcpu, step bool) error {
	v.stepping.Store(step)
	if v.in != nil {
		v.in.cpu.Breakpoints = nil
		if len(d.breaks) > 0 && !step {
			v.in.cpu.Breakpoints = d.breaks
		}
		return nil
	}
	var g kvm.GuestDebug
	if step {
		g.Control |= kvm.GuestDebugEnable | kvm.GuestDebugSingleStep
	}
	if len(d.patched) > 0 {
		g.Control |= kvm.GuestDebugEnable | kvm.GuestDebugUseSWBP
	}
	// SDM 3, 17.2: DR0 to DR3 have the addresses, and DR7 two bits for each; the
	// length and kind of an instruction's breakpoint are 0.
	for i, addr := range d.inHW {
		g.Control |= kvm.GuestDebugEnable | kvm.GuestDebugUseHWBP
		g.DebugReg[i] = addr
		g.DebugReg[7] |= 2 << (2 * i)
	}
	return v.kvm.SetGuestDebug(&g)
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
	d.m.gate.pause()
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
func (d *Debugger) hit(v *vcpu, reason StopReason) {
	d.m.gate.hold()
	select {
	case d.events <- DebugEvent{v.id, reason}:
	default:
	}
}

// cpu returns a vCPU of a machine that runs; mu is held.
func (d *Debugger) cpu(id int) (*vcpu, error) {
	if d.closed {
		return nil, errClosed
	}
	d.m.cpuMu.Lock()
	defer d.m.cpuMu.Unlock()
	if id < 0 || id >= len(d.m.cpus) {
		return nil, fmt.Errorf("there is no CPU %d", id)
	}
	return d.m.cpus[id], nil
}

// errClosed is the error for looking into a machine that has ended.
var errClosed = errors.New("the machine has ended")

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
	r, err := v.kvm.Regs()
	if err != nil {
		return r, kvm.Sregs{}, err
	}
	s, err := v.kvm.Sregs()
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
		return v.kvm.SetRegs(&r)
	}
	v.in.store()
	v.in.shared.Regs = r
	v.in.shared.DirtyRegs |= kvm.SyncRegs
	v.in.cpu.Load(&v.in.shared.Regs, &v.in.shared.Sregs)
	return nil
}

// ReadMemory reads at a linear address, as a vCPU sees it, as far as it is mapped.
func (d *Debugger) ReadMemory(cpu int, addr uint64, to []byte) (int, error) {
	return d.eachPage(cpu, addr, to, func(memory, piece []byte) { copy(piece, memory) })
}

// WriteMemory writes at a linear address, whatever the page tables allow.
func (d *Debugger) WriteMemory(cpu int, addr uint64, from []byte) (int, error) {
	return d.eachPage(cpu, addr, from, func(memory, piece []byte) { copy(memory, piece) })
}

func (d *Debugger) eachPage(cpu int, addr uint64, data []byte, do func(memory, piece []byte)) (n int, err error) {
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
		memory, err := d.m.mem.Slice(gpa, uint64(k))
		if err != nil {
			break // a device's
		}
		do(memory, data[n:n+k])
		n, addr = n+k, addr+uint64(k)
	}
	if n == 0 && len(data) > 0 {
		return 0, fmt.Errorf("nothing is mapped at %#x", addr)
	}
	return n, nil
}

// int3 is the instruction of a breakpoint in software.
const int3 = 0xcc

// maxHWBreakpoints is how many the debug registers hold.
const maxHWBreakpoints = 4

// SetBreakpoint stops every vCPU that is about to execute what is at addr. In
// hardware it changes no memory.
func (d *Debugger) SetBreakpoint(cpu int, addr uint64, hardware bool) error {
	switch {
	case d.m.tables != nil: // ring0 looks before every instruction
		// A new map: vCPUs may still have the old one.
		next := map[uint64]bool{addr: true}
		for a := range d.breaks {
			next[a] = true
		}
		d.breaks = next
	case hardware:
		if len(d.inHW) >= maxHWBreakpoints {
			return fmt.Errorf("a CPU has %d breakpoints in hardware", maxHWBreakpoints)
		}
		d.inHW = append(d.inHW, addr)
	default:
		var old [1]byte
		if _, there := d.patched[addr]; there {
			return nil
		}
		if _, err := d.ReadMemory(cpu, addr, old[:]); err != nil {
			return err
		}
		if _, err := d.WriteMemory(cpu, addr, []byte{int3}); err != nil {
			return err
		}
		d.patched[addr] = old[0]
	}
	return nil
}

// ClearBreakpoint takes a breakpoint back.
func (d *Debugger) ClearBreakpoint(cpu int, addr uint64, hardware bool) error {
	switch {
	case d.m.tables != nil:
		next := map[uint64]bool{}
		for a := range d.breaks {
			if a != addr {
				next[a] = true
			}
		}
		d.breaks = next
	case hardware:
		for i, a := range d.inHW {
			if a == addr {
				d.inHW = append(d.inHW[:i], d.inHW[i+1:]...)
				return nil
			}
		}
	default:
		return d.removePatch(cpu, addr)
	}
	return nil
}

func (d *Debugger) removePatch(cpu int, addr uint64) error {
	old, there := d.patched[addr]
	if !there {
		return nil
	}
	delete(d.patched, addr)
	_, err := d.WriteMemory(cpu, addr, []byte{old})
	return err
}

// Bits of control registers and page-table entries (SDM 3, 2.5 and 4.5).
const (
	cr0PG     = 1 << 31
	cr4LA57   = 1 << 12
	eferLMA   = 1 << 10
	ptePS     = 1 << 7
	pteP      = 1 << 0
	pteFrame  = 0x000ffffffffff000
	tableBits = 9
)

// translate finds the guest-physical address of a linear one by the guest's page
// tables, of 4 or 5 levels, or none.
func translate(mem *Memory, s *kvm.Sregs, addr uint64) (uint64, bool) {
	if s.CR0&cr0PG == 0 {
		return addr, true
	}
	if s.EFER&eferLMA == 0 {
		return 0, false // 32-bit paging: Linux leaves it within instructions
	}
	levels := 4
	if s.CR4&cr4LA57 != 0 {
		levels = 5
	}
	table := s.CR3 & pteFrame
	for level := levels; level > 0; level-- {
		shift := 12 + tableBits*(level-1)
		b, err := mem.Slice(table+8*(addr>>shift&(1<<tableBits-1)), 8)
		if err != nil {
			return 0, false
		}
		e := binary.LittleEndian.Uint64(b)
		if e&pteP == 0 {
			return 0, false
		}
		if level == 1 || level <= 3 && e&ptePS != 0 {
			mask := uint64(1)<<shift - 1
			return e&pteFrame&^mask | addr&mask, true
		}
		table = e & pteFrame
	}
	return 0, false
}
