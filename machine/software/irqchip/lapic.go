package irqchip

import (
	"encoding/binary"
	"sync"
	"sync/atomic"
	"time"

	"vmm/internal/x86"
)

// Registers of a local APIC (SDM, 10.4.1), by their offset in its page. x2APIC's MSRs are at
// x86.MSRX2APIC + the offset / 16.
const (
	regID          = 0x020
	regVersion     = 0x030
	regTPR         = 0x080
	regAPR         = 0x090
	regPPR         = 0x0a0
	regEOI         = 0x0b0
	regLDR         = 0x0d0
	regDFR         = 0x0e0
	regSpurious    = 0x0f0
	regISR         = 0x100 // eight of 32 bits, as TMR and IRR
	regTMR         = 0x180
	regIRR         = 0x200
	regESR         = 0x280
	regICR         = 0x300
	regICR2        = 0x310
	regLVT         = 0x320 // lvtEntries of them
	regInitial     = 0x380
	regCurrent     = 0x390
	regDivide      = 0x3e0
	regSelfIPI     = 0x3f0
	lapicRegisters = 0x400
)

// lapicVersion is KVM's: an integrated APIC with lvtEntries, which broadcasts all EOIs.
const lapicVersion = 0x14 | (lvtEntries-1)<<16

// Entries of the local vector table (SDM, 10.5.1).
const (
	lvtTimer = iota
	lvtThermal
	lvtCounter
	lvtLINT0
	lvtLINT1
	lvtError
	lvtEntries
)

// Bits of an LVT entry.
const (
	lvtVector   = 0xff
	lvtMode     = 7 << 8
	lvtPolarity = 1 << 13
	lvtLevel    = 1 << 15
	lvtMasked   = 1 << 16
	lvtTimers   = 3 << 17
)

// lvtWritable are the bits that each entry has.
var lvtWritable = [lvtEntries]uint32{
	lvtTimer:   lvtVector | lvtMasked | lvtTimers,
	lvtThermal: lvtVector | lvtMasked | lvtMode,
	lvtCounter: lvtVector | lvtMasked | lvtMode,
	lvtLINT0:   lvtVector | lvtMasked | lvtMode | lvtPolarity | lvtLevel,
	lvtLINT1:   lvtVector | lvtMasked | lvtMode | lvtPolarity | lvtLevel,
	lvtError:   lvtVector | lvtMasked,
}

// spuriousEnable is the APIC's software enable (SDM, 10.9).
const spuriousEnable = 1 << 8

// Bits of the ESR (SDM, 10.5.3).
const (
	errSendVector    = 1 << 5
	errReceiveVector = 1 << 6
	errRegister      = 1 << 7
)

// firstVector is the lowest that an interrupt can have (SDM, 10.5.2).
const firstVector = 16

// Wants is what there may be for a CPU.
type Wants uint32

const (
	// WantInterrupt says that Interrupt has a vector.
	WantInterrupt Wants = 1 << iota
	// WantNMI says that TakeNMI has one.
	WantNMI
	// WantINIT says that TakeINIT has one.
	WantINIT
	// WantSIPI says that TakeSIPI has one.
	WantSIPI
)

// LAPIC is a CPU's local APIC.
type LAPIC struct {
	chips *Chips
	id    uint32
	cpu   CPU
	timer *time.Timer

	// wants has all that Wanted tells; it is written with mu.
	wants atomic.Uint32
	// address is what others look at who send interrupts; it is written with mu.
	address atomic.Uint64

	mu         sync.Mutex
	base       uint64 // IA32_APIC_BASE
	irr        vectors
	isr        vectors
	tmr        vectors
	tpr        uint32
	ldr        uint32
	dfr        uint32
	spurious   uint32
	esr        uint32
	errors     uint32 // since the last write to the ESR
	icr        uint64
	lvt        [lvtEntries]uint32
	initial    uint32
	divide     uint32
	sipiVector uint8

	// Of the timer: when a count ends, in nanoseconds of Chips.now, 0 if none runs; how
	// long it is; and IA32_TSC_DEADLINE.
	expiry, period int64
	deadline       uint64
	tscOffset      uint64
}

func newLAPIC(c *Chips, id uint32, cpu CPU) *LAPIC {
	l := &LAPIC{chips: c, id: id, cpu: cpu, base: x86.LAPICBase | baseEnable}
	if id == 0 {
		l.base |= baseBSP
	}
	l.timer = c.newTimer(l.tick)
	l.reset()
	return l
}

// reset is what INIT does (SDM, 10.4.7.3): all but the base address, the mode and the ID.
// mu is held, or nobody has the APIC yet.
func (l *LAPIC) reset() {
	l.stopTimer()
	l.irr, l.isr, l.tmr = vectors{}, vectors{}, vectors{}
	l.tpr, l.esr, l.errors, l.icr, l.initial, l.divide = 0, 0, 0, 0, 0, 0
	l.spurious, l.dfr = 0xff, 0xffff_ffff
	for i := range l.lvt {
		l.lvt[i] = lvtMasked
	}
	if l.id == 0 {
		l.lvt[lvtLINT0] = uint32(modeExtINT) << 8 // as a BIOS leaves it, and KVM
	}
	if !l.x2apic() {
		l.ldr = 0
	}
	l.changed()
}

