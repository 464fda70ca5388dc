package irqchip

import "math/bits"

// The 8259As' ports: command and data of the master and the slave, and the chip set's
// registers for what is triggered by levels.
const (
	portMaster = 0x20
	portSlave  = 0xa0
	portELCR   = 0x4d0
)

func isPICPort(port uint16) bool {
	return port&^1 == portMaster || port&^1 == portSlave || port&^1 == portELCR
}

// cascade is the master's input that the slave is at.
const cascade = 2

// Bits of the command words (8259A data sheet, "Programming the 8259A").
const (
	icw1Init = 1 << 4
	icw1ICW4 = 1 << 0

	icw4AutoEOI            = 1 << 1
	icw4SpecialFullyNested = 1 << 4

	ocw3Select      = 1 << 3
	ocw3SetMask     = 1 << 6
	ocw3SpecialMask = 1 << 5
	ocw3Poll        = 1 << 2
	ocw3SetRead     = 1 << 1
	ocw3ReadISR     = 1 << 0
)

// Operations of OCW2, its bits 5 to 7.
const (
	ocw2ClearRotateAuto  = 0
	ocw2EOI              = 1
	ocw2SpecificEOI      = 3
	ocw2SetRotateAuto    = 4
	ocw2RotateEOI        = 5
	ocw2SetPriority      = 6
	ocw2RotateSpecificIO = 7
)

// What a write to the data port is: the mask, or the next ICW.
const (
	expectMask = iota
	expectICW2
	expectICW3
	expectICW4
)

// pollPending marks that a poll has found an interrupt.
const pollPending = 0x80

// picState has the fields of struct kvm_pic_state, in its order.
type picState struct {
	Last     uint8 // the inputs' levels, for edges
	IRR      uint8
	IMR      uint8
	ISR      uint8
	First    uint8 // the input with the highest priority
	Base     uint8 // the vector of input 0
	ReadISR  bool  // or the IRR
	Poll     bool  // the next read is a poll
	Special  bool  // special mask mode
	Expect   uint8
	AutoEOI  bool
	Rotate   bool // on automatic EOIs
	Nested   bool // special fully nested mode
	NeedICW4 bool
	ELCR     uint8 // the inputs that are triggered by levels
	ELCRMask uint8 // those of them that can be
}

// pic is one 8259A.
type pic struct {
	picState
	lines lines
}

// pics are the master and the slave.
type pics [2]pic

// elcrMasks leave out what is always triggered by edges: timer, keyboard and cascade;
// RTC and coprocessor.
var elcrMasks = [2]uint8{0xf8, 0xde}

func (p *pics) reset() {
	for i := range p {
		p[i].ELCRMask = elcrMasks[i]
	}
}

// sanitize makes a state from outside one that a chip can have.
func (p *pic) sanitize(id uint32) {
	p.First &= 7
	p.Base &^= 7
	p.Expect &= 3
	p.ELCRMask = elcrMasks[id]
	p.ELCR &= p.ELCRMask
}

// set gives an input a level.
func (p *pic) set(pin uint8, level bool) {
	bit := uint8(1) << pin
	switch {
	case !level:
		p.Last &^= bit
		p.IRR &^= bit & p.ELCR
	case p.ELCR&bit != 0 || p.Last&bit == 0:
		p.IRR |= bit
		p.Last |= bit
	}
}

// priority returns which input of a set comes first, and how many come before it: 8 if the
// set is empty.
func (p *pic) priority(set uint8) (pin uint8, rank int) {
	rank = bits.TrailingZeros8(bits.RotateLeft8(set, -int(p.First)))
	return (p.First + uint8(rank)) & 7, rank
}

// serviced is what keeps lower priorities waiting, or is ended by an EOI that says no
// number: in special mask mode not what is masked.
func (p *pic) serviced() uint8 {
	if p.Special {
		return p.ISR &^ p.IMR
	}
	return p.ISR
}

// pending returns the input that is to be served next. While it is initialized there is
// none.
func (p *pic) pending(master bool) (pin uint8, ok bool) {
	busy := p.serviced()
	if p.Nested && master {
		busy &^= 1 << cascade // the slave has priorities of its own
	}
	pin, rank := p.priority(p.IRR &^ p.IMR)
	_, current := p.priority(busy)
	return pin, rank < current && p.Expect == expectMask
}

// acknowledge takes an input into service.
func (p *pic) acknowledge(pin uint8) {
	bit := uint8(1) << pin
	p.IRR &^= bit &^ p.ELCR
	if !p.AutoEOI {
		p.ISR |= bit
	} else if p.Rotate {
		p.First = (pin + 1) & 7
	}
}

