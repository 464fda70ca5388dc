package devices

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
)

// MSI sends message-signalled interrupts. Its methods may be called from any
// goroutine.
type MSI interface {
	// Route sets the message that Signal sends.
	Route(address uint64, data uint32) error
	Signal()
	Close() error
}

// MSIXCapability is its capability ID (PCI 3.0, 6.8.2).
const MSIXCapability = 0x11

// Bits of message control and of a vector's control (6.8.2.3 and 6.8.2.9).
const (
	msixEnable  = 1 << 15
	msixMaskAll = 1 << 14
	msixMask    = 1 << 0
	msixEntry   = 16
)

// MSIXCapabilityBody returns the capability of a table of n vectors, with
// table and pending bits at these offsets of BAR 0, and its writable bits.
func MSIXCapabilityBody(n int, table, pba uint32) (body, mask []byte) {
	body = binary.LittleEndian.AppendUint16(nil, uint16(n-1))
	body = binary.LittleEndian.AppendUint32(body, table)
	body = binary.LittleEndian.AppendUint32(body, pba)
	return body, binary.LittleEndian.AppendUint16(nil, msixEnable|msixMaskAll)
}

// MSIX is a function's table of message-signalled interrupts. Its methods may
// be called from any goroutine.
type MSIX struct {
	mu      sync.Mutex
	newMSI  func() (MSI, error)
	control uint16
	vectors []msixVector
}

type msixVector struct {
	entry   [msixEntry]byte // address, data, control: as the guest sees it
	msi     MSI             // nil until the vector is first unmasked
	address uint64          // what msi is routed to
	data    uint32
	pending bool
}

// NewMSIX returns a table of n vectors, all masked. newMSI makes what sends
// the messages of one.
func NewMSIX(n int, newMSI func() (MSI, error)) *MSIX {
	m := &MSIX{newMSI: newMSI, vectors: make([]msixVector, n)}
	for i := range m.vectors {
		m.vectors[i].entry[12] = msixMask
	}
	return m
}

// SetControl takes the guest's message control register.
func (m *MSIX) SetControl(v uint16) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.control == v {
		return
	}
	m.control = v
	for i := range m.vectors {
		m.update(&m.vectors[i])
	}
}

// Enabled reports whether the guest uses MSI-X at all.
func (m *MSIX) Enabled() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.control&msixEnable != 0
}

// Len is the number of vectors.
func (m *MSIX) Len() int { return len(m.vectors) }

// ReadTable and WriteTable access the table, in four or eight bytes.
func (m *MSIX) ReadTable(offset uint64, data []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	clear(data)
	if i := offset / msixEntry; i < uint64(len(m.vectors)) {
		copy(data, m.vectors[i].entry[offset%msixEntry:])
	}
}

// WriteTable is ReadTable's counterpart.
func (m *MSIX) WriteTable(offset uint64, data []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if i := offset / msixEntry; i < uint64(len(m.vectors)) {
		copy(m.vectors[i].entry[offset%msixEntry:], data)
		m.update(&m.vectors[i])
	}
}

// ReadPBA reads the pending bits.
func (m *MSIX) ReadPBA(offset uint64, data []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	clear(data)
	for i := range m.vectors {
		if at := uint64(i / 8); m.vectors[i].pending && at >= offset && at-offset < uint64(len(data)) {
			data[at-offset] |= 1 << (i % 8)
		}
	}
}

func (m *MSIX) masked(v *msixVector) bool {
	return m.control&msixEnable == 0 || m.control&msixMaskAll != 0 || v.entry[12]&msixMask != 0
}

// update routes an unmasked vector where the guest wants it, and sends what
// was held back.
func (m *MSIX) update(v *msixVector) {
	if m.masked(v) {
		return
	}
	address, data := binary.LittleEndian.Uint64(v.entry[:]), binary.LittleEndian.Uint32(v.entry[8:])
	if v.msi == nil || v.address != address || v.data != data {
		if v.msi == nil {
			msi, err := m.newMSI()
			if err != nil {
				return // the host is out of descriptors: the vector stays silent
			}
			v.msi = msi
		}
		if v.msi.Route(address, data) != nil {
			return // a message that KVM cannot send is one that goes nowhere
		}
		v.address, v.data = address, data
	}
	if v.pending {
		v.pending = false
		v.msi.Signal()
	}
}

// Signal sends vector i's message, or remembers it while it is masked.
func (m *MSIX) Signal(i int) {
	if i >= len(m.vectors) {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	v := &m.vectors[i]
	if m.masked(v) || v.msi == nil {
		v.pending = m.control&msixEnable != 0
		return
	}
	v.msi.Signal()
}

// Save returns a copy of the table's entries and which of them are pending.
func (m *MSIX) Save() (entries [][]byte, pending []bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := range m.vectors {
		v := &m.vectors[i]
		entries, pending = append(entries, bytes.Clone(v.entry[:])), append(pending, v.pending)
	}
	return entries, pending
}

// Load takes what Save has returned, of a table with as many vectors; others are an error.
// SetControl sends what is pending.
func (m *MSIX) Load(entries [][]byte, pending []bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(entries) != len(m.vectors) || len(pending) != len(m.vectors) {
		return fmt.Errorf("an MSI-X table of %d vectors, not %d", len(entries), len(m.vectors))
	}
	for i := range m.vectors {
		if copy(m.vectors[i].entry[:], entries[i]) != msixEntry {
			return errors.New("an MSI-X entry is too short")
		}
		m.vectors[i].pending = pending[i]
	}
	return nil
}

// Close frees the senders.
func (m *MSIX) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	var first error
	for i := range m.vectors {
		if v := &m.vectors[i]; v.msi != nil {
			if err := v.msi.Close(); err != nil && first == nil {
				first = err
			}
			v.msi = nil
		}
	}
	return first
}
