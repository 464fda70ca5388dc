package gateway

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"vmm/network/ether"
)

const (
	// leaseTime is long: a lease ends with the gateway.
	leaseTime = 24 * time.Hour
	// maxLeases bounds the guests, in a large subnet.
	maxLeases = 4096
)

// optionDots tells the guest of vmm ndots, for which there is no option: one of those for
// private use (RFC 3942), a byte.
var optionDots = dhcpv4.GenericOptionCode(224)

// lease is an address that a guest has.
type lease struct {
	addr netip.Addr
	name string // of the host, in lower case; "" if it has none
}

// leases are the addresses of the guests, and their names.
type leases struct {
	mu     sync.Mutex
	subnet netip.Prefix
	byMAC  map[ether.MAC]*lease
	taken  map[netip.Addr]ether.MAC
	path   string // where they are kept; "" if they are not
}

// savedLease is a lease in a file.
type savedLease struct {
	MAC  string     `json:"mac"`
	Addr netip.Addr `json:"addr"`
	Name string     `json:"name,omitempty"`
}

// init reads the leases that an earlier gateway has left. What does not fit is
// left out: its guest asks again.
func (l *leases) init(subnet netip.Prefix, path string) error {
	l.subnet, l.byMAC, l.taken, l.path = subnet, map[ether.MAC]*lease{}, map[netip.Addr]ether.MAC{}, path
	if path == "" {
		return nil
	}
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var saved []savedLease
	if err == nil {
		err = json.Unmarshal(b, &saved)
	}
	if err != nil {
		return fmt.Errorf("the leases of earlier: %w", err)
	}
	for _, s := range saved {
		if mac, err := ether.ParseMAC(s.MAC); err == nil && l.free(s.Addr) {
			l.byMAC[mac], l.taken[s.Addr] = &lease{s.Addr, s.Name}, mac
		}
	}
	return nil
}

// save writes the leases for a later gateway; mu is held. Without them, that one
// knows less.
func (l *leases) save() {
	if l.path == "" {
		return
	}
	var saved []savedLease
	for mac, e := range l.byMAC {
		saved = append(saved, savedLease{mac.String(), e.addr, e.name})
	}
	b, err := json.Marshal(saved)
	if err == nil && os.WriteFile(l.path+".new", b, 0o600) == nil {
		os.Rename(l.path+".new", l.path)
	}
}

// reserve gives a guest an address before it asks.
func (l *leases) reserve(mac ether.MAC, name string) { l.get(mac, netip.Addr{}, strings.ToLower(name)) }

// get returns a guest's lease: the one that it has, or the address that it
// wants, or the first free one. False if there is none.
func (l *leases) get(mac ether.MAC, want netip.Addr, name string) (lease, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.byMAC[mac]
	if e == nil {
		if len(l.byMAC) >= maxLeases {
			return lease{}, false
		}
		addr := want
		if !l.free(addr) {
			addr = l.subnet.Addr()
			for range hostFirstGuest {
				addr = addr.Next()
			}
			for !l.free(addr) {
				if addr = addr.Next(); !l.subnet.Contains(addr) {
					return lease{}, false
				}
			}
		}
		e = &lease{addr: addr}
		l.byMAC[mac], l.taken[addr] = e, mac
		defer l.save()
	}
	if name != "" && name != e.name {
		e.name = name
		defer l.save()
	}
	return *e, true
}

// free reports whether an address can be given out; mu is held.
func (l *leases) free(a netip.Addr) bool {
	if !l.subnet.Contains(a) || !l.subnet.Contains(a.Next()) { // the last one is for broadcasts
		return false
	}
	base, host := l.subnet.Masked().Addr().As4(), a.As4()
	n := binary.BigEndian.Uint32(host[:]) - binary.BigEndian.Uint32(base[:])
	_, taken := l.taken[a]
	return n >= hostFirstGuest && !taken
}

// find returns the address of a name.
func (l *leases) find(name string) (netip.Addr, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range l.byMAC {
		if e.name == name {
			return e.addr, true
		}
	}
	return netip.Addr{}, false
}

// of returns the address of a guest.
func (l *leases) of(mac ether.MAC) (netip.Addr, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if e := l.byMAC[mac]; e != nil {
		return e.addr, true
	}
	return netip.Addr{}, false
}

