package irqchip

import "math/bits"

// The I/O APIC (82093AA data sheet), version 0x11: it has no register for EOIs, which the
// local APICs broadcast.
const (
	ioapicBase    = 0xfec0_0000
	ioapicSize    = 0x100
	ioapicPins    = 24
	ioapicVersion = 0x11 | (ioapicPins-1)<<16

	ioapicSelect = 0x00 // IOREGSEL
	ioapicWindow = 0x10 // IOWIN

	ioapicRegID          = 0
	ioapicRegVersion     = 1
	ioapicRegArbitration = 2
	ioapicRegRedirect    = 0x10 // two for each pin
)

// Bits of an entry of the redirection table.
const (
	redirectLogical   = 1 << 11
	redirectStatus    = 1 << 12 // read-only; always clear: a message is sent at once
	redirectRemoteIRR = 1 << 14 // read-only: a level was taken, and there was no EOI yet
	redirectLevel     = 1 << 15
	redirectMasked    = 1 << 16
	redirectReadOnly  = redirectStatus | redirectRemoteIRR
)

// ioapicState has the fields of struct kvm_ioapic_state, in its order.
type ioapicState struct {
	Base     uint64
	Select   uint32
	ID       uint32
	IRR      uint32 // the pins' levels
	_        uint32
	Redirect [ioapicPins]uint64
}

// ioapic is the I/O APIC. Its methods are called with Chips.mu held.
type ioapic struct {
	ioapicState
	// delivered are the edges of IRR that have been sent: after a restore they must not
	// be sent again.
	delivered uint32
	lines     lines
}

func (a *ioapic) reset() {
	a.Base = ioapicBase
	for i := range a.Redirect {
		a.Redirect[i] = redirectMasked
	}
}

func (a *ioapic) save() ioapicState {
	s := a.ioapicState
	s.IRR &^= a.delivered
	return s
}

func (a *ioapic) load(c *Chips, s *ioapicState, k *kicks) {
	a.ioapicState = *s
	a.Base = ioapicBase
	a.Select &= 0xff
	a.ID &= 0xf
	a.IRR, a.delivered = 0, 0
	for irr := s.IRR & (1<<ioapicPins - 1); irr != 0; irr &= irr - 1 {
		a.set(c, uint32(bits.TrailingZeros32(irr)), true, k)
	}
}

func (a *ioapic) read(off uint32) uint32 {
	switch off {
	case ioapicSelect:
		return a.Select
	case ioapicWindow:
	default:
		return 0
	}
	switch a.Select {
	case ioapicRegVersion:
		return ioapicVersion
	case ioapicRegID, ioapicRegArbitration:
		return a.ID << 24
	}
	if pin := (a.Select - ioapicRegRedirect) / 2; a.Select >= ioapicRegRedirect && pin < ioapicPins {
		return uint32(a.Redirect[pin] >> (a.Select % 2 * 32))
	}
	return 0xffff_ffff
}

func (a *ioapic) write(c *Chips, off, v uint32, k *kicks) {
	switch {
	case off == ioapicSelect:
		a.Select = v & 0xff
	case off != ioapicWindow:
	case a.Select == ioapicRegID:
		a.ID = v >> 24 & 0xf
	case a.Select >= ioapicRegRedirect:
		if pin := (a.Select - ioapicRegRedirect) / 2; pin < ioapicPins {
			a.redirect(c, pin, a.Select%2 != 0, v, k)
		}
	}
}

// redirect writes half of an entry.
func (a *ioapic) redirect(c *Chips, pin uint32, high bool, v uint32, k *kicks) {
	e := &a.Redirect[pin]
	if high {
		*e = *e&0xffff_ffff | uint64(v)<<32
	} else {
		*e = *e&(0xffff_ffff<<32|redirectReadOnly) | uint64(v&^redirectReadOnly)
	}
	if *e&redirectLevel == 0 {
		// Linux makes an entry edge-triggered for a moment to get the same as an EOI.
		*e &^= redirectRemoteIRR
		return
	}
	if a.IRR>>pin&1 != 0 {
		a.send(c, pin, k)
	}
}

// set gives a pin a level.
func (a *ioapic) set(c *Chips, pin uint32, level bool, k *kicks) {
	bit := uint32(1) << pin
	if !level {
		a.IRR &^= bit
		return
	}
	was := a.IRR&bit != 0
	a.IRR |= bit
	if a.Redirect[pin]&redirectLevel == 0 {
		a.delivered &^= bit
		if was {
			return
		}
	}
	a.send(c, pin, k)
}

// send sends a pin's message, if it may be.
func (a *ioapic) send(c *Chips, pin uint32, k *kicks) {
	e := &a.Redirect[pin]
	if *e&redirectMasked != 0 || *e&redirectLevel != 0 && *e&redirectRemoteIRR != 0 {
		return
	}
	m := message{
		dest: uint32(*e >> 56), logical: *e&redirectLogical != 0,
		mode: deliveryMode(*e >> 8 & 7), vector: uint8(*e),
		assert: true, level: *e&redirectLevel != 0,
	}
	taken := c.deliver(&m, nil, k)
	if !m.level {
		a.delivered |= 1 << pin
	} else if taken {
		*e |= redirectRemoteIRR
	}
}

// eoi is a local APIC's broadcast: the end of a level-triggered interrupt, which comes
// again if the pin is still high.
func (a *ioapic) eoi(c *Chips, vector uint8, k *kicks) {
	for pin := range a.Redirect {
		e := &a.Redirect[pin]
		if uint8(*e) != vector || *e&redirectLevel == 0 {
			continue
		}
		*e &^= redirectRemoteIRR
		if a.IRR>>pin&1 != 0 {
			a.send(c, uint32(pin), k)
		}
	}
}
