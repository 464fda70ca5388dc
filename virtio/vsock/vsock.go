// Package vsock is the virtio socket device (virtio 1.2, 5.10): streams between
// the guest and this process, without a network. Device.Dial connects to a port
// of the guest; Options.Connect answers the guest's own connections.
package vsock

import (
	"encoding/binary"
	"fmt"
	"sync"

	"vmm/virtio"
)

// The queues (5.10.2).
const (
	queueReceive  = 0
	queueTransmit = 1
	queueEvent    = 2

	queueSize      = 128
	eventQueueSize = 16
)

const (
	// maxConns bounds the connections, those that are being closed included. Each may
	// hold bufAlloc of memory.
	maxConns = 1024
	// maxControl is how many packets without data may wait for a receive buffer
	// before the guest is not listened to: its packets cause them.
	maxControl = 256
	// firstPort is the first of the ports from which Dial connects, in the half of
	// all where guests do not listen by chance.
	firstPort = 1 << 30
)

// Options are a device's properties.
type Options struct {
	// CID is the guest's address, at least MinCID and below 1<<32-1 (5.10.4).
	CID uint64
	// Connect decides on a connection that the guest makes to a port of the host:
	// after an error it is refused, else serve is called with it. Both run in a
	// goroutine of the connection's own. Nil refuses all.
	Connect func(port uint32) (serve func(*Conn), err error)
}

// key names a connection; the CIDs are the same for all.
type key struct{ host, guest uint32 }

// Device is a virtio socket device.
type Device struct {
	opts Options
	tx   virtio.Chain

	mu       sync.Mutex // of all below, and of the connections
	control  virtio.Control
	rx       *virtio.Queue // nil while it does not run
	rxChain  virtio.Chain
	haveRx   bool      // rxChain is popped and not used yet
	room     sync.Cond // a receive buffer may be there
	conns    map[key]*Conn
	waiting  []header // for a receive buffer, in front of all data
	nextPort uint32
	// oldCID is the guest's address before it was loaded, which its driver may
	// still use; moved is set until it was told of the new one.
	oldCID uint64
	moved  bool
}

// New returns a device. The error is about the Options.
func New(o Options) (*Device, error) {
	if o.CID < MinCID || o.CID >= 1<<32-1 {
		return nil, fmt.Errorf("CID %d: a guest's is between %d and %d", o.CID, MinCID, uint32(1<<32-2))
	}
	d := &Device{opts: o, conns: map[key]*Conn{}, nextPort: firstPort}
	d.room.L = &d.mu
	return d, nil
}

// CID is the guest's address (5.10.4).
func (d *Device) CID() uint64 { return d.opts.CID }

// Type implements virtio.Device.
func (d *Device) Type() virtio.DeviceType { return virtio.TypeVsock }

// Features implements virtio.Device. Without any, there are streams (5.10.3).
func (d *Device) Features() uint64 { return 0 }

// QueueSizes implements virtio.Device.
func (d *Device) QueueSizes() []uint16 { return []uint16{queueSize, queueSize, eventQueueSize} }

// IsReceiveQueue implements virtio.Receiver: the event queue is one too.
func (d *Device) IsReceiveQueue(i int) bool { return i != queueTransmit }

// ReadConfig implements virtio.Device: the guest's CID (5.10.4).
func (d *Device) ReadConfig(offset uint32, data []byte) {
	var c [8]byte
	binary.LittleEndian.PutUint64(c[:], d.opts.CID)
	clear(data)
	if offset < uint32(len(c)) {
		copy(data, c[offset:])
	}
}

// WriteConfig implements virtio.Device.
func (d *Device) WriteConfig(uint32, []byte) {}

// Start implements virtio.Device.
func (d *Device) Start(_ uint64, c virtio.Control) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.control = c
}

// StopQueue implements virtio.Device.
func (d *Device) StopQueue(i int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if i == queueReceive {
		if d.haveRx {
			d.rx.Rewind(1)
		}
		d.rx, d.haveRx = nil, false
	}
}

// Reset implements virtio.Device: it ends all connections.
func (d *Device) Reset() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.control, d.waiting = nil, nil
	for _, c := range d.conns {
		c.end(errReset)
	}
	d.room.Broadcast()
}

// Close implements virtio.Device.
func (d *Device) Close() error { return nil }

// HandleQueue implements virtio.Device.
func (d *Device) HandleQueue(i int, q *virtio.Queue) error {
	switch i {
	case queueTransmit:
		return d.transmit(q)
	case queueReceive:
		d.mu.Lock()
		defer d.mu.Unlock()
		d.rx = q
		q.DisableKicks()
		d.flush()
		d.room.Broadcast()
	case queueEvent:
		return d.sendEvent(q)
	}
	return nil
}

