package cli

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestFilterKeys(t *testing.T) {
	for _, c := range []struct{ in, out, did string }{
		{"hello", "hello", ""}, {"a\x01xb", "ab", "q"}, {"\x01\x01", "\x01", ""}, {"\x01h\x01?", "", "hh"},
		{"\x01p", "", "p"}, {"\x01z!", "!", ""}, {"end\x01", "end", ""},
	} {
		did := ""
		do := consoleActions{quit: func() { did += "q" }, power: func() { did += "p" }, help: func() { did += "h" }}
		// Whole, and byte by byte.
		if got, _ := filterKeys([]byte(c.in), false, do); string(got) != c.out || did != c.did {
			t.Errorf("%q: %q and %q, want %q and %q", c.in, got, did, c.out, c.did)
		}
		did = ""
		var out []byte
		escaped := false
		for _, b := range []byte(c.in) {
			var p []byte
			p, escaped = filterKeys([]byte{b}, escaped, do)
			out = append(out, p...)
		}
		if string(out) != c.out || did != c.did {
			t.Errorf("%q in pieces: %q and %q", c.in, out, did)
		}
	}
}

// TestStatus holds wrong uses to their exit status.
func TestStatus(t *testing.T) {
	text := filepath.Join(t.TempDir(), "text")
	if err := os.WriteFile(text, []byte("not a kernel"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args   string
		status int
	}{
		{"version", 0}, {"--help", 0}, {"run --help", 0}, {"completion bash", 0},
		{"fly", 2}, {"run --fly", 2}, {"run --no-agent extra", 2}, {"run --cwd /", 2}, {"run -d -t", 2}, {"run --name switch", 2}, {"exec", 2}, {"cp a b", 2}, {"test", 2}, {"ps extra", 2}, {"run -c 0", 2}, {"run -c 65", 2}, {"run -m 1M", 2}, {"run -m lots", 2},
		{"run --name a.b", 2}, {"clone dev switch", 2}, {"clone dev a.b", 2}, {"run --timeout -1s", 2}, {"run --boot-protocol efi", 2}, {"run --console=", 2},
		{"run --kernel /nowhere", 125}, {"run --kernel " + text, 125}, {"run --kernel " + text + " --initrd /nowhere", 125},
	} {
		if got := Run(strings.Fields(c.args)); got != c.status {
			t.Errorf("vmm %s: exit status %d, want %d", c.args, got, c.status)
		}
	}
}

func TestSocketConsole(t *testing.T) {
	path := filepath.Join(t.TempDir(), "console")
	c, err := openConsole("unix:" + path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := openConsole("unix:" + path); err == nil {
		t.Error("two consoles on one socket")
	}
	c.Write([]byte("nobody listens"))
	c.restore()
	if c, err = openConsole("unix:" + path); err != nil {
		t.Errorf("after the first is gone: %v", err)
	} else {
		c.restore()
	}
	if _, err := openConsole(t.TempDir() + "/none/file"); err == nil {
		t.Error("a file in no directory")
	}
}

// TestParseNet reads values of --net, right and wrong.
func TestParseNet(t *testing.T) {
	n, err := parseNet("user,mac=52:54:00:12:34:56,mtu=9000,queues=2,bps=1M,pps=100,allow=host:80,restrict=on,dns=192.0.2.1,dns=[fd00::1]:5353,subnet=10.1.0.0/16")
	if err != nil {
		t.Fatal(err)
	}
	c := n.config
	if n.nic.MAC.String() != "52:54:00:12:34:56" || n.nic.MTU != 9000 || n.nic.Pairs != 2 || n.nic.Limit.BytesPerSecond != 1<<20 || n.nic.Limit.PacketsPerSecond != 100 ||
		len(c.Policy.Rules) != 2 || !c.Policy.Restrict || !c.Policy.NoNames || len(c.Resolvers) != 2 || c.Resolvers[0].Port() != 53 || c.Subnet.Bits() != 16 {
		t.Errorf("%+v", n)
	}
	if n, err := parseNet("user,allow=dns,restrict"); err != nil || n.config.Policy.NoNames || !n.config.Policy.Restrict {
		t.Errorf("allow=dns: %+v, %v", n, err)
	}
	if n, err := parseNet("stream,path=/a,,b,server=off"); err != nil || n.option("path") != "/a,b" || n.on("server") {
		t.Errorf("%+v, %v", n, err)
	}
	if n, err := parseNet("switch,name=lab,gateway"); err != nil || !n.on("gateway") {
		t.Errorf("%+v, %v", n, err)
	}
	for _, s := range []string{"", "x", "user,x=1", "tap,name=x", "user,mtu=x", "user,queues=0", "user,queues=99", "user,bps=x", "user,pps=-1",
		"switch,name=a/b", "switch,name=", "dgram,local=a", "stream", "user,dns=x", "user,subnet=fd00::/64", "user,restrict=maybe", "none,allow=host"} {
		if n, err := parseNet(s); err == nil {
			t.Errorf("%q: %+v", s, n)
		}
	}
}
