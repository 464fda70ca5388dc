package virtio

import (
	"encoding/binary"
	"errors"
	"sync"
	"sync/atomic"

	"vmm/devices"
)

// The PCI transport (virtio 1.2, 4.1).
const (
	pciVendorID     = 0x1af4
	pciDeviceID     = 0x1040 // plus the device type
	pciRevision     = 1      // no transitional device
	pciVendorCap    = 0x09
	pciNoVector     = 0xffff // VIRTIO_MSI_NO_VECTOR
	capCommonConfig = 1      // VIRTIO_PCI_CAP_COMMON_CFG
	capNotify       = 2      // VIRTIO_PCI_CAP_NOTIFY_CFG
	capISR          = 3      // VIRTIO_PCI_CAP_ISR_CFG
	capDevice       = 4      // VIRTIO_PCI_CAP_DEVICE_CFG
	capPCI          = 5      // VIRTIO_PCI_CAP_PCI_CFG

	// What BAR 0 holds, a page each.
	barCommon   = 0x0000
	barISR      = 0x1000
	barDevice   = 0x2000
	barNotify   = 0x3000
	barMSIX     = 0x4000
	barPBA      = 0x5000
	pciBARSize  = 0x8000
	barPage     = 0x1000
	notifySize  = 4 // notify_off_multiplier
	maxVectors  = barPage / 16
	commonBytes = 0x40
)

// PCI is a device on the PCI bus (virtio 1.2, 4.1).
type PCI struct {
	core
	host   Host
	header *devices.PCIHeader
	msix   *devices.MSIX
	intx   devices.IRQ

	msixCap, pciCap int // offsets in the configuration space

	// Of the registers; core's mu.
	configVector uint16
	queueSel     uint16
	// queueVector is changed under mu, and read by those that interrupt.
	queueVector []atomic.Uint32

	// Of kicks: where the notification area is, and what listens to it.
	kickMu sync.Mutex
	window uint64 // 0 while memory is off
	kicks  map[int]*Event

	isrMu   sync.Mutex
	isr     uint8
	intxOff bool // by the command register
}

// classes are the PCI class codes of the device types (interface, subclass,
// base class).
var classes = map[DeviceType][3]byte{
	TypeNet:     {0, 0x00, 0x02},
	TypeBlock:   {0, 0x80, 0x01},
	TypeConsole: {0, 0x80, 0x07},
}

// NewPCI wraps a device for the PCI bus; Place it there before the guest runs.
// log is told what a driver did wrong.
func NewPCI(dev Device, mem Memory, host Host, log func(error)) *PCI {
	class, ok := classes[dev.Type()]
	if !ok {
		class = [3]byte{0, 0, 0xff} // unassigned
	}
	p := &PCI{host: host, configVector: pciNoVector, kicks: map[int]*Event{}}
	p.init(dev, mem, p, p, log)
	p.queueVector = make([]atomic.Uint32, len(p.queues))
	p.header = devices.NewPCIHeader(devices.PCIIdentity{
		Vendor: pciVendorID, Device: pciDeviceID + uint16(dev.Type()),
		Subvendor: pciVendorID, Subsystem: 0x40, // 4.1.2.1
		Class: class, Revision: pciRevision,
	}, pciBARSize)
	p.header.AddCapability(pciVendorCap, vendorCap(capCommonConfig, barCommon, commonBytes), nil)
	p.header.AddCapability(pciVendorCap, vendorCap(capISR, barISR, 1), nil)
	p.header.AddCapability(pciVendorCap, vendorCap(capDevice, barDevice, barPage), nil)
	p.header.AddCapability(pciVendorCap, append(vendorCap(capNotify, barNotify, barPage), notifySize, 0, 0, 0), nil)
	// The window for drivers that cannot map the BAR (4.1.4.9): bar, offset,
	// length and data are theirs to write.
	access := append(vendorCap(capPCI, 0, 0), 0, 0, 0, 0)
	mask := append([]byte{0, 0, 0xff, 0, 0, 0}, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff)
	p.pciCap = p.header.AddCapability(pciVendorCap, access, mask)
	vectors := min(len(p.queues)+1, maxVectors)
	body, mask := devices.MSIXCapabilityBody(vectors, barMSIX, barPBA)
	p.msixCap = p.header.AddCapability(devices.MSIXCapability, body, mask)
	p.msix = devices.NewMSIX(vectors, host.NewMSI)
	for i := range p.queueVector {
		p.queueVector[i].Store(pciNoVector)
	}
	return p
}

