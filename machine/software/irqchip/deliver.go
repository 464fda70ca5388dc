package irqchip

// deliveryMode is what a message makes of its target (SDM, 10.6.1).
type deliveryMode uint8

const (
	modeFixed   deliveryMode = 0
	modeLowest  deliveryMode = 1
	modeSMI     deliveryMode = 2
	modeNMI     deliveryMode = 4
	modeINIT    deliveryMode = 5
	modeStartup deliveryMode = 6
	modeExtINT  deliveryMode = 7
)

// shorthand says whom an IPI is for in the place of a destination (SDM, 10.6.1).
type shorthand uint8

const (
	toDestination shorthand = iota
	toSelf
	toAll
	toOthers
)

// message is an interrupt on its way to local APICs.
type message struct {
	dest    uint32
	logical bool
	short   shorthand
	mode    deliveryMode
	vector  uint8
	assert  bool // not the de-assertion of a level
	level   bool // triggered by a level: its EOI is broadcast
}

// msiMessage reads a message-signalled interrupt (SDM, 10.11). A hint for redirection means
// one of the logical destination, as the lowest priority does.
func msiMessage(address, data uint32) message {
	const hint, logical = 1 << 3, 1 << 2
	m := message{
		dest: address >> 12 & 0xff, logical: address&logical != 0,
		mode: deliveryMode(data >> 8 & 7), vector: uint8(data),
		assert: true, level: data>>15&1 != 0,
	}
	if m.logical && address&hint != 0 && m.mode == modeFixed {
		m.mode = modeLowest
	}
	return m
}

// Bits of the interrupt command register.
const (
	icrLogical  = 1 << 11
	icrBusy     = 1 << 12 // delivery status, always clear: an IPI is sent at once
	icrAssert   = 1 << 14
	icrLevel    = 1 << 15
	icrReserved = 0xfff<<20 | 3<<16 | 1<<13 // must be clear in x2APIC mode
)

// send writes the ICR, and sends the IPI. No lock is held.
func (l *LAPIC) send(icr uint64) {
	icr &^= icrBusy
	m := message{
		dest: uint32(icr >> 32), logical: icr&icrLogical != 0, short: shorthand(icr >> 18 & 3),
		mode: deliveryMode(icr >> 8 & 7), vector: uint8(icr),
		assert: icr&icrAssert != 0, level: icr&icrLevel != 0,
	}
	l.mu.Lock()
	l.icr = icr
	if !l.x2apic() {
		m.dest >>= 24
	}
	legal := m.vector >= firstVector || m.mode > modeLowest
	if !legal {
		l.fail(errSendVector)
	}
	l.mu.Unlock()
	if !legal {
		return
	}
	var k kicks
	l.chips.deliver(&m, l, &k)
	l.chips.kick(&k)
}

// deliver gives a message to the local APICs that it is for, and reports whether one has
// taken it. from is the sender of an IPI, nil for all others. No LAPIC's lock is held.
func (c *Chips) deliver(m *message, from *LAPIC, k *kicks) (taken bool) {
	apics := *c.apics.Load()
	if m.short == toSelf {
		return from.take(m, k)
	}
	if m.short == toDestination && !m.logical && m.dest < 0xff { // only the one with that ID
		if m.dest >= uint32(len(apics)) {
			return false
		}
		apics = apics[m.dest : m.dest+1]
	}
	if m.mode == modeLowest && (m.logical || m.dest != 0xff) { // all is never one, for KVM
		return c.deliverToOne(m, apics, from, k)
	}
	for _, l := range apics {
		if l != nil && l.isFor(m, from) && l.take(m, k) {
			taken = true
		}
	}
	return taken
}

