package gateway

import (
	"sync"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"vmm/network/ether"
)

var (
	everywhere4 = header.IPv4EmptySubnet
	everywhere6 = header.IPv6EmptySubnet
)

const (
	// maxPending and maxPendingBytes bound the packets that wait for a guest
	// without receive buffers.
	maxPending      = 4096
	maxPendingBytes = 64 << 20
	// largePacket is the size, in bytes, from which copying a packet takes longer
	// than having another goroutine do it.
	largePacket = 16 << 10
	// gsoMax is the largest packet that the stack makes.
	gsoMax = 65535
)

// link is the stack's link endpoint: the way of packets to the guest. Small ones
// are copied to the guest by whoever sends them, which is soonest; large ones by
// a goroutine of their own, while the sender reads on.
type link struct {
	g   *Gateway
	mtu uint32

	dispatcher stack.NetworkDispatcher
	group      sync.WaitGroup

	mu      sync.Mutex
	nic     ether.NIC // nil before Attach and after Close
	parts   [][]byte
	single  [1][]byte
	pending []*stack.PacketBuffer // from head on
	head    int
	bytes   int
	copying bool // the goroutine has taken the first one
	full    bool // the guest has no room for the first one
	roomy   bool // Ready was called meanwhile
	more    sync.Cond
}

// connect names the device.
func (l *link) connect(n ether.NIC) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.nic = n
	l.more.L = &l.mu
	l.group.Go(l.copyLarge)
}

// disconnect drops what waits.
func (l *link) disconnect() {
	l.mu.Lock()
	l.nic = nil
	l.more.Signal()
	l.mu.Unlock()
	l.group.Wait()
	for l.head < len(l.pending) {
		l.next()
	}
}

// next takes the first packet that waits away; mu is held.
func (l *link) next() {
	p := l.pending[l.head]
	l.pending[l.head] = nil
	l.bytes -= p.Size()
	if l.head++; l.head == len(l.pending) {
		l.pending, l.head = l.pending[:0], 0
	}
	p.DecRef()
}

// idle reports whether nothing waits; mu is held.
func (l *link) idle() bool { return l.head == len(l.pending) }

// WritePackets implements stack.LinkWriter.
func (l *link) WritePackets(list stack.PacketBufferList) (int, tcpip.Error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.nic == nil {
		return 0, &tcpip.ErrClosedForSend{}
	}
	packets, now := list.AsSlice(), false
	for _, p := range packets {
		if l.idle() && p.Size() < largePacket {
			h := l.prepare(p, &l.parts)
			if l.nic.Receive(p.Hash, h, l.parts) {
				now = true
				continue
			}
			l.full = true
		}
		if len(l.pending)-l.head >= maxPending || l.bytes+p.Size() > maxPendingBytes {
			continue // lost, as on any network: TCP sends it again
		}
		if l.head > maxPending {
			l.pending, l.head = append(l.pending[:0], l.pending[l.head:]...), 0
		}
		l.pending = append(l.pending, p.IncRef())
		l.bytes += p.Size()
	}
	if now {
		l.nic.Flush()
	}
	if !l.idle() && !l.copying && !l.full {
		l.more.Signal()
	}
	return len(packets), nil
}

// copyLarge gives the guest what waits.
func (l *link) copyLarge() {
	var parts [][]byte
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.nic != nil {
		if l.idle() || l.full {
			l.more.Wait()
			continue
		}
		p, nic := l.pending[l.head], l.nic
		l.copying = true
		l.mu.Unlock()
		h := l.prepare(p, &parts)
		took := nic.Receive(p.Hash, h, parts)
		nic.Flush()
		l.mu.Lock()
		if l.copying = false; took {
			l.next()
		} else if !l.roomy {
			l.full = true
		}
		l.roomy = false
	}
}

// Ready implements ether.Link.
func (g *Gateway) Ready() {
	l := g.link
	l.mu.Lock()
	defer l.mu.Unlock()
	l.full, l.roomy = false, true
	if l.nic != nil && !l.idle() {
		l.more.Signal()
	}
}

// prepare collects the parts of a packet.
func (l *link) prepare(p *stack.PacketBuffer, parts *[][]byte) ether.Header {
	*parts = (*parts)[:0]
	views, skip := p.AsViewList()
	for v := views.Front(); v != nil; v = v.Next() {
		b := v.AsSlice()
		if skip >= len(b) {
			skip -= len(b)
			continue
		}
		*parts = append(*parts, b[skip:])
		skip = 0
	}
	return offload(p)
}