// vendorCap is struct virtio_pci_cap after its first two bytes (4.1.4).
func vendorCap(kind uint8, offset, length uint32) []byte {
	size := uint8(16)
	if kind == capNotify || kind == capPCI {
		size = 20
	}
	b := []byte{size, kind, 0 /* BAR */, 0, 0, 0}
	b = binary.LittleEndian.AppendUint32(b, offset)
	return binary.LittleEndian.AppendUint32(b, length)
}

// Place puts the BAR where firmware would, and connects the interrupt pin to a
// line of the interrupt controller.
func (p *PCI) Place(bar uint32, gsi uint8, line devices.IRQ) {
	p.header.SetWindow(bar)
	p.header.SetIRQLine(gsi)
	p.intx = line
}

// Close resets the device and frees all that it holds.
func (p *PCI) Close() error { return errors.Join(p.close(), p.msix.Close()) }

// Window implements devices.PCIMemory.
func (p *PCI) Window() (addr, size uint64, ok bool) { return p.header.Window() }

// ConfigRead implements devices.PCIFunction.
func (p *PCI) ConfigRead(offset uint16, data []byte) {
	p.isrMu.Lock()
	p.header.SetINTxPending(p.isr != 0)
	p.isrMu.Unlock()
	if int(offset) == p.pciCap+16 {
		if at, n, ok := p.pciAccess(); ok && n == len(data) {
			p.BARRead(at, p.header.Bytes(p.pciCap + 16)[:n])
		}
	}
	p.header.Read(offset, data)
}

// ConfigWrite implements devices.PCIFunction.
func (p *PCI) ConfigWrite(offset uint16, data []byte) {
	p.header.Write(offset, data)
	p.configured()
	if int(offset) == p.pciCap+16 {
		if at, n, ok := p.pciAccess(); ok && n == len(data) {
			p.BARWrite(at, data)
		}
	}
}

// configured follows what the configuration space says.
func (p *PCI) configured() {
	p.msix.SetControl(binary.LittleEndian.Uint16(p.header.Bytes(p.msixCap + 2)))
	p.isrMu.Lock()
	p.intxOff = !p.header.INTxEnabled()
	p.updateINTx()
	p.isrMu.Unlock()
	p.moveKicks()
}

// pciAccess is what the configuration window is set to.
func (p *PCI) pciAccess() (at uint64, n int, ok bool) {
	b := p.header.Bytes(p.pciCap)
	at, n = uint64(binary.LittleEndian.Uint32(b[8:])), int(binary.LittleEndian.Uint32(b[12:]))
	return at, n, b[4] == 0 && at < pciBARSize && (n == 1 || n == 2 || n == 4)
}

// BARRead implements devices.PCIMemory.
func (p *PCI) BARRead(offset uint64, data []byte) {
	clear(data)
	switch at := offset % barPage; offset - at {
	case barCommon:
		p.mu.Lock()
		defer p.mu.Unlock()
		if len(data) <= 8 && at < commonBytes {
			var b [8]byte
			binary.LittleEndian.PutUint64(b[:], p.readCommon(at, len(data)))
			copy(data, b[:])
		}
	case barISR:
		p.isrMu.Lock()
		defer p.isrMu.Unlock()
		data[0], p.isr = p.isr, 0
		p.updateINTx()
	case barDevice:
		p.dev.ReadConfig(uint32(at), data)
	case barMSIX:
		p.msix.ReadTable(at, data)
	case barPBA:
		p.msix.ReadPBA(at, data)
	}
}

