// Package net is the virtio network device (virtio 1.2, 5.1).
//
// What the guest sends goes to the link in the guest's own memory; what comes
// from the link is copied into the guest's buffers, in whatever goroutine
// brings it. Neither allocates.
package net

import (
	"encoding/binary"
	"fmt"
	"sync"
	"sync/atomic"

	"vmm/network/ether"
	"vmm/virtio"
	"vmm/virtio/ratelimit"
)

// Feature bits (5.1.3).
const (
	featureChecksum      = 1 << 0  // VIRTIO_NET_F_CSUM
	featureGuestChecksum = 1 << 1  // VIRTIO_NET_F_GUEST_CSUM
	featureGuestOffloads = 1 << 2  // VIRTIO_NET_F_CTRL_GUEST_OFFLOADS
	featureMTU           = 1 << 3  // VIRTIO_NET_F_MTU
	featureMAC           = 1 << 5  // VIRTIO_NET_F_MAC
	featureGuestTSO4     = 1 << 7  // VIRTIO_NET_F_GUEST_TSO4
	featureGuestTSO6     = 1 << 8  // VIRTIO_NET_F_GUEST_TSO6
	featureGuestECN      = 1 << 9  // VIRTIO_NET_F_GUEST_ECN
	featureHostTSO4      = 1 << 11 // VIRTIO_NET_F_HOST_TSO4
	featureHostTSO6      = 1 << 12 // VIRTIO_NET_F_HOST_TSO6
	featureHostECN       = 1 << 13 // VIRTIO_NET_F_HOST_ECN
	featureMergeable     = 1 << 15 // VIRTIO_NET_F_MRG_RXBUF
	featureStatus        = 1 << 16 // VIRTIO_NET_F_STATUS
	featureControl       = 1 << 17 // VIRTIO_NET_F_CTRL_VQ
	featureControlRX     = 1 << 18 // VIRTIO_NET_F_CTRL_RX
	featureAnnounce      = 1 << 21 // VIRTIO_NET_F_GUEST_ANNOUNCE
	featureMQ            = 1 << 22 // VIRTIO_NET_F_MQ
	featureControlMAC    = 1 << 23 // VIRTIO_NET_F_CTRL_MAC_ADDR
	featureGuestUSO4     = 1 << 54 // VIRTIO_NET_F_GUEST_USO4
	featureGuestUSO6     = 1 << 55 // VIRTIO_NET_F_GUEST_USO6
	featureHostUSO       = 1 << 56 // VIRTIO_NET_F_HOST_USO

	offered = featureChecksum | featureGuestChecksum | featureGuestOffloads | featureMTU | featureMAC |
		featureGuestTSO4 | featureGuestTSO6 | featureGuestECN | featureHostTSO4 | featureHostTSO6 | featureHostECN |
		featureMergeable | featureStatus | featureControl | featureControlRX | featureAnnounce | featureControlMAC |
		featureGuestUSO4 | featureGuestUSO6 | featureHostUSO
	// What CTRL_GUEST_OFFLOADS can switch.
	guestOffloads = featureGuestChecksum | featureGuestTSO4 | featureGuestTSO6 | featureGuestECN |
		featureGuestUSO4 | featureGuestUSO6
)

// Offsets in struct virtio_net_config (5.1.4) and the bits of its status.
const (
	configMAC      = 0
	configStatus   = 6
	configMaxPairs = 8
	configMTU      = 10
	configSize     = 12

	statusLinkUp   = 1
	statusAnnounce = 2
)

const (
	queueSize        = 256
	controlQueueSize = 64

	// DefaultMTU is Options.MTU where none is given, in bytes.
	DefaultMTU = 1500
	// MaxPairs bounds Options.Pairs.
	MaxPairs = 32
)

// Options are a device's properties. The zero values of all but MAC are good.
type Options struct {
	MAC ether.MAC // no group's; the driver can set another
	// MTU is what the driver is told (VIRTIO_NET_F_MTU), in bytes, between ether.MinMTU
	// and ether.MaxMTU; DefaultMTU if 0.
	MTU int
	// Pairs is the number of pairs of receive and transmit queues, at most MaxPairs; 1
	// if 0.
	Pairs int
	Limit Limit
}

// Device is a network device of the guest. It implements ether.NIC for its
// link.
type Device struct {
	link ether.Link
	opts Options
	rx   []receiver
	tx   []transmitter

	counters counters
	limit    struct{ rx, tx ratelimit.Limiter }
	filter   filter

	features atomic.Uint64 // that the driver took, less the guest offloads that it has switched off
	pairs    atomic.Int32  // in use
	status   atomic.Uint32
	control  atomic.Pointer[virtio.Control]

	mu sync.Mutex // of what the control queue sets, and of the link's state
	up bool
}

// New returns a device at the end of a link, which it owns from now on. After an error,
// which is about the Options, the link is still the caller's.
func New(link ether.Link, o Options) (*Device, error) {
	if o.MTU == 0 {
		o.MTU = DefaultMTU
	}
	o.Pairs = max(o.Pairs, 1)
	switch {
	case o.MTU < ether.MinMTU || o.MTU > ether.MaxMTU:
		return nil, fmt.Errorf("MTU %d: between %d and %d", o.MTU, ether.MinMTU, ether.MaxMTU)
	case o.Pairs > MaxPairs:
		return nil, fmt.Errorf("%d queue pairs: at most %d", o.Pairs, MaxPairs)
	}
	d := &Device{link: link, opts: o, rx: make([]receiver, o.Pairs), tx: make([]transmitter, o.Pairs), up: true}
	d.limit.rx.Set(o.Limit.BytesPerSecond, o.Limit.PacketsPerSecond)
	d.limit.tx.Set(o.Limit.BytesPerSecond, o.Limit.PacketsPerSecond)
	d.forget()
	link.Attach(d)
	return d, nil
}