// transmit takes the guest's packets.
func (d *Device) transmit(q *virtio.Queue) error {
	defer q.Notify()
	for {
		d.mu.Lock()
		full := len(d.waiting) >= maxControl
		d.mu.Unlock()
		if full {
			return nil // flush wakes this queue
		}
		ok, err := q.Pop(&d.tx)
		if err != nil || !ok {
			return err
		}
		var b [headerSize]byte
		n, data := 0, d.tx.Readable
		for len(data) > 0 && n < headerSize {
			k := copy(b[n:], data[0])
			n += k
			if data[0] = data[0][k:]; len(data[0]) == 0 {
				data = data[1:]
			}
		}
		if n < headerSize {
			return fmt.Errorf("%w: a packet of %d bytes", virtio.ErrMalformed, n)
		}
		var h header
		h.decode(&b)
		d.mu.Lock()
		d.handle(h, data)
		d.mu.Unlock()
		q.Push(&d.tx, 0)
	}
}

// handle takes one packet of the guest's; mu is held.
func (d *Device) handle(h header, data [][]byte) {
	if h.srcCID != d.opts.CID && h.srcCID != d.oldCID {
		return // nobody to tell
	}
	if h.dstCID != HostCID || h.kind != typeStream {
		d.refuse(h)
		return
	}
	k := key{h.dstPort, h.srcPort}
	c := d.conns[k]
	if c == nil {
		if h.op == opRequest && d.opts.Connect != nil && len(d.conns) < maxConns {
			d.accept(k, h)
		} else {
			d.refuse(h)
		}
		return
	}
	c.handle(h, data)
}

// refuse answers a packet of no connection.
func (d *Device) refuse(h header) {
	if h.op != opReset {
		d.tell(header{srcCID: h.dstCID, dstCID: h.srcCID, srcPort: h.dstPort, dstPort: h.srcPort, kind: h.kind, op: opReset})
	}
}

// accept begins a connection that the guest wants; mu is held.
func (d *Device) accept(k key, h header) {
	c := d.newConn(k)
	c.peerAlloc, c.peerFwd = h.bufAlloc, h.fwdCnt
	go func() {
		serve, err := d.opts.Connect(k.host)
		d.mu.Lock()
		if err != nil || c.err != nil {
			c.reset(errReset)
			d.mu.Unlock()
			return
		}
		c.state = established
		c.tell(opResponse, 0)
		d.mu.Unlock()
		serve(c)
	}()
}

// tell sends a packet without data as soon as there is a buffer; mu is held.
func (d *Device) tell(h header) {
	if d.control == nil {
		return
	}
	d.waiting = append(d.waiting, h)
	d.flush()
}

// flush sends what waits; mu is held.
func (d *Device) flush() {
	full := len(d.waiting) >= maxControl
	sent := 0
	for _, h := range d.waiting {
		if !d.put(h, nil) {
			break
		}
		sent++
	}
	if d.waiting = append(d.waiting[:0], d.waiting[sent:]...); sent == 0 {
		return
	}
	if d.rx != nil { // not broken meanwhile
		d.rx.Notify()
	}
	if full && len(d.waiting) < maxControl {
		d.control.Wake(queueTransmit)
	}
}

// buffer makes sure that there is a receive buffer, and returns how much data
// it can take; false if there is none. mu is held.
func (d *Device) buffer() (int, bool) {
	if d.rx == nil {
		return 0, false
	}
	for !d.haveRx {
		ok, err := d.rx.Pop(&d.rxChain)
		if err != nil {
			d.broken(err)
			return 0, false
		}
		if d.haveRx = ok; !ok {
			if d.rx.EnableKicks() {
				return 0, false
			}
			d.rx.DisableKicks() // some came just now
		}
	}
	n := 0
	for _, b := range d.rxChain.Writable {
		n += len(b)
	}
	if n <= headerSize {
		d.broken(fmt.Errorf("%w: a receive buffer of %d bytes", virtio.ErrMalformed, n))
		return 0, false
	}
	return n - headerSize, true
}

func (d *Device) broken(err error) {
	d.rx, d.haveRx = nil, false
	if d.control != nil {
		d.control.NeedsReset(err)
	}
}

// put sends a packet with data, which must fit in a buffer; false if there is no
// buffer. The driver is not notified yet. mu is held.
func (d *Device) put(h header, data []byte) bool {
	if _, ok := d.buffer(); !ok {
		return false
	}
	h.size = uint32(len(data))
	var b [headerSize]byte
	h.encode(&b)
	from := [2][]byte{b[:], data}
	next := 0
	for _, to := range d.rxChain.Writable {
		for next < len(from) && len(to) > 0 {
			k := copy(to, from[next])
			to = to[k:]
			if from[next] = from[next][k:]; len(from[next]) == 0 {
				next++
			}
		}
	}
	d.rx.Push(&d.rxChain, uint32(headerSize+len(data)))
	d.haveRx = false
	return true
}
