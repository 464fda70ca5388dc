package virtio

import (
	"encoding/binary"
	"sync"

	"vmm/devices"
)

// Registers of the MMIO transport (virtio 1.2, 4.2.2).
const (
	mmioMagic            = 0x000
	mmioVersion          = 0x004
	mmioDeviceID         = 0x008
	mmioVendorID         = 0x00c
	mmioDeviceFeatures   = 0x010
	mmioDeviceFeatureSel = 0x014
	mmioDriverFeatures   = 0x020
	mmioDriverFeatureSel = 0x024
	mmioQueueSel         = 0x030
	mmioQueueSizeMax     = 0x034
	mmioQueueSize        = 0x038
	mmioQueueReady       = 0x044
	mmioQueueNotify      = 0x050
	mmioInterruptStatus  = 0x060
	mmioInterruptACK     = 0x064
	mmioStatus           = 0x070
	mmioQueueDesc        = 0x080
	mmioQueueDriver      = 0x090
	mmioQueueDevice      = 0x0a0
	mmioQueueReset       = 0x0c0
	mmioGeneration       = 0x0fc
	mmioConfig           = 0x100

	mmioMagicValue  = 0x74726976 // "virt"
	mmioVersionTwo  = 2
	mmioVendorValue = 0x4d4d56 // "VMM"
)

// MMIOSize is how much of the guest-physical address space a device takes by the MMIO
// transport, in bytes: a page, of which the registers are the first 0x100 bytes, and the device's
// configuration follows (virtio 1.2, 4.2.2).
const MMIOSize = 0x1000

// MMIO is a device at a fixed address, with an interrupt line (virtio 1.2, 4.2).
type MMIO struct {
	core
	host     Host
	base     uint64
	line     devices.IRQ
	queueSel uint32

	isrMu sync.Mutex
	isr   uint8
}

// NewMMIO wraps a device for the MMIO transport, at a guest-physical address. log is told what a
// driver did wrong, from any goroutine.
func NewMMIO(dev Device, mem Memory, host Host, base uint64, line devices.IRQ, log func(error)) *MMIO {
	m := &MMIO{host: host, base: base, line: line}
	m.init(dev, mem, m, m, log)
	return m
}

// Close resets the device and frees all that it holds.
func (m *MMIO) Close() error { return m.close() }

// Read implements machine.MMIODevice: registers are read in four bytes.
func (m *MMIO) Read(offset uint64, data []byte) {
	clear(data)
	if offset >= mmioConfig {
		m.dev.ReadConfig(uint32(offset-mmioConfig), data)
	} else if len(data) == 4 {
		m.mu.Lock()
		defer m.mu.Unlock()
		binary.LittleEndian.PutUint32(data, m.readRegister(offset))
	}
}

// Write is Read's counterpart.
func (m *MMIO) Write(offset uint64, data []byte) {
	if offset >= mmioConfig {
		m.dev.WriteConfig(uint32(offset-mmioConfig), data)
	} else if len(data) == 4 {
		v := binary.LittleEndian.Uint32(data)
		if offset == mmioQueueNotify { // the hot one needs no lock
			m.Wake(int(v))
			return
		}
		m.mu.Lock()
		defer m.mu.Unlock()
		m.writeRegister(offset, v)
	}
}

func (m *MMIO) selected() *queueState {
	if m.queueSel < uint32(len(m.queues)) {
		return &m.queues[m.queueSel]
	}
	return nil
}

func (m *MMIO) readRegister(offset uint64) uint32 {
	switch offset {
	case mmioMagic:
		return mmioMagicValue
	case mmioVersion:
		return mmioVersionTwo
	case mmioDeviceID:
		return uint32(m.dev.Type())
	case mmioVendorID:
		return mmioVendorValue
	case mmioDeviceFeatures:
		return m.deviceFeatures()
	case mmioStatus:
		return uint32(m.status)
	case mmioGeneration:
		return uint32(m.generation)
	case mmioInterruptStatus:
		m.isrMu.Lock()
		defer m.isrMu.Unlock()
		return uint32(m.isr)
	}
	q := m.selected()
	switch {
	case q == nil:
	case offset == mmioQueueSizeMax:
		return uint32(q.max)
	case offset == mmioQueueReady && q.ready:
		return 1
	}
	return 0
}

func (m *MMIO) writeRegister(offset uint64, v uint32) {
	switch offset {
	case mmioDeviceFeatureSel:
		m.featureSel[0] = v
	case mmioDriverFeatureSel:
		m.featureSel[1] = v
	case mmioDriverFeatures:
		m.acceptFeatures(v)
	case mmioStatus:
		if m.setStatus(uint8(v)); v == 0 {
			m.queueSel = 0
			m.acknowledge(0xff)
		}
	case mmioQueueSel:
		m.queueSel = v
	case mmioInterruptACK:
		m.acknowledge(uint8(v))
	}
	q := m.selected()
	if q == nil {
		return
	}
	switch offset {
	case mmioQueueReady:
		m.setReady(int(m.queueSel), v&1 != 0)
	case mmioQueueReset:
		if v&1 != 0 && m.accepted&FeatureRingReset != 0 {
			m.resetQueue(int(m.queueSel))
		}
	}
	if q.ready {
		return // its layout is fixed
	}
	if offset == mmioQueueSize {
		q.layout.Size = uint16(min(v, 0xffff))
	}
	for _, a := range []struct {
		reg uint64
		to  *uint64
	}{{mmioQueueDesc, &q.layout.Desc}, {mmioQueueDriver, &q.layout.Avail}, {mmioQueueDevice, &q.layout.Used}} {
		switch offset {
		case a.reg:
			*a.to = *a.to&^0xffffffff | uint64(v)
		case a.reg + 4:
			*a.to = *a.to&0xffffffff | uint64(v)<<32
		}
	}
}

// interruptQueue implements interrupter.
func (m *MMIO) interruptQueue(int) { m.interrupt(isrQueue) }

func (m *MMIO) interruptConfig() { m.interrupt(isrConfig) }

func (m *MMIO) interrupt(why uint8) {
	m.isrMu.Lock()
	defer m.isrMu.Unlock()
	m.isr |= why
	m.line.Set(true)
}

func (m *MMIO) acknowledge(bits uint8) {
	m.isrMu.Lock()
	defer m.isrMu.Unlock()
	m.isr &^= bits
	m.line.Set(m.isr != 0)
}

// attachKick implements notifier: all queues share one register, and the value
// written to it tells them apart.
func (m *MMIO) attachKick(i int, e *Event) {
	m.host.SetIOEvent(IOEvent{m.base + mmioQueueNotify, 4, i}, e.FD(), true)
}

func (m *MMIO) detachKick(i int, e *Event) {
	m.host.SetIOEvent(IOEvent{m.base + mmioQueueNotify, 4, i}, e.FD(), false)
}
