package gateway

import (
	"net/netip"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"vmm/network/ether"
)

// ttl is the hop limit of the gateway's own packets.
const ttl = 64

// headerRoom is how much room putHeaders needs in front of a payload at most.
const headerRoom = ether.FrameHeader + header.IPv6MinimumSize

// putHeaders puts Ethernet and IP headers in front of what begins at headerRoom
// of a buffer, and returns the frame.
func (g *Gateway) putHeaders(b []byte, to ether.MAC, src, dst netip.Addr, proto tcpip.TransportProtocolNumber) []byte {
	payload := len(b) - headerRoom
	if src.Is4() {
		b = b[headerRoom-ether.FrameHeader-header.IPv4MinimumSize:]
		ip := header.IPv4(b[ether.FrameHeader:])
		ip.Encode(&header.IPv4Fields{TotalLength: uint16(header.IPv4MinimumSize + payload), TTL: ttl, Protocol: uint8(proto),
			Flags: header.IPv4FlagDontFragment, SrcAddr: address(src), DstAddr: address(dst)})
		ip.SetChecksum(^ip.CalculateChecksum())
		g.putEthernet(b, to, ether.TypeIPv4)
		return b
	}
	hops := uint8(ttl)
	if proto == header.ICMPv6ProtocolNumber {
		hops = header.NDPHopLimit
	}
	header.IPv6(b[ether.FrameHeader:]).Encode(&header.IPv6Fields{PayloadLength: uint16(payload), TransportProtocol: proto, HopLimit: hops,
		SrcAddr: address(src), DstAddr: address(dst)})
	g.putEthernet(b, to, ether.TypeIPv6)
	return b
}

func (g *Gateway) putEthernet(b []byte, to ether.MAC, kind tcpip.NetworkProtocolNumber) {
	header.Ethernet(b).Encode(&header.EthernetFields{SrcAddr: tcpip.LinkAddress(g.mac[:]), DstAddr: tcpip.LinkAddress(to[:]), Type: kind})
}

// emitUDP sends the guest a datagram, whose payload begins at udpRoom of b. Its
// checksum is left to the guest.
func (g *Gateway) emitUDP(b []byte, to ether.MAC, src, dst netip.AddrPort) {
	udp := header.UDP(b[headerRoom:])
	length := uint16(len(udp))
	udp.Encode(&header.UDPFields{SrcPort: src.Port(), DstPort: dst.Port(), Length: length,
		Checksum: header.PseudoHeaderChecksum(header.UDPProtocolNumber, address(src.Addr()), address(dst.Addr()), length)})
	frame := g.putHeaders(b, to, src.Addr(), dst.Addr(), header.UDPProtocolNumber)
	h := ether.Header{Flags: ether.NeedsChecksum, ChecksumStart: uint16(len(frame)) - length, ChecksumOffset: 6, Buffers: 1}
	g.link.emit(uint32(src.Port())^uint32(dst.Port()), h, frame)
}

// udpRoom is how much room emitUDP needs in front of a payload.
const udpRoom = headerRoom + header.UDPMinimumSize

// fits reports whether a packet of n bytes behind the IP header needs no fragments.
func (g *Gateway) fits(n int, src netip.Addr) bool {
	if src.Is4() {
		return n+header.IPv4MinimumSize <= g.cfg.MTU
	}
	return n+header.IPv6MinimumSize <= g.cfg.MTU
}

// fragment has the stack send the guest a packet that is too large for its MTU,
// with its checksum made.
func (g *Gateway) fragment(proto tcpip.TransportProtocolNumber, src, dst netip.Addr, packet []byte) {
	network := ipv4.ProtocolNumber
	if src.Is6() {
		network = ipv6.ProtocolNumber
	}
	r, err := g.stack.FindRoute(nic, address(src), address(dst), network, false)
	if err != nil {
		return // lost, as on any network
	}
	defer r.Release()
	p := stack.NewPacketBuffer(stack.PacketBufferOptions{ReserveHeaderBytes: int(r.MaxHeaderLength()), Payload: buffer.MakeWithData(packet)})
	defer p.DecRef()
	r.WritePacket(stack.NetworkHeaderParams{Protocol: proto, TTL: ttl}, p)
}

// emitICMP sends the guest a message, which begins at headerRoom of b, in
// fragments if need be.
func (g *Gateway) emitICMP(b []byte, to ether.MAC, src, dst netip.Addr) {
	m, proto := b[headerRoom:], header.ICMPv4ProtocolNumber
	if src.Is4() {
		icmp := header.ICMPv4(m)
		icmp.SetChecksum(0)
		icmp.SetChecksum(^checksum.Checksum(m, 0))
	} else {
		proto = header.ICMPv6ProtocolNumber
		icmp := header.ICMPv6(m)
		icmp.SetChecksum(0)
		sum := header.PseudoHeaderChecksum(proto, address(src), address(dst), uint16(len(m)))
		icmp.SetChecksum(^checksum.Checksum(m, sum))
	}
	if g.fits(len(m), src) {
		g.link.emit(0, ether.Header{Buffers: 1}, g.putHeaders(b, to, src, dst, proto))
	} else {
		g.fragment(proto, src, dst, m)
	}
}

// unreachable tells the guest that a datagram of its did not arrive. mtu is what
// the path takes, if that is why.
func (g *Gateway) unreachable(d *datagram, code4 header.ICMPv4Code, code6 header.ICMPv6Code, mtu int) {
	b := make([]byte, headerRoom+header.ICMPv4MinimumSize, headerRoom+128)
	// The message quotes the datagram's headers, which are made again.
	quote := make([]byte, headerRoom+header.UDPMinimumSize)
	header.UDP(quote[headerRoom:]).Encode(&header.UDPFields{SrcPort: d.from.Port(), DstPort: d.to.Port(),
		Length: uint16(header.UDPMinimumSize + d.size)})
	ip := g.putHeaders(quote, ether.MAC{}, d.from.Addr(), d.to.Addr(), header.UDPProtocolNumber)[ether.FrameHeader:]
	m := b[headerRoom:]
	router := g.router4
	if d.from.Addr().Is4() {
		icmp := header.ICMPv4(m)
		icmp.SetType(header.ICMPv4DstUnreachable)
		icmp.SetCode(code4)
		icmp.SetMTU(uint16(mtu))
	} else {
		router = g.router6
		icmp := header.ICMPv6(m)
		icmp.SetType(header.ICMPv6DstUnreachable)
		icmp.SetCode(code6)
		if mtu > 0 {
			icmp.SetType(header.ICMPv6PacketTooBig)
			icmp.SetMTU(uint32(mtu))
		}
	}
	g.emitICMP(append(b, ip...), d.mac, router, d.from.Addr())
}

// linkLocal is the IPv6 address that goes with a hardware address (RFC 4291,
// appendix A).
func linkLocal(m ether.MAC) netip.Addr {
	return netip.AddrFrom16([16]byte{0xfe, 0x80, 8: m[0] ^ 2, 9: m[1], 10: m[2], 11: 0xff, 12: 0xfe, 13: m[3], 14: m[4], 15: m[5]})
}
