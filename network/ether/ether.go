// Package ether is the cable between a network device and what is behind it:
// Ethernet frames, with the work on them that their sender leaves to others.
//
// A frame comes in parts, without the frame check sequence, and with a Header
// that says whether its checksum is still to be made and whether it is to be
// cut into segments. That is the form in which Linux's drivers, its tap device
// and virtio-net have it, so a segment of 64 KiB crosses the cable whole.
package ether

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"net"

	"gvisor.dev/gvisor/pkg/tcpip/checksum"
)

const (
	// HeaderSize is the size of an encoded Header, in bytes.
	HeaderSize = 12
	// FrameHeader is the size of an Ethernet header, in bytes: two addresses and a type.
	FrameHeader = 14
	// MinMTU is the least that a link lets a frame carry beyond its header, in bytes:
	// what IPv4 needs (RFC 791).
	MinMTU = 68
	// MaxMTU is the most, in bytes.
	MaxMTU = 65521
	// MaxFrame is the largest frame that is accepted from a sender, in bytes: an IP
	// packet of the largest size behind an Ethernet header and a VLAN tag.
	MaxFrame = FrameHeader + 4 + 65535
)

// NeedsChecksum is the one bit of Header.Flags that is used:
// VIRTIO_NET_HDR_F_NEEDS_CSUM (virtio 1.2, 5.1.6).
const NeedsChecksum = 1

// Header.GSOType (virtio 1.2, 5.1.6).
const (
	GSONone  = 0    // VIRTIO_NET_HDR_GSO_NONE
	GSOTCPv4 = 1    // VIRTIO_NET_HDR_GSO_TCPV4
	GSOTCPv6 = 4    // VIRTIO_NET_HDR_GSO_TCPV6
	GSOUDPL4 = 5    // VIRTIO_NET_HDR_GSO_UDP_L4
	GSOECN   = 0x80 // VIRTIO_NET_HDR_GSO_ECN, a flag: the TCP header has CWR set
)

// Header is struct virtio_net_hdr (virtio 1.2, 5.1.6; Linux's tap device with
// a header size of 12).
type Header struct {
	Flags          uint8
	GSOType        uint8
	HeaderLength   uint16 // hdr_len: bytes of the headers of a frame to be segmented, a hint
	GSOSize        uint16 // gso_size: bytes of payload in a segment
	ChecksumStart  uint16 // csum_start: where the sum begins, in bytes
	ChecksumOffset uint16 // csum_offset: from there to where it is put
	Buffers        uint16 // num_buffers that the frame takes; 1 but for received frames
}

// Decode reads HeaderSize bytes.
func Decode(b []byte) Header {
	le := binary.LittleEndian
	return Header{b[0], b[1], le.Uint16(b[2:]), le.Uint16(b[4:]), le.Uint16(b[6:]), le.Uint16(b[8:]), le.Uint16(b[10:])}
}

// Encode writes HeaderSize bytes.
func (h Header) Encode(b []byte) {
	le := binary.LittleEndian
	b[0], b[1] = h.Flags, h.GSOType
	le.PutUint16(b[2:], h.HeaderLength)
	le.PutUint16(b[4:], h.GSOSize)
	le.PutUint16(b[6:], h.ChecksumStart)
	le.PutUint16(b[8:], h.ChecksumOffset)
	le.PutUint16(b[10:], h.Buffers)
}

// Segmented reports whether the frame stands for several.
func (h Header) Segmented() bool { return h.GSOType&^GSOECN != GSONone }

// NIC is a network device, as its link sees it.
type NIC interface {
	// Receive gives a frame to the device, which has copied it when it returns.
	// It is false if there is no room: the link's Ready is called when there may
	// be again. Frames with the same hash stay in order. Several goroutines may
	// call it at once.
	Receive(hash uint32, h Header, parts [][]byte) bool
	// Flush tells the guest of what was received since the last time.
	Flush()
}

