package gateway

import (
	"net/netip"
	"strings"
	"testing"
)

// TestPolicy holds destinations against rules.
func TestPolicy(t *testing.T) {
	for _, c := range []struct {
		rules   string // allow and deny, + and -
		to      string
		allowed bool
	}{
		{"", "192.0.2.1:80", true},
		{"", "10.0.2.2:80", false}, // the host's loopback
		{"", "127.0.0.1:80", false},
		{"", "127.9.9.9:80", false},
		{"", "0.0.0.0:80", false},
		{"", "0.1.2.3:80", false},
		{"", "169.254.169.254:80", false},
		{"", "[::1]:80", false},
		{"", "[::]:80", false},
		{"", "[fe80::1]:80", false},
		{"", "[::ffff:127.0.0.1]:80", false},
		{"", "[fd00:766d:6d::2]:80", false},
		{"", "224.0.0.1:80", false},
		{"", "10.0.2.77:80", false}, // the guest's own network
		{"", "[2001:db8::1]:80", true},
		{"+host:8080", "10.0.2.2:8080", true},
		{"+host:8080", "[fd00:766d:6d::2]:8080", true},
		{"+host:8080", "10.0.2.2:8081", false},
		{"+127.0.0.1", "10.0.2.2:1", true},
		{"+host:8000-8080", "10.0.2.2:8040", true},
		{"+169.254.169.254:80", "169.254.169.254:80", true},
		{"-192.0.2.0/24", "192.0.2.1:80", false},
		{"-192.0.2.0/24", "192.0.3.1:80", true},
		{"+192.0.2.1 -192.0.2.0/24", "192.0.2.1:80", true},
		{"-192.0.2.0/24 +192.0.2.1", "192.0.2.1:80", false},
		{"-0.0.0.0/0:25", "192.0.2.1:25", false},
		{"-::ffff:192.0.2.1", "192.0.2.1:80", false}, // written as IPv6
		{"-::ffff:192.0.2.0/120", "192.0.2.1:80", false},
		{"-::ffff:192.0.2.0/120", "[::ffff:192.0.2.1]:80", false},
		{"-::ffff:192.0.2.0/120", "192.0.3.1:80", true},
		{"-::/0", "192.0.2.1:80", true},
		// Metadata services of clouds.
		{"", "168.63.129.16:80", false},
		{"", "168.63.129.17:80", true},
		{"", "100.100.100.200:80", false},
		{"", "192.0.0.192:80", false},
		{"", "[fd00:ec2::254]:80", false},
		{"", "[fd00:ec2::23]:80", false},
		{"", "[fd20:ce::254]:80", false},
		{"", "[fd00:c1::a9fe:a9fe]:80", false},
		{"", "[fd00:42::42]:80", false},
		{"", "[fd00:a9fe:a9fe::1]:80", false},
		{"", "[fd00:100::100:200]:80", false},
		{"", "[fd12:3456::1]:80", true}, // a network like another
		{"+[fd20:ce::254]:80", "[fd20:ce::254]:80", true},
		// IPv4 in IPv6 is both.
		{"", "[64:ff9b::169.254.169.254]:80", false},
		{"", "[64:ff9b::192.0.2.1]:80", true},
		{"", "[64:ff9b:1::192.0.2.1]:80", false},
		{"", "[::127.0.0.1]:80", false},
		{"", "[::168.63.129.16]:80", false},
		{"", "[::ffff:168.63.129.16]:80", false},
		{"", "[::ffff:0:127.0.0.1]:80", false},
		{"", "[2002:7f00:1::]:80", false},
		{"", "[2002:a9fe:a9fe::1]:80", false},
		{"", "[2002:c000:201::1]:80", true},
		{"", "[2001:0:c000:201:0:0:5601:5601]:80", false}, // Teredo of 169.254.169.254
		{"", "[fec0::1]:80", false},
		{"-192.0.2.0/24", "[64:ff9b::192.0.2.1]:80", false},
		{"-64:ff9b::/96", "[64:ff9b::192.0.2.1]:80", false},
		{"+[64:ff9b:1::/48]", "[64:ff9b:1::192.0.2.1]:80", true},
		{"restrict +192.0.2.1", "[64:ff9b::192.0.2.1]:80", true},
		{"restrict", "192.0.2.1:80", false},
		{"restrict +192.0.2.0/24:443", "192.0.2.1:443", true},
		{"restrict +[2001:db8::/32]:443", "[2001:db8::1]:443", true},
		{"restrict +[2001:db8::/32]:443", "[2001:db8::1]:80", false},
		{"restrict +2001:db8::1", "[2001:db8::1]:80", true},
	} {
		var p Policy
		for _, r := range strings.Fields(c.rules) {
			if r == "restrict" {
				p.Restrict = true
			} else if err := p.ParseRule(r[0] == '+', r[1:]); err != nil {
				t.Fatal(err)
			}
		}
		g := &Gateway{cfg: Config{Subnet: DefaultSubnet, Policy: p}, router4: router4, router6: router6, subnet6: subnet6(DefaultSubnet)}
		if _, ok := g.target(netip.MustParseAddrPort(c.to)); ok != c.allowed {
			t.Errorf("%q: %s is allowed: %v", c.rules, c.to, ok)
		}
	}
	for _, s := range []string{"", "x", "1.2.3.4:x", "1.2.3.4:80-70", "1.2.3.4:99999", "[::1]80", "1.2.3.0/33"} {
		if err := new(Policy).ParseRule(true, s); err == nil {
			t.Errorf("%q was accepted", s)
		}
	}
}

