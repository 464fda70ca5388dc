package gateway

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// TestHostNames reads resolv.conf as resolv.conf(5) has it, and again when it has changed.
func TestHostNames(t *testing.T) {
	for text, want := range map[string]struct {
		servers []string
		names   HostNames
	}{
		"": {nil, HostNames{Dots: 1}},
		"# x\nnameserver 192.0.2.1\nnameserver fd00::1\nsearch x\n": {[]string{"192.0.2.1:53", "[fd00::1]:53"}, HostNames{[]string{"x"}, 1}},
		"domain a.example\n":                {nil, HostNames{[]string{"a.example"}, 1}},
		"search a b.example. c\ndomain d e": {nil, HostNames{[]string{"d"}, 1}},
		"domain d\nsearch\ta  b.example.\noptions timeout:2 ndots:5\noptions edns0\n": {nil, HostNames{[]string{"a", "b.example"}, 5}},
		"options ndots:99\n":         {nil, HostNames{nil, maxDots}},
		"options ndots:x ndots:0\n":  {nil, HostNames{nil, 0}},
		"search . a $(x) ok;rm b..c": {nil, HostNames{[]string{"a"}, 1}},
		"search " + strings.Repeat("a", 64) + " " + strings.Repeat("a.", 126) + "aa " + strings.Repeat("a.", 126) + "a": {nil, HostNames{[]string{strings.Repeat("a.", 126) + "a"}, 1}},
	} {
		servers, names := parseResolv(text)
		if !slices.Equal(servers, want.servers) || !names.Equal(want.names) {
			t.Errorf("%q: %v %+v, want %v %+v", text, servers, names, want.servers, want.names)
		}
	}
	h := resolvFile{path: filepath.Join(t.TempDir(), "resolv.conf")}
	if servers, names := h.now(); servers != nil || names.Dots != 1 {
		t.Errorf("without the file: %v, %+v", servers, names)
	}
	for i, text := range []string{"nameserver 192.0.2.1\nsearch a", "nameserver 192.0.2.2\nsearch b"} {
		os.WriteFile(h.path, []byte(text), 0o644)
		h.read = h.read.Add(-resolvFor)
		if servers, names := h.now(); !slices.Equal(servers, []string{fmt.Sprintf("192.0.2.%d:53", i+1)}) || names.Search[0] != string("ab"[i]) {
			t.Errorf("%q: %v, %+v", text, servers, names)
		}
	}
	os.Remove(h.path)
	h.read = h.read.Add(-resolvFor)
	if servers, names := h.now(); len(servers) != 1 || len(names.Search) != 1 {
		t.Errorf("what was known is forgotten: %v, %+v", servers, names)
	}
}

// TestSearchByDHCP: the guest looks names up as the host does, unless it may not know.
func TestSearchByDHCP(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	os.WriteFile(path, []byte("search corp.example other.example\noptions ndots:5\n"), 0o644)
	for _, hidden := range []bool{false, true} {
		g, r := record(t, Config{Guest: guestMAC, Policy: Policy{NoNames: hidden}})
		g.names.host = resolvFile{path: path}
		discover, err := dhcpv4.NewDiscovery(guestMAC[:])
		if err != nil {
			t.Fatal(err)
		}
		offer, _ := sendDHCP(t, g, r, discover)
		var search []string
		if l := offer.DomainSearch(); l != nil {
			search = l.Labels
		}
		want, dots := []string{Domain, "corp.example", "other.example"}, []byte{5}
		if hidden {
			want, dots = nil, nil
		}
		if !slices.Equal(search, want) || !bytes.Equal(offer.Options.Get(optionDots), dots) {
			t.Errorf("hidden %v: %v, ndots %v", hidden, search, offer.Options.Get(optionDots))
		}
	}
}

// TestManySearchDomains: all of a host's domains reach the guest, as long as a message and an
// option have room for them.
func TestManySearchDomains(t *testing.T) {
	clusters := []string{"default.svc.cluster.local", "svc.cluster.local", "cluster.local"}
	for n := range 7 {
		clusters = append(clusters, fmt.Sprintf("region-%d.compute.internal.corporation.example", n))
	}
	var others []string
	for n := range 10 {
		others = append(others, strings.Repeat(string(rune('a'+n)), 60)+".example")
	}
	for _, c := range []struct {
		name         string
		domains      []string
		hostname     string
		message      uint16 // that the client takes, 0 if it does not say
		atLeast, all int
	}{
		{"with common ends", clusters, "", 0, 10, 10},
		{"a message of the usual size", others, strings.Repeat("h", 63), 576, 1, 3},
		{"less than there may be", others, strings.Repeat("h", 63), 1, 1, 3},
		{"a larger one", others, strings.Repeat("h", 63), 1500, 3, 3},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "resolv.conf")
			os.WriteFile(path, []byte("search "+strings.Join(c.domains, " ")+"\n"), 0o644)
			g, r := record(t, Config{Guest: guestMAC, Hostname: c.hostname})
			g.names.host = resolvFile{path: path}
			discover, err := dhcpv4.NewDiscovery(guestMAC[:])
			if err != nil {
				t.Fatal(err)
			}
			if c.message != 0 {
				discover.UpdateOption(dhcpv4.OptMaxMessageSize(c.message))
			}
			offer, _ := sendDHCP(t, g, r, discover)
			list := offer.DomainSearch()
			if list == nil || len(list.Labels) == 0 || list.Labels[0] != Domain {
				t.Fatalf("%v", list)
			}
			got := list.Labels[1:]
			if len(got) < c.atLeast || len(got) > c.all || !slices.Equal(got, c.domains[:len(got)]) {
				t.Errorf("%d of %d domains: %v", len(got), len(c.domains), got)
			}
			if size := len(offer.ToBytes()) + header.IPv4MinimumSize + header.UDPMinimumSize; size > max(minDHCPMessage, int(c.message)) {
				t.Errorf("the message has %d bytes", size)
			}
		})
	}
}
