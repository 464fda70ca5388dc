package vsock

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"vmm/internal/iovec"
)

const (
	// bufAlloc is how much a connection holds of what the guest has sent and
	// nobody has read yet, in bytes (5.10.6.3).
	bufAlloc = 256 << 10
	// lingering is how long a closed connection waits for the guest to agree.
	lingering = 10 * time.Second
)

// ErrNoDriver is the error of Dial while the guest does not drive the device.
var ErrNoDriver = errors.New("vsock: the guest does not use the device")

// The errors of connections.
var (
	errReset   = fmt.Errorf("vsock: %w", unix.ECONNRESET)
	errRefused = fmt.Errorf("vsock: %w", unix.ECONNREFUSED)
	errPipe    = fmt.Errorf("vsock: %w", unix.EPIPE)
)

// states of a connection.
type state int

const (
	connecting state = iota
	established
	closing // by us: the guest is to agree
)

// Conn is a stream between the host and the guest (5.10.6). It implements net.Conn, and
// has the halves of TCP's. Its errors are net.ErrClosed after Close or the half of it,
// os.ErrDeadlineExceeded, unix.EPIPE where the guest reads no more, and unix.ECONNRESET,
// also where its driver has reset the device.
type Conn struct {
	d       *Device // whose mu guards all that follows
	key     key
	changed sync.Cond
	state   state
	dialed  bool  // by us
	err     error // why nothing goes any more; the connection is forgotten then

	in       ring
	sink     syscall.RawConn // where WriteTo writes, if that can be tried without waiting
	inEnded  bool            // the guest sends no more
	outEnded bool            // the guest receives no more, or we send no more
	shut     uint32
	linger   *time.Timer

	// Credit (5.10.6.3): counters of bytes, which wrap around.
	fwdCnt, told             uint32 // read here, and as the guest knows it
	peerAlloc, peerFwd, sent uint32 // the guest's buffer, read there, and sent to it

	deadlines [2]deadline // of reading and writing
}

const (
	reading = 0
	writing = 1
)

type deadline struct {
	timer  *time.Timer
	passed bool
}

// newConn makes a connection; mu is held.
func (d *Device) newConn(k key) *Conn {
	c := &Conn{d: d, key: k}
	c.changed.L = &d.mu
	d.conns[k] = c
	return c
}

// Dial connects to a port of the guest, as one of HostCID's. The error is ErrNoDriver,
// unix.ECONNREFUSED where nobody listens, or ctx's. It can be called from any goroutine.
func (d *Device) Dial(ctx context.Context, port uint32) (*Conn, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.control == nil:
		return nil, ErrNoDriver
	case len(d.conns) >= maxConns:
		return nil, fmt.Errorf("vsock: %d connections are the most", maxConns)
	}
	k := key{d.nextPort, port}
	for d.conns[k] != nil {
		k.host = max(k.host+1, firstPort)
	}
	d.nextPort = max(k.host+1, firstPort)
	c := d.newConn(k)
	c.dialed = true
	c.tell(opRequest, 0)
	stop := context.AfterFunc(ctx, func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		if c.state == connecting && c.err == nil {
			c.reset(ctx.Err())
		}
	})
	defer stop()
	for c.state == connecting && c.err == nil {
		c.changed.Wait()
	}
	if c.err != nil {
		return nil, c.err
	}
	return c, nil
}

// header is one to the guest; mu is held.
func (c *Conn) header(op uint16, flags uint32) header {
	c.told = c.fwdCnt
	return header{srcCID: HostCID, dstCID: c.d.opts.CID, srcPort: c.key.host, dstPort: c.key.guest,
		kind: typeStream, op: op, flags: flags, bufAlloc: bufAlloc, fwdCnt: c.fwdCnt}
}

func (c *Conn) tell(op uint16, flags uint32) { c.d.tell(c.header(op, flags)) }

// end forgets the connection; mu is held.
func (c *Conn) end(err error) {
	if c.err != nil {
		return
	}
	c.err = err
	delete(c.d.conns, c.key)
	for _, t := range []*time.Timer{c.linger, c.deadlines[reading].timer, c.deadlines[writing].timer} {
		if t != nil {
			t.Stop()
		}
	}
	c.changed.Broadcast()
	c.d.room.Broadcast()
}

