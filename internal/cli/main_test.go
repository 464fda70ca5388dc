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
		{"version", 0}, {"--version", 0}, {"--help", 0}, {"run --help", 0}, {"completion bash", 0},
		{"fly", 2}, {"run --fly", 2}, {"run --no-agent extra", 2}, {"run --cwd /", 2}, {"run -d -t", 2}, {"run --name switch", 2}, {"exec", 2}, {"cp a b", 2}, {"test", 2}, {"ps extra", 2}, {"run -c 0", 2}, {"run -c 65", 2}, {"run -m 1M", 2}, {"run -m lots", 2},
		{"run --name a.b", 2}, {"clone dev switch", 2}, {"clone dev a.b", 2}, {"run --timeout -1s", 2}, {"run --boot-protocol efi", 2}, {"run --console=", 2},
		{sessionName, 2},
		{"run --kernel /nowhere", 125}, {"run --kernel " + text, 125}, {"run --kernel " + text + " --initrd /nowhere", 125},
	} {
		if got := Run(strings.Fields(c.args)); got != c.status {
			t.Errorf("vmm %s: exit status %d, want %d", c.args, got, c.status)
		}
	}
}
