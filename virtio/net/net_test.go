package net

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"vmm/network/ether"
	"vmm/virtio"
	"vmm/virtio/virtiotest"
)

// fakeLink keeps what the device sends.
type fakeLink struct {
	nic ether.NIC

	mu       sync.Mutex
	frames   [][]byte
	headers  []ether.Header
	offloads ether.Offloads
	ready    atomic.Int64
}

func (l *fakeLink) Attach(n ether.NIC) { l.nic = n }
func (l *fakeLink) Sent(int)           {}
func (l *fakeLink) Ready()             { l.ready.Add(1) }
func (l *fakeLink) Close() error       { return nil }
func (l *fakeLink) Offloads(o ether.Offloads) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.offloads = o
}

func (l *fakeLink) Send(_ int, h ether.Header, parts [][]byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.frames = append(l.frames, bytes.Join(parts, nil))
	l.headers = append(l.headers, h)
}

func (l *fakeLink) taken() ether.Offloads {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.offloads
}

func (l *fakeLink) sent() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.frames)
}

var testMAC = ether.MAC{2, 1, 2, 3, 4, 5}

// rig is a device with its guest.
type rig struct {
	t    testing.TB
	link *fakeLink
	dev  *Device
	g    *virtiotest.Guest
}

func start(t testing.TB, o Options, without uint64) *rig {
	t.Helper()
	o.MAC = testMAC
	r := &rig{t: t, link: &fakeLink{}}
	var err error
	if r.dev, err = New(r.link, o); err != nil {
		t.Fatal(err)
	}
	mem, err := virtiotest.NewMemory(16 << 20)
	if err != nil {
		t.Fatal(err)
	}
	if r.g, err = virtiotest.Start(r.dev, mem, 64, without); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		r.g.Close()
		mem.Close()
	})
	return r
}

// area is guest memory for buffer number i, of 128 KiB.
func area(i int) uint64 { return virtiotest.QueueEnd(2*4+1) + uint64(i)<<17 }

// give adds receive buffers of a size, and returns the areas by their chains.
func (r *rig) give(n, size int) map[uint16]uint64 {
	q := r.g.Queues[0]
	out := map[uint16]uint64{}
	from := q.Added()
	for i := range n {
		head, ok := q.Add(virtiotest.Buffer{Addr: area(i), Len: uint32(size), Write: true})
		if !ok {
			r.t.Fatal("the ring is full")
		}
		out[head] = area(i)
	}
	q.Kick(from)
	for r.link.ready.Load() == 0 { // the device knows of the queue
		time.Sleep(time.Millisecond)
	}
	return out
}

// received takes one packet out of the receive queue.
func (r *rig) received(buffers map[uint16]uint64) (ether.Header, []byte) {
	r.t.Helper()
	q := r.g.Queues[0]
	var all []byte
	var h ether.Header
	for n := 0; n == 0 || n < int(h.Buffers); n++ {
		head, size, ok := q.WaitFor(10 * time.Second)
		if !ok {
			r.t.Fatalf("buffer %d of the packet did not come", n)
		}
		b := r.g.Mem.Bytes[buffers[head]:][:size]
		if n == 0 {
			h = ether.Decode(b)
			b = b[ether.HeaderSize:]
		}
		all = append(all, b...)
	}
	return h, all
}

func frame(n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{byte(n)}).Read(b)
	copy(b, testMAC[:])
	return b
}