// offload leaves the checksum of a TCP connection's packet to the guest, and
// cutting it into segments. All other packets are complete.
func offload(p *stack.PacketBuffer) ether.Header {
	h, o := ether.Header{Buffers: 1}, p.GSOOptions
	if o.Type == stack.GSONone {
		return h
	}
	start := header.EthernetMinimumSize + o.L3HdrLen
	h.Flags, h.ChecksumStart, h.ChecksumOffset = ether.NeedsChecksum, start, o.CsumOffset
	if p.Data().Size() > int(o.MSS) {
		h.GSOType = ether.GSOTCPv4
		if o.Type == stack.GSOTCPv6 {
			h.GSOType = ether.GSOTCPv6
		}
		h.GSOSize, h.HeaderLength = o.MSS, uint16(p.HeaderSize())
	}
	return h
}

// emit gives the guest a frame that is no packet of the stack's, and so need not
// wait for those. Where there is no room it is lost.
func (l *link) emit(hash uint32, h ether.Header, frame []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.nic == nil {
		return
	}
	l.single[0] = frame
	if l.nic.Receive(hash, h, l.single[:]) {
		l.nic.Flush()
	}
	l.single[0] = nil
}

// inject gives the stack a packet from the guest, of which it keeps the view.
func (l *link) inject(kind uint16, v *buffer.View) {
	p := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithView(v)})
	l.dispatcher.DeliverNetworkPacket(tcpip.NetworkProtocolNumber(kind), p)
	p.DecRef()
}

// MTU implements stack.LinkEndpoint.
func (l *link) MTU() uint32 { return l.mtu }

// SetMTU implements stack.LinkEndpoint: it stays.
func (l *link) SetMTU(uint32) {}

// MaxHeaderLength implements stack.LinkEndpoint.
func (l *link) MaxHeaderLength() uint16 { return header.EthernetMinimumSize }

// LinkAddress implements stack.LinkEndpoint.
func (l *link) LinkAddress() tcpip.LinkAddress { return tcpip.LinkAddress(l.g.mac[:]) }

// SetLinkAddress implements stack.LinkEndpoint: it stays.
func (l *link) SetLinkAddress(tcpip.LinkAddress) {}

// Capabilities implements stack.LinkEndpoint. What comes from the guest was
// checked before, by Send.
func (l *link) Capabilities() stack.LinkEndpointCapabilities {
	return stack.CapabilityRXChecksumOffload | stack.CapabilityResolutionRequired
}

// Attach implements stack.LinkEndpoint.
func (l *link) Attach(d stack.NetworkDispatcher) {
	if d != nil { // nil while the stack ends, when a guest may still send
		l.dispatcher = d
	}
}

// IsAttached implements stack.LinkEndpoint.
func (l *link) IsAttached() bool { return l.dispatcher != nil }

// Wait implements stack.LinkEndpoint.
func (l *link) Wait() {}

// ARPHardwareType implements stack.LinkEndpoint.
func (l *link) ARPHardwareType() header.ARPHardwareType { return header.ARPHardwareEther }

// AddHeader implements stack.LinkEndpoint.
func (l *link) AddHeader(p *stack.PacketBuffer) {
	header.Ethernet(p.LinkHeader().Push(header.EthernetMinimumSize)).Encode(&header.EthernetFields{
		SrcAddr: p.EgressRoute.LocalLinkAddress, DstAddr: p.EgressRoute.RemoteLinkAddress, Type: p.NetworkProtocolNumber})
}

// ParseHeader implements stack.LinkEndpoint: what is injected has none.
func (l *link) ParseHeader(*stack.PacketBuffer) bool { return true }

// Close implements stack.LinkEndpoint.
func (l *link) Close() {}

// SetOnCloseAction implements stack.LinkEndpoint.
func (l *link) SetOnCloseAction(func()) {}

// GSOMaxSize implements stack.GSOEndpoint.
func (l *link) GSOMaxSize() uint32 { return gsoMax }

// SupportedGSO implements stack.GSOEndpoint.
func (l *link) SupportedGSO() stack.SupportedGSO { return stack.HostGSOSupported }
