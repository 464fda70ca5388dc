package vm

import "testing"

// TestHostname: a guest is called as its Config says, also by DHCP, and no copy is.
func TestHostname(t *testing.T) {
	for want, c := range map[string]Config{"vm": {Name: "vm"}, "box.example": {Name: "vm", Hostname: "box.example"}} {
		if got := (&vmNIC{}).gatewayConfig(&Gateway{}, &c, newOptions(nil)).Hostname; got != want {
			t.Errorf("its name by DHCP is %q, want %q", got, want)
		}
	}
	for name, want := range map[string]string{"": "host", "vm": "host", "copy": "copy"} {
		r := &source{vm: saved{Version: savedVersion, Config: Config{Name: "vm", Hostname: "host"}}, trusted: true}
		v, err := r.make("saved", &RestoreOptions{Name: name}, newOptions(nil))
		if err != nil {
			t.Fatal(err)
		}
		if c := v.Config(); c.GuestName() != want {
			t.Errorf("restored as %q its guest is %q, want %q", name, c.GuestName(), want)
		}
		v.Close()
	}
}
