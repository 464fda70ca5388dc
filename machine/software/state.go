package software

import (
	"golang.org/x/sys/unix"

	"vmm/kvm"
	"vmm/machine/ring0"
)

// The state of a CPU, in KVM's structures.

// registers returns the executor's registers, with what the local APIC has of them.
func (v *vcpu) registers() (r kvm.Regs, s kvm.Sregs) {
	v.cpu.Store(&r, &s)
	s.CR8, s.APICBase = v.apic.CR8(), v.apic.Base()
	return r, s
}

// Regs implements engine.VCPU.
func (v *vcpu) Regs() (kvm.Regs, error) {
	r, _ := v.registers()
	return r, nil
}

// SetRegs implements engine.VCPU.
func (v *vcpu) SetRegs(r *kvm.Regs) error {
	_, s := v.registers()
	v.cpu.Load(r, &s)
	return nil
}

// Sregs implements engine.VCPU.
func (v *vcpu) Sregs() (kvm.Sregs, error) {
	_, s := v.registers()
	return s, nil
}

// SetSregs implements engine.VCPU.
func (v *vcpu) SetSregs(s *kvm.Sregs) error {
	if !v.setAPICBase(s.APICBase, v.apic.RestoreBase) {
		return errState
	}
	r, _ := v.registers()
	v.cpu.Load(&r, s)
	v.cpu.FlushTLB()
	v.apic.SetCR8(s.CR8)
	return nil
}

// DebugRegs implements engine.VCPU.
func (v *vcpu) DebugRegs() (kvm.DebugRegs, error) {
	d := kvm.DebugRegs{DR6: v.cpu.DebugRegister(6), DR7: v.cpu.DebugRegister(7)}
	for i := range d.DB {
		d.DB[i] = v.cpu.DebugRegister(i)
	}
	return d, nil
}

// SetDebugRegs implements engine.VCPU.
func (v *vcpu) SetDebugRegs(d *kvm.DebugRegs) error {
	for i, x := range d.DB {
		v.cpu.SetDebugRegister(i, x)
	}
	v.cpu.SetDebugRegister(6, d.DR6)
	v.cpu.SetDebugRegister(7, d.DR7)
	return nil
}

// XCRs implements engine.VCPU.
func (v *vcpu) XCRs() (kvm.XCRs, error) {
	x := kvm.XCRs{Count: 1}
	x.XCR[0].Value = v.xcr0
	return x, nil
}

// SetXCRs implements engine.VCPU.
func (v *vcpu) SetXCRs(x *kvm.XCRs) error {
	for _, r := range x.XCR[:min(int(x.Count), len(x.XCR))] {
		if r.Number == 0 && !v.SetXCR0(r.Value) {
			return unix.EINVAL
		}
	}
	v.cpu.ForgetExtended()
	return nil
}

// xsaveSize is the size of the extended state: that of KVM_GET_XSAVE, at least.
const xsaveSize = 4096

// XSaveSize implements engine.VCPU and ring0.Host.
func (v *vcpu) XSaveSize() int { return xsaveSize }

// XSave implements engine.VCPU and ring0.Host.
func (v *vcpu) XSave(area []byte) error {
	if err := v.cpu.StoreExtended(); err != nil {
		return err
	}
	copy(area, v.xsave)
	return nil
}

// SetXSave implements engine.VCPU and ring0.Host.
func (v *vcpu) SetXSave(area []byte) error {
	copy(v.xsave, area)
	v.cpu.ForgetExtended()
	return nil
}

// MPState implements engine.VCPU.
func (v *vcpu) MPState() (kvm.MPState, error) { return kvm.MPState{State: v.mp}, nil }

// SetMPState implements engine.VCPU.
func (v *vcpu) SetMPState(m kvm.MPState) error {
	if m.State > kvm.MPStateHalted {
		return unix.EINVAL
	}
	v.mp = m.State
	return nil
}

// Events implements engine.VCPU. Between instructions nothing is in flight but what is
// held back.
func (v *vcpu) Events() (e kvm.VCPUEvents, err error) {
	if v.cpu.Shadowed() {
		e.Interrupt.Shadow = 1
	}
	if v.cpu.InNMI {
		e.NMI.Masked = 1
	}
	return e, nil
}