// BARWrite implements devices.PCIMemory.
func (p *PCI) BARWrite(offset uint64, data []byte) {
	switch at := offset % barPage; offset - at {
	case barCommon:
		p.mu.Lock()
		defer p.mu.Unlock()
		var b [8]byte
		copy(b[:], data)
		p.writeCommon(at, binary.LittleEndian.Uint64(b[:]))
	case barDevice:
		p.dev.WriteConfig(uint32(at), data)
	case barNotify:
		p.Wake(int(at / notifySize))
	case barMSIX:
		p.msix.WriteTable(at, data)
	}
}

// Offsets of struct virtio_pci_common_cfg (4.1.4.3).
const (
	regDeviceFeatureSel = 0x00
	regDeviceFeature    = 0x04
	regDriverFeatureSel = 0x08
	regDriverFeature    = 0x0c
	regConfigVector     = 0x10
	regNumQueues        = 0x12
	regStatus           = 0x14
	regGeneration       = 0x15
	regQueueSel         = 0x16
	regQueueSize        = 0x18
	regQueueVector      = 0x1a
	regQueueEnable      = 0x1c
	regQueueNotifyOff   = 0x1e
	regQueueDesc        = 0x20
	regQueueDriver      = 0x28
	regQueueDevice      = 0x30
	regQueueReset       = 0x3a
)

// selected is the queue that the registers speak of, nil if there is none.
func (p *PCI) selected() *queueState {
	if int(p.queueSel) < len(p.queues) {
		return &p.queues[p.queueSel]
	}
	return nil
}

func (p *PCI) readCommon(at uint64, size int) uint64 {
	switch at {
	case regDeviceFeatureSel:
		return uint64(p.featureSel[0])
	case regDeviceFeature:
		return uint64(p.deviceFeatures())
	case regDriverFeatureSel:
		return uint64(p.featureSel[1])
	case regDriverFeature:
		return uint64(p.driverFeatures())
	case regConfigVector:
		return uint64(p.configVector)
	case regNumQueues:
		return uint64(len(p.queues))
	case regStatus:
		return uint64(p.status) | uint64(p.generation)<<8
	case regGeneration:
		return uint64(p.generation)
	case regQueueSel:
		return uint64(p.queueSel)
	}
	q := p.selected()
	if q == nil {
		return 0
	}
	switch at {
	case regQueueSize:
		return uint64(q.layout.Size)
	case regQueueVector:
		return uint64(p.queueVector[p.queueSel].Load())
	case regQueueEnable:
		if q.ready {
			return 1
		}
	case regQueueNotifyOff:
		return uint64(p.queueSel)
	}
	for _, a := range []struct {
		reg uint64
		v   uint64
	}{{regQueueDesc, q.layout.Desc}, {regQueueDriver, q.layout.Avail}, {regQueueDevice, q.layout.Used}} {
		switch at {
		case a.reg:
			return a.v
		case a.reg + 4:
			return a.v >> 32
		}
	}
	return 0
}

