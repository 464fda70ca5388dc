package gateway

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// Publication is a port of the host's that leads to one of the guest's.
type Publication struct {
	UDP   bool           `json:"udp,omitempty"`  // else TCP
	Host  netip.AddrPort `json:"host"`           // port 0 is one that is free
	Last  uint16         `json:"last,omitempty"` // the first port that is free, from Host's to this one; 0 is Host's alone
	Guest uint16         `json:"guest"`          // port
}

// String writes it as ParsePublications reads it.
func (p Publication) String() string {
	s := p.Host.String()
	if p.Last > 0 {
		s += fmt.Sprintf("-%d", p.Last)
	}
	s += fmt.Sprintf(":%d", p.Guest)
	if p.UDP {
		s += "/udp"
	}
	return s
}

// PublicationForm is what ParsePublications reads.
const PublicationForm = "[[ADDRESS:][HOST[-LAST]]:]GUEST[-LAST][/udp]"

// ParsePublications reads ports to publish as docker has them (PublicationForm): a lone port
// of the guest's gets a free one of the host's, ranges of one length are joined port by
// port, and one port of the guest's gets the first that is free of a range. Without an
// address it is all of the host's; an IPv6 address may stand in brackets.
func ParsePublications(s string) ([]Publication, error) {
	bad := func(why string) ([]Publication, error) { return nil, fmt.Errorf("%q: %s; %s", s, why, PublicationForm) }
	ports, proto, given := strings.Cut(s, "/")
	proto = strings.ToLower(proto)
	if given && proto != "tcp" && proto != "udp" {
		return bad("/tcp or /udp")
	}
	addr, host, guest := netip.IPv6Unspecified(), "", ports // the address listens for IPv4 too
	if i := strings.LastIndexByte(ports, ':'); i >= 0 {
		host, guest = ports[:i], ports[i+1:]
	}
	if i := strings.LastIndexByte(host, ':'); i >= 0 {
		text := host[:i]
		if len(text) > 2 && text[0] == '[' && text[len(text)-1] == ']' {
			text = text[1 : len(text)-1]
		}
		var err error
		if addr, err = netip.ParseAddr(text); err != nil {
			return bad("no address before the ports")
		}
		host = host[i+1:]
	}
	first, last, err := parsePorts(guest)
	if errors.Is(err, errPortRange) {
		return bad(err.Error())
	}
	if err != nil || first == 0 {
		return bad("the guest's port is from 1 to 65535")
	}
	p := Publication{UDP: proto == "udp", Host: netip.AddrPortFrom(addr, 0)}
	var from, to uint16
	if host != "" {
		if from, to, err = parsePorts(host); errors.Is(err, errPortRange) {
			return bad(err.Error())
		}
		if err != nil {
			return bad("the host's port is from 1 to 65535, or 0 for one that is free")
		}
	}
	switch {
	case from == 0: // a free one for each
	case first == last && from < to:
		p.Host, p.Last, p.Guest = netip.AddrPortFrom(addr, from), to, first
		return []Publication{p}, nil
	case to-from != last-first:
		return bad("the ranges differ in length")
	}
	var list []Publication
	for i := 0; i <= int(last-first); i++ {
		if p.Guest = first + uint16(i); from > 0 {
			p.Host = netip.AddrPortFrom(addr, from+uint16(i))
		}
		list = append(list, p)
	}
	return list, nil
}

var errPortRange = errors.New("a range goes from its first port, 1 or more, up to its last")

// parsePorts reads a port, or a range of them from 1 on.
func parsePorts(s string) (first, last uint16, err error) {
	a, b, isRange := strings.Cut(s, "-")
	n, err := strconv.ParseUint(a, 10, 16)
	if err != nil || !isRange {
		return uint16(n), uint16(n), err
	}
	m, err := strconv.ParseUint(b, 10, 16)
	if err == nil && (n == 0 || m < n) {
		err = errPortRange
	}
	return uint16(n), uint16(m), err
}