// forget is the state before a driver has set anything.
func (d *Device) forget() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.filter.set(filterState{mac: d.opts.MAC, promiscuous: true})
	d.pairs.Store(1)
	d.features.Store(0)
	d.status.Store(0)
	if d.up {
		d.status.Store(statusLinkUp)
	}
}

// Type implements virtio.Device.
func (d *Device) Type() virtio.DeviceType { return virtio.TypeNet }

// Features implements virtio.Device.
func (d *Device) Features() uint64 {
	if d.opts.Pairs > 1 {
		return offered | featureMQ
	}
	return offered
}

// QueueSizes implements virtio.Device: pairs of receive and transmit queues,
// then the control queue.
func (d *Device) QueueSizes() []uint16 {
	var out []uint16
	for range 2 * d.opts.Pairs {
		out = append(out, queueSize)
	}
	return append(out, controlQueueSize)
}

// controlQueue is the control queue's number, which depends on whether the
// driver knows of further pairs (5.1.2).
func (d *Device) controlQueue() int {
	if d.features.Load()&featureMQ == 0 {
		return 2
	}
	return 2 * d.opts.Pairs
}

// IsReceiveQueue implements virtio.Receiver. To a driver without MQ there are queues
// beyond the control queue, the last of which would be a receive queue of no pair.
func (d *Device) IsReceiveQueue(i int) bool {
	return i%2 == 0 && i/2 < len(d.rx) && i != d.controlQueue()
}

// ReadConfig implements virtio.Device.
func (d *Device) ReadConfig(offset uint32, data []byte) {
	var c [configSize]byte
	mac := d.filter.get().mac
	copy(c[configMAC:], mac[:])
	binary.LittleEndian.PutUint16(c[configStatus:], uint16(d.status.Load()))
	binary.LittleEndian.PutUint16(c[configMaxPairs:], uint16(d.opts.Pairs))
	binary.LittleEndian.PutUint16(c[configMTU:], uint16(d.opts.MTU))
	clear(data)
	if offset < configSize {
		copy(data, c[offset:])
	}
}

// WriteConfig implements virtio.Device: nothing in it is the driver's to write.
func (d *Device) WriteConfig(uint32, []byte) {}

// Start implements virtio.Device.
func (d *Device) Start(features uint64, c virtio.Control) {
	d.features.Store(features)
	if features&featureControlRX != 0 {
		s := d.filter.get()
		s.promiscuous = false
		d.filter.set(s)
	}
	d.link.Offloads(offloads(features))
	d.control.Store(&c)
}

// offloads is what a driver with these features takes off a sender.
func offloads(features uint64) ether.Offloads {
	has := func(bit uint64) bool { return features&bit != 0 }
	return ether.Offloads{Checksum: has(featureGuestChecksum), TCP4: has(featureGuestTSO4), TCP6: has(featureGuestTSO6),
		UDP4: has(featureGuestUSO4), UDP6: has(featureGuestUSO6)}
}

// Reset implements virtio.Device.
func (d *Device) Reset() {
	d.control.Store(nil)
	d.forget()
	d.link.Offloads(ether.Offloads{})
}

// StopQueue implements virtio.Device.
func (d *Device) StopQueue(i int) {
	if d.IsReceiveQueue(i) {
		d.rx[i/2].stop()
	}
}

// Close implements virtio.Device.
func (d *Device) Close() error { return d.link.Close() }

// HandleQueue implements virtio.Device.
func (d *Device) HandleQueue(i int, q *virtio.Queue) error {
	switch {
	case i == d.controlQueue():
		return d.handleControl(q)
	case i/2 >= len(d.tx):
		return nil // beyond the control queue of a driver without MQ
	case i%2 == 1:
		return d.transmit(i/2, q)
	}
	d.rx[i/2].supplied(q)
	d.link.Ready()
	return nil
}

// MAC is the address that the device has now. MAC, Up, SetUp and Counts can be called from
// any goroutine.
func (d *Device) MAC() ether.MAC { return d.filter.get().mac }

// Up reports whether the cable is plugged in.
func (d *Device) Up() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.up
}

// SetUp plugs the cable in or out: frames are dropped while it is out. The driver is told
// (VIRTIO_NET_S_LINK_UP, 5.1.4), and asked to announce itself when it is in again
// (VIRTIO_NET_S_ANNOUNCE).
func (d *Device) SetUp(up bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.up == up {
		return
	}
	d.up = up
	s := uint32(0)
	if up {
		s = statusLinkUp
		if d.features.Load()&featureAnnounce != 0 {
			s |= statusAnnounce
		}
	}
	d.status.Store(s)
	if c := d.control.Load(); c != nil {
		(*c).ConfigChanged()
	}
}

// linked reports whether frames pass.
func (d *Device) linked() bool { return d.status.Load()&statusLinkUp != 0 }
