package gateway

import (
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"

	"vmm/internal/iovec"
	"vmm/network/ether"
)

const (
	// maxUDP bounds the flows; beyond it the one that is idle longest ends.
	maxUDP = 2048
	// How long a flow may be idle: before an answer, after one (RFC 4787, 4.3).
	udpUnanswered = 30 * time.Second
	udpAnswered   = 2 * time.Minute
	expireEvery   = 5 * time.Second
	maxDatagram   = 65507
	maxIovecs     = 64
)

// udpKey is the two ends of a flow: in the guest, and as the guest sees it.
type udpKey struct{ guest, peer netip.AddrPort }

// udpFlows are the guest's conversations by UDP.
type udpFlows struct {
	mu     sync.Mutex
	flows  map[udpKey]*udpFlow
	closed bool
	group  sync.WaitGroup
	buffer sync.Pool
	// batches are of the device's queues.
	batches [8]udpBatch
}

// udpFlow is one, with a socket of its own that is connected to the peer.
type udpFlow struct {
	g        *Gateway
	key      udpKey
	conn     *net.UDPConn
	raw      syscall.RawConn
	used     atomic.Int64 // nanoseconds of the gateway's clock
	answered atomic.Bool
	mac      atomic.Uint64 // the guest's

	mu       sync.Mutex // of sending
	whole    bool       // datagrams are not to be fragmented
	datagram *datagram
	write    func(fd uintptr) bool
	iov      [maxIovecs]unix.Iovec
	parts    [][]byte // of one datagram
	msg      unix.Msghdr
	cmsg     [cmsgSpace]byte
	err      error
}

// started is when the gateway's clock began.
var started = time.Now()

func clock() int64 { return int64(time.Since(started)) }

// sendDatagram sends what the guest has sent from a queue.
func (g *Gateway) sendDatagram(queue int, d *datagram) {
	b := &g.udp.batches[queue%len(g.udp.batches)]
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.add(d) {
		return
	}
	b.flush()
	if d.to.Addr() == g.router4 {
		room := g.udp.borrow()
		defer g.udp.buffer.Put(room)
		if g.published.answer(d, *room) {
			return
		}
	}
	f := g.flow(d)
	if f == nil {
		return
	}
	f.used.Store(clock())
	f.mac.Store(packMAC(d.mac))
	if !b.begin(f, d) {
		f.send(d)
	}
}

// flow returns the flow of a datagram, nil if it may not be; the guest is told.
func (g *Gateway) flow(d *datagram) *udpFlow {
	k := udpKey{d.from, d.to}
	if f := g.udp.find(k); f != nil {
		return f
	}
	to, ok := g.target(d.to)
	if !ok {
		g.unreachable(d, header.ICMPv4AdminProhibited, header.ICMPv6Prohibited, 0)
		return nil
	}
	f, err := g.newFlow(k, to)
	if err != nil {
		g.unreachable(d, header.ICMPv4NetUnreachable, header.ICMPv6NetworkUnreachable, 0)
		return nil
	}
	return f
}

func packMAC(m ether.MAC) uint64 {
	return uint64(m[0])<<40 | uint64(m[1])<<32 | uint64(m[2])<<24 | uint64(m[3])<<16 | uint64(m[4])<<8 | uint64(m[5])
}

func unpackMAC(v uint64) ether.MAC {
	return ether.MAC{byte(v >> 40), byte(v >> 32), byte(v >> 24), byte(v >> 16), byte(v >> 8), byte(v)}
}

func (u *udpFlows) find(k udpKey) *udpFlow {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.flows[k]
}

