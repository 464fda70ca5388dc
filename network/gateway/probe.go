package gateway

import (
	"crypto/rand"
	"encoding/binary"
	"maps"
	"net/netip"
	"slices"
	"sync"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"vmm/network/ether"
)

// Conn is a TCP connection of the guest's, by its ends as the guest sees them.
type Conn struct {
	Guest  netip.AddrPort `json:"guest"`
	Remote netip.AddrPort `json:"remote"`
}

// tcpConns are the connections that there are.
type tcpConns struct {
	mu   sync.Mutex
	open map[Conn]bool
}

// add notes a connection until the returned function is called.
func (t *tcpConns) add(ep tcpip.Endpoint) (remove func()) {
	port := func(a tcpip.FullAddress, err tcpip.Error) netip.AddrPort {
		if err != nil {
			return netip.AddrPort{}
		}
		return netip.AddrPortFrom(addressOf(a.Addr), a.Port)
	}
	c := Conn{port(ep.GetRemoteAddress()), port(ep.GetLocalAddress())}
	if !c.Guest.IsValid() || !c.Remote.IsValid() {
		return func() {} // it has ended already
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.open[c] = true
	return func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		delete(t.open, c)
	}
}

// TCP returns the guest's TCP connections, in no order.
func (g *Gateway) TCP() []Conn {
	g.tcp.mu.Lock()
	defer g.tcp.mu.Unlock()
	return slices.Collect(maps.Keys(g.tcp.open))
}

// Probe has a guest find out that connections of another gateway's are none of
// this one's. It gets a segment that no connection would accept, and answers what
// it expects; the stack, which does not know the connection, resets it then, with
// the number that the guest has just named.
func (g *Gateway) Probe(guest ether.MAC, conns []Conn) {
	for _, c := range conns {
		g.link.emit(0, ether.Header{}, probe(guest, c))
	}
}

// probe is an ACK that acknowledges nothing that was sent.
func probe(guest ether.MAC, c Conn) []byte {
	tcpAt := header.EthernetMinimumSize + header.IPv4MinimumSize
	if c.Guest.Addr().Is6() {
		tcpAt = header.EthernetMinimumSize + header.IPv6MinimumSize
	}
	frame := make([]byte, tcpAt+header.TCPMinimumSize)
	from, to := address(c.Remote.Addr()), address(c.Guest.Addr())
	kind := header.IPv4ProtocolNumber
	if c.Guest.Addr().Is6() {
		kind = header.IPv6ProtocolNumber
		header.IPv6(frame[header.EthernetMinimumSize:]).Encode(&header.IPv6Fields{PayloadLength: header.TCPMinimumSize,
			TransportProtocol: header.TCPProtocolNumber, HopLimit: 64, SrcAddr: from, DstAddr: to})
	} else {
		ip := header.IPv4(frame[header.EthernetMinimumSize:])
		ip.Encode(&header.IPv4Fields{TotalLength: header.IPv4MinimumSize + header.TCPMinimumSize, TTL: 64,
			Protocol: uint8(header.TCPProtocolNumber), SrcAddr: from, DstAddr: to})
		ip.SetChecksum(^ip.CalculateChecksum())
	}
	header.Ethernet(frame).Encode(&header.EthernetFields{SrcAddr: tcpip.LinkAddress(routerMAC[:]), DstAddr: tcpip.LinkAddress(guest[:]), Type: kind})
	t := header.TCP(frame[tcpAt:])
	var numbers [8]byte
	rand.Read(numbers[:])
	t.Encode(&header.TCPFields{SrcPort: c.Remote.Port(), DstPort: c.Guest.Port(), DataOffset: header.TCPMinimumSize, Flags: header.TCPFlagAck,
		SeqNum: binary.LittleEndian.Uint32(numbers[:]), AckNum: binary.LittleEndian.Uint32(numbers[4:]), WindowSize: 1 << 14})
	sum := header.PseudoHeaderChecksum(header.TCPProtocolNumber, from, to, header.TCPMinimumSize)
	t.SetChecksum(^t.CalculateChecksum(sum))
	return frame
}
