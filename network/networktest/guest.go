// Package networktest plays the guest for tests of links: a TCP/IP stack at the
// other end of the cable, without a VM.
package networktest

import (
	"context"
	"encoding/binary"
	"errors"
	"net/netip"
	"sync"
	"sync/atomic"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/channel"
	"gvisor.dev/gvisor/pkg/tcpip/link/ethernet"
	"gvisor.dev/gvisor/pkg/tcpip/network/arp"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"

	"vmm/internal/iovec"
	"vmm/network/ether"
)

// NIC is the number of a guest's interface.
const NIC = tcpip.NICID(1)

// Guest is a guest with one interface. It implements ether.NIC.
type Guest struct {
	Stack *stack.Stack
	MAC   ether.MAC
	Link  ether.Link
	// Full has Receive say that there is no room.
	Full atomic.Bool

	filter atomic.Pointer[Filter]
	ep     *channel.Endpoint
	ctx    context.Context
	cancel context.CancelFunc
	group  sync.WaitGroup
}

// Filter sees every frame, sent or received, before it goes on; false loses it.
// It may be called from several goroutines.
type Filter func(sent bool, h ether.Header, frame []byte) bool

// SetFilter has frames filtered from now on.
func (g *Guest) SetFilter(f Filter) { g.filter.Store(&f) }

// passes asks the filter.
func (g *Guest) passes(sent bool, h ether.Header, frame []byte) bool {
	f := g.filter.Load()
	return f == nil || (*f)(sent, h, frame)
}

// Start connects a guest to a link. addrs are its addresses, with the length
// of their networks' prefixes; routers are its ways out.
func Start(link ether.Link, mac ether.MAC, addrs []netip.Prefix, routers ...netip.Addr) (*Guest, error) {
	g := &Guest{MAC: mac, Link: link, ep: channel.New(1<<14, 1500, tcpip.LinkAddress(mac[:]))}
	g.ctx, g.cancel = context.WithCancel(context.Background())
	g.ep.LinkEPCapabilities = stack.CapabilityResolutionRequired
	g.Stack = stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, ipv6.NewProtocol, arp.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4, icmp.NewProtocol6},
	})
	if err := g.Stack.CreateNIC(NIC, ethernet.New(g.ep)); err != nil {
		return nil, errors.New(err.String())
	}
	for _, a := range addrs {
		proto := ipv4.ProtocolNumber
		if a.Addr().Is6() {
			proto = ipv6.ProtocolNumber
		}
		if err := g.Stack.AddProtocolAddress(NIC, tcpip.ProtocolAddress{Protocol: proto, AddressWithPrefix: tcpip.AddressWithPrefix{
			Address: tcpip.AddrFromSlice(a.Addr().AsSlice()), PrefixLen: a.Bits()}}, stack.AddressProperties{}); err != nil {
			return nil, errors.New(err.String())
		}
		subnet, err := tcpip.NewSubnet(tcpip.AddrFromSlice(a.Masked().Addr().AsSlice()), tcpip.MaskFromBytes(mask(a)))
		if err != nil {
			return nil, err
		}
		g.Stack.AddRoute(tcpip.Route{Destination: subnet, NIC: NIC})
	}
	for _, r := range routers {
		to := header.IPv4EmptySubnet
		if r.Is6() {
			to = header.IPv6EmptySubnet
		}
		g.Stack.AddRoute(tcpip.Route{Destination: to, Gateway: tcpip.AddrFromSlice(r.AsSlice()), NIC: NIC})
	}
	link.Attach(g)
	link.Offloads(ether.Offloads{})
	g.group.Go(g.send)
	return g, nil
}

func mask(p netip.Prefix) []byte {
	out := make([]byte, p.Addr().BitLen()/8)
	for i := range p.Bits() {
		out[i/8] |= 0x80 >> (i % 8)
	}
	return out
}

// send brings the stack's packets to the link.
func (g *Guest) send() {
	for p := g.ep.ReadContext(g.ctx); p != nil; p = g.ep.ReadContext(g.ctx) {
		frame := p.ToView().ToSlice()
		p.DecRef()
		g.SendFrame(ether.Header{Buffers: 1}, frame)
	}
}

// SendFrame sends a frame as it is.
func (g *Guest) SendFrame(h ether.Header, frame []byte) {
	if g.passes(true, h, frame) {
		g.Link.Send(0, h, [][]byte{frame[:min(20, len(frame))], frame[min(20, len(frame)):]})
		g.Link.Sent(0)
	}
}

// Receive implements ether.NIC. What its stack does not do is done here.
func (g *Guest) Receive(_ uint32, h ether.Header, parts [][]byte) bool {
	if g.Full.Load() {
		return false
	}
	frame := make([]byte, iovec.Len(parts))
	iovec.Gather(frame, parts)
	if !g.passes(false, h, frame) {
		return true
	}
	if h.Segmented() {
		ether.Segment(h, frame, false, func(_ ether.Header, s [][]byte) {
			one := make([]byte, iovec.Len(s))
			iovec.Gather(one, s)
			g.inject(one)
		})
		return true
	}
	ether.Complete(h, frame)
	g.inject(frame)
	return true
}

func (g *Guest) inject(frame []byte) {
	if len(frame) < ether.FrameHeader {
		return
	}
	p := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(frame)})
	g.ep.InjectInbound(tcpip.NetworkProtocolNumber(binary.BigEndian.Uint16(frame[12:])), p)
	p.DecRef()
}

// Flush implements ether.NIC.
func (g *Guest) Flush() {}

// Close ends the guest, and the link.
func (g *Guest) Close() error {
	err := g.Link.Close()
	g.cancel()
	g.group.Wait()
	g.Stack.Destroy()
	return err
}