// Link is what a network device is connected to. Its methods can be called from any
// goroutine, but for Attach, which comes first, and Close, which comes last.
type Link interface {
	// Attach names the device, once, before anything is sent. What the link has
	// for it comes from then on.
	Attach(NIC)
	// Send takes a frame from the device's queue of a number. The parts are the
	// guest's memory, which may change at any time, and are not used after Send
	// has returned. Frames of different queues are sent concurrently. What is no
	// proper frame is dropped.
	Send(queue int, h Header, parts [][]byte)
	// Sent tells that the device has nothing more to send from a queue, for now:
	// a link that collects frames sends them on.
	Sent(queue int)
	// Ready tells that the device has room again.
	Ready()
	// Offloads tells which frames the device takes: with a checksum still to be
	// made, and segments of these types. It is called when the driver starts.
	Offloads(o Offloads)
	// Close ends what the link does and waits for it. Nothing is received
	// afterwards.
	Close() error
}

// Offloads is what a device takes off its sender: VIRTIO_NET_F_GUEST_CSUM, _GUEST_TSO4,
// _GUEST_TSO6, _GUEST_USO4 and _GUEST_USO6 (virtio 1.2, 5.1.3).
type Offloads struct {
	Checksum         bool
	TCP4, TCP6, UDP4 bool // segments; ECN is included
	UDP6             bool
}

// Takes reports whether a frame can be given as it is.
func (o Offloads) Takes(h Header) bool {
	switch h.GSOType &^ GSOECN {
	case GSOTCPv4:
		return o.TCP4
	case GSOTCPv6:
		return o.TCP6
	case GSOUDPL4:
		return o.UDP4 && o.UDP6
	}
	return h.Flags&NeedsChecksum == 0 || o.Checksum
}

// MAC is a hardware address.
type MAC [6]byte

// Broadcast is everybody's address.
var Broadcast = MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// String writes an address in the usual way.
func (m MAC) String() string { return net.HardwareAddr(m[:]).String() }

// MarshalText implements encoding.TextMarshaler; the zero MAC is empty.
func (m MAC) MarshalText() ([]byte, error) {
	if m == (MAC{}) {
		return nil, nil
	}
	return []byte(m.String()), nil
}

// UnmarshalText implements encoding.TextUnmarshaler. It takes any address, also one
// that no device can have.
func (m *MAC) UnmarshalText(b []byte) error {
	*m = MAC{}
	if len(b) == 0 {
		return nil
	}
	a, err := net.ParseMAC(string(b))
	if err != nil || len(a) != len(m) {
		return fmt.Errorf("%q is no hardware address", b)
	}
	copy(m[:], a)
	return nil
}

// Multicast reports whether the address is a group's.
func (m MAC) Multicast() bool { return m[0]&1 != 0 }

// ParseMAC reads the address of one device, such as 52:54:00:12:34:56: neither a group's
// nor the zero MAC.
func ParseMAC(s string) (m MAC, err error) {
	a, err := net.ParseMAC(s)
	if err != nil || len(a) != len(m) {
		return m, fmt.Errorf("%q is no hardware address such as 52:54:00:12:34:56", s)
	}
	copy(m[:], a)
	if m.Multicast() || m == (MAC{}) {
		return m, fmt.Errorf("%s cannot be a device's address", m)
	}
	return m, nil
}

// Checksum is the Internet checksum's sum (RFC 1071) over parts, not yet inverted.
func Checksum(parts [][]byte) uint16 {
	var c checksum.Checksumer
	for _, p := range parts {
		c.Add(p)
	}
	return c.Checksum()
}

// DeriveMAC is the address of device number i, from 0 on, of a VM of a name: always the
// same, and locally administered.
func DeriveMAC(name string, i int) MAC {
	sum := sha256.Sum256(fmt.Appendf(nil, "vmm/%s/%d", name, i))
	m := MAC(sum[:6])
	m[0] = m[0]&^1 | 2
	return m
}
