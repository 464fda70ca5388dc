package irqchip

// Wanted tells what there may be for the CPU. It is one load from memory, for each few
// instructions. It may tell what turns out not to be there, but tells all that is: a CPU that
// has seen nothing for it in it may sleep until it is kicked.
func (l *LAPIC) Wanted() Wants { return Wants(l.wants.Load()) }

// want adds to what is wanted; mu is held.
func (l *LAPIC) want(w Wants) { l.wants.Or(uint32(w)) }

// unwant reports whether something was wanted, and takes it.
func (l *LAPIC) unwant(w Wants) bool { return l.wants.And(^uint32(w))&uint32(w) != 0 }

// Interrupt takes the interrupt that the CPU is to begin: that of the 8259As, where LINT0
// lets them through, or the one with the highest priority in the IRR.
func (l *LAPIC) Interrupt() (vector uint8, ok bool) {
	if l.fromPIC() {
		if vector, ok = l.chips.acknowledgePIC(); ok {
			return vector, true
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if vector, ok = l.deliverable(); ok {
		l.irr.remove(vector)
		l.isr.add(vector)
	}
	l.update()
	return vector, ok
}

// Deliverable reports whether Interrupt has a vector, and takes none.
func (l *LAPIC) Deliverable() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.update()
	return l.Wanted()&WantInterrupt != 0
}

// TakeNMI reports whether there is an NMI, and takes it.
func (l *LAPIC) TakeNMI() bool { return l.unwant(WantNMI) }

// NMI sends an NMI to the CPU.
func (l *LAPIC) NMI() {
	var k kicks
	l.take(&message{mode: modeNMI, assert: true}, &k)
	l.chips.kick(&k)
}

// TakeINIT reports whether there is an INIT, and takes it: the APIC is reset, and an NMI
// is forgotten.
func (l *LAPIC) TakeINIT() bool {
	if !l.unwant(WantINIT) {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.unwant(WantNMI)
	l.reset()
	return true
}

// TakeSIPI reports whether there is a start-up IPI, and takes it: a CPU that waits for one
// begins at vector<<12 in real mode, another goes on.
func (l *LAPIC) TakeSIPI() (vector uint8, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.sipiVector, l.unwant(WantSIPI)
}

// CR8 returns the task priority as the CPU's CR8 has it, 0 to 15.
func (l *LAPIC) CR8() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return uint64(l.tpr >> 4)
}

// SetCR8 sets the task priority; only the low four bits count.
func (l *LAPIC) SetCR8(v uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tpr = uint32(v&0xf) << 4
	l.update()
}

// What follows is called with mu held.

// update makes the interrupts in wants what they are by now.
func (l *LAPIC) update() {
	if _, ok := l.deliverable(); ok || l.takesPIC() && l.chips.intr.Load() {
		l.want(WantInterrupt)
	} else {
		l.unwant(WantInterrupt)
	}
}

// changed is update after any write to the registers: also others may see it.
func (l *LAPIC) changed() {
	l.address.Store(l.addressOf())
	l.update()
}

// ppr is the processor priority (SDM, 10.8.3.1).
func (l *LAPIC) ppr() uint32 {
	serviced := uint32(l.isr.highest())
	if l.tpr&0xf0 >= serviced&0xf0 {
		return l.tpr
	}
	return serviced & 0xf0
}

// deliverable returns the request with the highest priority, if that is higher than the
// processor's.
func (l *LAPIC) deliverable() (vector uint8, ok bool) {
	vector = l.irr.highest()
	return vector, l.base&baseEnable != 0 && uint32(vector&0xf0) > l.ppr()
}

// request accepts a vector (SDM, 10.8.4). One that is there already is not noted twice.
func (l *LAPIC) request(vector uint8, level bool) bool {
	if l.base&baseEnable == 0 || l.spurious&spuriousEnable == 0 {
		return false
	}
	if vector < firstVector {
		l.fail(errReceiveVector)
		return false
	}
	l.irr.add(vector)
	if level {
		l.tmr.add(vector)
	} else {
		l.tmr.remove(vector)
	}
	if _, ok := l.deliverable(); ok {
		l.want(WantInterrupt)
	}
	return true
}

// takesPIC reports whether the CPU takes interrupts of the 8259As: by LINT0, or directly
// where the APIC is disabled.
func (l *LAPIC) takesPIC() bool {
	return l.base&baseEnable == 0 || l.lvt[lvtLINT0]&(lvtMasked|lvtMode) == uint32(modeExtINT)<<8
}

// fromPIC reports whether the 8259As have an interrupt for this CPU; mu is not held.
func (l *LAPIC) fromPIC() bool {
	if !l.chips.intr.Load() {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.takesPIC()
}

// eoi ends the interrupt in service that has the highest priority (SDM, 10.8.5). mu is not
// held.
func (l *LAPIC) eoi() {
	l.mu.Lock()
	vector := l.isr.highest()
	l.isr.remove(vector)
	level := vector != 0 && l.tmr.has(vector)
	l.update()
	l.mu.Unlock()
	if !level {
		return
	}
	c := l.chips
	var k kicks
	defer c.kick(&k)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ioapic.eoi(c, vector, &k)
}
