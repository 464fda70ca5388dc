package blk

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmm/storage"
	"vmm/virtio/virtiotest"
)

// guest is a disk with a driver.
type guest struct {
	t   *testing.T
	g   *virtiotest.Guest
	mem *virtiotest.Memory
	dev *Device
}

const (
	testDisk = 1 << 20
	header   = 1 << 19 // in guest memory, beyond one queue
	dataAt   = header + 4096
	statusAt = header + 512
)

// rawDisk makes a raw disk of random content.
func rawDisk(t *testing.T, readOnly bool) (storage.Disk, []byte) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk")
	content := make([]byte, testDisk)
	for i := range content {
		content[i] = byte(rand.Uint32())
	}
	if err := os.WriteFile(path, content, 0o644); err != nil {
		t.Fatal(err)
	}
	f, err := storage.OpenFile(path, readOnly, "")
	if err != nil {
		t.Fatal(err)
	}
	return storage.NewRaw(f, false), content
}

func start(t *testing.T, b Backend, o Options, without uint64) *guest {
	t.Helper()
	dev, err := New(b, o)
	if err != nil {
		t.Fatal(err)
	}
	mem, err := virtiotest.NewMemory(8 << 20)
	if err != nil {
		t.Fatal(err)
	}
	g, err := virtiotest.Start(dev, mem, 64, without)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(g.Close(), mem.Close()); err != nil {
			t.Error(err)
		}
	})
	return &guest{t, g, mem, dev}
}

// request does one request with n bytes of data and returns its status.
func (g *guest) request(kind uint32, sector uint64, n int, in bool) byte {
	g.t.Helper()
	d := g.g.Queues[0]
	b := g.mem.Bytes
	binary.LittleEndian.PutUint32(b[header:], kind)
	binary.LittleEndian.PutUint64(b[header+8:], sector)
	b[statusAt] = 0xff
	chain := []virtiotest.Buffer{{Addr: header, Len: 16}}
	if n > 0 {
		chain = append(chain, virtiotest.Buffer{Addr: dataAt, Len: uint32(n), Write: in})
	}
	from := d.Added()
	if _, ok := d.Add(append(chain, virtiotest.Buffer{Addr: statusAt, Len: 1, Write: true})...); !ok {
		g.t.Fatal("no room in the queue")
	}
	d.Kick(from)
	if _, wrote := d.Wait(); in && b[statusAt] == statusOK && kind == typeIn && int(wrote) != n+1 {
		g.t.Errorf("%d bytes written, want %d", wrote, n+1)
	}
	return b[statusAt]
}

func (g *guest) data(n int) []byte { return g.mem.Bytes[dataAt : dataAt+n] }

func TestRequests(t *testing.T) {
	disk, content := rawDisk(t, false)
	g := start(t, disk, Options{Serial: "serial-1"}, 0)
	want := func(got, want byte, what string) {
		t.Helper()
		if got != want {
			t.Errorf("%s: status %d, want %d", what, got, want)
		}
	}
	want(g.request(typeIn, 3, 1024, true), statusOK, "read")
	if !bytes.Equal(g.data(1024), content[3*512:3*512+1024]) {
		t.Error("it read something else")
	}
	copy(g.data(512), bytes.Repeat([]byte{0xab}, 512))
	want(g.request(typeOut, 5, 512, false), statusOK, "write")
	want(g.request(typeIn, 5, 512, true), statusOK, "read")
	if g.data(1)[0] != 0xab {
		t.Error("what was written is not read")
	}
	want(g.request(typeFlush, 0, 0, false), statusOK, "flush")
	want(g.request(typeGetID, 0, MaxSerial, true), statusOK, "get ID")
	if !bytes.HasPrefix(g.data(20), []byte("serial-1\x00")) {
		t.Errorf("serial %q", g.data(20))
	}
	last := uint64(testDisk/512 - 1)
	want(g.request(typeIn, last, 512, true), statusOK, "the last sector")
	want(g.request(typeIn, last, 1024, true), statusIOErr, "beyond the end")
	want(g.request(typeOut, last+1, 512, false), statusIOErr, "write beyond the end")
	want(g.request(typeIn, 1<<60, 512, true), statusIOErr, "an offset that overflows")
	want(g.request(typeIn, 0, 100, true), statusIOErr, "half a sector")
	want(g.request(99, 0, 0, false), statusUnsupp, "unknown")

	segment := func(sector uint64, n, flags uint32) {
		b := g.data(16)
		binary.LittleEndian.PutUint64(b, sector)
		binary.LittleEndian.PutUint32(b[8:], n)
		binary.LittleEndian.PutUint32(b[12:], flags)
	}
	for _, kind := range []uint32{typeDiscard, typeWriteZeroes} {
		segment(8, 8, 0)
		want(g.request(kind, 0, 16, false), statusOK, fmt.Sprint("segments of ", kind))
		want(g.request(typeIn, 8, 512, true), statusOK, "read")
		if kind == typeWriteZeroes && !bytes.Equal(g.data(512), make([]byte, 512)) {
			t.Error("zeroes were not written")
		}
		segment(last, 2, 0)
		want(g.request(kind, 0, 16, false), statusIOErr, "segment beyond the end")
		segment(0, 8, 0xf0)
		want(g.request(kind, 0, 16, false), statusUnsupp, "unknown flags")
		want(g.request(kind, 0, 15, false), statusIOErr, "half a segment")
	}
	if g.g.NeedsReset() {
		t.Error("the device gave up:", g.g.Errors())
	}
}