// TestReceive puts frames into buffers that are large, small, and just right.
func TestReceive(t *testing.T) {
	for _, size := range []int{128 << 10, 1526, 100} {
		r := start(t, Options{}, 0)
		buffers := r.give(60, size)
		f := frame(1514)
		h := ether.Header{Flags: ether.NeedsChecksum, ChecksumStart: 34, ChecksumOffset: 16}
		if !r.link.nic.Receive(0, h, [][]byte{f[:10], f[10:700], nil, f[700:]}) {
			t.Fatalf("buffers of %d: no room", size)
		}
		r.link.nic.Flush()
		got, data := r.received(buffers)
		if want := (1514 + ether.HeaderSize + size - 1) / size; int(got.Buffers) != want || !bytes.Equal(data, f) {
			t.Errorf("buffers of %d: %d of them, want %d; the same: %v", size, got.Buffers, want, bytes.Equal(data, f))
		}
		if got.Flags != h.Flags || got.ChecksumStart != 34 || got.ChecksumOffset != 16 {
			t.Errorf("header %+v", got)
		}
	}
}

// TestNoRoom wants to be told when buffers come.
func TestNoRoom(t *testing.T) {
	for name, without := range map[string]uint64{"event index": 0, "flags": virtio.FeatureEventIdx} {
		t.Run(name, func(t *testing.T) {
			r := start(t, Options{}, without)
			buffers := r.give(2, 600)
			before := r.link.ready.Load()
			if r.link.nic.Receive(0, ether.Header{}, [][]byte{frame(1500)}) {
				t.Fatal("1500 bytes fit in two buffers of 600")
			}
			q := r.g.Queues[0]
			from := q.Added()
			head, _ := q.Add(virtiotest.Buffer{Addr: area(2), Len: 600, Write: true})
			buffers[head] = area(2)
			q.Kick(from)
			for deadline := time.Now().Add(10 * time.Second); r.link.ready.Load() == before; time.Sleep(time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatal("the link is not told of room")
				}
			}
			if !r.link.nic.Receive(0, ether.Header{}, [][]byte{frame(1500)}) {
				t.Fatal("still no room")
			}
			r.link.nic.Flush()
			if h, data := r.received(buffers); h.Buffers != 3 || !bytes.Equal(data, frame(1500)) {
				t.Errorf("%d buffers, %d bytes", h.Buffers, len(data))
			}
		})
	}
}

// TestWithoutOffloads has a driver that takes nothing: checksums are made, and
// segments cut.
func TestWithoutOffloads(t *testing.T) {
	r := start(t, Options{}, featureGuestChecksum|featureGuestTSO4|featureGuestTSO6|featureMergeable|featureGuestUSO4|featureGuestUSO6)
	buffers := r.give(60, 1600)
	f := frame(66 + 3000)
	copy(f[12:], []byte{8, 0, 0x45})
	f[14+9] = 6       // TCP
	f[34+12] = 8 << 4 // with options
	h := ether.Header{Flags: ether.NeedsChecksum, ChecksumStart: 34, ChecksumOffset: 16, GSOType: ether.GSOTCPv4, GSOSize: 1460, HeaderLength: 66}
	if !r.link.nic.Receive(0, h, [][]byte{f}) {
		t.Fatal("no room")
	}
	r.link.nic.Flush()
	total := 0
	for range 3 {
		got, data := r.received(buffers)
		if got.Flags != 0 || got.Segmented() || len(data) > 1526 {
			t.Errorf("%d bytes with %+v", len(data), got)
		}
		total += len(data) - 66
	}
	if total != 3000 {
		t.Errorf("%d bytes of payload", total)
	}
	// A frame that can never fit is no reason to wait.
	if !r.link.nic.Receive(0, ether.Header{}, [][]byte{frame(5000)}) {
		t.Error("5000 bytes wait for buffers of 1600")
	}
	if in, _ := r.dev.Counts(); in.Packets != 3 || in.Dropped != 1 {
		t.Errorf("counts %+v", in)
	}
}

