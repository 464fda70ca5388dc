package vm

import (
	"os"
	"path/filepath"
	"reflect"
	"testing"
)

// TestConfinementKnown: what Prepare begins for Confine is what that asks for then.
func TestConfinementKnown(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "kernel")
	if err := os.WriteFile(file, make([]byte, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	v, err := New(Config{Boot: Boot{Kernel: file}, Nets: Nets{None{}}, Shares: []Share{{Host: dir, Guest: "/x"}}, Vsock: filepath.Join(dir, "vsock")})
	if err != nil {
		t.Fatal(err)
	}
	v.from = &source{warm: true, vm: saved{CID: guestCID}} // for which no kernel is read
	defer v.release()
	if _, err := v.open(t.Context()); err != nil {
		t.Fatal(err)
	}
	c := Confinement{Read: []string{"/a"}, Write: []string{"/b"}, Files: []string{"/c", "/d"}, Unlink: []string{"/e"}}
	first := v.rules(&c)
	if first.Internet || !first.Connect || len(first.Paths) < 6 {
		t.Errorf("%+v", first)
	}
	for range 20 {
		if again := v.rules(&c); !reflect.DeepEqual(again, first) {
			t.Fatalf("%+v, and %+v before", again, first)
		}
	}
	for _, c := range []struct {
		nets Nets
		want bool
	}{{nil, false}, {Nets{None{}}, false}, {Nets{None{}, User{}}, true}, {Nets{Switch{}}, false}, {Nets{Switch{Gateway: &Gateway{}}}, true}, {Nets{Tap{}}, false}} {
		if got := c.nets.internet(); got != c.want {
			t.Errorf("%v: a gateway %v", c.nets, got)
		}
	}
}
