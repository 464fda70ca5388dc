// Package pmem is the virtio persistent memory device (virtio 1.2, 5.19): files of the host
// as memory of the guest, which reads them without its page cache (DAX), and without an exit.
package pmem

import (
	"encoding/binary"
	"encoding/json"
	"fmt"

	"vmm/virtio"
)

// Backend is what the memory is of.
type Backend interface {
	// Bytes is the memory, of a positive multiple of 2 MiB, as Linux wants it.
	Bytes() []byte
	// ReadOnly reports whether it cannot be written to.
	ReadOnly() bool
	// Flush returns when what was written to it before is on stable storage. It is called
	// from one goroutine at a time.
	Flush() error
	// Close frees the memory.
	Close() error
}

const (
	queueSize = 64

	configStart = 0 // struct virtio_pmem_config (5.19.4)
	configSize  = 8
	configEnd   = 16

	// A request (5.19.6), and its response (5.19.6.1).
	typeFlush    = 0 // VIRTIO_PMEM_REQ_TYPE_FLUSH
	requestSize  = 4
	responseSize = 4
)

// failed is the response's value for a flush that failed, 0 for another: -1.
const failed = 0xffffffff

// Device is persistent memory of the guest. It implements virtio.Mapper.
type Device struct {
	backend     Backend
	start, size uint64 // in the guest's addresses, in bytes
	chain       virtio.Chain
}

// New returns a device, which owns the backend from now on.
func New(b Backend) *Device { return &Device{backend: b, size: uint64(len(b.Bytes()))} }

// HostMemory implements virtio.Mapper.
func (d *Device) HostMemory() ([]byte, bool) { return d.backend.Bytes(), d.backend.ReadOnly() }

// Place implements virtio.Mapper.
func (d *Device) Place(gpa uint64) { d.start = gpa }

// Type implements virtio.Device.
func (d *Device) Type() virtio.DeviceType { return virtio.TypePMEM }

// Features implements virtio.Device: there are none.
func (d *Device) Features() uint64 { return 0 }

// QueueSizes implements virtio.Device: req_vq (5.19.2).
func (d *Device) QueueSizes() []uint16 { return []uint16{queueSize} }

// ReadConfig implements virtio.Device.
func (d *Device) ReadConfig(offset uint32, data []byte) {
	var c [configEnd]byte
	binary.LittleEndian.PutUint64(c[configStart:], d.start)
	binary.LittleEndian.PutUint64(c[configSize:], d.size)
	clear(data)
	if offset < configEnd {
		copy(data, c[offset:])
	}
}

// WriteConfig implements virtio.Device.
func (d *Device) WriteConfig(uint32, []byte) {}

// Start implements virtio.Device.
func (d *Device) Start(uint64, virtio.Control) {}

// StopQueue implements virtio.Device: requests end within HandleQueue.
func (d *Device) StopQueue(int) {}

// Reset implements virtio.Device.
func (d *Device) Reset() {}

// Close implements virtio.Device.
func (d *Device) Close() error { return d.backend.Close() }

// State is where the guest knows the memory to be.
type State struct {
	Start uint64 `json:"start"` // a guest-physical address
	Size  uint64 `json:"size"`  // in bytes
}

func (d *Device) state() State { return State{d.start, d.size} }

// Save implements virtio.Device.
func (d *Device) Save() (any, error) { return d.state(), nil }

// Load implements virtio.Device.
func (d *Device) Load(state []byte) error {
	var s State
	if err := json.Unmarshal(state, &s); err != nil {
		return err
	}
	if now := d.state(); s != now {
		return fmt.Errorf("persistent memory of %d bytes at %#x, and here it is %d at %#x", s.Size, s.Start, now.Size, now.Start)
	}
	return nil
}

// HandleQueue flushes, once for each request.
func (d *Device) HandleQueue(_ int, q *virtio.Queue) error {
	for {
		ok, err := q.Pop(&d.chain)
		if err != nil || !ok {
			q.Notify()
			return err
		}
		n, err := d.serve(&d.chain)
		if err != nil {
			return err
		}
		q.Push(&d.chain, n)
	}
}

// serve answers a request. The error is the driver's fault.
func (d *Device) serve(c *virtio.Chain) (uint32, error) {
	if len(c.Readable) != 1 || len(c.Readable[0]) != requestSize || len(c.Writable) != 1 || len(c.Writable[0]) < responseSize {
		return 0, fmt.Errorf("%w: a request of pmem", virtio.ErrMalformed)
	}
	answer := uint32(failed)
	if binary.LittleEndian.Uint32(c.Readable[0]) == typeFlush && d.backend.Flush() == nil {
		answer = 0
	}
	binary.LittleEndian.PutUint32(c.Writable[0], answer)
	return responseSize, nil
}
