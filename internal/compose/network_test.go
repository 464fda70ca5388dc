package compose

import (
	"fmt"
	"strings"
	"testing"
)

func load(t *testing.T, text string) *Project {
	t.Helper()
	p, err := Load(t.Context(), Options{Files: []string{write(t, t.TempDir(), "compose.yaml", text)}})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestName(t *testing.T) {
	for want, parts := range map[string][]string{
		"shop-web-1": {"shop", "web", "1"}, "a-b-c": {"a_b", "c"}, "x": {"_x."}, strings.Repeat("a", 63): {strings.Repeat("a", 70)}, "a-b": {"aüb"},
	} {
		if got := Name(parts...); got != want {
			t.Errorf("%q: %s, want %s", parts, got, want)
		}
	}
}

// TestNetworks gives services their addresses, and the names of those that they can reach.
func TestNetworks(t *testing.T) {
	p := load(t, `
name: my_shop
services:
  web: {image: x, networks: {front: , back: {priority: 5}}}
  api: {image: x, container_name: the_api, networks: {back: {aliases: [backend], ipv4_address: 10.1.0.2}}}
  db: {image: x, networks: [back]}
  lone: {image: x}
networks:
  front:
  back: {internal: true, name: shared, ipam: {config: [{subnet: 10.1.0.0/29}]}}
`)
	for name, want := range map[string]struct{ vm, nets, hosts string }{
		"web":  {"my-shop-web-1", "shared 10.1.0.4/29, my-shop-front", "api=10.1.0.2 the-api=10.1.0.2 backend=10.1.0.2 db=10.1.0.3 my-shop-db-1=10.1.0.3 web=10.1.0.4 my-shop-web-1=10.1.0.4"},
		"api":  {"the-api", "shared 10.1.0.2/29", "api=10.1.0.2 the-api=10.1.0.2 backend=10.1.0.2 db=10.1.0.3 my-shop-db-1=10.1.0.3 web=10.1.0.4 my-shop-web-1=10.1.0.4"},
		"lone": {"my-shop-lone-1", "my-shop-default", ""},
	} {
		s := p.Services[name]
		list, err := p.Interfaces(&s)
		if err != nil {
			t.Fatal(err)
		}
		var nets, hosts []string
		for _, i := range list {
			text := i.Switch
			if i.Switch == "shared" {
				text += fmt.Sprint(" ", i.Address)
			} else if a := i.Address; a.Bits() != 24 || a.Addr().As4()[0] != 10 || a.Addr().As4()[1] < 64 || a.Addr().As4()[3] != 2 {
				t.Errorf("%s in %s: %v", name, i.Network, a)
			}
			nets = append(nets, text)
		}
		known, err := p.Hosts(&s)
		if err != nil {
			t.Fatal(err)
		}
		for _, h := range known {
			if h.Address.As4()[1] == 1 {
				hosts = append(hosts, fmt.Sprintf("%s=%v", h.Name, h.Address))
			}
		}
		if got := p.VM(&s); got != want.vm || strings.Join(nets, ", ") != want.nets || strings.Join(hosts, " ") != want.hosts {
			t.Errorf("%s: %s; %v; %v", name, got, nets, hosts)
		}
		if p.Outside(&s) != (name != "api") {
			t.Errorf("%s reaches the world: %v", name, p.Outside(&s))
		}
	}
}

func TestNetworkErrors(t *testing.T) {
	for name, c := range map[string]struct{ text, want string }{
		"too small":     {"services: {a: {image: x, networks: [n]}, b: {image: x, networks: [n]}}\nnetworks: {n: {ipam: {config: [{subnet: 10.1.0.0/30}]}}}", "no address for b"},
		"elsewhere":     {"services: {a: {image: x, networks: {n: {ipv4_address: 10.2.0.1}}}}\nnetworks: {n: {ipam: {config: [{subnet: 10.1.0.0/24}]}}}", "is not in"},
		"twice":         {"services: {a: {image: x, networks: {n: {ipv4_address: 10.1.0.9}}}, b: {image: x, networks: {n: {ipv4_address: 10.1.0.9}}}}\nnetworks: {n: {ipam: {config: [{subnet: 10.1.0.0/24}]}}}", "another service's"},
		"IPv6":          {"services: {a: {image: x, networks: [n]}}\nnetworks: {n: {ipam: {config: [{subnet: 'fd00::/64'}]}}}", "no IPv4"},
		"not a network": {"services: {a: {image: x, networks: [n]}}\nnetworks: {n: {ipam: {config: [{subnet: 'x'}]}}}", "networks.n.ipam"},
	} {
		p := load(t, c.text)
		s := p.Services["a"]
		if got, err := p.Interfaces(&s); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}
