package gateway

import (
	"encoding/binary"
	"net/netip"
	"sync"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"vmm/internal/iovec"
	"vmm/network/ether"
)

const (
	portDNS        = 53
	portDHCPServer = 67
	portDHCPClient = 68
	// maxHeaders is as much of a packet as is looked at before it is copied:
	// Ethernet, IPv6, and UDP.
	maxHeaders = ether.FrameHeader + header.IPv6MinimumSize + header.UDPMinimumSize
)

// datagram is a UDP datagram from the guest, all in one packet.
type datagram struct {
	mac          ether.MAC // whose it is
	from, to     netip.AddrPort
	dontFragment bool
	payload      [][]byte
	size         int // of the payload
	segment      int // bytes of payload in each datagram that it stands for
}

// scratch is a Send's memory.
type scratch struct {
	head  [maxHeaders]byte
	parts [][]byte // of a packet that is copied
	datagram
}

var scratches = sync.Pool{New: func() any { return new(scratch) }}

// Send implements ether.Link.
func (g *Gateway) Send(queue int, h ether.Header, parts [][]byte) {
	s := scratches.Get().(*scratch)
	defer scratches.Put(s)
	head := s.head[:iovec.Gather(s.head[:], parts)]
	size := iovec.Len(parts)
	if len(head) < ether.FrameHeader || size > ether.MaxFrame {
		return
	}
	to, from := ether.MAC(head[:6]), ether.MAC(head[6:12])
	if to != g.mac && !to.Multicast() {
		return
	}
	kind := binary.BigEndian.Uint16(head[12:])
	if kind != ether.TypeIPv4 && kind != ether.TypeIPv6 && kind != ether.TypeARP {
		return
	}
	if start, ok := s.parseUDP(kind, head); ok && !g.local(s.to) {
		if s.mac = from; s.take(h, head, parts, start) {
			g.sendDatagram(queue, &s.datagram)
		}
		return
	}
	// The rest is copied, and only then looked at.
	v := buffer.NewViewSize(size - ether.FrameHeader)
	packet := v.AsSlice()
	s.parts = iovec.Skip(s.parts[:0], parts, ether.FrameHeader)
	iovec.Gather(packet, s.parts)
	if !valid(kind, h, packet) {
		v.Release()
		return
	}
	g.neighbors.learn(kind, from, packet)
	if g.special(kind, from, packet) {
		v.Release()
		return
	}
	g.link.inject(kind, v)
}

// local reports whether a datagram is for the gateway itself, or for nobody in
// particular.
func (g *Gateway) local(to netip.AddrPort) bool {
	a := to.Addr()
	return to.Port() == portDHCPServer || a.IsMulticast() || a == broadcast4 || a == g.names4 || a == g.names6 || a == g.linkLocal
}

var broadcast4 = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// parseUDP reads the headers of a whole UDP datagram, and returns where its
// payload begins. False means that it is something else, or not so simple.
func (d *datagram) parseUDP(kind uint16, head []byte) (start int, ok bool) {
	var room int // for UDP in the IP packet
	b := head[ether.FrameHeader:]
	switch kind {
	case ether.TypeIPv4:
		ip := header.IPv4(b)
		if len(b) < header.IPv4MinimumSize+header.UDPMinimumSize || b[0] != 4<<4|5 || ip.Protocol() != uint8(header.UDPProtocolNumber) ||
			ip.More() || ip.FragmentOffset() != 0 || ip.CalculateChecksum() != 0xffff {
			return 0, false
		}
		d.dontFragment = ip.Flags()&header.IPv4FlagDontFragment != 0
		room = int(ip.TotalLength()) - header.IPv4MinimumSize
		b = b[header.IPv4MinimumSize:]
		d.from = netip.AddrPortFrom(netip.AddrFrom4(ip.SourceAddress().As4()), header.UDP(b).SourcePort())
		d.to = netip.AddrPortFrom(netip.AddrFrom4(ip.DestinationAddress().As4()), header.UDP(b).DestinationPort())
		start = ether.FrameHeader + header.IPv4MinimumSize + header.UDPMinimumSize
	case ether.TypeIPv6:
		ip := header.IPv6(b)
		if len(b) < header.IPv6MinimumSize+header.UDPMinimumSize || b[0]>>4 != 6 || ip.NextHeader() != uint8(header.UDPProtocolNumber) {
			return 0, false
		}
		d.dontFragment = true
		room = int(ip.PayloadLength())
		b = b[header.IPv6MinimumSize:]
		d.from = netip.AddrPortFrom(netip.AddrFrom16(ip.SourceAddress().As16()), header.UDP(b).SourcePort())
		d.to = netip.AddrPortFrom(netip.AddrFrom16(ip.DestinationAddress().As16()), header.UDP(b).DestinationPort())
		start = ether.FrameHeader + header.IPv6MinimumSize + header.UDPMinimumSize
	default:
		return 0, false
	}
	size := int(header.UDP(b).Length())
	d.size = size - header.UDPMinimumSize
	return start, size >= header.UDPMinimumSize && size <= room
}