// SetEvents implements engine.VCPU: what was in flight, in KVM, is delivered before the
// next instruction.
func (v *vcpu) SetEvents(e *kvm.VCPUEvents) error {
	v.cpu.SetShadowed(e.Interrupt.Shadow != 0)
	v.cpu.InNMI = e.NMI.Masked != 0
	if e.NMI.Pending != 0 {
		v.apic.NMI()
	}
	v.flying = nil
	switch x := &e.Exception; {
	case x.Injected != 0 || x.Pending != 0:
		_, s := v.registers()
		v.flying = &flight{ring0.Exception{Vector: x.Nr, HasError: x.HasErrorCode != 0, Error: x.ErrorCode, CR2: s.CR2}, false}
	case e.Interrupt.Injected != 0:
		v.flying = &flight{ring0.Exception{Vector: e.Interrupt.Nr, Soft: e.Interrupt.Soft != 0}, e.Interrupt.Soft == 0}
	case e.NMI.Injected != 0:
		v.flying = &flight{ring0.Exception{Vector: vectorNMI}, true}
	}
	return nil
}

// flight is an exception or interrupt whose delivery has begun.
type flight struct {
	ring0.Exception
	external bool
}

// LAPIC implements engine.VCPU.
func (v *vcpu) LAPIC() (kvm.LAPICState, error) {
	v.vm.irqs.settle()
	return v.apic.State(), nil
}

// SetLAPIC implements engine.VCPU.
func (v *vcpu) SetLAPIC(l *kvm.LAPICState) error { return v.apic.SetState(l) }

// NestedState implements engine.VCPU: the guest has no VMs.
func (v *vcpu) NestedState() ([]byte, error) { return nil, unix.ENOTTY }

// SetNestedState implements engine.VCPU.
func (v *vcpu) SetNestedState([]byte) error { return unix.ENOTTY }

// SetCPUID implements engine.VCPU.
func (v *vcpu) SetCPUID(entries []kvm.CPUIDEntry) error {
	v.cpuid = append([]kvm.CPUIDEntry(nil), entries...)
	return nil
}

// SetGuestDebug implements engine.VCPU.
func (v *vcpu) SetGuestDebug(g *kvm.GuestDebug) error {
	on := g.Control&kvm.GuestDebugEnable != 0
	v.stepped = on && g.Control&kvm.GuestDebugSingleStep != 0
	v.cpu.TrapInt3 = on && g.Control&kvm.GuestDebugUseSWBP != 0
	v.cpu.Breakpoints, v.breakOn, v.watchAt = nil, 0, nil
	if on && g.Control&kvm.GuestDebugUseHWBP != 0 {
		if err := v.setDebugRegisters(&g.DebugReg); err != nil {
			return err
		}
	}
	v.cpu.SetWatchpoints(v.watches())
	switch {
	case g.Control&kvm.GuestDebugInjectBP != 0:
		v.flying = &flight{ring0.Exception{Vector: vectorBP, Soft: true}, false}
	case g.Control&kvm.GuestDebugInjectDB != 0:
		v.flying = &flight{ring0.Exception{Vector: vectorDB}, true}
	}
	return nil
}

// setDebugRegisters takes the debugger's breakpoints and watchpoints (SDM 3, 17.2.4). The error
// is unix.EINVAL for a kind that there is not.
func (v *vcpu) setDebugRegisters(r *[8]uint64) error {
	const execute, write, access = 0, 1, 3
	for i := range 4 {
		if r[7]>>(2*i)&3 == 0 {
			continue
		}
		addr, kind, size := r[i], r[7]>>(16+4*i)&3, [4]uint64{1, 2, 8, 4}[r[7]>>(18+4*i)&3]
		switch kind {
		case execute:
			if v.cpu.Breakpoints == nil {
				v.cpu.Breakpoints = map[uint64]bool{}
			}
			v.cpu.Breakpoints[addr] = true
			v.breakAt[i], v.breakOn = addr, v.breakOn|1<<i
		case write, access:
			v.watchAt = append(v.watchAt, watchRegister{i, ring0.Watchpoint{Addr: addr &^ (size - 1), Size: size, Reads: kind == access}})
		default:
			return unix.EINVAL
		}
	}
	return nil
}

// watchRegister is a debug register that watches.
type watchRegister struct {
	number int
	ring0.Watchpoint
}

// watches are the watchpoints of the debugger.
func (v *vcpu) watches() (w []ring0.Watchpoint) {
	for _, r := range v.watchAt {
		w = append(w, r.Watchpoint)
	}
	return w
}

// Exception vectors (SDM 3, 6.3.1).
const (
	vectorDB  = 1
	vectorNMI = 2
	vectorBP  = 3
)
