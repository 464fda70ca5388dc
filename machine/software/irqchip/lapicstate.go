package irqchip

import (
	"encoding/binary"
	"fmt"
	"syscall"

	"vmm/kvm"
)

// State returns the registers' page, as KVM_GET_LAPIC has it: the ID is in the place that
// xAPIC mode has for it. IA32_APIC_BASE and IA32_TSC_DEADLINE are not in it.
func (l *LAPIC) State() (s kvm.LAPICState) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.expire() // what is due is in the IRR: the counts do not tell it
	put := func(reg, v uint32) { binary.LittleEndian.PutUint32(s.Regs[reg:], v) }
	for reg := uint32(0); reg < lapicRegisters; reg += 16 {
		v, _ := l.register(reg)
		put(reg, v)
	}
	put(regID, l.id<<24)
	put(regDFR, l.dfr)
	put(regICR2, uint32(l.icr>>32))
	return s
}

// SetState makes the APIC what State has told, in the mode that it is in. A timer that counted
// goes on from its current count; IA32_TSC_DEADLINE is to be written after it. The error is
// syscall.EINVAL for the state of another CPU's.
func (l *LAPIC) SetState(s *kvm.LAPICState) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	get := func(reg uint32) uint32 { return binary.LittleEndian.Uint32(s.Regs[reg:]) }
	if id := get(regID) >> 24; id != l.id {
		return fmt.Errorf("KVM_SET_LAPIC: the state is APIC %d's, not %d's: %w", id, l.id, syscall.EINVAL)
	}
	l.stopTimer()
	for off := uint32(0); off < 8*16; off += 16 {
		l.isr.setWord(off, get(regISR+off))
		l.tmr.setWord(off, get(regTMR+off))
		l.irr.setWord(off, get(regIRR+off))
	}
	l.tpr = get(regTPR) & 0xff
	l.ldr = get(regLDR) & 0xff00_0000
	if l.x2apic() {
		l.ldr = l.x2apicLDR()
	}
	l.dfr = get(regDFR) | 0x0fff_ffff
	l.spurious = get(regSpurious) & 0x3ff
	l.esr, l.errors = get(regESR), 0
	l.icr = uint64(get(regICR2))<<32 | uint64(get(regICR)&^icrBusy)
	for i := range l.lvt {
		l.lvt[i] = get(regLVT+uint32(i)*16) & lvtWritable[i]
	}
	l.divide = get(regDivide) & 0xb
	if l.initial = get(regInitial); l.timerMode() != timerDeadline {
		l.count(get(regCurrent))
	}
	l.changed()
	return nil
}