// newFlow opens a socket to the peer and has its answers go to the guest.
func (g *Gateway) newFlow(k udpKey, to netip.AddrPort) (*udpFlow, error) {
	conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
	if err != nil {
		return nil, err
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	f := &udpFlow{g: g, key: k, conn: conn, raw: raw}
	f.write = f.writeDatagram
	u := &g.udp
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.closed {
		return nil, errors.Join(net.ErrClosed, conn.Close())
	}
	if len(u.flows) >= maxUDP {
		u.evict()
	}
	u.flows[k] = f
	f.used.Store(clock())
	u.group.Go(f.receive)
	return f, nil
}

// evict ends the flow that is idle longest; mu is held.
func (u *udpFlows) evict() {
	var oldest *udpFlow
	for _, f := range u.flows {
		if oldest == nil || f.used.Load() < oldest.used.Load() {
			oldest = f
		}
	}
	u.drop(oldest)
}

// drop ends a flow; mu is held.
func (u *udpFlows) drop(f *udpFlow) {
	delete(u.flows, f.key)
	f.conn.Close()
}

func (u *udpFlows) close() {
	u.mu.Lock()
	u.closed = true
	for _, f := range u.flows {
		u.drop(f)
	}
	u.mu.Unlock()
	u.group.Wait()
}

// expire ends idle flows from time to time.
func (g *Gateway) expire() {
	t := time.NewTicker(expireEvery)
	defer t.Stop()
	for {
		select {
		case <-g.ctx.Done():
			return
		case <-t.C:
		}
		now := clock()
		g.udp.mu.Lock()
		for _, f := range g.udp.flows {
			limit := udpUnanswered
			if f.answered.Load() {
				limit = udpAnswered
			}
			if now-f.used.Load() > int64(limit) {
				g.udp.drop(f)
			}
		}
		g.udp.mu.Unlock()
		g.echo.expire(now)
		g.published.expire(now)
	}
}

// send sends a datagram, or those that it stands for, from the guest's memory.
func (f *udpFlow) send(d *datagram) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.datagram, f.err = d, nil
	err := f.raw.Write(f.write)
	f.datagram = nil
	if err != nil {
		return // it has just ended
	}
	switch {
	case errors.Is(f.err, unix.EMSGSIZE):
		f.tooBig(d)
	case errors.Is(f.err, unix.ECONNREFUSED): // an answer to an earlier one
		f.g.unreachable(d, header.ICMPv4PortUnreachable, header.ICMPv6PortUnreachable, 0)
	case errors.Is(f.err, unix.EHOSTUNREACH), errors.Is(f.err, unix.ENETUNREACH):
		f.g.unreachable(d, header.ICMPv4HostUnreachable, header.ICMPv6AddressUnreachable, 0)
	}
}

// writeDatagram is send with the socket's descriptor. A full socket loses it.
func (f *udpFlow) writeDatagram(fd uintptr) bool {
	d := f.datagram
	if d.dontFragment != f.whole {
		f.whole = d.dontFragment
		mode := unix.IP_PMTUDISC_WANT
		if f.whole {
			mode = unix.IP_PMTUDISC_DO
		}
		unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, mode)
		unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, mode)
	}
	if f.together(fd, d) {
		return true
	}
	for done := 0; done < d.size || done == 0; done += d.segment {
		f.parts = iovec.Cut(f.parts[:0], d.payload, int64(done), int64(min(d.segment, d.size-done)))
		if len(f.parts) > maxIovecs {
			f.err = unix.EMSGSIZE // cut finer than anybody does
			return true
		}
		iov := iovec.Append(f.iov[:0], f.parts...)
		f.msg = unix.Msghdr{Iov: &f.iov[0], Iovlen: uint64(len(iov))}
		if f.err = f.sendmsg(fd); f.err != nil {
			return true
		}
		if d.size == 0 {
			break
		}
	}
	return true
}

// tooBig tells the guest what the path takes.
func (f *udpFlow) tooBig(d *datagram) {
	mtu := 0
	f.raw.Control(func(fd uintptr) {
		mtu, _ = unix.GetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU)
		if f.key.peer.Addr().Is6() {
			mtu, _ = unix.GetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_MTU)
		}
	})
	if mtu > 0 {
		f.g.unreachable(d, header.ICMPv4FragmentationNeeded, 0, mtu)
	}
}