// TestTransmit sends frames in descriptors of all kinds.
func TestTransmit(t *testing.T) {
	r := start(t, Options{}, 0)
	q := r.g.Queues[1]
	f := frame(1000)
	h := ether.Header{Flags: ether.NeedsChecksum, GSOType: ether.GSOTCPv4, GSOSize: 500, ChecksumStart: 34, ChecksumOffset: 16}
	h.Encode(r.g.Mem.Bytes[area(0):])
	copy(r.g.Mem.Bytes[area(0)+ether.HeaderSize:], f)
	for _, chain := range [][]virtiotest.Buffer{
		{{Addr: area(0), Len: 1012}},
		{{Addr: area(0), Len: 12}, {Addr: area(0) + 12, Len: 1000}},
		{{Addr: area(0), Len: 5}, {Addr: area(0) + 5, Len: 8}, {Addr: area(0) + 13, Len: 999}},
	} {
		from, before := q.Added(), r.link.sent()
		q.Add(chain...)
		q.Kick(from)
		if _, _, ok := q.WaitFor(10 * time.Second); !ok || r.link.sent() != before+1 {
			t.Fatalf("%v: not sent", chain)
		}
		r.link.mu.Lock()
		if got := r.link.frames[before]; !bytes.Equal(got, f) || r.link.headers[before] != h {
			t.Errorf("%v: %d bytes, %+v", chain, len(got), r.link.headers[before])
		}
		r.link.mu.Unlock()
	}
	// Too short for a frame: dropped. Too short for a header: the driver is broken.
	from := q.Added()
	q.Add(virtiotest.Buffer{Addr: area(0), Len: 20})
	q.Kick(from)
	q.WaitFor(10 * time.Second)
	if _, out := r.dev.Counts(); out.Packets != 3 || out.Dropped != 1 {
		t.Errorf("counts %+v", out)
	}
	from = q.Added()
	q.Add(virtiotest.Buffer{Addr: area(0), Len: 11})
	q.Kick(from)
	for deadline := time.Now().Add(10 * time.Second); !r.g.NeedsReset(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("half a header is fine")
		}
	}
}

// order sends a command by the control queue and returns the answer.
func (r *rig) order(class, number byte, data ...byte) byte {
	r.t.Helper()
	q := r.g.Queues[len(r.g.Queues)-1]
	copy(r.g.Mem.Bytes[area(1):], append([]byte{class, number}, data...))
	r.g.Mem.Bytes[area(2)] = 99
	from := q.Added()
	q.Add(virtiotest.Buffer{Addr: area(1), Len: uint32(2 + len(data))}, virtiotest.Buffer{Addr: area(2), Len: 1, Write: true})
	q.Kick(from)
	if _, _, ok := q.WaitFor(10 * time.Second); !ok {
		r.t.Fatal("no answer")
	}
	return r.g.Mem.Bytes[area(2)]
}

