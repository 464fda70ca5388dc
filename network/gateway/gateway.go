// Package gateway is a router in user space: what a guest's network is by
// default. It needs no privilege, for it ends the guest's connections itself,
// with gVisor's TCP/IP stack, and goes on with the host's ordinary sockets.
//
// The guest's network is a subnet of its own. The gateway is its router, DHCP
// server, IPv6 router with SLAAC, and name server:
//
//	10.0.2.2   fd00:766d:6d::2   the router, and the host's loopback
//	10.0.2.3   fd00:766d:6d::3   the name server
//	10.0.2.15                    the first guest
//
// TCP is carried by the stack; UDP and ICMP echo, whose packets need no state
// but where they came from, go from the guest's memory to a socket at once.
package gateway

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/arp"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"

	"vmm/network/ether"
)

// The gateway's addresses within its subnet, the same as QEMU's.
const (
	hostRouter     = 2
	hostNames      = 3
	hostFirstGuest = 15
)

// DefaultSubnet is Config.Subnet where none is given.
var DefaultSubnet = netip.MustParsePrefix("10.0.2.0/24")

// subnet6 is the IPv6 network that goes with an IPv4 one: a unique local one (RFC
// 4193), fd00:766d:6d::/64 with the default, and others with others, for guests
// that have several.
func subnet6(subnet netip.Prefix) netip.Prefix {
	a := [16]byte{0xfd, 0x00, 0x76, 0x6d, 0x00, 0x6d}
	if b := subnet.Addr().As4(); subnet != DefaultSubnet {
		a[6], a[7] = b[1], b[2]
	}
	return netip.PrefixFrom(netip.AddrFrom16(a), 64)
}

// Domain is the domain of the names that the gateway itself knows.
const Domain = "vmm.internal"

// DefaultMTU is Config.MTU where none is given, in bytes.
const DefaultMTU = 1500

// Config is what a gateway is like. The zero value is good.
type Config struct {
	Subnet netip.Prefix // IPv4, of 8 to 24 bits; DefaultSubnet if it is none
	MTU    int          // bytes, from 1280 (IPv6's least) to ether.MaxMTU; DefaultMTU if 0
	// Guest is the device whose guest published ports lead to, and Hostname what
	// DHCP calls it.
	Guest    ether.MAC
	Hostname string
	// Leases is a file that keeps the guests' addresses for the gateway that takes
	// over from this one; "" keeps none.
	Leases string
	// Resolvers answer the guest's DNS queries; the host's if there are none.
	Resolvers []netip.AddrPort
	// Hosts are addresses that the name server knows by these names, in small letters.
	Hosts  map[string]netip.Addr
	Policy Policy
	// Log is told of what a user should know, from any goroutine; nil drops it.
	Log func(error)

	nameIdle time.Duration // for a test: the const of this name
}

// Gateway is a gateway. It implements ether.Link for one device; its other methods can be
// called from any goroutine.
type Gateway struct {
	cfg             Config
	stack           *stack.Stack
	link            *link
	router4, names4 netip.Addr
	router6, names6 netip.Addr
	subnet6         netip.Prefix
	linkLocal       netip.Addr
	mac             ether.MAC
	leases          leases
	neighbors       neighbors
	udp             udpFlows
	echo            echoFlows
	published       publications
	names           *nameServer
	tcpBusy         limiter
	tcp             tcpConns
	ctx             context.Context
	cancel          context.CancelFunc
	group           sync.WaitGroup
	closing         sync.Mutex // of group's Add and Wait
	noEcho          sync.Once
}

// nic is the number of the stack's only interface.
const nic = tcpip.NICID(1)

// routerMAC is the gateway's hardware address; no guest's is derived to it.
var routerMAC = ether.MAC{0x52, 0x55, 0x0a, 0x00, 0x02, 0x02}

// New makes a gateway, which works once a device is attached. The error is about the
// Config.
func New(cfg Config) (_ *Gateway, err error) {
	if !cfg.Subnet.IsValid() {
		cfg.Subnet = DefaultSubnet
	}
	if cfg.MTU == 0 {
		cfg.MTU = DefaultMTU
	}
	if cfg.nameIdle == 0 {
		cfg.nameIdle = nameIdle
	}
	if cfg.Log == nil {
		cfg.Log = func(error) {}
	}
	cfg.Subnet = cfg.Subnet.Masked()
	switch {
	case !cfg.Subnet.Addr().Is4() || cfg.Subnet.Bits() > 24 || cfg.Subnet.Bits() < 8:
		return nil, fmt.Errorf("subnet %v: an IPv4 network such as 10.0.2.0/24, of 8 to 24 bits", cfg.Subnet)
	case cfg.MTU < header.IPv6MinimumMTU || cfg.MTU > ether.MaxMTU:
		return nil, fmt.Errorf("MTU %d: between %d and %d", cfg.MTU, header.IPv6MinimumMTU, ether.MaxMTU)
	}
	g := &Gateway{cfg: cfg, mac: routerMAC, tcpBusy: limiter{max: maxTCP}}
	g.ctx, g.cancel = context.WithCancel(context.Background())
	g.router4, g.names4 = nth(cfg.Subnet, hostRouter), nth(cfg.Subnet, hostNames)
	g.subnet6 = subnet6(cfg.Subnet)
	g.router6, g.names6 = nth(g.subnet6, hostRouter), nth(g.subnet6, hostNames)
	g.linkLocal = linkLocal(g.mac)
	if err := g.leases.init(cfg.Subnet, cfg.Leases); err != nil {
		cfg.Log(err)
	}
	g.neighbors.macs = map[netip.Addr]ether.MAC{}
	if cfg.Hostname != "" {
		g.leases.reserve(cfg.Guest, cfg.Hostname)
	}
	g.tcp.open = map[Conn]bool{}
	g.udp.flows, g.echo.flows = map[udpKey]*udpFlow{}, map[echoKey]*echoFlow{}
	g.published.open, g.published.clients = map[Publication]*published{}, map[udpKey]*udpClient{}
	g.published.known = map[udpClientKey]netip.AddrPort{}
	g.link = &link{g: g, mtu: uint32(cfg.MTU)}
	if err := g.startStack(); err != nil {
		g.Close()
		return nil, err
	}
	if g.names, err = g.serveNames(); err != nil {
		g.Close()
		return nil, err
	}
	g.group.Go(g.expire)
	return g, nil
}