// borrow returns a buffer for the largest datagram, with room for headers.
func (u *udpFlows) borrow() *[]byte {
	if b, ok := u.buffer.Get().(*[]byte); ok {
		return b
	}
	b := make([]byte, udpRoom+maxDatagram+1)
	return &b
}

// receive gives the guest what the peer answers.
func (f *udpFlow) receive() {
	var failed error
	read := func(fd uintptr) bool {
		b := f.g.udp.borrow()
		defer f.g.udp.buffer.Put(b)
		for {
			var n int
			if n, failed = readSocket(int(fd), (*b)[udpRoom:]); failed != nil {
				return !errors.Is(failed, unix.EAGAIN)
			}
			f.answered.Store(true)
			f.used.Store(clock())
			f.g.deliverUDP((*b)[:udpRoom+n], unpackMAC(f.mac.Load()), f.key.peer, f.key.guest)
		}
	}
	for {
		if err := f.raw.Read(read); err != nil { // it was dropped
			return
		}
		if errors.Is(failed, unix.ECONNREFUSED) {
			f.g.unreachable(&datagram{mac: unpackMAC(f.mac.Load()), from: f.key.guest, to: f.key.peer},
				header.ICMPv4PortUnreachable, header.ICMPv6PortUnreachable, 0)
		}
	}
}

// deliverUDP gives the guest a datagram whose payload begins at udpRoom of b, in
// fragments if need be.
func (g *Gateway) deliverUDP(b []byte, to ether.MAC, src, dst netip.AddrPort) {
	if g.fits(len(b)-headerRoom, src.Addr()) {
		g.emitUDP(b, to, src, dst)
		return
	}
	packet := b[headerRoom:]
	u := header.UDP(packet)
	u.Encode(&header.UDPFields{SrcPort: src.Port(), DstPort: dst.Port(), Length: uint16(len(packet))})
	pseudo := header.PseudoHeaderChecksum(header.UDPProtocolNumber, address(src.Addr()), address(dst.Addr()), uint16(len(packet)))
	u.SetChecksum(^checksum.Checksum(packet, pseudo))
	g.fragment(header.UDPProtocolNumber, src.Addr(), dst.Addr(), packet)
}

// handleFragmented has the stack hand over the datagrams and pings that came in
// fragments.
func (g *Gateway) handleFragmented() {
	g.stack.SetTransportProtocolHandler(icmp.ProtocolNumber4, func(id stack.TransportEndpointID, p *stack.PacketBuffer) bool {
		guest := addressOf(id.RemoteAddress)
		mac, ok := g.neighbors.find(guest)
		v := stack.PayloadSince(p.TransportHeader())
		defer v.Release()
		return ok && g.handleEcho(mac, guest, addressOf(id.LocalAddress), v.ToSlice())
	})
	g.stack.SetTransportProtocolHandler(udp.ProtocolNumber, func(id stack.TransportEndpointID, p *stack.PacketBuffer) bool {
		d := datagram{from: netip.AddrPortFrom(addressOf(id.RemoteAddress), id.RemotePort),
			to: netip.AddrPortFrom(addressOf(id.LocalAddress), id.LocalPort)}
		mac, ok := g.neighbors.find(d.from.Addr())
		u, payload := header.UDP(p.TransportHeader().Slice()), p.Data().AsRange().ToSlice()
		length := uint16(len(u) + len(payload))
		sum := header.PseudoHeaderChecksum(header.UDPProtocolNumber, id.RemoteAddress, id.LocalAddress, length)
		if !ok || g.local(d.to) || u.Checksum() != 0 && u.CalculateChecksum(checksum.Checksum(payload, sum)) != 0xffff {
			return true
		}
		d.mac, d.payload, d.size, d.segment = mac, [][]byte{payload}, len(payload), len(payload)
		g.sendDatagram(0, &d)
		g.Sent(0)
		return true
	})
}
