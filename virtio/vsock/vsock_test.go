package vsock

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmm/virtio/virtiotest"
)

const (
	guestCID  = 7
	slots     = 64
	slotSize  = 4 << 10
	guestRoom = 64 << 10 // the guest's bufAlloc
)

// peer is the guest's side: packets out of the transmit queue's slots and into
// the receive queue's.
type peer struct {
	t   testing.TB
	g   *virtiotest.Guest
	dev *Device
	mem *virtiotest.Memory

	inSlot map[uint16]uint64 // receive buffers by head
	mu     sync.Mutex        // of the transmit queue
	out    int
}

func start(t testing.TB, o Options) *peer {
	t.Helper()
	o.CID = guestCID
	dev, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	mem, err := virtiotest.NewMemory(8 << 20)
	if err != nil {
		t.Fatal(err)
	}
	g, err := virtiotest.Start(dev, mem, slots, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(g.Close(), mem.Close()); err != nil {
			t.Error(err)
		}
	})
	return &peer{t: t, g: g, dev: dev, mem: mem, inSlot: map[uint16]uint64{}}
}

// supply gives n receive buffers.
func (p *peer) supply(n int) {
	q := p.g.Queues[queueReceive]
	from := q.Added()
	for range n {
		addr := virtiotest.QueueEnd(3) + uint64(len(p.inSlot))*slotSize
		head, ok := q.Add(virtiotest.Buffer{Addr: addr, Len: slotSize, Write: true})
		if !ok {
			p.t.Fatal("no descriptors")
		}
		p.inSlot[head] = addr
	}
	q.Kick(from)
}

// send is a packet of the guest's.
func (p *peer) send(h header, data []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	q := p.g.Queues[queueTransmit]
	addr := virtiotest.QueueEnd(3) + slots*slotSize + uint64(p.out%slots)*slotSize
	p.out++
	var b [headerSize]byte
	h.kind, h.srcCID, h.dstCID, h.size = typeStream, guestCID, HostCID, uint32(len(data))
	if h.bufAlloc == 0 {
		h.bufAlloc = guestRoom
	}
	h.encode(&b)
	copy(p.mem.Bytes[addr:], append(b[:], data...))
	chain := []virtiotest.Buffer{{Addr: addr, Len: headerSize}}
	if len(data) > 0 {
		chain = append(chain, virtiotest.Buffer{Addr: addr + headerSize, Len: uint32(len(data))})
	}
	from := q.Added()
	if _, ok := q.Add(chain...); !ok {
		p.t.Fatal("no descriptors")
	}
	q.Kick(from)
	q.Wait()
}

// next is the next packet for the guest; its buffer is supplied again.
func (p *peer) next() (header, []byte) {
	p.t.Helper()
	return p.nextFor(guestCID)
}

// nextFor is next, to an address.
func (p *peer) nextFor(cid uint64) (header, []byte) {
	p.t.Helper()
	q := p.g.Queues[queueReceive]
	head, n, ok := q.WaitFor(20 * time.Second)
	if !ok {
		p.t.Fatal("no packet came: ", p.g.Errors())
	}
	addr := p.inSlot[head]
	delete(p.inSlot, head)
	var b [headerSize]byte
	copy(b[:], p.mem.Bytes[addr:])
	var h header
	h.decode(&b)
	data := bytes.Clone(p.mem.Bytes[addr+headerSize : addr+uint64(n)])
	if int(h.size) != len(data) || h.srcCID != HostCID || h.dstCID != cid || h.kind != typeStream {
		p.t.Fatalf("packet %+v with %d bytes", h, len(data))
	}
	from := q.Added()
	again, _ := q.Add(virtiotest.Buffer{Addr: addr, Len: slotSize, Write: true})
	p.inSlot[again] = addr
	q.Kick(from)
	return h, data
}

// want is next, of an operation.
func (p *peer) want(op uint16) (header, []byte) {
	p.t.Helper()
	h, data := p.next()
	if h.op != op {
		p.t.Fatalf("operation %d, want %d", h.op, op)
	}
	return h, data
}

// connect makes a connection from guest port 1000 to host port 5.
func (p *peer) connect() {
	p.t.Helper()
	p.send(header{srcPort: 1000, dstPort: 5, op: opRequest}, nil)
	p.want(opResponse)
}

func (p *peer) rw(data []byte) { p.send(header{srcPort: 1000, dstPort: 5, op: opRW}, data) }

// serving returns options that hand out what is accepted.
func serving() (Options, chan *Conn) {
	conns := make(chan *Conn, 16)
	return Options{Connect: func(port uint32) (func(*Conn), error) {
		if port != 5 {
			return nil, os.ErrNotExist
		}
		return func(c *Conn) { conns <- c }, nil
	}}, conns
}

