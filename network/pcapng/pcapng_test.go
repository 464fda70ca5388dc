package pcapng

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"

	"vmm/network/ether"
)

// nothing is a link, and a device, that does nothing.
type nothing struct{ full bool }

func (n *nothing) Attach(ether.NIC)                            {}
func (n *nothing) Send(int, ether.Header, [][]byte)            {}
func (n *nothing) Sent(int)                                    {}
func (n *nothing) Ready()                                      {}
func (n *nothing) Offloads(ether.Offloads)                     {}
func (n *nothing) Close() error                                { return nil }
func (n *nothing) Receive(uint32, ether.Header, [][]byte) bool { return !n.full }
func (n *nothing) Flush()                                      {}

// TestWriter writes frames of two cables and reads the file's blocks.
func TestWriter(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.pcapng")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	w, err := New(f, "test")
	if err != nil {
		t.Fatal(err)
	}
	nic := &nothing{}
	one, two := w.Tap(&nothing{}, "eth0"), w.Tap(&nothing{}, "eth1")
	one.Attach(nic)
	frames := [][]byte{bytes.Repeat([]byte{1}, 60), bytes.Repeat([]byte{2}, 61), bytes.Repeat([]byte{3}, 65000)}
	one.Send(0, ether.Header{}, [][]byte{frames[0][:13], frames[0][13:]})
	one.(ether.NIC).Receive(0, ether.Header{}, [][]byte{frames[1]})
	nic.full = true
	one.(ether.NIC).Receive(0, ether.Header{}, [][]byte{frames[1]}) // it was not received
	two.Send(0, ether.Header{}, [][]byte{frames[2]})
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	le := binary.LittleEndian
	var kinds, from, flags []uint32
	var got [][]byte
	for len(b) > 0 {
		n := le.Uint32(b[4:])
		if n%4 != 0 || int(n) > len(b) || le.Uint32(b[n-4:]) != n {
			t.Fatalf("a block of %d bytes of %d", n, len(b))
		}
		kinds = append(kinds, le.Uint32(b))
		if le.Uint32(b) == blockPacket {
			size := le.Uint32(b[20:])
			from = append(from, le.Uint32(b[8:]))
			got = append(got, b[packetHeader:packetHeader+size])
			flags = append(flags, le.Uint32(b[n-12:]))
		}
		b = b[n:]
	}
	if len(kinds) != 6 || kinds[0] != blockSection || kinds[1] != blockInterface || kinds[2] != blockInterface {
		t.Errorf("blocks %v", kinds)
	}
	for i, f := range frames {
		if i >= len(got) || !bytes.Equal(got[i], f) || from[i] != []uint32{0, 0, 1}[i] || flags[i] != []uint32{outbound, inbound, outbound}[i] {
			t.Errorf("frame %d: from %v, flags %v", i, from, flags)
		}
	}
}

func TestFullDisk(t *testing.T) {
	f, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Skip(err)
	}
	w, err := New(f, "test")
	if err == nil {
		err = w.Close()
	}
	if err == nil {
		t.Error("a full disk is fine")
	}
}
