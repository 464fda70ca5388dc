package vsock

import (
	"encoding/json"
	"testing"
)

// TestStatePorts has a restored device begin connections at ports that the guest has
// not seen: it may still be about to end those before, though the host has forgotten
// them.
func TestStatePorts(t *testing.T) {
	const cid = 3
	device := func() *Device {
		d, err := New(Options{CID: cid})
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	d := device()
	d.nextPort = firstPort + 7
	s, err := d.Save()
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	for state, want := range map[string]uint32{
		string(b):   firstPort + 7,
		`{"cid":3}`: firstPort,
		`{"cid":3,"connections":[{"host":1073741834,"guest":80}]}`: firstPort + 11,
	} {
		again := device()
		if err := again.Load([]byte(state)); err != nil || again.nextPort != want {
			t.Errorf("%s: next port %d, want %d, %v", state, again.nextPort, want, err)
		}
	}
}
