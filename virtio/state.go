package virtio

import (
	"encoding/json"
	"errors"
	"fmt"
)

// BusDevice is a device with its transport, PCI or MMIO, as a machine has it. Its
// methods may be called from any goroutine, and none holds a lock when it has returned.
type BusDevice interface {
	// Suspend stops the device where it is, and returns when it does not touch
	// guest memory any more. The driver must not run until Resume, nor is it told of
	// a change of the configuration. Of a suspended device it does nothing.
	Suspend()
	// Resume lets a suspended device go on; of another it does nothing.
	Resume()
	// Save returns the state of a suspended device, and an error of another: a copy,
	// which shares no memory with the device.
	Save() (*State, error)
	// Load takes a state for a device that no driver has touched, and keeps nothing
	// of it. The device is suspended after that, also if Load fails: ErrState if the
	// state is another device's.
	Load(*State) error
	// Close resets the device and frees all that it holds, at any time; the second
	// time it does nothing.
	Close() error
}

// State is a device and its transport as values.
type State struct {
	Type       DeviceType      `json:"type"`
	Status     uint8           `json:"status"`           // device status (virtio 1.2, 2.1)
	Offered    uint64          `json:"offered"`          // features that the device had to offer
	Accepted   uint64          `json:"accepted"`         // features that the driver took
	Select     [2]uint32       `json:"select"`           // feature selectors of the device's and the driver's
	Generation uint8           `json:"generation"`       // of the configuration
	QueueSel   uint32          `json:"queueSelect"`      // the queue that the registers speak of
	ISR        uint8           `json:"isr"`              // ISR status (4.1.4.5)
	Queues     []QueueState    `json:"queues"`           //
	PCI        *PCIState       `json:"pci,omitempty"`    // on that transport
	Device     json.RawMessage `json:"device,omitempty"` // the device type's own state
}

// QueueState is what the driver has set of a queue, and how far it is.
type QueueState struct {
	Max    uint16   `json:"max"` // descriptors that the device allows
	Layout Layout   `json:"layout"`
	Ready  bool     `json:"ready"`
	At     Position `json:"at"`
}

// PCIState is what only the PCI transport has.
type PCIState struct {
	Config       []byte   `json:"config"`       // the configuration space
	ConfigVector uint16   `json:"configVector"` // MSI-X vector of configuration changes
	QueueVectors []uint16 `json:"queueVectors"`
	MSIX         [][]byte `json:"msix"`    // the table's entries
	Pending      []bool   `json:"pending"` // messages that wait for their vector to be unmasked
}

// ErrState is the error for a state that does not fit the device.
var ErrState = errors.New("the state is another device's")

// Suspend implements BusDevice.
func (c *core) Suspend() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.suspended {
		return
	}
	for i := range c.queues {
		if q := c.queues[i].queue; q != nil {
			c.stopQueue(i)
			c.queues[i].at = q.position()
		}
	}
	c.tell() // so that it is in the state
	c.suspended = true
}

// Resume implements BusDevice.
func (c *core) Resume() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.suspended || c.closed {
		return
	}
	c.suspended = false
	if c.started {
		for i := range c.queues {
			if c.queues[i].ready {
				c.startQueue(i)
			}
		}
	}
	c.tell()
}

// save returns what transports have in common; mu is held.
func (c *core) save() (*State, error) {
	if !c.suspended {
		return nil, fmt.Errorf("virtio device of type %d: it is saved while it runs", c.dev.Type())
	}
	s := &State{Type: c.dev.Type(), Status: c.status, Offered: c.offered(), Accepted: c.accepted,
		Select: c.featureSel, Generation: c.generation}
	for _, q := range c.queues {
		s.Queues = append(s.Queues, QueueState{q.max, q.layout, q.ready, q.at})
	}
	if !c.started {
		return s, nil
	}
	v, err := c.dev.Save()
	if err == nil && v != nil {
		s.Device, err = json.Marshal(v)
	}
	if err != nil {
		return nil, fmt.Errorf("virtio device of type %d: %w", s.Type, err)
	}
	return s, nil
}