// take finds the payload of a datagram, whose headers were read; false if it is
// cut off or its checksum is wrong.
func (d *datagram) take(h ether.Header, head []byte, parts [][]byte, start int) bool {
	udp := header.UDP(head[start-header.UDPMinimumSize:])
	d.payload = iovec.Cut(d.payload[:0], parts, int64(start), int64(d.size)) // a frame may be padded
	if iovec.Len(d.payload) < d.size {
		return false
	}
	d.segment = d.size
	if h.GSOType&^ether.GSOECN == ether.GSOUDPL4 && h.GSOSize > 0 {
		d.segment = int(h.GSOSize)
	}
	if h.Flags&ether.NeedsChecksum != 0 || udp.Checksum() == 0 && d.from.Addr().Is4() {
		return true
	}
	sum := header.PseudoHeaderChecksum(header.UDPProtocolNumber, address(d.from.Addr()), address(d.to.Addr()), udp.Length())
	sum = checksum.Checksum(udp[:header.UDPMinimumSize], sum)
	return checksum.Combine(sum, ether.Checksum(d.payload)) == 0xffff
}

// valid checks what the stack does not check any more: the checksums. A frame
// whose sender left them open is right.
func valid(kind uint16, h ether.Header, packet []byte) bool {
	open := h.Flags&ether.NeedsChecksum != 0
	var transport uint8
	var payload []byte
	var src, dst []byte
	switch kind {
	case ether.TypeIPv4:
		if len(packet) < header.IPv4MinimumSize {
			return false
		}
		ip := header.IPv4(packet)
		if !ip.IsValid(len(packet)) || ip.CalculateChecksum() != 0xffff {
			return false
		}
		if ip.More() || ip.FragmentOffset() != 0 {
			return true // held against its checksum when it is whole
		}
		transport, payload = ip.Protocol(), packet[ip.HeaderLength():ip.TotalLength()]
		src, dst = packet[12:16], packet[16:20]
	case ether.TypeIPv6:
		if len(packet) < header.IPv6MinimumSize {
			return false
		}
		ip := header.IPv6(packet)
		if !ip.IsValid(len(packet)) {
			return false
		}
		transport, payload = ip.NextHeader(), packet[header.IPv6MinimumSize:][:ip.PayloadLength()]
		src, dst = packet[8:24], packet[24:40]
	default:
		return true
	}
	switch transport {
	case uint8(header.TCPProtocolNumber):
		if len(payload) < header.TCPMinimumSize {
			return false
		}
	case uint8(header.ICMPv6ProtocolNumber):
		open = false
	case uint8(header.UDPProtocolNumber):
		if len(payload) < header.UDPMinimumSize || int(header.UDP(payload).Length()) > len(payload) {
			return false
		}
		payload = payload[:max(int(header.UDP(payload).Length()), header.UDPMinimumSize)]
		open = open || header.UDP(payload).Checksum() == 0 && kind == ether.TypeIPv4
	default:
		return true
	}
	if open {
		return true
	}
	sum := checksum.Checksum(dst, checksum.Checksum(src, 0))
	sum = checksum.Combine(sum, checksum.Combine(uint16(transport), uint16(len(payload))))
	return checksum.Checksum(payload, sum) == 0xffff
}

// special handles what the stack knows nothing of; false leaves a packet to it.
// Who asks for the hardware address of another guest's gets no answer: the
// stack, which takes what is for anybody, would say that it is its own.
func (g *Gateway) special(kind uint16, from ether.MAC, packet []byte) bool {
	switch kind {
	case ether.TypeARP:
		a := header.ARP(packet)
		return a.IsValid() && a.Op() == header.ARPRequest && !g.ours(netip.AddrFrom4([4]byte(a.ProtocolAddressTarget())))
	case ether.TypeIPv4:
		ip := header.IPv4(packet)
		payload := packet[ip.HeaderLength():ip.TotalLength()]
		if ip.More() || ip.FragmentOffset() != 0 {
			return false
		}
		switch ip.Protocol() {
		case uint8(header.UDPProtocolNumber):
			if udp := header.UDP(payload); udp.DestinationPort() == portDHCPServer {
				g.handleDHCP(from, udp.Payload())
				return true
			}
		case uint8(header.ICMPv4ProtocolNumber):
			return g.handleEcho(from, addressOf(ip.SourceAddress()), addressOf(ip.DestinationAddress()), payload)
		}
	case ether.TypeIPv6:
		ip := header.IPv6(packet)
		if !g.ours(addressOf(ip.DestinationAddress())) && ip.NextHeader() == uint8(header.IPv6FragmentHeader) &&
			ip.PayloadLength() > 0 && packet[header.IPv6MinimumSize] == uint8(header.ICMPv6ProtocolNumber) {
			return true // the stack would answer a ping to anybody itself
		}
		if ip.NextHeader() == uint8(header.ICMPv6ProtocolNumber) {
			payload := packet[header.IPv6MinimumSize:][:ip.PayloadLength()]
			switch {
			case len(payload) > 0 && payload[0] == uint8(header.ICMPv6RouterSolicit):
				g.advertise(from, addressOf(ip.SourceAddress()))
				return true
			case len(payload) >= header.ICMPv6NeighborSolicitMinimumSize && payload[0] == uint8(header.ICMPv6NeighborSolicit):
				ns := header.NDPNeighborSolicit(header.ICMPv6(payload).MessageBody())
				return !g.ours(addressOf(ns.TargetAddress()))
			}
			return g.handleEcho(from, addressOf(ip.SourceAddress()), addressOf(ip.DestinationAddress()), payload)
		}
	}
	return false
}