// reset tells the guest that the connection has ended, and forgets it; mu is held.
func (c *Conn) reset(err error) {
	if c.err == nil {
		c.tell(opReset, 0)
		c.end(err)
	}
}

// handle takes a packet of the connection; mu is held.
func (c *Conn) handle(h header, data [][]byte) {
	c.peerAlloc, c.peerFwd = h.bufAlloc, h.fwdCnt
	switch h.op {
	case opResponse:
		if c.state != connecting || !c.dialed {
			c.reset(errReset)
			return
		}
		c.state = established
	case opReset:
		switch {
		case c.state == connecting:
			c.end(errRefused)
		case c.inEnded || c.state == closing:
			c.end(io.EOF) // the orderly end of a shutdown
		default:
			c.end(errReset)
		}
		return
	case opShutdown:
		c.inEnded = c.inEnded || h.flags&shutdownSend != 0
		c.outEnded = c.outEnded || h.flags&shutdownReceive != 0
		if c.inEnded && c.outEnded && h.flags&shutdownBoth == shutdownBoth {
			c.reset(io.EOF)
			return
		}
	case opRW:
		if c.state == connecting || !c.receive(h.size, data) {
			c.reset(errReset)
			return
		}
	case opCreditRequest:
		c.tell(opCreditUpdate, 0)
	case opCreditUpdate:
	default: // a second request, or nonsense
		c.reset(errReset)
		return
	}
	c.changed.Broadcast()
}

// receive stores data; false if the guest breaks the rules. mu is held.
func (c *Conn) receive(size uint32, data [][]byte) bool {
	if c.state == closing {
		return true // nobody reads it
	}
	if c.inEnded || int64(size) > int64(bufAlloc-c.in.n) {
		return false
	}
	if data = iovec.Cut(data[:0], data, 0, int64(size)); iovec.Len(data) < int(size) {
		return false
	}
	for _, b := range iovec.Skip(data[:0], data, c.writeThrough(data)) {
		c.in.put(b)
	}
	return true
}

// writeThrough writes data to the sink straight from the guest's memory, as much as
// it takes now, and returns how much that was. What is in the ring goes before; mu
// is held.
func (c *Conn) writeThrough(data [][]byte) int {
	if c.sink == nil || c.in.n > 0 || len(data) == 0 {
		return 0
	}
	n := 0
	c.sink.Write(func(fd uintptr) bool {
		n, _ = unix.Writev(int(fd), data) // WriteTo meets the error
		return true
	})
	n = max(n, 0)
	c.took(n)
	return n
}

// readable waits for data; mu is held.
func (c *Conn) readable() error {
	for c.in.n == 0 {
		switch {
		case c.deadlines[reading].passed:
			return os.ErrDeadlineExceeded
		case c.state == closing || c.shut&shutdownReceive != 0:
			return net.ErrClosed
		case c.inEnded:
			return io.EOF
		case c.err != nil:
			return c.err
		}
		c.changed.Wait()
	}
	return nil
}

// took tells the guest of the room that reading has made; mu is held.
func (c *Conn) took(n int) {
	c.fwdCnt += uint32(n)
	if c.err == nil && c.fwdCnt-c.told >= bufAlloc/2 {
		c.tell(opCreditUpdate, 0)
	}
}

// Read implements net.Conn.
func (c *Conn) Read(p []byte) (int, error) {
	c.d.mu.Lock()
	defer c.d.mu.Unlock()
	if len(p) == 0 {
		return 0, nil
	}
	if err := c.readable(); err != nil {
		return 0, err
	}
	n := 0
	for n < len(p) && c.in.n > 0 {
		k := copy(p[n:], c.in.front())
		c.in.drop(k)
		n += k
	}
	c.took(n)
	return n, nil
}

// WriteTo implements io.WriterTo: what the guest has sent goes to w without a
// copy between, where w is a socket.
func (c *Conn) WriteTo(w io.Writer) (total int64, err error) {
	c.d.mu.Lock()
	defer c.d.mu.Unlock()
	if s, ok := w.(*net.UnixConn); ok { // which does not block
		if c.sink, err = s.SyscallConn(); err != nil {
			return 0, err
		}
		defer func() { c.sink = nil }()
	}
	for {
		if err := c.readable(); err != nil {
			if err == io.EOF {
				err = nil
			}
			return total, err
		}
		b := c.in.front() // stays as it is until it is dropped
		c.d.mu.Unlock()
		n, err := w.Write(b)
		c.d.mu.Lock()
		c.in.drop(n)
		c.took(n)
		total += int64(n)
		if err != nil {
			return total, err
		}
	}
}

