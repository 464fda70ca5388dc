package gateway

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

const (
	// maxTCP bounds the connections, maxSYN those that are being made.
	maxTCP = 4096
	maxSYN = 1024
	// A connection has large buffers while there are few of them.
	fewTCP      = 32
	largeBuffer = 8 << 20
	smallBuffer = 128 << 10

	connectTimeout = 30 * time.Second
	// timeWait is short: nothing that the link between stack and guest loses can
	// turn up later.
	timeWait = 2 * time.Second
	// A guest that has gone is noticed after keepIdle + keepCount * keepInterval.
	keepIdle     = 5 * time.Minute
	keepInterval = 30 * time.Second
	keepCount    = 4
)

// startTCP sets the stack's TCP up.
func (g *Gateway) startTCP() error {
	sack, wait := tcpip.TCPSACKEnabled(true), tcpip.TCPTimeWaitTimeoutOption(timeWait)
	receive := tcpip.TCPReceiveBufferSizeRangeOption{Min: 4096, Default: 1 << 20, Max: largeBuffer}
	send := tcpip.TCPSendBufferSizeRangeOption{Min: 4096, Default: 1 << 20, Max: largeBuffer}
	for _, o := range []tcpip.SettableTransportProtocolOption{&sack, &wait, &receive, &send} {
		if err := g.stack.SetTransportProtocolOption(tcp.ProtocolNumber, o); err != nil {
			return fmt.Errorf("TCP: %v", err)
		}
	}
	f := tcp.NewForwarder(g.stack, 0, maxSYN, g.connectOut)
	g.stack.SetTransportProtocolHandler(tcp.ProtocolNumber, f.HandlePacket)
	g.handleFragmented()
	return nil
}

// connectOut makes the connection that the guest asks for.
func (g *Gateway) connectOut(r *tcp.ForwarderRequest) {
	if !g.enter() {
		r.Complete(true)
		return
	}
	defer g.group.Done()
	id := r.ID()
	to, ok := g.target(netip.AddrPortFrom(addressOf(id.LocalAddress), id.LocalPort))
	if !ok {
		r.Complete(true)
		return
	}
	n, ok := g.takeTCP()
	if !ok {
		r.Complete(true)
		return
	}
	defer g.tcpBusy.put()
	ctx, cancel := context.WithTimeout(g.ctx, connectTimeout)
	defer cancel()
	host, err := (&net.Dialer{}).DialContext(ctx, "tcp", to.String())
	if err != nil {
		// What could not be reached is silent on a real network: the guest's own
		// time-out ends it.
		r.Complete(!errors.Is(err, context.DeadlineExceeded))
		return
	}
	defer host.Close()
	var queue waiter.Queue
	ep, terr := r.CreateEndpoint(&queue)
	r.Complete(false)
	if terr != nil {
		host.(*net.TCPConn).SetLinger(0) // a guest that goes at once has reset it
		return
	}
	g.relay(ep, &queue, host.(*net.TCPConn), n)
}

// takeTCP counts a connection, unless there are too many.
func (g *Gateway) takeTCP() (n int, ok bool) {
	n, ok, first := g.tcpBusy.take()
	if first {
		g.cfg.Log(fmt.Errorf("the guest has %d TCP connections: more are refused", n))
	}
	return n, ok
}

// connectIn connects to a port of the guest's.
func (g *Gateway) connectIn(to netip.AddrPort) (tcpip.Endpoint, *waiter.Queue, error) {
	proto, from := ipv4.ProtocolNumber, g.router4
	if to.Addr().Is6() {
		proto, from = ipv6.ProtocolNumber, g.router6
	}
	queue := &waiter.Queue{}
	ep, err := g.stack.NewEndpoint(tcp.ProtocolNumber, proto, queue)
	if err != nil {
		return nil, nil, errors.New(err.String())
	}
	entry, ready := waiter.NewChannelEntry(waiter.WritableEvents | waiter.EventErr | waiter.EventHUp)
	queue.EventRegister(&entry)
	defer queue.EventUnregister(&entry)
	err = ep.Bind(tcpip.FullAddress{NIC: nic, Addr: address(from)})
	if err == nil {
		err = ep.Connect(tcpip.FullAddress{NIC: nic, Addr: address(to.Addr()), Port: to.Port()})
	}
	if _, started := err.(*tcpip.ErrConnectStarted); started {
		select {
		case <-ready:
			err = ep.LastError()
		case <-time.After(connectTimeout):
			err = &tcpip.ErrTimeout{}
		case <-g.ctx.Done():
			err = &tcpip.ErrAborted{}
		}
	}
	if err != nil {
		ep.Abort()
		ep.Close()
		return nil, nil, errors.New(err.String())
	}
	return ep, queue, nil
}

