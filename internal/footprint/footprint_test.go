package footprint

import (
	"bytes"
	"fmt"
	"os"
	"testing"
)

// resident returns a line of /proc/self/status, in bytes.
func resident(t *testing.T, name string) (n int) {
	t.Helper()
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range bytes.Lines(b) {
		if fmt.Sscanf(string(line), name+": %d kB", &n); n > 0 {
			return n << 10
		}
	}
	t.Fatalf("no %s", name)
	return 0
}

// TestShrink makes garbage, beside what the start of the test has left.
func TestShrink(t *testing.T) {
	const garbage = 64 << 20
	b := make([]byte, garbage)
	for i := 0; i < len(b); i += 4096 {
		b[i] = 1
	}
	b = nil
	anonymous, file := resident(t, "RssAnon"), resident(t, "RssFile")
	Shrink()
	if now := resident(t, "RssAnon"); now > anonymous-garbage/4 {
		t.Errorf("%d bytes of memory before, %d after", anonymous, now)
	}
	if now := resident(t, "RssFile"); now >= file {
		t.Errorf("%d bytes of the file before, %d after", file, now)
	}
}
