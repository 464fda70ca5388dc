package agent

import (
	"os"
	"path/filepath"
	"testing"
)

// TestRenameHost renames a guest in its own line of /etc/hosts, and nobody else.
func TestRenameHost(t *testing.T) {
	path := filepath.Join(t.TempDir(), "hosts")
	if err := renameHost(path, "a", "b"); err != nil { // a root may have none
		t.Error(err)
	}
	for _, c := range []struct{ before, after string }{
		{HostsLine("vmm") + "::1 localhost\n10.0.0.1 vmm.example\n", HostsLine("other") + "::1 localhost\n10.0.0.1 vmm.example\n"},
		{"127.0.0.1 localhost vmm2\n127.0.1.1 vmm\n", "127.0.0.1 localhost vmm2\n127.0.1.1 vmm\n"},
	} {
		if err := os.WriteFile(path, []byte(c.before), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := renameHost(path, "vmm", "other"); err != nil {
			t.Error(err)
		}
		if b, err := os.ReadFile(path); err != nil || string(b) != c.after {
			t.Errorf("%q: %q, %v", c.before, b, err)
		}
	}
}
