package gateway

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"

	"vmm/network/ether"
)

const (
	resolvConf = "/etc/resolv.conf"
	// resolvFor is for how long the host's resolvers are remembered.
	resolvFor = 5 * time.Second
	// maxQueries bounds the queries under way; more are not answered.
	maxQueries   = 256
	queryTimeout = 5 * time.Second
	nameTTL      = 60 // seconds
)

// nameServer answers the guest's DNS queries.
type nameServer struct {
	g       *Gateway
	servers []*dns.Server
	group   sync.WaitGroup
	slots   chan struct{}

	mu        sync.Mutex
	resolvers []string
	read      time.Time
}

// serveNames starts the name server on its addresses, by UDP and TCP.
func (g *Gateway) serveNames() (*nameServer, error) {
	n := &nameServer{g: g, slots: make(chan struct{}, maxQueries)}
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
		n.serve(&dns.Server{Listener: l, Handler: n, MaxTCPQueries: 1 << 10})
		c, err := gonet.DialUDP(g.stack, &at, nil, proto)
		if err != nil {
			return nil, errors.Join(err, n.close())
		}
		n.serve(&dns.Server{PacketConn: c, Handler: n})
	}
	return n, nil
}

// serve runs a server, and returns when it has begun.
func (n *nameServer) serve(s *dns.Server) {
	begun := make(chan struct{})
	s.NotifyStartedFunc = func() { close(begun) }
	n.servers = append(n.servers, s)
	n.group.Go(func() { s.ActivateAndServe() })
	<-begun
}

func (n *nameServer) close() error {
	var errs []error
	for _, s := range n.servers {
		ctx, cancel := context.WithCancel(context.Background())
		cancel() // queries under way end by themselves
		if err := s.ShutdownContext(ctx); !errors.Is(err, context.Canceled) {
			errs = append(errs, err)
		}
	}
	n.group.Wait()
	return errors.Join(errs...)
}

// ServeDNS implements dns.Handler.
func (n *nameServer) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	select {
	case n.slots <- struct{}{}:
		defer func() { <-n.slots }()
	default:
		return
	}
	if a := n.own(q); a != nil {
		w.WriteMsg(a)
		return
	}
	network := w.LocalAddr().Network()
	a, err := n.ask(network, q)
	if err != nil {
		a = new(dns.Msg).SetRcode(q, dns.RcodeServerFailure)
	}
	a.Id = q.Id
	if network == "udp" {
		size := uint16(dns.MinMsgSize)
		if o := q.IsEdns0(); o != nil {
			size = max(o.UDPSize(), size)
		}
		a.Truncate(int(min(size, ether.MaxMTU)))
	}
	w.WriteMsg(a)
}

// own answers questions for the names of the gateway's own domain, nil for
// others. A VM's name is also known without the domain.
func (n *nameServer) own(q *dns.Msg) *dns.Msg {
	if len(q.Question) != 1 || q.Opcode != dns.OpcodeQuery {
		return new(dns.Msg).SetRcode(q, dns.RcodeRefused)
	}
	question := q.Question[0]
	name := strings.ToLower(strings.TrimSuffix(question.Name, "."))
	short, inside := strings.CutSuffix(name, "."+Domain)
	if !inside && (strings.Contains(name, ".") || name == "") {
		return nil
	}
	addr, known := n.g.leases.find(short)
	if short == "host" && inside {
		// Not its IPv6 address too: most of what listens on a host's loopback does
		// so by IPv4, and many programs try but one address.
		addr, known = n.g.router4, true
	}
	if !known && !inside {
		return nil
	}
	a := new(dns.Msg).SetReply(q)
	a.Authoritative, a.RecursionAvailable = true, true
	switch {
	case !known:
		a.Rcode = dns.RcodeNameError
	case question.Qtype == dns.TypeA:
		h := dns.RR_Header{Name: question.Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: nameTTL}
		a.Answer = append(a.Answer, &dns.A{Hdr: h, A: addr.AsSlice()})
	}
	return a
}

// errNoResolver says that there is nobody to ask.
var errNoResolver = errors.New("the host has no name server")

// ask passes a query on to the host's resolvers, one after the other.
func (n *nameServer) ask(network string, q *dns.Msg) (*dns.Msg, error) {
	if n.g.cfg.Policy.NoNames {
		return new(dns.Msg).SetRcode(q, dns.RcodeRefused), nil
	}
	client := dns.Client{Net: network, Timeout: queryTimeout, UDPSize: dns.MaxMsgSize}
	err := errNoResolver
	for _, server := range n.hostResolvers() {
		var a *dns.Msg
		if a, _, err = client.ExchangeContext(n.g.ctx, q, server); err == nil {
			return a, nil
		}
	}
	return nil, err
}

// hostResolvers are the configured ones, or those of resolv.conf, which may
// change.
func (n *nameServer) hostResolvers() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.resolvers != nil && (n.g.cfg.Resolvers != nil || time.Since(n.read) < resolvFor) {
		return n.resolvers
	}
	n.resolvers, n.read = []string{}, time.Now()
	for _, r := range n.g.cfg.Resolvers {
		n.resolvers = append(n.resolvers, r.String())
	}
	if n.g.cfg.Resolvers == nil {
		n.resolvers = append(n.resolvers, readResolvers(resolvConf)...)
	}
	return n.resolvers
}

// readResolvers reads the name servers of a resolv.conf; a host without one has
// none.
func readResolvers(path string) []string {
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	c, err := dns.ClientConfigFromReader(f)
	if err != nil {
		return nil
	}
	var out []string
	for _, s := range c.Servers {
		out = append(out, net.JoinHostPort(s, c.Port))
	}
	return out
}