func TestReadOnly(t *testing.T) {
	disk, _ := rawDisk(t, true)
	g := start(t, disk, Options{}, 0)
	if s := g.request(typeOut, 0, 512, false); s != statusIOErr {
		t.Errorf("write: status %d", s)
	}
	if s := g.request(typeIn, 0, 512, true); s != statusOK {
		t.Errorf("read: status %d", s)
	}
}

// TestMalformed wants a device that gives up, and that works after a reset.
func TestMalformed(t *testing.T) {
	disk, _ := rawDisk(t, false)
	g := start(t, disk, Options{}, 0)
	d := g.g.Queues[0]
	d.Put(0, 1<<40, 16, 0, 0)
	from := d.Added()
	d.Publish(0)
	d.Kick(from)
	for deadline := time.Now().Add(10 * time.Second); !g.g.NeedsReset(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the device did not set NEEDS_RESET")
		}
	}
	if len(g.g.Errors()) == 0 {
		t.Error("nobody was told")
	}
	g.g.Reset()
	if g.g.NeedsReset() {
		t.Error("a reset did not help")
	}
}

// slow is a disk whose flushes take their time, and which counts.
type slow struct {
	storage.Disk
	mu      sync.Mutex
	flushes int
	full    bool
}

func (s *slow) Flush() error {
	time.Sleep(10 * time.Millisecond)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.flushes++
	return s.Disk.Flush()
}

func (s *slow) WriteV(v [][]byte, off int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.full {
		return unix.ENOSPC
	}
	return s.Disk.WriteV(v, off)
}

// TestWritethrough: a driver that cannot flush gets every write flushed.
func TestWritethrough(t *testing.T) {
	disk, _ := rawDisk(t, false)
	s := &slow{Disk: disk}
	g := start(t, s, Options{}, featureFlush)
	if st := g.request(typeOut, 0, 512, false); st != statusOK || s.flushes != 1 {
		t.Errorf("status %d and %d flushes", st, s.flushes)
	}
}

// TestResetWaits: a reset returns when no request is under way any more.
func TestResetWaits(t *testing.T) {
	disk, _ := rawDisk(t, false)
	s := &slow{Disk: disk}
	g := start(t, s, Options{}, 0)
	d := g.g.Queues[0]
	binary.LittleEndian.PutUint32(g.mem.Bytes[header:], typeFlush)
	from := d.Added()
	for range 8 {
		d.Add(virtiotest.Buffer{Addr: header, Len: 16}, virtiotest.Buffer{Addr: statusAt, Len: 1, Write: true})
	}
	d.Kick(from)
	d.Wait()
	g.g.Reset()
	s.mu.Lock()
	n := s.flushes
	s.mu.Unlock()
	time.Sleep(30 * time.Millisecond)
	if s.mu.Lock(); s.flushes != n {
		t.Errorf("%d flushes came after the reset", s.flushes-n)
	}
	s.mu.Unlock()
}