// nth is an address of a network.
func nth(p netip.Prefix, n byte) netip.Addr {
	b := p.Addr().AsSlice()
	b[len(b)-1] += n
	a, _ := netip.AddrFromSlice(b)
	return a
}

// startStack makes the TCP/IP stack, which answers for every address.
func (g *Gateway) startStack() error {
	g.stack = stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, ipv6.NewProtocol, arp.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4, icmp.NewProtocol6},
	})
	if err := g.stack.CreateNIC(nic, g.link); err != nil {
		return errors.New(err.String())
	}
	for _, a := range []netip.Prefix{netip.PrefixFrom(g.router4, g.cfg.Subnet.Bits()), netip.PrefixFrom(g.names4, 32),
		netip.PrefixFrom(g.router6, g.subnet6.Bits()), netip.PrefixFrom(g.names6, 128), netip.PrefixFrom(g.linkLocal, 64)} {
		proto := ipv4.ProtocolNumber
		if a.Addr().Is6() {
			proto = ipv6.ProtocolNumber
		}
		err := g.stack.AddProtocolAddress(nic, tcpip.ProtocolAddress{Protocol: proto,
			AddressWithPrefix: tcpip.AddressWithPrefix{Address: address(a.Addr()), PrefixLen: a.Bits()}},
			stack.AddressProperties{})
		if err != nil {
			return fmt.Errorf("%v: %v", a, err)
		}
	}
	// To answer for all addresses, it takes what is for others and sends as them.
	g.stack.SetPromiscuousMode(nic, true)
	g.stack.SetSpoofing(nic, true)
	g.stack.SetRouteTable([]tcpip.Route{{Destination: everywhere4, NIC: nic}, {Destination: everywhere6, NIC: nic}})
	return g.startTCP()
}

// address is an address as the stack writes it.
func address(a netip.Addr) tcpip.Address {
	if a.Is4() {
		return tcpip.AddrFrom4(a.As4())
	}
	return tcpip.AddrFrom16(a.As16())
}

// addressOf is address's reverse.
func addressOf(a tcpip.Address) netip.Addr {
	if a.Len() == 4 {
		return netip.AddrFrom4(a.As4())
	}
	return netip.AddrFrom16(a.As16())
}

// ours reports whether an address is the gateway's own.
func (g *Gateway) ours(a netip.Addr) bool {
	return a == g.router4 || a == g.names4 || a == g.router6 || a == g.names6 || a == g.linkLocal
}

// Attach implements ether.Link.
func (g *Gateway) Attach(n ether.NIC) { g.link.connect(n) }

// Offloads implements ether.Link: the device does what the driver does not take.
func (g *Gateway) Offloads(ether.Offloads) {}

// enter counts a goroutine that Close waits for, unless it waits already. It ends
// with group.Done.
func (g *Gateway) enter() bool {
	g.closing.Lock()
	defer g.closing.Unlock()
	if g.ctx.Err() != nil {
		return false
	}
	g.group.Add(1)
	return true
}

// Close implements ether.Link.
func (g *Gateway) Close() error {
	g.closing.Lock()
	g.cancel()
	g.closing.Unlock()
	g.link.disconnect()
	g.published.close()
	g.udp.close()
	g.echo.close()
	if g.names != nil {
		g.names.close()
	}
	if g.stack != nil {
		g.stack.Destroy()
	}
	g.group.Wait()
	return nil
}

// limiter counts what there may be only so much of.
type limiter struct {
	mu   sync.Mutex
	n    int
	max  int
	told bool
}

// take counts one more; false if there are too many already, first the first
// time.
func (l *limiter) take() (n int, ok, first bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.n >= l.max {
		first, l.told = !l.told, true
		return l.n, false, first
	}
	l.n++
	return l.n, true, false
}

func (l *limiter) put() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.n--
}

// Connections is how many TCP connections there are, and UDP flows.
func (g *Gateway) Connections() (tcp, udp int) {
	g.tcpBusy.mu.Lock()
	tcp = g.tcpBusy.n
	g.tcpBusy.mu.Unlock()
	g.udp.mu.Lock()
	defer g.udp.mu.Unlock()
	return tcp, len(g.udp.flows)
}
