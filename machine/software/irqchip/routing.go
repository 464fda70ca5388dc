package irqchip

import (
	"fmt"
	"syscall"

	"vmm/kvm"
)

// maxGSI bounds the numbers of interrupts, as KVM_MAX_IRQ_ROUTES does.
const maxGSI = 4096

// route is where a GSI leads to: a pin of a chip, or a message.
type route struct {
	isMSI bool
	chip  uint32 // kvm.IRQChipPICMaster, ...
	pin   uint32
	msi   message
}

// routes are those of each GSI. They are never changed in place.
type routes struct{ of [][]route }

func (r *routes) get(gsi uint32) []route {
	if uint64(gsi) < uint64(len(r.of)) {
		return r.of[gsi]
	}
	return nil
}

// source is one of those who pull a pin, which is high while one of them does.
type source uint8

const (
	fromOwner source = 1 << iota // SetLine and Signal
	fromPIT
)

// lines are who pulls each pin of a chip.
type lines [ioapicPins]source

// set returns the pin's level once s pulls it or no more.
func (l *lines) set(pin uint32, s source, level bool) bool {
	if level {
		l[pin] |= s
	} else {
		l[pin] &^= s
	}
	return l[pin] != 0
}

// defaultRoutes is what KVM_CREATE_IRQCHIP makes: a GSI is the I/O APIC's pin of that
// number, and those below 16 are the 8259As' too.
func defaultRoutes() *routes {
	r := &routes{of: make([][]route, ioapicPins)}
	for pin := range uint32(ioapicPins) {
		if pin < 16 {
			r.of[pin] = append(r.of[pin], route{chip: kvm.IRQChipPICMaster + pin/8, pin: pin % 8})
		}
		r.of[pin] = append(r.of[pin], route{chip: kvm.IRQChipIOAPIC, pin: pin})
	}
	return r
}

// SetRouting replaces all routes, as KVM_SET_GSI_ROUTING does. The error is
// syscall.EINVAL for a route to nowhere, or a second one of a GSI to the same chip.
func (c *Chips) SetRouting(entries []kvm.IRQRoutingEntry) error {
	if len(entries) > maxGSI {
		return fmt.Errorf("KVM_SET_GSI_ROUTING: %d routes, at most %d: %w", len(entries), maxGSI, syscall.EINVAL)
	}
	r := &routes{}
	for i, e := range entries {
		one, ok := newRoute(&e)
		if !ok || e.GSI >= maxGSI || !r.add(e.GSI, one) {
			return fmt.Errorf("KVM_SET_GSI_ROUTING: route %d, of GSI %d: %w", i, e.GSI, syscall.EINVAL)
		}
	}
	c.routes.Store(r)
	return nil
}

func newRoute(e *kvm.IRQRoutingEntry) (r route, ok bool) {
	switch e.Type {
	case kvm.RoutingMSI:
		return route{isMSI: true, msi: msiMessage(e.U[0], e.U[2])}, true
	case kvm.RoutingIRQChip:
		r = route{chip: e.U[0], pin: e.U[1]}
		switch r.chip {
		case kvm.IRQChipPICMaster, kvm.IRQChipPICSlave:
			return r, r.pin < 8
		case kvm.IRQChipIOAPIC:
			return r, r.pin < ioapicPins
		}
	}
	return r, false
}

// add reports whether the route can be one of the GSI's.
func (r *routes) add(gsi uint32, one route) bool {
	for uint32(len(r.of)) <= gsi {
		r.of = append(r.of, nil)
	}
	for _, other := range r.of[gsi] {
		if one.isMSI || other.isMSI || one.chip == other.chip {
			return false
		}
	}
	r.of[gsi] = append(r.of[gsi], one)
	return true
}

// SetLine drives the line of a GSI, as KVM_IRQ_LINE does: where it leads to a message, a
// high level sends it.
func (c *Chips) SetLine(gsi uint32, level bool) {
	var k kicks
	defer c.kick(&k)
	for _, r := range c.routes.Load().get(gsi) {
		if r.isMSI {
			if level {
				c.deliver(&r.msi, nil, &k)
			}
			continue
		}
		c.mu.Lock()
		c.setPin(&r, fromOwner, level, &k)
		c.mu.Unlock()
	}
}

// Signal gives a GSI an edge, as an irqfd does.
func (c *Chips) Signal(gsi uint32) {
	var k kicks
	defer c.kick(&k)
	for _, r := range c.routes.Load().get(gsi) {
		if r.isMSI {
			c.deliver(&r.msi, nil, &k)
			continue
		}
		c.mu.Lock()
		c.setPin(&r, fromOwner, true, &k)
		c.setPin(&r, fromOwner, false, &k)
		c.mu.Unlock()
	}
}

// SignalMSI sends a message, and reports whether a CPU has taken it.
func (c *Chips) SignalMSI(m kvm.MSI) (delivered bool) {
	var k kicks
	defer c.kick(&k)
	msg := msiMessage(m.AddressLo, m.Data)
	return c.deliver(&msg, nil, &k)
}

// pulse gives a GSI an edge of the i8254. c.mu is held.
func (c *Chips) pulse(gsi uint32, k *kicks) {
	for _, r := range c.routes.Load().get(gsi) {
		if r.isMSI {
			c.deliver(&r.msi, nil, k)
			continue
		}
		c.setPin(&r, fromPIT, true, k)
		c.setPin(&r, fromPIT, false, k)
	}
}

// setPin drives a pin. c.mu is held.
func (c *Chips) setPin(r *route, s source, level bool, k *kicks) {
	if r.chip == kvm.IRQChipIOAPIC {
		c.ioapic.set(c, r.pin, c.ioapic.lines.set(r.pin, s, level), k)
		return
	}
	p := &c.pics[r.chip]
	p.set(uint8(r.pin), p.lines.set(r.pin, s, level))
	c.updatePICs(k)
}