// Write implements net.Conn.
func (c *Conn) Write(p []byte) (n int, err error) {
	d := c.d
	d.mu.Lock()
	defer d.mu.Unlock()
	for n < len(p) {
		switch {
		case c.deadlines[writing].passed:
			return n, os.ErrDeadlineExceeded
		case c.state == closing || c.shut&shutdownSend != 0:
			return n, net.ErrClosed
		case c.outEnded || c.err == io.EOF:
			return n, errPipe
		case c.err != nil:
			return n, c.err
		}
		credit := int64(c.peerAlloc) - int64(c.sent-c.peerFwd)
		if credit <= 0 {
			c.changed.Wait()
			continue
		}
		room, ok := d.buffer()
		if !ok || len(d.waiting) > 0 {
			d.room.Wait()
			continue
		}
		k := min(int64(len(p)-n), credit, int64(room))
		d.put(c.header(opRW, 0), p[n:n+int(k)])
		d.rx.Notify()
		c.sent += uint32(k)
		n += int(k)
	}
	return n, nil
}

// CloseWrite ends what the guest can read.
func (c *Conn) CloseWrite() error { return c.shutdown(shutdownSend) }

// CloseRead ends what the guest can send.
func (c *Conn) CloseRead() error { return c.shutdown(shutdownReceive) }

func (c *Conn) shutdown(how uint32) error {
	c.d.mu.Lock()
	defer c.d.mu.Unlock()
	if c.err != nil || c.state != established || c.shut&how == how {
		return nil
	}
	c.shut |= how
	c.tell(opShutdown, c.shut)
	c.changed.Broadcast()
	c.d.room.Broadcast()
	return nil
}

// Close implements net.Conn. What was written still arrives.
func (c *Conn) Close() error {
	c.d.mu.Lock()
	defer c.d.mu.Unlock()
	if c.err != nil || c.state == closing {
		return nil
	}
	c.state = closing
	c.tell(opShutdown, shutdownBoth)
	c.linger = time.AfterFunc(lingering, func() {
		c.d.mu.Lock()
		defer c.d.mu.Unlock()
		c.reset(io.EOF)
	})
	c.changed.Broadcast()
	c.d.room.Broadcast()
	return nil
}

// Addr is one end's address; it implements net.Addr.
type Addr struct {
	CID  uint64
	Port uint32
}

// Network implements net.Addr.
func (a Addr) Network() string { return "vsock" }

// String implements net.Addr.
func (a Addr) String() string { return fmt.Sprintf("%d:%d", a.CID, a.Port) }

// LocalAddr implements net.Conn.
func (c *Conn) LocalAddr() net.Addr { return Addr{HostCID, c.key.host} }

// RemoteAddr implements net.Conn.
func (c *Conn) RemoteAddr() net.Addr { return Addr{c.d.opts.CID, c.key.guest} }

// SetDeadline implements net.Conn.
func (c *Conn) SetDeadline(t time.Time) error {
	c.SetReadDeadline(t)
	return c.SetWriteDeadline(t)
}

// SetReadDeadline implements net.Conn.
func (c *Conn) SetReadDeadline(t time.Time) error { return c.setDeadline(reading, t) }

// SetWriteDeadline implements net.Conn.
func (c *Conn) SetWriteDeadline(t time.Time) error { return c.setDeadline(writing, t) }

func (c *Conn) setDeadline(of int, t time.Time) error {
	c.d.mu.Lock()
	defer c.d.mu.Unlock()
	l := &c.deadlines[of]
	if l.timer != nil {
		l.timer.Stop()
	}
	l.timer, l.passed = nil, false
	if t.IsZero() || c.err != nil {
		return nil
	}
	var timer *time.Timer
	timer = time.AfterFunc(time.Until(t), func() {
		c.d.mu.Lock()
		defer c.d.mu.Unlock()
		if l.timer == timer {
			l.passed = true
			c.changed.Broadcast()
			c.d.room.Broadcast()
		}
	})
	l.timer = timer
	return nil
}
