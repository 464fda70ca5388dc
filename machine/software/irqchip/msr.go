package irqchip

import "vmm/internal/x86"

// IA32_APIC_BASE (SDM, 10.4.4 and 10.12.1).
const (
	baseBSP      = 1 << 8
	baseX2APIC   = 1 << 10
	baseEnable   = 1 << 11
	baseReserved = 0xff | 1<<9 | 0xfff<<52 // 52 bits are the most that an address has
)

func (l *LAPIC) x2apic() bool { return l.base&(baseEnable|baseX2APIC) == baseEnable|baseX2APIC }

// Base returns IA32_APIC_BASE.
func (l *LAPIC) Base() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.base
}

// SetBase is the guest's write of IA32_APIC_BASE, and reports whether the mode may become that
// (SDM, 10.12.5); else the guest gets #GP. That an address has more bits than the CPU does is
// for the CPU to see.
func (l *LAPIC) SetBase(v uint64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	const mode = baseEnable | baseX2APIC
	from, to := l.base&mode, v&mode
	switch {
	case v&baseReserved != 0,
		to == baseX2APIC,                           // which is no mode
		from == mode && to == baseEnable,           // from x2APIC only to disabled
		from&baseEnable == 0 && to&baseX2APIC != 0: // and to it only from xAPIC
		return false
	}
	l.setBase(v)
	return true
}

// RestoreBase is SetBase for a CPU's state: from any mode to any. It comes before SetState.
// It reports whether there is such a mode.
func (l *LAPIC) RestoreBase(v uint64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if v&baseReserved != 0 || v&(baseEnable|baseX2APIC) == baseX2APIC {
		return false
	}
	l.setBase(v)
	return true
}

func (l *LAPIC) setBase(v uint64) {
	was := l.x2apic()
	l.base = v
	switch {
	case l.x2apic() && !was:
		l.ldr = l.x2apicLDR()
	case was && !l.x2apic():
		l.icr &= 0xffff_ffff // a destination of 32 bits is none of the other mode's
	}
	l.changed()
}

// x2apicLDR is the logical ID in x2APIC mode (SDM, 10.12.10.2).
func (l *LAPIC) x2apicLDR() uint32 { return l.id>>4<<16 | 1<<(l.id&15) }

// ReadMSR reads an x2APIC register, or IA32_TSC_DEADLINE. ok is false where the guest gets #GP.
func (l *LAPIC) ReadMSR(index uint32) (v uint64, ok bool) {
	if index == x86.MSRTSCDeadline {
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.deadline, true
	}
	if !l.isX2APIC(index) {
		return 0, false
	}
	reg := (index - x86.MSRX2APIC) * 16
	low, ok := l.read(reg)
	v = uint64(low)
	if reg == regICR {
		l.mu.Lock()
		defer l.mu.Unlock()
		v = l.icr
	}
	return v, ok
}

// WriteMSR writes what ReadMSR reads. ok is false where the guest gets #GP.
func (l *LAPIC) WriteMSR(index uint32, v uint64) (ok bool) {
	if index == x86.MSRTSCDeadline {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.timerMode() == timerDeadline {
			l.setDeadline(v)
		}
		return true
	}
	if !l.isX2APIC(index) {
		return false
	}
	reg := (index - x86.MSRX2APIC) * 16
	switch {
	case reg == regICR:
		if v&icrReserved != 0 {
			return false
		}
		l.send(v)
		return true
	case reg == regSelfIPI:
		if v > lvtVector {
			return false
		}
		return l.selfIPI(uint8(v))
	case reg == regID, reg == regEOI && v != 0, v>>32 != 0:
		return false
	}
	return l.write(reg, uint32(v))
}

// isX2APIC reports whether an MSR is one of x2APIC's, and that is the mode.
func (l *LAPIC) isX2APIC(index uint32) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.x2apic() && index >= x86.MSRX2APIC && index <= x86.MSRX2APICEnd
}

// selfIPI is the register for an interrupt of the CPU's own (SDM, 10.12.11).
func (l *LAPIC) selfIPI(vector uint8) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if vector < firstVector {
		l.fail(errSendVector)
		return true
	}
	l.request(vector, false)
	return true
}