// output gives the master what the slave has, and reports whether an interrupt is wanted.
func (p *pics) output() bool {
	if _, ok := p[1].pending(false); ok {
		p[0].set(cascade, true)
		p[0].set(cascade, false)
	}
	_, ok := p[0].pending(true)
	return ok
}

// interrupt is an acknowledge cycle of a CPU. An input that has gone is input 7.
func (p *pics) interrupt() (vector uint8) {
	pin, ok := p[0].pending(true)
	if !ok {
		return p[0].Base + 7
	}
	p[0].acknowledge(pin)
	if pin != cascade {
		return p[0].Base + pin
	}
	if pin, ok = p[1].pending(false); !ok {
		return p[1].Base + 7
	}
	p[1].acknowledge(pin)
	return p[1].Base + pin
}

func (p *pics) read(port uint16) uint8 {
	switch port &^ 1 {
	case portMaster:
		return p[0].read(port&1 != 0, true)
	case portSlave:
		return p[1].read(port&1 != 0, false)
	}
	return p[port&1].ELCR
}

func (p *pic) read(data, master bool) uint8 {
	switch {
	case p.Poll:
		p.Poll = false
		pin, ok := p.pending(master)
		if !ok {
			return 7
		}
		p.acknowledge(pin)
		return pollPending | pin
	case data:
		return p.IMR
	case p.ReadISR:
		return p.ISR
	}
	return p.IRR
}

func (p *pics) write(port uint16, v uint8) {
	i := port & 1
	switch port &^ 1 {
	case portELCR:
		p[i].ELCR = v & p[i].ELCRMask
	case portMaster:
		p[0].write(i != 0, v)
	case portSlave:
		p[1].write(i != 0, v)
	}
}

func (p *pic) write(data bool, v uint8) {
	switch {
	case data:
		p.writeData(v)
	case v&icw1Init != 0:
		p.init(v)
	case v&ocw3Select != 0:
		if v&ocw3Poll != 0 {
			p.Poll = true
		}
		if v&ocw3SetRead != 0 {
			p.ReadISR = v&ocw3ReadISR != 0
		}
		if v&ocw3SetMask != 0 {
			p.Special = v&ocw3SpecialMask != 0
		}
	default:
		p.ocw2(v>>5, v&7)
	}
}

// init is ICW1. There is always a slave, and inputs are triggered as the ELCR says.
func (p *pic) init(v uint8) {
	p.Last, p.IRR, p.IMR, p.ISR = 0, p.IRR&p.ELCR, 0, 0
	p.First, p.ReadISR, p.Special = 0, false, false
	if p.NeedICW4 = v&icw1ICW4 != 0; !p.NeedICW4 {
		p.Nested, p.AutoEOI = false, false
	}
	p.Expect = expectICW2
}

func (p *pic) writeData(v uint8) {
	switch p.Expect {
	case expectMask:
		p.IMR = v
	case expectICW2:
		p.Base = v &^ 7
		p.Expect = expectICW3
	case expectICW3:
		if p.Expect = expectMask; p.NeedICW4 {
			p.Expect = expectICW4
		}
	case expectICW4:
		p.Nested, p.AutoEOI = v&icw4SpecialFullyNested != 0, v&icw4AutoEOI != 0
		p.Expect = expectMask
	}
}

// ocw2 ends interrupts and moves priorities.
func (p *pic) ocw2(op, pin uint8) {
	switch op {
	case ocw2ClearRotateAuto, ocw2SetRotateAuto:
		p.Rotate = op == ocw2SetRotateAuto
		return
	case ocw2EOI, ocw2RotateEOI:
		var rank int
		if pin, rank = p.priority(p.serviced()); rank == 8 {
			return
		}
	}
	switch op {
	case ocw2EOI, ocw2SpecificEOI, ocw2RotateEOI, ocw2RotateSpecificIO:
		p.ISR &^= 1 << pin
	}
	switch op {
	case ocw2RotateEOI, ocw2SetPriority, ocw2RotateSpecificIO:
		p.First = (pin + 1) & 7
	}
}

// updatePICs tells the local APICs of what the 8259As' output has become. c.mu is held.
func (c *Chips) updatePICs(k *kicks) {
	out := c.pics.output()
	if old := c.intr.Swap(out); old || !out {
		return
	}
	for _, l := range *c.apics.Load() {
		if l != nil {
			l.lint0(k)
		}
	}
}

// acknowledgePIC takes the 8259As' interrupt, if it is still there.
func (c *Chips) acknowledgePIC() (vector uint8, ok bool) {
	var k kicks
	defer c.kick(&k)
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.pics.output() {
		return 0, false
	}
	vector = c.pics.interrupt()
	c.updatePICs(&k)
	return vector, true
}
