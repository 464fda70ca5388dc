package gateway

import (
	"encoding/binary"
	"net/netip"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"vmm/network/ether"
)

const (
	// routerLifetime is what a router advertisement says of itself, in seconds
	// (RFC 4861, 6.2.1: three times the interval).
	routerLifetime = 9000
	allNodesMAC    = "\x33\x33\x00\x00\x00\x01"
)

var allNodes = netip.MustParseAddr("ff02::1")

// advertise answers a router solicitation: a prefix for SLAAC, the MTU, the
// name server and the domain (RFC 4861, 8106).
func (g *Gateway) advertise(mac ether.MAC, from netip.Addr) {
	to := from
	if from.IsUnspecified() {
		to, mac = allNodes, ether.MAC([]byte(allNodesMAC))
	}
	prefix := make(header.NDPPrefixInformation, 30)
	prefix[0] = byte(g.subnet6.Bits())
	prefix[1] = 0xc0 // on-link, autonomous
	copy(prefix[2:], be32(2*routerLifetime))
	copy(prefix[6:], be32(2*routerLifetime))
	copy(prefix[14:], g.subnet6.Addr().AsSlice())
	dns := append(make(header.NDPRecursiveDNSServer, 2), be32(routerLifetime)...)
	dns = append(dns, g.names6.AsSlice()...)
	options := header.NDPOptionsSerializer{
		header.NDPSourceLinkLayerAddressOption(tcpip.LinkAddress(g.mac[:])), prefix, dns}
	mtu := append([]byte{5, 1, 0, 0}, be32(uint32(g.cfg.MTU))...) // 4.6.4

	b := make([]byte, headerRoom+header.ICMPv6HeaderSize+header.NDPRAMinimumSize+options.Length())
	icmp := header.ICMPv6(b[headerRoom:])
	icmp.SetType(header.ICMPv6RouterAdvert)
	body := icmp.MessageBody()
	body[0] = ttl
	body[2], body[3] = byte(routerLifetime>>8), byte(routerLifetime&0xff)
	header.NDPOptions(body[header.NDPRAMinimumSize:]).Serialize(options)
	g.emitICMP(append(b, mtu...), mac, g.linkLocal, to)
}

func be32(n uint32) []byte { return binary.BigEndian.AppendUint32(nil, n) }
