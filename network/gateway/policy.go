package gateway

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// Rule allows or denies destinations: addresses of a network, and ports from First to
// Last, of TCP and UDP; a ping is to port 0.
type Rule struct {
	Allow bool         `json:"allow,omitempty"` // else it denies
	Net   netip.Prefix `json:"net"`             // IPv4 or IPv6
	First uint16       `json:"first"`
	Last  uint16       `json:"last"`
}

// Policy says where a guest may connect to. The first rule that fits decides;
// where none does, everything but the host itself, its links and clouds' metadata
// services is allowed, unless Restrict is set. An IPv6 address that has an IPv4 address
// in it (NAT64, 6to4, Teredo, IPv4-mapped, -compatible and -translated ones) is both: a
// rule for either fits, and it is allowed by default if both are.
type Policy struct {
	Rules    []Rule `json:"rules,omitempty"`
	Restrict bool   `json:"restrict,omitempty"`
	// NoNames keeps the name server from asking others.
	NoNames bool `json:"noNames,omitempty"`
}

var (
	loopback4 = netip.MustParsePrefix("127.0.0.0/8")
	loopback6 = netip.MustParsePrefix("::1/128")
)

// ParseRule adds what a user wrote after allow= or deny=: NET[:PORT[-PORT]],
// where NET is an address, a network, or host for the host's loopback. IPv6
// with a port stands in brackets. "dns" is the name server's right to ask
// others.
func (p *Policy) ParseRule(allow bool, s string) error {
	if s == "dns" {
		p.NoNames = !allow
		return nil
	}
	r := Rule{Allow: allow, First: 0, Last: 65535}
	network, ports := s, ""
	if in, after, ok := strings.Cut(s, "]"); ok && strings.HasPrefix(in, "[") {
		network = in[1:]
		if ports, ok = strings.CutPrefix(after, ":"); !ok && after != "" {
			return fmt.Errorf("%q: after ] comes a colon and the port", s)
		}
	} else if strings.Count(s, ":") == 1 {
		network, ports, _ = strings.Cut(s, ":")
	}
	if ports != "" {
		first, last, isRange := strings.Cut(ports, "-")
		if !isRange {
			last = first
		}
		a, err1 := strconv.ParseUint(first, 10, 16)
		b, err2 := strconv.ParseUint(last, 10, 16)
		if err1 != nil || err2 != nil || a > b {
			return fmt.Errorf("%q: %q is no port or range of ports", s, ports)
		}
		r.First, r.Last = uint16(a), uint16(b)
	}
	nets := []netip.Prefix{}
	if network == "host" {
		nets = append(nets, loopback4, loopback6)
	} else if n, err := netip.ParsePrefix(network); err == nil {
		nets = append(nets, n.Masked())
	} else if a, err := netip.ParseAddr(network); err == nil && a.Zone() == "" {
		nets = append(nets, netip.PrefixFrom(a, a.BitLen()))
	} else {
		return errors.New(strconv.Quote(s) + ": an address, a network such as 10.0.0.0/8, or host, each with :PORT if wanted")
	}
	for _, r.Net = range nets {
		p.Rules = append(p.Rules, r)
	}
	return nil
}

// unmapped is a network of IPv4, if it was written as IPv6 (RFC 4291, section 2.5.5.2), as destinations are looked at.
func unmapped(n netip.Prefix) netip.Prefix {
	const lead = 96
	if n.Addr().Is4In6() && n.Bits() >= lead {
		return netip.PrefixFrom(n.Addr().Unmap(), n.Bits()-lead)
	}
	return n
}

// allows reports whether the guest may connect to a destination of the host's
// network.
func (p *Policy) allows(to netip.AddrPort) bool {
	a := to.Addr()
	inside := embedded(a)
	for _, r := range p.Rules {
		if n := unmapped(r.Net); (n.Contains(a) || n.Contains(inside)) && to.Port() >= r.First && to.Port() <= r.Last {
			return r.Allow
		}
	}
	return !p.Restrict && !onlyByRule(a, inside)
}

// target is where a connection of the guest's leads: to the host's loopback for
// the router's address, otherwise to where it says. False if that is not
// allowed.
func (g *Gateway) target(to netip.AddrPort) (netip.AddrPort, bool) {
	a := to.Addr().Unmap()
	switch a {
	case g.router4:
		a = loopback4.Addr().Next()
	case g.router6:
		a = loopback6.Addr()
	}
	to = netip.AddrPortFrom(a, to.Port())
	if a.IsMulticast() || a == broadcast4 || g.ours(a) || g.cfg.Subnet.Contains(a) || g.subnet6.Contains(a) {
		return to, false
	}
	return to, g.cfg.Policy.allows(to)
}
