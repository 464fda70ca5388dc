package console

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"sync"
	"testing"
	"time"

	"vmm/virtio/virtiotest"
)

// sink keeps what a port is sent.
type sink struct {
	mu sync.Mutex
	bytes.Buffer
}

func (s *sink) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.Buffer.Write(p)
}

func (s *sink) wait(t *testing.T, want string) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		s.mu.Lock()
		got := s.String()
		s.mu.Unlock()
		if got == want {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the host got %q, want %q", got, want)
		}
	}
}

const (
	memory = 8 << 20
	input  = 4 << 20 // buffers for the device to write
	output = 5 << 20
	buffer = 256
)

// guest is a driver of a console.
type guest struct {
	t   *testing.T
	g   *virtiotest.Guest
	mem *virtiotest.Memory
}

func start(t *testing.T, d *Device) *guest {
	t.Helper()
	mem, err := virtiotest.NewMemory(memory)
	if err != nil {
		t.Fatal(err)
	}
	g, err := virtiotest.Start(d, mem, 16, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(g.Close(), mem.Close()); err != nil {
			t.Error(err)
		}
	})
	return &guest{t, g, mem}
}

// send sends bytes to the device by a queue.
func (g *guest) send(queue int, b []byte) {
	g.t.Helper()
	copy(g.mem.Bytes[output:], b)
	d := g.g.Queues[queue]
	from := d.Added()
	d.Add(virtiotest.Buffer{Addr: output, Len: uint32(len(b))})
	d.Kick(from)
	d.Wait()
}

// receive takes what the device sends by a queue.
func (g *guest) receive(queue int) string {
	g.t.Helper()
	d := g.g.Queues[queue]
	from := d.Added()
	addr := uint64(input + queue*buffer)
	d.Add(virtiotest.Buffer{Addr: addr, Len: buffer, Write: true})
	d.Kick(from)
	_, n := d.Wait()
	return string(g.mem.Bytes[addr : addr+uint64(n)])
}

func control(id uint32, event, value uint16) []byte {
	b := binary.LittleEndian.AppendUint32(nil, id)
	return binary.LittleEndian.AppendUint16(binary.LittleEndian.AppendUint16(b, event), value)
}

func TestConsole(t *testing.T) {
	var out sink
	d, err := New(&out)
	if err != nil {
		t.Fatal(err)
	}
	g := start(t, d)
	g.send(1, []byte("login: "))
	out.wait(t, "login: ")
	done := make(chan error)
	go func() { done <- d.Receive(0, []byte("root\n")) }()
	if got := g.receive(0); got != "root\n" {
		t.Errorf("the guest got %q", got)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	d.Resize(80, 25)
	var size [4]byte
	if d.ReadConfig(0, size[:]); size != [4]byte{80, 0, 25, 0} {
		t.Errorf("size %v", size)
	}
	d.WriteConfig(configEmergency, []byte{'!', 0, 0, 0})
	out.wait(t, "login: !")
}

func TestPorts(t *testing.T) {
	var out, port sink
	d, err := New(&out, Port{Name: "org.test", Out: &port})
	if err != nil {
		t.Fatal(err)
	}
	g := start(t, d)
	g.send(queueControlOut, control(0, eventDeviceReady, 1))
	for id := range uint32(2) {
		if got := g.receive(queueControlIn); got != string(control(id, eventPortAdd, 1)) {
			t.Errorf("port %d: message %x", id, got)
		}
		g.send(queueControlOut, control(id, eventPortReady, 1))
		want := [][]byte{control(0, eventConsolePort, 1), control(0, eventPortOpen, 1)}
		if id == 1 {
			want = [][]byte{append(control(1, eventPortName, 1), "org.test"...), control(1, eventPortOpen, 1)}
		}
		if id == 0 { // the other port's message came before it
			if got := g.receive(queueControlIn); got != string(control(1, eventPortAdd, 1)) {
				t.Errorf("message %x", got)
			}
		}
		for _, w := range want {
			if got := g.receive(queueControlIn); got != string(w) {
				t.Errorf("port %d: message %x, want %x", id, got, w)
			}
		}
		if id == 0 {
			break
		}
	}
	g.send(queueControlOut, control(1, eventPortReady, 1))
	for range 2 {
		g.receive(queueControlIn)
	}
	g.send(queueControlOut, control(1, eventPortOpen, 1))
	g.send(5, []byte("to the host"))
	port.wait(t, "to the host")
	go d.Receive(1, []byte("to the guest"))
	if got := g.receive(4); got != "to the guest" {
		t.Errorf("the guest got %q", got)
	}
	g.send(queueControlOut, control(99, eventPortOpen, 1)) // no such port
	d.Resize(100, 50)
	want := string(control(0, eventResize, 0)) + "\x64\x00\x32\x00"
	if got := g.receive(queueControlIn); got != want {
		t.Errorf("size %x, want %x", got, want)
	}
}

// TestCloseEndsReceive: nobody waits for a guest that is gone.
func TestCloseEndsReceive(t *testing.T) {
	d, err := New(nil)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() { done <- d.Receive(0, []byte("x")) }()
	d.Close()
	if err := <-done; err != io.ErrClosedPipe {
		t.Error(err)
	}
}

// FuzzConsole sends any control messages.
func FuzzConsole(f *testing.F) {
	f.Add(append(control(0, eventDeviceReady, 1), control(1, eventPortReady, 1)...))
	f.Fuzz(func(t *testing.T, messages []byte) {
		d, err := New(io.Discard, Port{Name: "a"}, Port{Name: "b"})
		if err != nil {
			t.Fatal(err)
		}
		for len(messages) >= controlSize {
			d.mu.Lock()
			d.controlMessage(binary.LittleEndian.Uint32(messages), binary.LittleEndian.Uint16(messages[4:]), binary.LittleEndian.Uint16(messages[6:]))
			if len(d.messages) > maxControl {
				t.Errorf("%d messages wait", len(d.messages))
			}
			d.mu.Unlock()
			messages = messages[controlSize:]
		}
	})
}