// deliverToOne gives a message to one of its targets, chosen by the vector: the same for all
// interrupts of a device, and different for different ones.
func (c *Chips) deliverToOne(m *message, apics []*LAPIC, from *LAPIC, k *kicks) bool {
	candidate := func(l *LAPIC) bool {
		return l != nil && l.address.Load()&addressEnabled != 0 && l.isFor(m, from)
	}
	n := 0
	for _, l := range apics {
		if candidate(l) {
			n++
		}
	}
	if n == 0 {
		return false
	}
	skip := int(m.vector) % n
	for _, l := range apics {
		if !candidate(l) {
			continue
		}
		if skip == 0 {
			return l.take(m, k)
		}
		skip--
	}
	return false
}

// Bits of LAPIC.address, below the LDR.
const (
	addressPresent = 1 << iota // enabled by IA32_APIC_BASE
	addressEnabled             // and by software: takes interrupts with vectors
	addressX2APIC
	addressFlat    // the DFR's model
	addressCluster // another
)

// addressOf is LAPIC.address as the registers have it; mu is held.
func (l *LAPIC) addressOf() uint64 {
	a := uint64(l.ldr) << 32
	if l.base&baseEnable != 0 {
		a |= addressPresent
		if l.spurious&spuriousEnable != 0 {
			a |= addressEnabled
		}
	}
	if l.x2apic() {
		a |= addressX2APIC
	}
	switch l.dfr >> 28 {
	case 0xf:
		a |= addressFlat
	case 0:
		a |= addressCluster
	}
	return a
}

// isFor reports whether a message is for this APIC (SDM, 10.6.2 and 10.12.10). 0xff is all,
// and so is 0xffffffff for one in x2APIC mode.
func (l *LAPIC) isFor(m *message, from *LAPIC) bool {
	a := l.address.Load()
	x2 := a&addressX2APIC != 0
	switch {
	case a&addressPresent == 0:
		return false
	case m.short == toAll:
		return true
	case m.short == toOthers:
		return l != from
	case m.dest == 0xff && (!x2 || from == nil), m.dest == 0xffff_ffff && x2:
		return true
	case !m.logical:
		return m.dest == l.id
	}
	ldr := uint32(a >> 32)
	if x2 {
		return ldr>>16 == m.dest>>16 && ldr&m.dest&0xffff != 0
	}
	ldr >>= 24
	switch {
	case a&addressFlat != 0:
		return ldr&m.dest != 0
	case a&addressCluster != 0:
		return ldr>>4 == m.dest>>4 && ldr&m.dest&0xf != 0
	}
	return false
}

// take accepts a message, and reports whether it did. No LAPIC's lock is held.
func (l *LAPIC) take(m *message, k *kicks) (taken bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	before := l.Wanted()
	taken = l.accept(m)
	if l.Wanted()&^before != 0 {
		k.add(l)
	}
	return taken
}

// accept is take with mu held.
func (l *LAPIC) accept(m *message) bool {
	switch m.mode {
	case modeFixed, modeLowest:
		return (m.assert || !m.level) && l.request(m.vector, m.level)
	case modeSMI: // there is no system management mode
		return true
	case modeNMI:
		l.want(WantNMI)
		return true
	case modeINIT:
		if m.level && !m.assert { // it was for the arbitration IDs of old buses
			return false
		}
		l.wants.And(^uint32(WantSIPI))
		l.want(WantINIT)
		return true
	case modeStartup:
		l.sipiVector = m.vector
		l.want(WantSIPI)
		return true
	}
	return false
}

// local is an interrupt of the APIC's own, by an entry of its LVT. mu is held.
func (l *LAPIC) local(entry int) {
	v := l.lvt[entry]
	if l.base&baseEnable != 0 && v&lvtMasked == 0 {
		l.accept(&message{mode: deliveryMode(v >> 8 & 7), vector: uint8(v), assert: true, level: v&lvtLevel != 0})
	}
}

// lint0 tells of a rising edge of the 8259As' output. In ExtINT mode it is asked for its
// vector later.
func (l *LAPIC) lint0(k *kicks) {
	l.mu.Lock()
	defer l.mu.Unlock()
	before := l.Wanted()
	if l.takesPIC() {
		l.want(WantInterrupt)
	} else {
		l.local(lvtLINT0)
	}
	if l.Wanted()&^before != 0 {
		k.add(l)
	}
}
