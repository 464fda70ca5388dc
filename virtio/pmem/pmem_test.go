package pmem

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"vmm/virtio/virtiotest"
)

// memory is a backend that counts what is asked of it.
type memory struct {
	bytes   []byte
	flushes atomic.Int32
	fails   atomic.Bool
}

func (m *memory) Bytes() []byte  { return m.bytes }
func (m *memory) ReadOnly() bool { return false }
func (m *memory) Close() error   { return nil }
func (m *memory) Flush() error {
	m.flushes.Add(1)
	if m.fails.Load() {
		return unix.EIO
	}
	return nil
}

const (
	start    = 5 << 30
	requests = 1 << 19 // in guest memory, beyond the queue
	answers  = requests + 64
)

func startGuest(t *testing.T, b Backend) (*Device, *virtiotest.Guest, *virtiotest.Memory) {
	t.Helper()
	d := New(b)
	d.Place(start)
	mem, err := virtiotest.NewMemory(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	g, err := virtiotest.Start(d, mem, queueSize, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(g.Close(), mem.Close()); err != nil {
			t.Error(err)
		}
	})
	return d, g, mem
}

func TestConfig(t *testing.T) {
	d := New(&memory{bytes: make([]byte, 2<<20)})
	d.Place(start)
	b := make([]byte, configEnd+4)
	b[configEnd] = 1
	d.ReadConfig(0, b)
	if binary.LittleEndian.Uint64(b) != start || binary.LittleEndian.Uint64(b[8:]) != 2<<20 || b[configEnd] != 0 {
		t.Errorf("% x", b)
	}
	d.ReadConfig(configEnd, b[:4])
	d.ReadConfig(^uint32(0), b[4:8])
	if binary.LittleEndian.Uint64(b) != 0 {
		t.Errorf("behind the end: % x", b[:8])
	}
}

func TestFlush(t *testing.T) {
	m := &memory{bytes: make([]byte, 2<<20)}
	_, g, mem := startGuest(t, m)
	for _, c := range []struct {
		kind   uint32
		fails  bool
		answer uint32
	}{{typeFlush, false, 0}, {typeFlush, true, failed}, {1, false, failed}} {
		m.fails.Store(c.fails)
		binary.LittleEndian.PutUint32(mem.Bytes[requests:], c.kind)
		binary.LittleEndian.PutUint32(mem.Bytes[answers:], 0x55)
		q := g.Queues[0]
		from := q.Added()
		q.Add(virtiotest.Buffer{Addr: requests, Len: requestSize}, virtiotest.Buffer{Addr: answers, Len: responseSize, Write: true})
		q.Kick(from)
		if _, n := q.Wait(); n != responseSize {
			t.Errorf("%d bytes", n)
		}
		if got := binary.LittleEndian.Uint32(mem.Bytes[answers:]); got != c.answer {
			t.Errorf("request %d, which fails: %v: %#x", c.kind, c.fails, got)
		}
	}
	if n := m.flushes.Load(); n != 2 {
		t.Errorf("%d flushes", n)
	}
}

// TestState moves to memory at the same place only.
func TestState(t *testing.T) {
	d := New(&memory{bytes: make([]byte, 2<<20)})
	d.Place(start)
	s, err := d.Save()
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Load(b); err != nil {
		t.Error(err)
	}
	for _, c := range []struct {
		at   uint64
		size int
	}{{start + 1<<30, 2 << 20}, {start, 4 << 20}} {
		other := New(&memory{bytes: make([]byte, c.size)})
		other.Place(c.at)
		if err := other.Load(b); err == nil {
			t.Errorf("loaded by %d bytes at %#x", c.size, c.at)
		}
	}
}