// TestNoSpace: without somebody to wait for space, a write fails and that is
// told; with him, it is tried again.
func TestNoSpace(t *testing.T) {
	disk, _ := rawDisk(t, false)
	told := make(chan error, 2)
	g := start(t, &slow{Disk: disk, full: true}, Options{Log: func(err error) { told <- err }}, 0)
	if st := g.request(typeOut, 0, 512, false); st != statusIOErr || len(told) != 1 {
		t.Errorf("status %d, told %d times", st, len(told))
	}

	disk, _ = rawDisk(t, false)
	s := &slow{Disk: disk, full: true}
	var tries atomic.Int32
	g = start(t, s, Options{NoSpace: func(err error, try func() error, done <-chan struct{}) error {
		for ; errors.Is(err, unix.ENOSPC); err = try() {
			if tries.Add(1) == 3 {
				s.mu.Lock()
				s.full = false
				s.mu.Unlock()
			}
		}
		return err
	}}, 0)
	if st := g.request(typeOut, 0, 512, false); st != statusOK || tries.Load() != 3 {
		t.Errorf("status %d after %d tries", st, tries.Load())
	}
}

func TestResize(t *testing.T) {
	disk, _ := rawDisk(t, false)
	g := start(t, disk, Options{}, 0)
	if err := g.dev.Resize(2 * testDisk); err != nil {
		t.Fatal(err)
	}
	if s := g.request(typeIn, testDisk/512, 512, true); s != statusOK {
		t.Errorf("reading the new part: status %d", s)
	}
	var capacity [8]byte
	g.g.PCI.BARRead(0x2000, capacity[:])
	if n := binary.LittleEndian.Uint64(capacity[:]); n != 2*testDisk/512 {
		t.Errorf("capacity %d sectors", n)
	}
}

// FuzzRequest lets the guest send any request.
func FuzzRequest(f *testing.F) {
	seg := make([]byte, 16)
	seg[8] = 8
	f.Add(uint32(typeIn), uint64(0), []byte{}, uint16(512))
	f.Add(uint32(typeOut), uint64(1), make([]byte, 512), uint16(0))
	f.Add(uint32(typeDiscard), uint64(0), seg, uint16(0))
	path := filepath.Join(f.TempDir(), "disk")
	if err := os.WriteFile(path, make([]byte, testDisk), 0o644); err != nil {
		f.Fatal(err)
	}
	file, err := storage.OpenFile(path, false, "")
	if err != nil {
		f.Fatal(err)
	}
	dev, err := New(storage.NewRaw(file, false), Options{})
	if err != nil {
		f.Fatal(err)
	}
	mem, err := virtiotest.NewMemory(2 << 20)
	if err != nil {
		f.Fatal(err)
	}
	g, err := virtiotest.Start(dev, mem, 64, 0)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, kind uint32, sector uint64, out []byte, in uint16) {
		d := g.Queues[0]
		binary.LittleEndian.PutUint32(mem.Bytes[header:], kind)
		binary.LittleEndian.PutUint64(mem.Bytes[header+8:], sector)
		mem.Bytes[statusAt] = 0xff
		chain := []virtiotest.Buffer{{Addr: header, Len: 16}}
		if n := copy(mem.Bytes[dataAt:dataAt+65536], out); n > 0 {
			chain = append(chain, virtiotest.Buffer{Addr: dataAt, Len: uint32(n)})
		}
		if in > 0 {
			chain = append(chain, virtiotest.Buffer{Addr: dataAt + 65536, Len: uint32(in), Write: true})
		}
		from := d.Added()
		d.Add(append(chain, virtiotest.Buffer{Addr: statusAt, Len: 1, Write: true})...)
		d.Kick(from)
		d.Wait()
		if s := mem.Bytes[statusAt]; s > statusUnsupp || g.NeedsReset() {
			t.Errorf("status %d, needs reset: %v", s, g.Errors())
		}
	})
}
