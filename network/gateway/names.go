package gateway

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"

	"vmm/network/ether"
)

const (
	// maxQueries bounds the queries under way; more are not answered. maxNameConns
	// bounds the connections that they come by.
	maxQueries   = 256
	maxNameConns = 256
	queryTimeout = 5 * time.Second
	nameIdle     = 8 * time.Second // of a connection
	nameTTL      = 60              // seconds
)

// nameServer answers the guest's DNS queries.
type nameServer struct {
	g       *Gateway
	closers []io.Closer
	queries chan struct{} // those under way
	conns   chan struct{} // open TCP connections
	host    resolvFile
}

// serveNames starts the name server on its addresses, by UDP and TCP.
func (g *Gateway) serveNames() (*nameServer, error) {
	n := &nameServer{g: g, queries: make(chan struct{}, maxQueries), conns: make(chan struct{}, maxNameConns), host: resolvFile{path: resolvConf}}
	for _, a := range []netip.Addr{g.names4, g.names6} {
		proto := ipv4.ProtocolNumber
		if a.Is6() {
			proto = ipv6.ProtocolNumber
		}
		at := tcpip.FullAddress{NIC: nic, Addr: address(a), Port: portDNS}
		l, err := gonet.ListenTCP(g.stack, at, proto)
		if err != nil {
			return nil, errors.Join(err, n.close())
		}
		n.closers = append(n.closers, l)
		g.group.Go(func() { n.serveTCP(l) })
		c, err := gonet.DialUDP(g.stack, &at, nil, proto)
		if err != nil {
			return nil, errors.Join(err, n.close())
		}
		n.closers = append(n.closers, c)
		g.group.Go(func() { n.serveUDP(c) })
	}
	return n, nil
}

func (n *nameServer) close() error {
	var errs []error
	for _, c := range n.closers {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}

// serveUDP answers each datagram in a goroutine of its own, as far as there are any.
func (n *nameServer) serveUDP(c net.PacketConn) {
	buf := make([]byte, maxMessage)
	for {
		size, from, err := c.ReadFrom(buf)
		if err != nil {
			return
		}
		query := bytes.Clone(buf[:size])
		n.start(n.queries, func() {
			if a := n.answer("udp", query); a != nil {
				c.WriteTo(a, from)
			}
		})
	}
}

// serveTCP takes connections.
func (n *nameServer) serveTCP(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		if !n.start(n.conns, func() { n.serveConn(c) }) {
			c.Close()
		}
	}
}

// serveConn answers a connection's queries, one after the other.
func (n *nameServer) serveConn(c net.Conn) {
	defer c.Close()
	defer context.AfterFunc(n.g.ctx, func() { c.Close() })()
	for {
		c.SetDeadline(time.Now().Add(n.g.cfg.nameIdle))
		query, err := readMessage(c)
		if err != nil {
			return
		}
		a := n.answer("tcp", query)
		c.SetDeadline(time.Now().Add(n.g.cfg.nameIdle))
		if a == nil || writeMessage(c, a) != nil {
			return
		}
	}
}

// start runs do in a goroutine, and reports false if there are too many, or the
// gateway is being closed.
func (n *nameServer) start(slots chan struct{}, do func()) bool {
	select {
	case slots <- struct{}{}:
	default:
		return false
	}
	if !n.g.enter() {
		<-slots
		return false
	}
	go func() {
		defer n.g.group.Done()
		defer func() { <-slots }()
		do()
	}()
	return true
}

// answer returns what a query gets, nil if that is nothing.
func (n *nameServer) answer(network string, message []byte) []byte {
	q, err := parseQuery(message)
	if err != nil {
		return nil
	}
	a, err := n.own(q)
	if a == nil && err == nil {
		a, err = n.ask(network, q)
	}
	if err != nil {
		a, err = q.reply(dnsmessage.RCodeServerFailure, netip.Addr{})
	}
	if err == nil && network == "udp" && len(a) > int(min(q.room, ether.MaxMTU)) {
		a, err = q.truncated(a)
	}
	if err != nil {
		return nil
	}
	return a
}

// own answers questions for the names of Config.Hosts and of the gateway's own domain, with
// nil for others. A VM's name is also known without the domain.
func (n *nameServer) own(q *query) ([]byte, error) {
	if len(q.questions) != 1 || q.header.OpCode != 0 {
		return q.reply(dnsmessage.RCodeRefused, netip.Addr{})
	}
	question := q.questions[0]
	name := strings.ToLower(strings.TrimSuffix(question.Name.String(), "."))
	if addr, ok := n.g.cfg.Hosts[name]; ok {
		return q.address(question.Type, addr)
	}
	short, inside := strings.CutSuffix(name, "."+Domain)
	if !inside && (strings.Contains(name, ".") || name == "") {
		return nil, nil
	}
	addr, known := n.g.leases.find(short)
	if short == "host" && inside {
		// Not its IPv6 address too: most of what listens on a host's loopback does
		// so by IPv4, and many programs try but one address.
		addr, known = n.g.router4, true
	}
	switch {
	case !known && !inside:
		return nil, nil
	case !known:
		return q.reply(dnsmessage.RCodeNameError, netip.Addr{})
	}
	return q.address(question.Type, addr)
}

// address answers that a name has an address, if that is what is asked for.
func (q *query) address(t dnsmessage.Type, a netip.Addr) ([]byte, error) {
	if t == dnsmessage.TypeA && a.Is4() || t == dnsmessage.TypeAAAA && a.Is6() {
		return q.reply(dnsmessage.RCodeSuccess, a)
	}
	return q.reply(dnsmessage.RCodeSuccess, netip.Addr{})
}

// errNoResolver says that there is nobody to ask.
var errNoResolver = errors.New("the host has no name server")

// ask passes a query on to the host's resolvers, one after the other.
func (n *nameServer) ask(network string, q *query) ([]byte, error) {
	if n.g.cfg.Policy.NoNames {
		return q.reply(dnsmessage.RCodeRefused, netip.Addr{})
	}
	err := errNoResolver
	for _, server := range n.resolvers() {
		var a []byte
		if a, err = q.exchange(n.g.ctx, network, server); err == nil {
			return a, nil
		}
	}
	return nil, err
}