// TestControl gives commands, right and wrong, and looks at what they do.
func TestControl(t *testing.T) {
	r := start(t, Options{Pairs: 4}, 0)
	other, group := ether.MAC{2, 9, 9, 9, 9, 9}, ether.MAC{0x33, 0x33, 0, 0, 0, 1}
	to := func(m ether.MAC) bool { return r.dev.filter.accepts([][]byte{m[:3], m[3:]}) }
	if !to(testMAC) || !to(ether.Broadcast) || to(other) || to(group) {
		t.Error("the filter that a driver begins with")
	}
	table := func(macs ...ether.MAC) []byte {
		b := binary.LittleEndian.AppendUint32(nil, uint32(len(macs)))
		for _, m := range macs {
			b = append(b, m[:]...)
		}
		return b
	}
	for _, c := range []struct {
		name          string
		class, number byte
		data          []byte
		ack           byte
		want          func() bool
	}{
		{"promiscuous", classRX, rxPromiscuous, []byte{1}, ackOK, func() bool { return to(other) && to(group) }},
		{"not promiscuous", classRX, rxPromiscuous, []byte{0}, ackOK, func() bool { return !to(other) && !to(group) }},
		{"all groups", classRX, rxAllMulti, []byte{1}, ackOK, func() bool { return !to(other) && to(group) }},
		{"not all groups", classRX, rxAllMulti, []byte{0}, ackOK, func() bool { return !to(group) }},
		{"tables", classMAC, macTableSet, append(table(other), table(group)...), ackOK, func() bool { return to(other) && to(group) && to(testMAC) }},
		{"one table", classMAC, macTableSet, table(other), ackErr, func() bool { return to(group) }},
		{"a table that is cut off", classMAC, macTableSet, append(table(other, group)[:12], table()...), ackErr, nil},
		{"another address", classMAC, macAddrSet, other[:], ackOK, func() bool { return to(other) && r.dev.MAC() == other }},
		{"half an address", classMAC, macAddrSet, other[:3], ackErr, func() bool { return r.dev.MAC() == other }},
		{"three pairs", classMQ, mqPairsSet, []byte{3, 0}, ackOK, func() bool { return r.dev.pairs.Load() == 3 }},
		{"no pairs", classMQ, mqPairsSet, []byte{0, 0}, ackErr, func() bool { return r.dev.pairs.Load() == 3 }},
		{"too many pairs", classMQ, mqPairsSet, []byte{5, 0}, ackErr, func() bool { return r.dev.pairs.Load() == 3 }},
		{"offloads", classGuest, offloadsSet, []byte{featureGuestChecksum, 0, 0, 0, 0, 0, 0, 0}, ackOK, func() bool {
			return r.link.taken() == ether.Offloads{Checksum: true}
		}},
		{"others' offloads", classGuest, offloadsSet, []byte{featureMAC, 0, 0, 0, 0, 0, 0, 0}, ackErr, nil},
		{"an unknown class", 77, 0, nil, ackErr, nil},
		{"an unknown command", classRX, 9, []byte{1}, ackErr, nil},
	} {
		if ack := r.order(c.class, c.number, c.data...); ack != c.ack || c.want != nil && !c.want() {
			t.Errorf("%s: answer %d, want %d; as wanted: %v", c.name, ack, c.ack, c.want == nil || c.want())
		}
	}
}

// config reads the configuration's first bytes.
func (r *rig) config() []byte {
	b := make([]byte, configSize)
	r.dev.ReadConfig(0, b)
	return b
}

// TestLink plugs the cable out and in.
func TestLink(t *testing.T) {
	r := start(t, Options{MTU: 9000}, 0)
	buffers := r.give(4, 2000)
	if c := r.config(); ether.MAC(c[:6]) != testMAC || c[configStatus] != statusLinkUp || binary.LittleEndian.Uint16(c[configMTU:]) != 9000 {
		t.Errorf("configuration % x", c)
	}
	r.dev.SetUp(false)
	if c := r.config(); c[configStatus] != 0 || r.dev.Up() {
		t.Errorf("the link is up: % x", c)
	}
	if !r.link.nic.Receive(0, ether.Header{}, [][]byte{frame(100)}) {
		t.Error("a frame waits for the cable")
	}
	r.dev.SetUp(true)
	if c := r.config(); c[configStatus] != statusLinkUp|statusAnnounce {
		t.Errorf("status %d", c[configStatus])
	}
	if ack := r.order(classAnnounce, announceAck); ack != ackOK || r.config()[configStatus] != statusLinkUp {
		t.Errorf("answer %d, status %d", ack, r.config()[configStatus])
	}
	r.link.nic.Receive(0, ether.Header{}, [][]byte{frame(100)})
	r.link.nic.Flush()
	if _, data := r.received(buffers); !bytes.Equal(data, frame(100)) {
		t.Error("not the frame that came when the cable was in")
	}
}