// load is save's reverse; mu is held.
func (c *core) load(s *State) error {
	c.suspended = true
	if s.Type != c.dev.Type() || len(s.Queues) != len(c.queues) {
		return fmt.Errorf("virtio device of type %d with %d queues, saved as type %d with %d: %w",
			c.dev.Type(), len(c.queues), s.Type, len(s.Queues), ErrState)
	}
	// Before they are agreed on, a driver may have written any.
	if missing := s.Accepted &^ c.offered(); missing != 0 && s.Status&statusFeaturesOK != 0 {
		return fmt.Errorf("virtio device of type %d: the driver uses features that it does not have any more (%#x): %w", s.Type, missing, ErrState)
	}
	for i, q := range s.Queues {
		if q.Max != c.queues[i].max {
			return fmt.Errorf("virtio device of type %d: a queue of %d descriptors, saved with %d: %w", s.Type, c.queues[i].max, q.Max, ErrState)
		}
		c.queues[i].layout, c.queues[i].ready, c.queues[i].at = q.Layout, q.Ready, q.At
	}
	c.status, c.accepted, c.featureSel, c.generation = s.Status, s.Accepted, s.Select, s.Generation
	if c.status&statusDriverOK == 0 || c.status&statusFeaturesOK == 0 {
		return nil
	}
	c.started = true
	c.dev.Start(c.accepted, c)
	if s.Device == nil {
		return nil
	}
	if err := c.dev.Load(s.Device); err != nil {
		return fmt.Errorf("virtio device of type %d: %w", s.Type, err)
	}
	return nil
}

// Save implements BusDevice.
func (m *MMIO) Save() (*State, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s, err := m.save()
	if err != nil {
		return nil, err
	}
	m.isrMu.Lock()
	defer m.isrMu.Unlock()
	s.QueueSel, s.ISR = m.queueSel, m.isr
	return s, nil
}

// Load implements BusDevice.
func (m *MMIO) Load(s *State) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.load(s); err != nil {
		return err
	}
	m.isrMu.Lock()
	defer m.isrMu.Unlock()
	m.queueSel, m.isr = s.QueueSel, s.ISR
	m.line.Set(m.isr != 0)
	return nil
}

// Save implements BusDevice.
func (p *PCI) Save() (*State, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s, err := p.save()
	if err != nil {
		return nil, err
	}
	p.isrMu.Lock()
	defer p.isrMu.Unlock()
	s.QueueSel, s.ISR = uint32(p.queueSel), p.isr
	s.PCI = &PCIState{Config: p.header.Save(), ConfigVector: p.configVector}
	for i := range p.queueVector {
		s.PCI.QueueVectors = append(s.PCI.QueueVectors, uint16(p.queueVector[i].Load()))
	}
	s.PCI.MSIX, s.PCI.Pending = p.msix.Save()
	return s, nil
}

// Load implements BusDevice. The bus must be told that the BAR may have moved.
func (p *PCI) Load(s *State) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.load(s); err != nil {
		return err
	}
	o := s.PCI
	if o == nil || len(o.QueueVectors) != len(p.queueVector) {
		return fmt.Errorf("virtio device of type %d: %w", s.Type, ErrState)
	}
	if err := p.header.Load(o.Config); err != nil {
		return err
	}
	p.queueSel = uint16(s.QueueSel)
	p.configVector = p.vector(uint64(o.ConfigVector))
	for i, v := range o.QueueVectors {
		p.queueVector[i].Store(uint32(p.vector(uint64(v))))
	}
	if err := p.msix.Load(o.MSIX, o.Pending); err != nil {
		return err
	}
	p.isrMu.Lock()
	p.isr = s.ISR
	p.isrMu.Unlock()
	p.configured()
	return nil
}
