package machine

import (
	"fmt"

	"vmm/kvm"
)

// BreakKind is what a breakpoint waits for.
type BreakKind int

// The kinds.
const (
	BreakSoftware BreakKind = iota // execution, by an int3 in memory
	BreakHardware                  // execution, by a debug register
	BreakWrite                     // data that is written
	BreakAccess                    // data that is read or written
)

// Breakpoint is a place in the guest, by its linear address.
type Breakpoint struct {
	Kind BreakKind
	Addr uint64
	Len  uint64 // of data, in bytes
}

// ofData reports whether it waits for an access of data. A CPU reports that after the
// instruction, and all else before it.
func (b Breakpoint) ofData() bool { return b.Kind == BreakWrite || b.Kind == BreakAccess }

// Debug registers (SDM 3, 17.2).
const (
	numDebugRegisters = 4
	maxWatched        = 8 // bytes, by one of them

	dr6Breakpoints = 1<<numDebugRegisters - 1 // B0 to B3: which one was hit
	dr6Access      = 1 << 13                  // BD: of a debug register
	dr6Step        = 1 << 14                  // BS
	dr6Task        = 1 << 15                  // BT

	dr7Set       = 1 << 10 // is always
	dr7Global    = 2       // Gn, two bits for each register
	dr7Enabled   = 3       // Ln or Gn
	dr7KindShift = 16      // R/Wn and LENn, four bits for each

	dr7Write, dr7Access = 1, 3 // values of R/Wn: x86 has none for reads alone
)

// dr7Lengths are the values of LENn.
var dr7Lengths = map[uint64]uint64{1: 0, 2: 1, 4: 3, 8: 2}

// debugRegister is what one of a CPU's debug registers is to hold.
type debugRegister struct {
	addr uint64
	kind uint64 // its R/Wn and LENn
	of   Breakpoint
}

// debugRegisters are those that breakpoints in hardware and for data need: a
// register watches 1, 2, 4 or 8 bytes at a multiple of that.
func debugRegisters(breakpoints []Breakpoint) ([]debugRegister, error) {
	var registers []debugRegister
	for _, b := range breakpoints {
		switch {
		case !b.ofData():
			registers = append(registers, debugRegister{addr: b.Addr, of: b})
			continue
		case b.Len == 0:
			return nil, fmt.Errorf("a watchpoint of nothing at %#x", b.Addr)
		case b.Len > numDebugRegisters*maxWatched:
			return nil, fmt.Errorf("a CPU's debug registers can watch %d bytes at most, not %d", numDebugRegisters*maxWatched, b.Len)
		}
		kind := uint64(dr7Write)
		if b.Kind == BreakAccess {
			kind = dr7Access
		}
		for done := uint64(0); done < b.Len; {
			addr, n := b.Addr+done, uint64(maxWatched)
			for addr%n != 0 || n > b.Len-done {
				n /= 2
			}
			registers = append(registers, debugRegister{addr: addr, kind: dr7Lengths[n]<<2 | kind, of: b})
			done += n
		}
	}
	if len(registers) > numDebugRegisters {
		return nil, fmt.Errorf("the breakpoints in hardware and watchpoints need %d debug registers: a CPU has %d", len(registers), numDebugRegisters)
	}
	return registers, nil
}

// armed is what vCPUs run with for a debugger. It is never changed.
type armed struct {
	at        map[uint64]bool // where there are breakpoints in software
	registers []debugRegister
}

// guestDebug is what KVM is told.
func (a *armed) guestDebug(step bool) kvm.GuestDebug {
	var g kvm.GuestDebug
	if step {
		g.Control |= kvm.GuestDebugEnable | kvm.GuestDebugSingleStep
	}
	if len(a.at) > 0 {
		g.Control |= kvm.GuestDebugEnable | kvm.GuestDebugUseSWBP
	}
	if len(a.registers) > 0 {
		g.Control |= kvm.GuestDebugEnable | kvm.GuestDebugUseHWBP
		g.DebugReg[7] = dr7Set
	}
	for i, r := range a.registers {
		g.DebugReg[i] = r.addr
		g.DebugReg[7] |= dr7Global<<(2*i) | r.kind<<(dr7KindShift+4*i)
	}
	return g
}

// Exceptions that KVM comes back for.
const (
	vectorDB = 1
	vectorBP = 3
)

// ruling is what is to be done about an exception: the debugger gets to know of
// it, or the guest, or each of its own causes.
type ruling struct {
	stop   bool
	event  DebugEvent
	inject uint32 // bit of GuestDebug.Control that gives it to the guest, or 0
	causes uint64 // for the guest's DR6, where that is a #DB
}

// judge tells whose an exception is. guestDR7 is the guest's own register.
func (a *armed) judge(e *kvm.DebugExit, stepping bool, guestDR7 uint64) ruling {
	if e.Exception == vectorBP {
		if !a.at[e.PC] {
			return ruling{inject: kvm.GuestDebugInjectBP}
		}
		return hitAt(Breakpoint{Kind: BreakSoftware, Addr: e.PC}, e.PC)
	}
	if e.DR6 == 0 && !stepping && len(a.registers) > 0 {
		// DR6 has bits that are always set: before Linux 5.7 kvm-amd did not fill it
		// in. Most likely it is an instruction with a breakpoint.
		return hitAt(Breakpoint{Kind: BreakHardware, Addr: e.PC}, e.PC)
	}
	// A CPU may also set the bits of registers that are not enabled.
	var guests uint64
	var to ruling
	for i := range numDebugRegisters {
		switch {
		case e.DR6&(1<<i) == 0:
		case i < len(a.registers):
			// A data access is not reported again, and so goes before an instruction.
			if r := a.registers[i]; !to.stop || r.of.ofData() && !to.event.Breakpoint.ofData() {
				to = hitAt(r.of, r.addr)
			}
		case len(a.registers) == 0 && guestDR7&(dr7Enabled<<(2*i)) != 0: // else the guest's are not loaded
			guests |= 1 << i
		}
	}
	guests |= e.DR6 & (dr6Access | dr6Step | dr6Task)
	if stepping {
		if guests &^= dr6Step; !to.stop && (e.DR6&dr6Step != 0 || guests == 0) {
			to.stop, to.event = true, DebugEvent{Reason: StopStep}
		}
	}
	if guests != 0 || !to.stop { // without any cause it is of the guest's int1
		to.inject, to.causes = kvm.GuestDebugInjectDB, guests
	}
	return to
}

// hitAt is the ruling that a breakpoint was hit.
func hitAt(b Breakpoint, addr uint64) ruling {
	return ruling{stop: true, event: DebugEvent{Reason: StopBreakpoint, Breakpoint: b, Addr: addr}}
}
