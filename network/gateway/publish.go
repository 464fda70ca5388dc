package gateway

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sort"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"vmm/internal/iovec"
)

const (
	// maxClients bounds the clients of published UDP ports.
	maxClients = 1024
	clientIdle = 2 * time.Minute
	// Ports of the gateway's that clients of UDP ports appear under.
	firstClientPort, lastClientPort = 32768, 60999
)

// publications are the published ports.
type publications struct {
	mu      sync.Mutex
	open    map[Publication]*published
	clients map[udpKey]*udpClient // by the guest's end and the gateway's
	known   map[udpClientKey]netip.AddrPort
	next    uint16
	closed  bool
	group   sync.WaitGroup
}

// published is one.
type published struct {
	listener net.Listener
	packets  *net.UDPConn
}

func (p *published) close() {
	if p.listener != nil {
		p.listener.Close()
	}
	if p.packets != nil {
		p.packets.Close()
	}
}

// udpClientKey is a host that talks to a published UDP port, and the guest's
// end.
type udpClientKey struct {
	conn        *net.UDPConn
	addr, guest netip.AddrPort
}

// udpClient is one.
type udpClient struct {
	udpClientKey
	used atomic.Int64
}

// Publish opens a port of the host's; with port 0, one that is free, with Last the first that
// is of those up to there. It returns what it has opened. The error says what is wrong with
// the port or its address, and is net.ErrClosed after Close.
func (g *Gateway) Publish(p Publication) (Publication, error) {
	o, port, err := p.open()
	for first := p.Host.Port(); p.Last > 0 && errors.Is(err, unix.EADDRINUSE) && p.Host.Port() < p.Last; {
		p.Host = netip.AddrPortFrom(p.Host.Addr(), p.Host.Port()+1)
		if o, port, err = p.open(); errors.Is(err, unix.EADDRINUSE) && p.Host.Port() == p.Last {
			p.Host = netip.AddrPortFrom(p.Host.Addr(), first)
			return p, fmt.Errorf("publishing %v: all ports from %d to %d are in use on the host: take others", p, first, p.Last)
		}
	}
	if err != nil {
		return p, publishError(p, err)
	}
	p.Host, p.Last = netip.AddrPortFrom(p.Host.Addr(), port), 0
	s := &g.published
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		o.close()
		return p, net.ErrClosed
	}
	s.open[p] = o
	s.group.Go(func() {
		if p.UDP {
			g.receiveFrom(o.packets, p)
		} else {
			g.accept(o.listener, p)
		}
	})
	return p, nil
}

// open opens the host's side, and returns its port.
func (p Publication) open() (*published, uint16, error) {
	if p.UDP {
		c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(p.Host))
		if err != nil {
			return nil, 0, err
		}
		return &published{packets: c}, c.LocalAddr().(*net.UDPAddr).AddrPort().Port(), nil
	}
	l, err := net.Listen("tcp", p.Host.String())
	if err != nil {
		return nil, 0, err
	}
	return &published{listener: l}, l.Addr().(*net.TCPAddr).AddrPort().Port(), nil
}

// publishError says what can be done.
func publishError(p Publication, err error) error {
	switch {
	case errors.Is(err, unix.EACCES):
		return fmt.Errorf("publishing %v: port %d needs root: take one from 1024 on", p, p.Host.Port())
	case errors.Is(err, unix.EADDRINUSE):
		return fmt.Errorf("publishing %v: port %d is in use on the host: take another", p, p.Host.Port())
	case errors.Is(err, unix.EADDRNOTAVAIL):
		return fmt.Errorf("publishing %v: the host has no address %v", p, p.Host.Addr())
	}
	return fmt.Errorf("publishing %v: %w", p, err)
}

// Unpublish closes a port, which must be given as Publish has returned it. Its connections
// go on. It is an error if there is no such port.
func (g *Gateway) Unpublish(p Publication) error {
	s := &g.published
	s.mu.Lock()
	defer s.mu.Unlock()
	o := s.open[p]
	if o == nil {
		return fmt.Errorf("%v is not published", p)
	}
	delete(s.open, p)
	o.close()
	return nil
}