// TestParsePublications has docker's forms.
func TestParsePublications(t *testing.T) {
	for s, want := range map[string]string{
		"8080:80": "[::]:8080:80", "127.0.0.1:8080:80": "127.0.0.1:8080:80", "0:22/tcp": "[::]:0:22", "0.0.0.0:80:80": "0.0.0.0:80:80",
		"[::1]:53:53/udp": "[::1]:53:53/udp", "::1:53:53/UDP": "[::1]:53:53/udp", "[::1]::53": "[::1]:0:53", "[::]:80:80": "[::]:80:80",
		"80": "[::]:0:80", ":80": "[::]:0:80", "80/udp": "[::]:0:80/udp", "127.0.0.1::80": "127.0.0.1:0:80",
		"7000-7002": "[::]:0:7000 [::]:0:7001 [::]:0:7002", "127.0.0.1::7000-7001": "127.0.0.1:0:7000 127.0.0.1:0:7001",
		"8000-8002:9000-9002":     "[::]:8000:9000 [::]:8001:9001 [::]:8002:9002",
		"8000-8000:9000-9000":     "[::]:8000:9000",
		"[::1]:8000-8001:1-2/udp": "[::1]:8000:1/udp [::1]:8001:2/udp",
		"8000-8010:80":            "[::]:8000-8010:80", "127.0.0.1:8000-8010:80/udp": "127.0.0.1:8000-8010:80/udp",
		"": "", "80:": "", "80:0": "", "0": "", "x:80": "", "80:80/sctp": "", "80:80/": "", "1.2.3:80:80": "", "70000:80": "", "80:70000": "", "-1:80": "",
		"8000-8002:80-81": "", "8000:80-81": "", "8002-8000:80": "", "0-5:80": "", "80-": "", "-80": "", "80-81-82": "", "[::1]:80": "", "localhost:80:80": "",
		"127.0.0.1:80": "", "[::1:80:80": "", "+80:80": "",
	} {
		list, err := ParsePublications(s)
		var got []string
		for _, p := range list {
			got = append(got, p.String())
			if again, err := ParsePublications(p.String()); err != nil || len(again) != 1 || again[0] != p {
				t.Errorf("%q is written as %v, which is %v, %v", s, p, again, err)
			}
		}
		if want == "" != (err != nil) || strings.Join(got, " ") != want {
			t.Errorf("%q: %v, %v, want %q", s, got, err, want)
		}
	}
	if _, err := ParsePublications("8002-8000:80-82"); err == nil || !strings.Contains(err.Error(), errPortRange.Error()) {
		t.Errorf("a range that goes down: %v", err)
	}
	if list, err := ParsePublications("1-65535:1-65535"); err != nil || len(list) != 65535 {
		t.Errorf("all ports: %d, %v", len(list), err)
	}
}

// TestPublishRange takes the first port that is free.
func TestPublishRange(t *testing.T) {
	g, _ := record(t, Config{})
	local := netip.MustParseAddr("127.0.0.1")
	for range 100 { // others may have the next ports
		first, err := g.Publish(Publication{Host: netip.AddrPortFrom(local, 0), Guest: 80})
		if err != nil {
			t.Fatal(err)
		}
		n := first.Host.Port()
		if n > 65533 {
			continue
		}
		p := Publication{Host: first.Host, Last: n + 1, Guest: 81}
		second, err := g.Publish(p)
		if err != nil {
			continue
		}
		if second.Host.Port() != n+1 || second.Last != 0 {
			t.Errorf("%v is open, want port %d", second, n+1)
		}
		if third, err := g.Publish(p); err == nil || !strings.Contains(err.Error(), "all ports from") {
			t.Errorf("a range that is in use: %v, %v", third, err)
		}
		if err := g.Unpublish(second); err != nil {
			t.Error(err)
		}
		return
	}
	t.Skip("no two ports beside one another are free")
}

func TestNew(t *testing.T) {
	for _, c := range []Config{{MTU: 100}, {MTU: 70000}, {Subnet: netip.MustParsePrefix("10.0.0.0/30")}, {Subnet: netip.MustParsePrefix("fd00::/64")}} {
		if _, err := New(c); err == nil {
			t.Errorf("%+v was accepted", c)
		}
	}
}

func TestSubnet6(t *testing.T) {
	for s, want := range map[string]string{"10.0.2.0/24": "fd00:766d:6d::/64", "10.9.0.0/16": "fd00:766d:6d:900::/64", "192.168.5.0/24": "fd00:766d:6d:a805::/64"} {
		if got := subnet6(netip.MustParsePrefix(s)); got.String() != want {
			t.Errorf("%s: %v, want %s", s, got, want)
		}
	}
}