// relay moves what comes on either side of a connection to the other, until
// both have ended. It is one of n.
func (g *Gateway) relay(ep tcpip.Endpoint, queue *waiter.Queue, host *net.TCPConn, n int) {
	size := int64(largeBuffer)
	if n > fewTCP {
		size = smallBuffer
	}
	o := ep.SocketOptions()
	o.SetReceiveBufferSize(size, true)
	o.SetSendBufferSize(size, true)
	o.SetDelayOption(false)
	o.SetKeepAlive(true)
	idle, interval := tcpip.KeepaliveIdleOption(keepIdle), tcpip.KeepaliveIntervalOption(keepInterval)
	ep.SetSockOpt(&idle)
	ep.SetSockOpt(&interval)
	ep.SetSockOptInt(tcpip.KeepaliveCountOption, keepCount)
	host.SetNoDelay(true)
	raw, err := host.SyscallConn()
	if err != nil {
		ep.Abort()
		return
	}
	defer g.tcp.add(ep)()
	stop := context.AfterFunc(g.ctx, func() { ep.Abort(); host.Close() })
	defer stop()
	broken := func() { // both sides see a reset
		host.SetLinger(0)
		host.Close()
		ep.Abort()
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		up := upload{ep: ep, wake: wakeOn(waiter.ReadableEvents)}
		defer queue.EventUnregister(&up.entry)
		if up.run(queue, raw) {
			host.CloseWrite()
		} else {
			broken()
		}
	}()
	down := download{ep: ep, wake: wakeOn(waiter.WritableEvents)}
	defer queue.EventUnregister(&down.entry)
	if down.run(queue, raw) {
		ep.Shutdown(tcpip.ShutdownWrite)
	} else {
		broken()
	}
	<-done
	ep.Close()
}

// wake tells of an endpoint's events.
type wake struct {
	entry waiter.Entry
	ch    chan struct{}
}

func wakeOn(mask waiter.EventMask) (w wake) {
	w.entry, w.ch = waiter.NewChannelEntry(mask | waiter.EventErr | waiter.EventHUp)
	return w
}

// upload moves what the guest sends to the host's socket.
type upload struct {
	wake
	ep      tcpip.Endpoint
	fd      int
	blocked bool
	err     error
}

// Write implements io.Writer for the endpoint, which is locked meanwhile: so it
// does not wait, and takes only part if need be.
func (u *upload) Write(b []byte) (int, error) {
	done := 0
	for done < len(b) {
		n, err := writeSocket(u.fd, b[done:])
		if err == unix.EAGAIN {
			u.blocked = true
			return done, err
		} else if err != nil {
			u.err = err
			return done, err
		}
		done += n
	}
	return done, nil
}

// run returns true at the end of what the guest sends, false after an error.
func (u *upload) run(queue *waiter.Queue, host rawConn) bool {
	queue.EventRegister(&u.entry)
	ended := false
	move := func(fd uintptr) bool {
		u.fd = int(fd)
		for {
			u.blocked = false
			_, err := u.ep.Read(u, tcpip.ReadOptions{})
			switch {
			case u.blocked:
				return false
			case u.err != nil:
				return true
			}
			switch err.(type) {
			case nil:
			case *tcpip.ErrWouldBlock:
				return true
			case *tcpip.ErrClosedForReceive:
				// The error itself may have been told to the other direction.
				if tcp.EndpointState(u.ep.State()) == tcp.StateError {
					u.err = unix.ECONNRESET
				}
				ended = true
				return true
			default:
				u.err = errors.New(err.String())
				return true
			}
		}
	}
	for {
		if err := host.Write(move); err != nil || u.err != nil {
			return false
		}
		if ended {
			return true
		}
		<-u.ch
	}
}

// rawConn is syscall.RawConn without Control.
type rawConn interface {
	Read(func(fd uintptr) bool) error
	Write(func(fd uintptr) bool) error
}

// download moves what comes from the host's socket to the guest.
type download struct {
	wake
	ep    tcpip.Endpoint
	fd    int
	left  int   // known to be in the socket
	count int32 // of readable
	err   error
}

// maxRead bounds what is read at once, for others to have their turn.
const maxRead = 256 << 10

// Len implements tcpip.Payloader.
func (d *download) Len() int { return min(d.left, maxRead) }

// Read implements tcpip.Payloader: the socket's bytes go straight into the
// stack's buffers. There are as many as Len said.
func (d *download) Read(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	n, err := readSocket(d.fd, b)
	if n == 0 {
		d.err = unix.EIO
		return 0, errors.Join(d.err, err)
	}
	d.left -= n
	return n, nil
}

// available finds out how much is in the socket; ended is its end.
func (d *download) available() (ended bool, err error) {
	if d.left, err = readable(d.fd, &d.count); err != nil || d.left > 0 {
		return false, err
	}
	var b [1]byte
	n, _, err := unix.Recvfrom(d.fd, b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
	d.left = max(n, 0)
	return n == 0 && err == nil, err
}

// run returns true at the end of what the host sends, false after an error.
func (d *download) run(queue *waiter.Queue, host rawConn) bool {
	queue.EventRegister(&d.entry)
	ended, full := false, false
	move := func(fd uintptr) bool {
		d.fd, full = int(fd), false
		for {
			if d.left == 0 {
				end, err := d.available()
				switch {
				case errors.Is(err, unix.EAGAIN):
					return false
				case errors.Is(err, unix.EINTR):
					continue
				case err != nil:
					d.err = err
					return true
				case end:
					ended = true
					return true
				}
			}
			_, err := d.ep.Write(d, tcpip.WriteOptions{Atomic: true})
			switch err.(type) {
			case nil:
			case *tcpip.ErrWouldBlock:
				full = true
				return true
			default:
				d.err = errors.New(err.String())
				return true
			}
		}
	}
	for {
		if err := host.Read(move); err != nil || d.err != nil {
			return false
		}
		if ended {
			return true
		}
		if full {
			<-d.ch
		}
	}
}
