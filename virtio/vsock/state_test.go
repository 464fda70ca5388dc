package vsock

import (
	"context"
	"encoding/json"
	"testing"
	"time"

	"vmm/virtio/virtiotest"
)

// TestMove: a device that goes on elsewhere resets the guest's connections first,
// tells it of its new address, and serves new ones.
func TestMove(t *testing.T) {
	o, conns := serving()
	p := start(t, o)
	p.supply(8)
	events := p.g.Queues[queueEvent]
	at := virtiotest.QueueEnd(3) + 2*slots*slotSize
	p.mem.Bytes[at] = 0xff
	events.Add(virtiotest.Buffer{Addr: at, Len: 8, Write: true})
	events.Kick(0)
	p.connect()
	c := <-conns
	next, err := New(Options{CID: guestCID + 1})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.g.Move(next); err != nil {
		t.Fatal(err)
	}
	p.dev = next
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("the old device's connection goes on")
	}
	h, _ := p.nextFor(guestCID)
	if h.op != opReset || h.srcPort != 5 || h.dstPort != 1000 {
		t.Errorf("%+v, not the reset of the connection", h)
	}
	if _, n, ok := events.WaitFor(20 * time.Second); !ok || n != eventSize || p.mem.Bytes[at] != 0 {
		t.Errorf("no event of %d bytes", n)
	}
	dialed := make(chan error, 1)
	go func() {
		_, err := next.Dial(context.Background(), 80)
		dialed <- err
	}()
	h, _ = p.nextFor(guestCID + 1)
	if h.op != opRequest {
		t.Errorf("operation %d", h.op)
	}
	p.send(header{srcPort: 80, dstPort: h.srcPort, op: opResponse}, nil) // still by the old address
	if err := <-dialed; err != nil {
		t.Error(err)
	}
}

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
