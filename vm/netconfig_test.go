package vm

import (
	"net/netip"
	"testing"
)

// TestAsksGateway: a guest waits only for an address that will come.
func TestAsksGateway(t *testing.T) {
	fixed := NIC{Address: netip.MustParsePrefix("10.0.2.77/24")}
	for _, c := range []struct {
		name string
		net  Net
		want bool
	}{
		{"user", User{}, true},
		{"user, an address of its own", User{NIC: fixed}, false},
		{"a switch with a gateway", Switch{Name: "lab", Gateway: &Gateway{}}, true},
		{"that and an address of its own", Switch{Name: "lab", NIC: fixed, Gateway: &Gateway{}}, false},
		{"a switch", Switch{Name: "lab"}, false},
		{"none", None{}, false},
		{"tap", Tap{}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := asksGateway(c.net); got != c.want {
				t.Errorf("%v, want %v", got, c.want)
			}
		})
	}
}
