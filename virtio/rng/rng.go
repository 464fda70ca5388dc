// Package rng is the virtio entropy device (virtio 1.2, 5.4).
package rng

import (
	"crypto/rand"

	"vmm/virtio"
)

const (
	queueSize = 64
	// chunk is the most that one request gets: a guest that wants more asks
	// again, and cannot keep the host busy with one descriptor of gigabytes.
	chunk = 4096
)

// Device gives a guest the host's randomness.
type Device struct {
	chain virtio.Chain
}

// New returns an entropy device.
func New() *Device { return &Device{} }

// Type implements virtio.Device.
func (d *Device) Type() virtio.DeviceType { return virtio.TypeRNG }

// Features implements virtio.Device: there are none.
func (d *Device) Features() uint64 { return 0 }

// QueueSizes implements virtio.Device: requestq.
func (d *Device) QueueSizes() []uint16 { return []uint16{queueSize} }

// ReadConfig implements virtio.Device: there is no configuration.
func (d *Device) ReadConfig(_ uint32, data []byte) { clear(data) }

// WriteConfig implements virtio.Device.
func (d *Device) WriteConfig(uint32, []byte) {}

// Start implements virtio.Device.
func (d *Device) Start(uint64, virtio.Control) {}

// StopQueue implements virtio.Device: requests end within HandleQueue.
func (d *Device) StopQueue(int) {}

// Reset implements virtio.Device.
func (d *Device) Reset() {}

// Close implements virtio.Device.
func (d *Device) Close() error { return nil }

// Save implements virtio.Device: there is no state.
func (d *Device) Save() (any, error) { return nil, nil }

// Load implements virtio.Device.
func (d *Device) Load([]byte) error { return nil }

// HandleQueue fills the buffers.
func (d *Device) HandleQueue(_ int, q *virtio.Queue) error {
	for {
		ok, err := q.Pop(&d.chain)
		if err != nil || !ok {
			q.Notify()
			return err
		}
		n := 0
		for _, b := range d.chain.Writable {
			b = b[:min(len(b), chunk-n)]
			rand.Read(b) // never fails
			n += len(b)
		}
		q.Push(&d.chain, uint32(n))
	}
}