// SetTSCOffset says what the CPU's time-stamp counter is ahead of that of all, modulo 1<<64:
// its deadlines are times of that.
func (l *LAPIC) SetTSCOffset(offset uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tscOffset = offset
	l.armDeadline()
}

// MMIO is an access to the page at the APIC's base; off is an offset in it. Registers have 32
// bits at addresses that are multiples of 16; other accesses do nothing and read zeros. Without
// xAPIC mode nothing is there, which reads as ones.
func (l *LAPIC) MMIO(off uint32, data []byte, write bool) {
	l.mu.Lock()
	there := l.base&(baseEnable|baseX2APIC) == baseEnable
	l.mu.Unlock()
	switch {
	case !there && write:
	case !there:
		for i := range data {
			data[i] = 0xff
		}
	case write && (len(data) != 4 || off&15 != 0):
	case write:
		if !l.write(off, binary.LittleEndian.Uint32(data)) {
			l.illegalRegister()
		}
	default:
		l.load(off, data)
	}
}

// load reads a register or a part of it.
func (l *LAPIC) load(off uint32, data []byte) {
	clear(data)
	part := off & 15
	if int(part)+len(data) > 4 {
		return
	}
	v, ok := l.read(off &^ 15)
	if !ok {
		l.illegalRegister()
	}
	var b [4]byte
	binary.LittleEndian.PutUint32(b[:], v)
	copy(data, b[part:])
}

// read reads a register. ok is false where there is none.
func (l *LAPIC) read(reg uint32) (v uint32, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.register(reg)
}

// register is read with mu held.
func (l *LAPIC) register(reg uint32) (v uint32, ok bool) {
	switch {
	case reg >= regISR && reg < regTMR:
		return l.isr.word(reg - regISR), true
	case reg >= regTMR && reg < regIRR:
		return l.tmr.word(reg - regTMR), true
	case reg >= regIRR && reg < regESR:
		return l.irr.word(reg - regIRR), true
	case reg >= regLVT && reg < regInitial:
		return l.lvt[(reg-regLVT)/16], true
	}
	switch reg {
	case regID:
		if l.x2apic() {
			return l.id, true
		}
		return l.id << 24, true
	case regVersion:
		return lapicVersion, true
	case regTPR:
		return l.tpr, true
	case regAPR:
		return 0, !l.x2apic()
	case regPPR:
		return l.ppr(), true
	case regLDR:
		return l.ldr, true
	case regDFR:
		return l.dfr, !l.x2apic()
	case regSpurious:
		return l.spurious, true
	case regESR:
		return l.esr, true
	case regICR:
		return uint32(l.icr), true
	case regICR2:
		return uint32(l.icr >> 32), !l.x2apic()
	case regInitial:
		return l.initial, true
	case regCurrent:
		return l.current(), true
	case regDivide:
		return l.divide, true
	}
	return 0, false
}

// write writes a register. ok is false where there is none that can be written, and in x2APIC
// mode for what must not be.
func (l *LAPIC) write(reg, v uint32) (ok bool) {
	switch reg {
	case regEOI:
		l.eoi()
		return true
	case regICR:
		l.mu.Lock()
		icr := l.icr&^0xffff_ffff | uint64(v)
		l.mu.Unlock()
		l.send(icr)
		return true
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	defer l.changed()
	if reg >= regLVT && reg < regInitial {
		l.writeLVT((reg-regLVT)/16, v)
		return true
	}
	x2 := l.x2apic()
	switch reg {
	case regID: // read-only, as in CPUs of today
		return !x2
	case regTPR:
		l.tpr = v & 0xff
	case regLDR:
		if x2 {
			return false
		}
		l.ldr = v & 0xff00_0000
	case regDFR:
		if x2 {
			return false
		}
		l.dfr = v | 0x0fff_ffff
	case regSpurious:
		l.writeSpurious(v & 0x3ff)
	case regESR:
		if x2 && v != 0 {
			return false
		}
		l.esr, l.errors = l.errors, 0
	case regICR2:
		if x2 {
			return false
		}
		l.icr = l.icr&0xffff_ffff | uint64(v&0xff00_0000)<<32
	case regInitial:
		if l.timerMode() != timerDeadline {
			l.initial = v
			l.count(v)
		}
	case regDivide:
		l.writeDivide(v)
	default:
		return false
	}
	return true
}

// writeSpurious writes the spurious-interrupt vector register. While software has disabled
// the APIC, all of the LVT is masked (SDM, 10.4.7.2).
func (l *LAPIC) writeSpurious(v uint32) {
	l.spurious = v
	if v&spuriousEnable == 0 {
		for i := range l.lvt {
			l.lvt[i] |= lvtMasked
		}
	}
}

func (l *LAPIC) writeLVT(i, v uint32) {
	v &= lvtWritable[i]
	if l.spurious&spuriousEnable == 0 {
		v |= lvtMasked
	}
	if i == lvtTimer {
		l.writeTimer(v)
		return
	}
	l.lvt[i] = v
}

func (l *LAPIC) illegalRegister() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.fail(errRegister)
}

// fail notes an error, and interrupts by LVT's entry for errors at the first one.
func (l *LAPIC) fail(bit uint32) {
	if l.errors&bit != 0 {
		return
	}
	l.errors |= bit
	l.local(lvtError)
}