// writeCommon takes a write of any size: the registers above its first are
// never written together with it, but for the halves of an address.
func (p *PCI) writeCommon(at uint64, v uint64) {
	switch at {
	case regDeviceFeatureSel:
		p.featureSel[0] = uint32(v)
		return
	case regDriverFeatureSel:
		p.featureSel[1] = uint32(v)
		return
	case regDriverFeature:
		p.acceptFeatures(uint32(v))
		return
	case regConfigVector:
		p.configVector = p.vector(v)
		return
	case regStatus:
		if p.setStatus(uint8(v)); uint8(v) == 0 {
			p.resetVectors()
		}
		return
	case regQueueSel:
		p.queueSel = uint16(v)
		return
	}
	q := p.selected()
	if q == nil {
		return
	}
	switch at {
	case regQueueVector:
		p.queueVector[p.queueSel].Store(uint32(p.vector(v)))
	case regQueueEnable:
		if v&1 != 0 {
			p.setReady(int(p.queueSel), true)
		}
	case regQueueReset:
		if v&1 != 0 && p.accepted&FeatureRingReset != 0 {
			p.resetQueue(int(p.queueSel))
		}
	}
	if q.ready {
		return // its layout is fixed
	}
	low := func(old uint64) uint64 { return old&^0xffffffff | v&0xffffffff }
	high := func(old uint64) uint64 { return old&0xffffffff | v<<32 }
	switch at {
	case regQueueSize:
		q.layout.Size = uint16(v)
	case regQueueDesc:
		q.layout.Desc = low(q.layout.Desc)
	case regQueueDesc + 4:
		q.layout.Desc = high(q.layout.Desc)
	case regQueueDriver:
		q.layout.Avail = low(q.layout.Avail)
	case regQueueDriver + 4:
		q.layout.Avail = high(q.layout.Avail)
	case regQueueDevice:
		q.layout.Used = low(q.layout.Used)
	case regQueueDevice + 4:
		q.layout.Used = high(q.layout.Used)
	}
}

// vector checks a vector that the driver chose (4.1.4.3.1).
func (p *PCI) vector(v uint64) uint16 {
	if v&0xffff >= uint64(p.msix.Len()) {
		return pciNoVector
	}
	return uint16(v)
}

func (p *PCI) resetVectors() {
	p.configVector = pciNoVector
	for i := range p.queueVector {
		p.queueVector[i].Store(pciNoVector)
	}
	p.queueSel = 0
	p.isrMu.Lock()
	defer p.isrMu.Unlock()
	p.isr = 0
	p.updateINTx()
}

// interruptQueue implements interrupter.
func (p *PCI) interruptQueue(i int) { p.interrupt(uint16(p.queueVector[i].Load()), isrQueue) }

func (p *PCI) interruptConfig() { p.interrupt(p.configVector, isrConfig) }

func (p *PCI) interrupt(vector uint16, why uint8) {
	if p.msix.Enabled() {
		if vector != pciNoVector {
			p.msix.Signal(int(vector))
		}
		return
	}
	p.isrMu.Lock()
	defer p.isrMu.Unlock()
	p.isr |= why
	p.updateINTx()
}

// updateINTx drives the pin; isrMu is held.
func (p *PCI) updateINTx() {
	if p.intx != nil {
		p.intx.Set(p.isr != 0 && !p.intxOff)
	}
}

// kickAt is queue i's address in a notification area.
func (p *PCI) kickAt(window uint64, i int) IOEvent {
	return IOEvent{Address: window + uint64(i*notifySize), Value: AnyValue}
}

// attachKick implements notifier.
func (p *PCI) attachKick(i int, e *Event) {
	p.kickMu.Lock()
	defer p.kickMu.Unlock()
	p.kicks[i] = e
	if p.window != 0 {
		p.host.SetIOEvent(p.kickAt(p.window, i), e.FD(), true)
	}
}

func (p *PCI) detachKick(i int, e *Event) {
	p.kickMu.Lock()
	defer p.kickMu.Unlock()
	delete(p.kicks, i)
	if p.window != 0 {
		p.host.SetIOEvent(p.kickAt(p.window, i), e.FD(), false)
	}
}

// moveKicks follows the BAR.
func (p *PCI) moveKicks() {
	addr, _, ok := p.header.Window()
	if ok {
		addr += barNotify
	} else {
		addr = 0
	}
	p.kickMu.Lock()
	defer p.kickMu.Unlock()
	if addr == p.window {
		return
	}
	for i, e := range p.kicks {
		if p.window != 0 {
			p.host.SetIOEvent(p.kickAt(p.window, i), e.FD(), false)
		}
		if addr != 0 {
			p.host.SetIOEvent(p.kickAt(addr, i), e.FD(), true)
		}
	}
	p.window = addr
}
