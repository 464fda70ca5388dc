package spec

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"vmm/network/ether"
	"vmm/virtio/net"
	"vmm/vm"
)

// netReader collects what is written for a network.
type netReader struct {
	nic     vm.NIC
	gateway vm.Gateway
	names   bool              // allow=dns was given
	text    map[string]string // paths and names
	on      map[string]bool   // switches
}

var (
	nicOptions     = []string{"mac", "address", "mtu", "queues", "bps", "pps"}
	gatewayOptions = []string{"allow", "deny", "restrict", "dns", "subnet"}
)

// netModes are the modes, with the options that only they have, those that they cannot
// do without, and what makes them.
var netModes = map[string]struct {
	own, needed []string
	make        func(*netReader) vm.Net
}{
	"user": {gatewayOptions, nil, func(r *netReader) vm.Net { return vm.User{NIC: r.nic, Gateway: r.gateway} }},
	"none": {nil, nil, func(*netReader) vm.Net { return vm.None{} }},
	"tap":  {[]string{"ifname"}, nil, func(r *netReader) vm.Net { return vm.Tap{NIC: r.nic, Interface: r.text["ifname"]} }},
	"switch": {append([]string{"name", "gateway", "listen"}, gatewayOptions...), []string{"name"}, func(r *netReader) vm.Net {
		n := vm.Switch{NIC: r.nic, Name: r.text["name"], Listen: r.text["listen"]}
		if r.on["gateway"] {
			n.Gateway = &r.gateway
		}
		return n
	}},
	"stream": {[]string{"path", "server"}, []string{"path"}, func(r *netReader) vm.Net {
		return vm.Stream{NIC: r.nic, Path: r.text["path"], Server: r.on["server"]}
	}},
	"dgram": {[]string{"local", "remote"}, []string{"local", "remote"}, func(r *netReader) vm.Net {
		return vm.Datagram{NIC: r.nic, Local: r.text["local"], Remote: r.text["remote"]}
	}},
}

// Net reads a network (NetForm).
func Net(s string) (vm.Net, error) {
	parts := split(s)
	mode, ok := netModes[parts[0]]
	if !ok {
		return nil, fmt.Errorf("%s: no such mode; %s", s, NetForm)
	}
	r := &netReader{text: map[string]string{}, on: map[string]bool{}}
	for _, part := range parts[1:] {
		key, v, given := strings.Cut(part, "=")
		var err error
		if slices.Contains(nicOptions, key) || slices.Contains(mode.own, key) {
			err = r.read(key, v, given)
		} else {
			err = fmt.Errorf("no such option of %s; %s, %s", parts[0], strings.Join(nicOptions, ", "), strings.Join(mode.own, ", "))
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %s: %w", s, part, err)
		}
	}
	for _, key := range mode.needed {
		if r.text[key] == "" {
			return nil, fmt.Errorf("%s: %s=... is missing", s, key)
		}
	}
	r.gateway.Policy.NoNames = r.gateway.Policy.NoNames || r.gateway.Policy.Restrict && !r.names
	n := mode.make(r)
	var config *vm.ConfigError
	if err := (&vm.Config{Nets: vm.Nets{n}}).Check(); errors.As(err, &config) {
		return nil, fmt.Errorf("%s: %w", s, config.Err)
	}
	return n, nil
}

// read reads one option.
func (r *netReader) read(key, v string, given bool) (err error) {
	g := &r.gateway
	switch key {
	case "mac":
		r.nic.MAC, err = ether.ParseMAC(v)
	case "address":
		r.nic.Address, err = netip.ParsePrefix(v)
	case "mtu":
		if r.nic.MTU, err = strconv.Atoi(v); err != nil || r.nic.MTU == 0 {
			err = fmt.Errorf("between %d and %d bytes", ether.MinMTU, ether.MaxMTU)
		}
	case "queues":
		r.nic.Queues, err = upTo(v, net.MaxPairs)
	case "bps":
		r.nic.BytesPerSecond, err = bytes(v)
	case "pps":
		r.nic.PacketsPerSecond, err = positive(v)
	case "allow", "deny":
		err = g.Policy.ParseRule(key == "allow", v)
		r.names = r.names || key == "allow" && v == "dns"
	case "restrict":
		g.Policy.Restrict, err = onOff(v, given)
	case "dns":
		var a netip.AddrPort
		if a, err = netip.ParseAddrPort(v); err != nil {
			var addr netip.Addr
			if addr, err = netip.ParseAddr(v); err == nil {
				a = netip.AddrPortFrom(addr, 53)
			}
		}
		g.DNS = append(g.DNS, a)
	case "subnet":
		g.Subnet, err = netip.ParsePrefix(v)
	case "gateway", "server":
		r.on[key], err = onOff(v, given)
	default:
		r.text[key] = v
	}
	return err
}