func TestStream(t *testing.T) {
	o, conns := serving()
	p := start(t, o)
	p.supply(8)
	p.send(header{srcPort: 1000, dstPort: 6, op: opRequest}, nil)
	p.want(opReset) // nobody listens on port 6
	p.send(header{srcPort: 1000, dstPort: 5, op: opRW}, []byte("stray"))
	p.want(opReset)
	p.connect()
	c := <-conns
	if got := c.LocalAddr().String() + " " + c.RemoteAddr().String(); got != "2:5 7:1000" {
		t.Errorf("addresses %s", got)
	}

	p.rw([]byte("hello "))
	p.rw([]byte("host"))
	b := make([]byte, 10)
	if _, err := io.ReadFull(c, b); err != nil || string(b) != "hello host" {
		t.Errorf("read %q, %v", b, err)
	}
	if n, err := c.Write([]byte("hello guest")); n != 11 || err != nil {
		t.Errorf("wrote %d, %v", n, err)
	}
	h, data := p.want(opRW)
	if string(data) != "hello guest" || h.fwdCnt != 10 || h.bufAlloc != bufAlloc {
		t.Errorf("the guest got %q with %+v", data, h)
	}

	// Half-close: the guest ends, the host still sends.
	p.send(header{srcPort: 1000, dstPort: 5, op: opShutdown, flags: shutdownSend}, nil)
	if n, err := c.Read(b); n != 0 || err != io.EOF {
		t.Errorf("after the guest's end: %d, %v", n, err)
	}
	if _, err := c.Write([]byte("still")); err != nil {
		t.Error(err)
	}
	p.want(opRW)
	c.CloseWrite()
	if h, _ := p.want(opShutdown); h.flags != shutdownSend {
		t.Errorf("CloseWrite: flags %d", h.flags)
	}
	if _, err := c.Write(b); !errors.Is(err, net.ErrClosed) {
		t.Errorf("writing after CloseWrite: %v", err)
	}
	c.Close()
	if h, _ := p.want(opShutdown); h.flags != shutdownBoth {
		t.Errorf("Close: flags %d", h.flags)
	}
	p.send(header{srcPort: 1000, dstPort: 5, op: opReset}, nil)
	p.dev.mu.Lock()
	defer p.dev.mu.Unlock()
	if n := len(p.dev.conns); n != 0 {
		t.Errorf("%d connections are left", n)
	}
}

// TestGuestCloses: what the guest sent before its close is still read.
func TestGuestCloses(t *testing.T) {
	o, conns := serving()
	p := start(t, o)
	p.supply(8)
	p.connect()
	c := <-conns
	p.rw([]byte("last words"))
	p.send(header{srcPort: 1000, dstPort: 5, op: opShutdown, flags: shutdownBoth}, nil)
	p.want(opReset)
	if b, err := io.ReadAll(c); err != nil || string(b) != "last words" {
		t.Errorf("read %q, %v", b, err)
	}
	if _, err := c.Write([]byte("x")); !errors.Is(err, unix.EPIPE) {
		t.Errorf("writing: %v", err)
	}
	p.connect()
	c = <-conns
	p.send(header{srcPort: 1000, dstPort: 5, op: opReset}, nil)
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("after a reset: %v", err)
	}
}

func TestDial(t *testing.T) {
	p := start(t, Options{})
	p.supply(8)
	ctx, cancel := context.WithCancel(context.Background())
	type result struct {
		c   *Conn
		err error
	}
	dial := func() chan result {
		out := make(chan result, 1)
		go func() {
			c, err := p.dev.Dial(ctx, 80)
			out <- result{c, err}
		}()
		return out
	}
	r := dial()
	h, _ := p.want(opRequest)
	if h.dstPort != 80 || h.srcPort < firstPort {
		t.Errorf("request %+v", h)
	}
	p.send(header{srcPort: 80, dstPort: h.srcPort, op: opResponse}, nil)
	got := <-r
	if got.err != nil {
		t.Fatal(got.err)
	}
	if _, err := got.c.Write([]byte("x")); err != nil {
		t.Error(err)
	}
	p.want(opRW)
	got.c.SetReadDeadline(time.Now().Add(time.Millisecond))
	if _, err := got.c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("after the deadline: %v", err)
	}

	r = dial()
	h, _ = p.want(opRequest)
	p.send(header{srcPort: 80, dstPort: h.srcPort, op: opReset}, nil)
	if got := <-r; !errors.Is(got.err, unix.ECONNREFUSED) {
		t.Errorf("refused: %v", got.err)
	}

	r = dial()
	p.want(opRequest)
	cancel()
	if got := <-r; !errors.Is(got.err, context.Canceled) {
		t.Errorf("cancelled: %v", got.err)
	}
	p.want(opReset)

	p.g.Reset()
	if _, err := p.dev.Dial(context.Background(), 80); !errors.Is(err, ErrNoDriver) {
		t.Errorf("without a driver: %v", err)
	}
}

