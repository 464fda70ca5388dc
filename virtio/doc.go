// Package virtio is the device's side of virtio 1.2: split virtqueues, and the
// PCI and MMIO transports by which a guest finds a device and drives it. The
// devices themselves are sub-packages, each of which implements Device.
//
// Everything in guest memory is hostile: a descriptor is copied out of it
// once, checked, and only then used. A driver that breaks the rules gets
// DEVICE_NEEDS_RESET, and nothing else happens.
package virtio

import "vmm/devices"

// Memory is guest RAM. Its methods may be called from any goroutine.
type Memory interface {
	// Slice returns the n bytes at a guest-physical address, which must all be RAM, or
	// memory of one Mapper.
	// The guest may change them at any time.
	Slice(gpa, n uint64) ([]byte, error)
	// ReadSlice is Slice for what is only read, which may also be memory of a Mapper that
	// nobody can write to.
	ReadSlice(gpa, n uint64) ([]byte, error)
	// MarkDirty notes that the device has written to b, a part of what Slice returned:
	// for migrations, and for snapshots of what has changed.
	MarkDirty(b []byte)
}

// DeviceType is a device ID (virtio 1.2, 5).
type DeviceType uint16

// The devices that there are.
const (
	TypeNet     DeviceType = 1
	TypeBlock   DeviceType = 2
	TypeConsole DeviceType = 3
	TypeRNG     DeviceType = 4
	TypeVsock   DeviceType = 19
	TypeFS      DeviceType = 26
	TypePMEM    DeviceType = 27
)

// Feature bits that are not of one device type (virtio 1.2, 6).
const (
	FeatureIndirectDesc = 1 << 28 // VIRTIO_F_INDIRECT_DESC
	FeatureEventIdx     = 1 << 29 // VIRTIO_F_EVENT_IDX
	FeatureVersion1     = 1 << 32 // VIRTIO_F_VERSION_1
	FeatureRingReset    = 1 << 40 // VIRTIO_F_RING_RESET
)

// ringFeatures are those that the transports offer for every device.
const ringFeatures = FeatureIndirectDesc | FeatureEventIdx | FeatureVersion1 | FeatureRingReset

// Device is a virtio device without its transport. The transport calls
// HandleQueue of one queue from one goroutine; all else comes from any, one
// call at a time.
type Device interface {
	// Type is the device ID, by which the guest finds its driver.
	Type() DeviceType
	// Features are the device type's own feature bits that it offers.
	Features() uint64
	// QueueSizes are the largest sizes of its queues, powers of two.
	QueueSizes() []uint16
	// ReadConfig and WriteConfig access the configuration structure, of which
	// what lies outside reads as 0.
	ReadConfig(offset uint32, data []byte)
	WriteConfig(offset uint32, data []byte)
	// Start tells the features that the driver took; the queues follow.
	Start(features uint64, c Control)
	// HandleQueue serves what the driver has made available in queue i. It is
	// called after a notification and after Control.Wake. An error is the
	// driver's fault and ends in DEVICE_NEEDS_RESET.
	HandleQueue(i int, q *Queue) error
	// StopQueue returns when the device uses queue i no more: it has given back
	// all chains that it has popped, or taken them back by Queue.Rewind. The queue
	// may go on later, where it was, unless Reset follows.
	StopQueue(i int)
	// Reset ends what Start began; all queues are stopped.
	Reset()
	// Close frees what the device holds; it was Reset before.
	Close() error
	// Save returns what the device's driver has set and what is under way, as a
	// value that JSON can hold; nil is nothing. All queues are stopped. The value
	// shares no memory with the device.
	Save() (any, error)
	// Load takes what Save has returned. Start was called before, and the queues
	// follow.
	Load(state []byte) error
}

// Mapper is a Device that has memory of its own in the guest's physical address space,
// beside its RAM.
type Mapper interface {
	Device
	// HostMemory is that memory, of whole pages. With readOnly, nobody may write to it. It
	// stays until Close, which comes when no other device uses it any more.
	HostMemory() (b []byte, readOnly bool)
	// Place tells where it is, before the driver looks.
	Place(gpa uint64)
}

// Receiver is a Device with receive queues: the driver supplies them with buffers for
// what comes from elsewhere. The device pops those when it has something, in any
// goroutine and under a lock of its own, and enables and disables their kicks:
// HandleQueue only tells it that there was one.
type Receiver interface {
	// IsReceiveQueue reports whether queue i is one.
	IsReceiveQueue(i int) bool
}

// Host is what the machine does for a transport.
type Host interface {
	// NewMSI makes a sender of messages.
	NewMSI() (devices.MSI, error)
	// SetIOEvent makes a guest's writes signal an eventfd, or no longer.
	SetIOEvent(e IOEvent, fd int, on bool) error
}

// IOEvent says which writes: of Size bytes (0 is any) at a guest-physical
// address, of this value or AnyValue.
type IOEvent struct {
	Address uint64
	Size    uint32
	Value   int
}

// AnyValue is IOEvent.Value where it does not matter.
const AnyValue = -1

// Control is what a started device can ask of its transport, from any
// goroutine until Reset returns.
type Control interface {
	// Wake has HandleQueue of queue i called soon.
	Wake(i int)
	// ConfigChanged tells the driver to look at the configuration again.
	ConfigChanged()
	// NeedsReset tells the driver that the device is broken.
	NeedsReset(err error)
}
