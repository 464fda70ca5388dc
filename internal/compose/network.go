package compose

import (
	"fmt"
	"hash/fnv"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/compose-spec/compose-go/v2/types"
)

// Name is a name of the files' as VMs and switches can have it: letters, digits and dashes, at
// most 63.
func Name(parts ...string) string {
	name := strings.Map(func(r rune) rune {
		if r < 128 && (r == '-' || r >= '0' && r <= '9' || r|0x20 >= 'a' && r|0x20 <= 'z') {
			return r
		}
		return '-'
	}, strings.Join(parts, "-"))
	return strings.Trim(name[:min(len(name), 63)], "-")
}

// VM is the name of a service's VM.
func (p *Project) VM(s *types.ServiceConfig) string {
	if s.ContainerName != "" {
		return Name(s.ContainerName)
	}
	return Name(p.Name, s.Name, "1")
}

// Interface is how a service is in a network of the project.
type Interface struct {
	Network string // the network's name in the files
	Switch  string // and of the switch that it is
	Address netip.Prefix
}

// Host is a name that a service knows, and its address.
type Host struct {
	Name    string
	Address netip.Addr
}

// firstHost is the first address of a network that a service gets: those before are a router's.
const firstHost = 2

// Interfaces are a service's networks, in the order of their priority. The error is a network that is
// too small, or an address that is not in it or given twice.
func (p *Project) Interfaces(s *types.ServiceConfig) ([]Interface, error) {
	var out []Interface
	for _, network := range s.NetworksByPriority() {
		addresses, err := p.addresses(network)
		if err != nil {
			return nil, err
		}
		out = append(out, Interface{network, p.switchName(network), addresses[s.Name]})
	}
	return out, nil
}

// switchName is the switch that a network is: external ones are shared by projects.
func (p *Project) switchName(network string) string {
	if n := p.Networks[network].Name; n != "" {
		return Name(n)
	}
	return Name(p.Name, network)
}

// Outside reports whether a service reaches what is not in the project.
func (p *Project) Outside(s *types.ServiceConfig) bool {
	for network := range s.Networks {
		if !p.Networks[network].Internal {
			return true
		}
	}
	return false
}

// Hosts are the other services that a service can reach, by all their names, and itself.
func (p *Project) Hosts(s *types.ServiceConfig) ([]Host, error) {
	var out []Host
	known := map[string]bool{}
	for _, network := range s.NetworksByPriority() {
		addresses, err := p.addresses(network)
		if err != nil {
			return nil, err
		}
		for _, name := range slices.Sorted(maps.Keys(p.Services)) {
			other := p.Services[name]
			in, ok := other.Networks[network]
			if !ok {
				continue
			}
			names := []string{name, p.VM(&other)}
			if in != nil {
				names = append(names, in.Aliases...)
			}
			for _, n := range names {
				if !known[n] {
					out = append(out, Host{n, addresses[name].Addr()})
				}
				known[n] = true
			}
		}
	}
	return out, nil
}

// subnet is the addresses of a network.
func (p *Project) subnet(network string) (netip.Prefix, error) {
	for _, c := range p.Networks[network].Ipam.Config {
		if c == nil || c.Subnet == "" {
			continue
		}
		subnet, err := netip.ParsePrefix(c.Subnet)
		if err == nil && !subnet.Addr().Is4() {
			err = fmt.Errorf("%s is no IPv4 network", subnet)
		}
		if err != nil {
			return subnet, fmt.Errorf("networks.%s.ipam: %w", network, err)
		}
		return subnet.Masked(), nil
	}
	// One that others of this host's projects hardly have, and no gateway: those begin with 10.0.
	h := fnv.New32a()
	h.Write([]byte(p.switchName(network)))
	n := h.Sum32()
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 64 + byte(n>>8)&63, byte(n), 0}), 24), nil
}

// addresses are those of all services in a network: they are the same whichever of them are started.
func (p *Project) addresses(network string) (map[string]netip.Prefix, error) {
	subnet, err := p.subnet(network)
	if err != nil {
		return nil, err
	}
	out := map[string]netip.Prefix{}
	var taken []netip.Addr
	var rest []string
	for _, name := range slices.Sorted(maps.Keys(p.Services)) {
		in, ok := p.Services[name].Networks[network]
		if !ok {
			continue
		}
		if in == nil || in.Ipv4Address == "" {
			rest = append(rest, name)
			continue
		}
		a, err := netip.ParseAddr(in.Ipv4Address)
		switch {
		case err != nil:
		case !subnet.Contains(a):
			err = fmt.Errorf("%v is not in %v", a, subnet)
		case slices.Contains(taken, a):
			err = fmt.Errorf("%v is another service's", a)
		}
		if err != nil {
			return nil, fmt.Errorf("services.%s.networks.%s.ipv4_address: %w", name, network, err)
		}
		taken, out[name] = append(taken, a), netip.PrefixFrom(a, subnet.Bits())
	}
	next := subnet.Addr()
	for range firstHost {
		next = next.Next()
	}
	for _, name := range rest {
		for slices.Contains(taken, next) {
			next = next.Next()
		}
		if !subnet.Contains(next.Next()) { // the last one is for all
			return nil, fmt.Errorf("networks.%s: %v has no address for %s", network, subnet, name)
		}
		out[name] = netip.PrefixFrom(next, subnet.Bits())
		next = next.Next()
	}
	return out, nil
}