// Publications are the ports that are open, in order.
func (g *Gateway) Publications() []Publication {
	s := &g.published
	s.mu.Lock()
	defer s.mu.Unlock()
	out := []Publication{}
	for p := range s.open {
		out = append(out, p)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].String() < out[j].String() })
	return out
}

func (s *publications) close() {
	s.mu.Lock()
	s.closed = true
	for _, o := range s.open {
		o.close()
	}
	s.mu.Unlock()
	s.group.Wait()
}

// guest is where published ports lead.
func (g *Gateway) guest(port uint16) netip.AddrPort {
	a, ok := g.leases.of(g.cfg.Guest)
	if !ok {
		a = nth(g.cfg.Subnet, hostFirstGuest) // one that does without DHCP has it
	}
	return netip.AddrPortFrom(a, port)
}

// accept takes connections to a published port.
func (g *Gateway) accept(l net.Listener, p Publication) {
	for {
		c, err := l.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			time.Sleep(10 * time.Millisecond) // no descriptors left: others may end
			continue
		}
		if g.enter() {
			go func() {
				defer g.group.Done()
				g.serve(c.(*net.TCPConn), p.Guest)
			}()
		} else {
			c.Close()
		}
	}
}

// serve connects a client with the guest.
func (g *Gateway) serve(c *net.TCPConn, port uint16) {
	defer c.Close()
	n, ok := g.takeTCP()
	if ok {
		defer g.tcpBusy.put()
		if ep, queue, err := g.connectIn(g.guest(port)); err == nil {
			g.relay(ep, queue, c, n)
			return
		}
	}
	c.SetLinger(0) // the client sees a reset, as if nobody listened
}

// receiveFrom gives the guest what clients send to a published UDP port.
func (g *Gateway) receiveFrom(conn *net.UDPConn, p Publication) {
	b := make([]byte, udpRoom+maxDatagram+1)
	for {
		n, from, err := conn.ReadFromUDPAddrPort(b[udpRoom:])
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			continue // an answer to something that was sent
		}
		to := g.guest(p.Guest)
		src, ok := g.published.client(g.router4, udpClientKey{conn, from, to})
		mac, known := g.neighbors.find(to.Addr())
		if ok && known {
			g.deliverUDP(b[:udpRoom+n], mac, src, to)
		}
	}
}

// client returns the address by which the guest knows a client.
func (s *publications) client(router netip.Addr, k udpClientKey) (netip.AddrPort, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if peer, ok := s.known[k]; ok {
		s.clients[udpKey{k.guest, peer}].used.Store(clock())
		return peer, true
	}
	if len(s.clients) >= maxClients || s.closed {
		return netip.AddrPort{}, false
	}
	for {
		s.next++
		peer := netip.AddrPortFrom(router, firstClientPort+s.next%(lastClientPort-firstClientPort))
		if s.clients[udpKey{k.guest, peer}] == nil {
			c := &udpClient{udpClientKey: k}
			c.used.Store(clock())
			s.clients[udpKey{k.guest, peer}], s.known[k] = c, peer
			return peer, true
		}
	}
}

// answer sends a datagram of the guest's to a client; false if it is for none.
func (s *publications) answer(d *datagram, b []byte) bool {
	s.mu.Lock()
	c := s.clients[udpKey{d.from, d.to}]
	s.mu.Unlock()
	if c == nil {
		return false
	}
	c.used.Store(clock())
	b = b[:d.size]
	iovec.Gather(b, d.payload)
	for ; len(b) > d.segment; b = b[d.segment:] {
		c.conn.WriteToUDPAddrPort(b[:d.segment], c.addr)
	}
	c.conn.WriteToUDPAddrPort(b, c.addr) // lost if it cannot be sent
	return true
}

// expire forgets clients that are silent.
func (s *publications) expire(now int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for k, c := range s.clients {
		if now-c.used.Load() > int64(clientIdle) {
			delete(s.clients, k)
			delete(s.known, c.udpClientKey)
		}
	}
}