// handleDHCP answers a client (RFC 2131).
func (g *Gateway) handleDHCP(from ether.MAC, packet []byte) {
	q, err := dhcpv4.FromBytes(packet)
	if err != nil || q.OpCode != dhcpv4.OpcodeBootRequest || len(q.ClientHWAddr) != len(from) {
		return
	}
	client := ether.MAC(q.ClientHWAddr)
	want, _ := netip.AddrFromSlice(q.RequestedIPAddress().To4())
	if current, ok := netip.AddrFromSlice(q.ClientIPAddr.To4()); ok && !current.IsUnspecified() {
		want = current
	}
	name := ""
	if n := q.HostName(); len(n) < 64 && !strings.ContainsAny(n, `.\`) {
		name = strings.ToLower(n)
	}
	reply, err := dhcpv4.NewReplyFromRequest(q)
	if err != nil {
		return
	}
	set := reply.UpdateOption
	set(dhcpv4.OptServerIdentifier(g.router4.AsSlice()))
	switch q.MessageType() {
	case dhcpv4.MessageTypeDiscover:
		e, ok := g.leases.get(client, want, name)
		if !ok {
			return
		}
		reply.YourIPAddr = e.addr.AsSlice()
		set(dhcpv4.OptMessageType(dhcpv4.MessageTypeOffer))
	case dhcpv4.MessageTypeRequest:
		if id := q.ServerIdentifier(); id != nil && !id.Equal(g.router4.AsSlice()) {
			return // it takes another server's offer
		}
		e, ok := g.leases.get(client, want, name)
		if !ok || want != e.addr {
			set(dhcpv4.OptMessageType(dhcpv4.MessageTypeNak))
			g.sendDHCP(reply, ether.Broadcast, broadcast4)
			return
		}
		reply.YourIPAddr = e.addr.AsSlice()
		set(dhcpv4.OptMessageType(dhcpv4.MessageTypeAck))
	case dhcpv4.MessageTypeInform:
		set(dhcpv4.OptMessageType(dhcpv4.MessageTypeAck))
	default: // an address that is declined or released stays its guest's
		return
	}
	g.options(q, reply, client)
	to, addr := client, broadcast4
	if q.IsBroadcast() {
		to = ether.Broadcast
	} else if a, ok := netip.AddrFromSlice(reply.YourIPAddr.To4()); ok && !a.IsUnspecified() {
		addr = a
	} else if want.IsValid() {
		addr = want
	}
	g.sendDHCP(reply, to, addr)
}

// options adds what the client has to know.
func (g *Gateway) options(q, reply *dhcpv4.DHCPv4, client ether.MAC) {
	set := reply.UpdateOption
	set(dhcpv4.OptSubnetMask(net.CIDRMask(g.cfg.Subnet.Bits(), 32)))
	set(dhcpv4.OptRouter(g.router4.AsSlice()))
	set(dhcpv4.OptDNS(g.names4.AsSlice()))
	set(dhcpv4.OptDomainName(Domain))
	set(dhcpv4.OptGeneric(dhcpv4.OptionInterfaceMTU, binary.BigEndian.AppendUint16(nil, uint16(g.cfg.MTU))))
	if q.MessageType() != dhcpv4.MessageTypeInform {
		set(dhcpv4.OptIPAddressLeaseTime(leaseTime))
	}
	if client == g.cfg.Guest && g.cfg.Hostname != "" {
		set(dhcpv4.OptHostName(g.cfg.Hostname))
	}
	names := g.HostNames()
	if names.Dots != 1 {
		set(dhcpv4.OptGeneric(optionDots, []byte{byte(names.Dots)}))
	}
	if len(names.Search) > 0 || names.Dots != 1 {
		set(dhcpv4.OptGeneric(dhcpv4.OptionDNSDomainSearchList, searchList(append([]string{Domain}, names.Search...), room(q, reply))))
	}
}

// What a client takes of a message (RFC 2131, 2, and RFC 2132, 9.10), and an option holds.
const (
	minDHCPMessage = 576 // bytes, with the headers of IP and UDP
	maxOption      = 255
	optionHeader   = 2
)

// room returns how large one more option of the reply may be, in bytes. Longer ones would be
// several for a client to put together (RFC 3396), which busybox's does not.
func room(q, reply *dhcpv4.DHCPv4) int {
	size, err := q.MaxMessageSize()
	if err != nil || size < minDHCPMessage {
		size = minDHCPMessage
	}
	return min(int(size)-header.IPv4MinimumSize-header.UDPMinimumSize-len(reply.ToBytes())-optionHeader, maxOption)
}

// searchList is an option's list of domains (RFC 3397): the first ones, as many as there is
// room for. Ends that they have in common are in it once.
func searchList(domains []string, room int) []byte {
	var out []byte
	ends := map[string]int{}
	for _, d := range domains {
		longer := appendDomain(out, d, ends)
		if len(longer) > room {
			break
		}
		out = longer
	}
	return out
}

// domainPointer makes two bytes point to where an end of a domain is (RFC 1035, 4.1.4).
const domainPointer = 0xc000

// appendDomain appends a domain to b, but for an end that b has already: ends says where.
func appendDomain(b []byte, domain string, ends map[string]int) []byte {
	for domain != "" {
		if at, there := ends[domain]; there {
			return binary.BigEndian.AppendUint16(b, domainPointer|uint16(at))
		}
		ends[domain] = len(b)
		label, rest, _ := strings.Cut(domain, ".")
		b = append(append(b, byte(len(label))), label...)
		domain = rest
	}
	return append(b, 0)
}

func (g *Gateway) sendDHCP(reply *dhcpv4.DHCPv4, to ether.MAC, addr netip.Addr) {
	b := append(make([]byte, udpRoom), reply.ToBytes()...)
	g.emitUDP(b, to, netip.AddrPortFrom(g.router4, portDHCPServer), netip.AddrPortFrom(addr, portDHCPClient))
}