// TestLimit has a device that may receive ten packets a second: the eleventh at
// once must wait.
func TestLimit(t *testing.T) {
	r := start(t, Options{Limit: Limit{PacketsPerSecond: 10}}, 0)
	r.give(60, 2000)
	took := 0
	for r.link.nic.Receive(0, ether.Header{}, [][]byte{frame(100)}) {
		if took++; took > 40 {
			t.Fatal("there is no limit")
		}
	}
	if took < 10 {
		t.Errorf("only %d at once", took)
	}
	// Whenever the link is told to go on, it tries again.
	for seen, deadline := r.link.ready.Load(), time.Now().Add(10*time.Second); ; time.Sleep(time.Millisecond) {
		if now := r.link.ready.Load(); now != seen {
			if r.link.nic.Receive(0, ether.Header{}, [][]byte{frame(100)}) {
				return
			}
			seen = now
		}
		if time.Now().After(deadline) {
			t.Fatal("the link is not told to go on")
		}
	}
}

// TestReset resets the device while frames come.
func TestReset(t *testing.T) {
	r := start(t, Options{}, 0)
	r.give(60, 2000)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 2000 {
			r.link.nic.Receive(0, ether.Header{}, [][]byte{frame(500)})
			r.link.nic.Flush()
		}
	}()
	r.g.Reset()
	<-done
	if !r.link.nic.Receive(0, ether.Header{}, [][]byte{frame(500)}) {
		t.Error("a device without a driver makes its link wait")
	}
	if got := r.link.taken(); got != (ether.Offloads{}) {
		t.Errorf("offloads %+v", got)
	}
}

func TestNew(t *testing.T) {
	for _, o := range []Options{{MTU: 10}, {MTU: 70000}, {Pairs: MaxPairs + 1}} {
		if _, err := New(&fakeLink{}, o); err == nil {
			t.Errorf("%+v was accepted", o)
		}
	}
}

// BenchmarkReceive guards the receive path: no allocation a packet.
func BenchmarkReceive(b *testing.B) {
	r := start(b, Options{}, 0)
	buffers := r.give(32, 2000)
	q := r.g.Queues[0]
	f := [][]byte{frame(1500)}
	for b.Loop() {
		if !r.link.nic.Receive(0, ether.Header{}, f) {
			b.Fatal("no room")
		}
		head, _, _ := q.Next()
		at := buffers[head]
		delete(buffers, head)
		head, _ = q.Add(virtiotest.Buffer{Addr: at, Len: 2000, Write: true})
		buffers[head] = at
	}
}

// FuzzNet lets the guest send anything by the transmit and the control queue.
func FuzzNet(f *testing.F) {
	f.Add(make([]byte, 100), uint16(100), false)
	f.Add([]byte{classMAC, macTableSet, 1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 0, 0, 0, 0}, uint16(2), true)
	dev, err := New(&fakeLink{}, Options{MAC: testMAC})
	if err != nil {
		f.Fatal(err)
	}
	mem, err := virtiotest.NewMemory(4 << 20)
	if err != nil {
		f.Fatal(err)
	}
	g, err := virtiotest.Start(dev, mem, 64, 0)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { g.Close(); mem.Close() })
	at := virtiotest.QueueEnd(3)
	f.Fuzz(func(t *testing.T, data []byte, split uint16, control bool) {
		if len(data) == 0 || len(data) > 1<<16 || g.NeedsReset() {
			return
		}
		copy(mem.Bytes[at:], data)
		q, chain := g.Queues[1], []virtiotest.Buffer{}
		if n := int(split); n > 0 && n < len(data) {
			chain = append(chain, virtiotest.Buffer{Addr: at, Len: uint32(n)}, virtiotest.Buffer{Addr: at + uint64(n), Len: uint32(len(data) - n)})
		} else {
			chain = append(chain, virtiotest.Buffer{Addr: at, Len: uint32(len(data))})
		}
		if control {
			q = g.Queues[2]
			chain = append(chain, virtiotest.Buffer{Addr: at + 1<<17, Len: 1, Write: true})
		} else if len(data) < ether.HeaderSize {
			return // ends the device, and the fuzzing
		}
		from := q.Added()
		q.Add(chain...)
		q.Kick(from)
		if _, _, ok := q.WaitFor(10 * time.Second); !ok {
			t.Fatal("not taken")
		}
	})
}