// TestCredit holds both sides to what the other has room for.
func TestCredit(t *testing.T) {
	o, conns := serving()
	p := start(t, o)
	p.supply(32)
	p.connect()
	c := <-conns
	sent := make([]byte, 3*guestRoom)
	rand.Read(sent)
	wrote := make(chan error, 1)
	go func() {
		_, err := c.Write(sent)
		wrote <- err
	}()
	var got []byte
	for len(got) < len(sent) {
		if len(got)%guestRoom == 0 && len(got) > 0 {
			if _, _, ok := p.g.Queues[queueReceive].WaitFor(20 * time.Millisecond); ok {
				t.Fatal("more came than the guest has room for")
			}
			p.send(header{srcPort: 1000, dstPort: 5, op: opCreditUpdate, fwdCnt: uint32(len(got))}, nil)
		}
		_, data := p.want(opRW)
		got = append(got, data...)
	}
	if err := <-wrote; err != nil || !bytes.Equal(got, sent) {
		t.Errorf("what the guest got is not what was sent: %v", err)
	}

	// The guest fills the host's buffer, and one byte more.
	chunk := make([]byte, slotSize-headerSize)
	left := bufAlloc
	for left > 0 {
		n := min(left, len(chunk))
		p.rw(chunk[:n])
		left -= n
	}
	p.send(header{srcPort: 1000, dstPort: 5, op: opCreditRequest}, nil)
	if h, _ := p.want(opCreditUpdate); h.fwdCnt != 0 {
		t.Errorf("nothing was read, and the guest is told of %d", h.fwdCnt)
	}
	if _, err := io.CopyN(io.Discard, struct{ io.Reader }{c}, bufAlloc/2); err != nil {
		t.Fatal(err)
	}
	if h, _ := p.want(opCreditUpdate); h.fwdCnt != bufAlloc/2 {
		t.Errorf("the guest is told of %d read", h.fwdCnt)
	}
	for range bufAlloc/2/len(chunk) + 1 {
		p.rw(chunk)
	}
	p.want(opReset)
}

// TestNoBuffers: a guest that takes nothing is not listened to for ever.
func TestNoBuffers(t *testing.T) {
	p := start(t, Options{})
	q := p.g.Queues[queueTransmit]
	addr := virtiotest.QueueEnd(3) + slots*slotSize
	var b [headerSize]byte
	h := header{srcCID: guestCID, dstCID: HostCID, kind: typeStream, op: opRequest}
	h.encode(&b)
	copy(p.mem.Bytes[addr:], b[:])
	done := 0
	for {
		from := q.Added()
		if _, ok := q.Add(virtiotest.Buffer{Addr: addr, Len: headerSize}); !ok {
			t.Fatal("no descriptors")
		}
		q.Kick(from)
		if _, _, ok := q.WaitFor(200 * time.Millisecond); !ok {
			break
		}
		if done++; done > 2*maxControl {
			t.Fatal("the device answers without end")
		}
	}
	if done != maxControl {
		t.Errorf("%d packets were taken, want %d", done, maxControl)
	}
	p.supply(8)
	for range maxControl + 1 {
		p.want(opReset)
	}
}

func TestRing(t *testing.T) {
	var r ring
	var want []byte
	src := make([]byte, 9000)
	rand.Read(src)
	for i := range 200 {
		n := (i * 977) % len(src)
		r.put(src[:n])
		want = append(want, src[:n]...)
		for k := (i * 1013) % (len(want) + 1); k > 0; {
			f := r.front()
			f = f[:min(len(f), k)]
			if !bytes.Equal(f, want[:len(f)]) {
				t.Fatal("the bytes are not those that were put in")
			}
			r.drop(len(f))
			want = want[len(f):]
			k -= len(f)
		}
		if r.n != len(want) {
			t.Fatalf("%d bytes in it, want %d", r.n, len(want))
		}
	}
}

// FuzzPacket lets the guest send any packets: the device goes on serving.
func FuzzPacket(f *testing.F) {
	var b [headerSize]byte
	for op := range uint16(8) {
		h := header{srcCID: guestCID, dstCID: HostCID, srcPort: 1000, dstPort: 5, kind: typeStream, op: op, bufAlloc: 1 << 16}
		h.encode(&b)
		f.Add(append(b[:], 1, 2, 3))
	}
	o, conns := serving()
	go func() {
		for c := range conns {
			go func() {
				io.Copy(c, io.LimitReader(c, 1<<16))
				c.Close()
			}()
		}
	}()
	p := start(f, o)
	p.supply(32)
	f.Fuzz(func(t *testing.T, packets []byte) {
		for len(packets) >= headerSize {
			var b [headerSize]byte
			copy(b[:], packets)
			var h header
			h.decode(&b)
			n := min(len(packets)-headerSize, int(h.size%64))
			data := packets[headerSize:][:n]
			packets = packets[headerSize+n:]
			p.send(h, data)
			for {
				q := p.g.Queues[queueReceive]
				if _, _, ok := q.Next(); !ok {
					break
				}
				from := q.Added()
				q.Add(virtiotest.Buffer{Addr: virtiotest.QueueEnd(3), Len: slotSize, Write: true})
				q.Kick(from)
			}
		}
		if p.g.NeedsReset() {
			t.Fatal(p.g.Errors())
		}
	})
}
