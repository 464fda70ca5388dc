package lan

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"vmm/internal/iovec"
	"vmm/internal/unixsocket"
	"vmm/network/ether"
)

const (
	// writeTimeout is how long a plain port may block before it is closed, for a
	// frame that is half written cannot be taken back.
	writeTimeout = time.Second
	redialEvery  = time.Second
)

// plain is a port to somebody who knows nothing of checksums and segments left
// to do: QEMU, or passt. Frames are completed and cut before they go.
type plain struct {
	mu    sync.Mutex
	frame []byte
	write func(frame [][]byte) error
}

// send implements output.
func (p *plain) send(_ int, h ether.Header, parts [][]byte) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.frame = p.frame[:cap(p.frame)]
	if len(p.frame) == 0 {
		p.frame = make([]byte, ether.MaxFrame)
	}
	n := iovec.Gather(p.frame, parts)
	h, err := ether.Check(h, p.frame[:n])
	switch {
	case err != nil:
	case h.Segmented():
		ether.Segment(h, p.frame[:n], false, func(_ ether.Header, segment [][]byte) { p.write(segment) })
	default:
		ether.Complete(h, p.frame[:n])
		p.write([][]byte{p.frame[:n]})
	}
	return true // what cannot be sent is lost
}

// sent implements output.
func (p *plain) sent(int) {}

// Listen takes connections on a unix socket in the framing of QEMU's "stream"
// network backend: each frame behind its length, of 32 bits, big-endian. Each connection
// is a port. It is an error if somebody else listens there, or something else is; a socket
// that was left behind is replaced.
func (s *Switch) Listen(path string) error {
	l, err := unixsocket.Listen(path)
	if err != nil {
		return err
	}
	if !s.own(l) {
		return l.Close()
	}
	s.group.Go(func() {
		for {
			c, err := l.AcceptUnix()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				s.group.Go(s.stream(c))
			}
		}
	})
	return nil
}

// Dial connects to a socket in the framing of Listen, and again, every second, when the
// connection has ended. The error is that of the first time.
func (s *Switch) Dial(path string) error {
	c, err := dialUnix("unix", path)
	if err != nil {
		return fmt.Errorf("%s: %w", path, cause(err))
	}
	stop := make(chanCloser)
	if !s.own(stop) {
		return c.Close()
	}
	serve := s.stream(c)
	s.group.Go(func() {
		for {
			serve()
			for {
				select {
				case <-stop:
					return
				case <-time.After(redialEvery):
				}
				if c, err := dialUnix("unix", path); err == nil {
					serve = s.stream(c)
					break
				}
			}
		}
	})
	return nil
}

// cause is an error without the address that net puts before it.
func cause(err error) error {
	var op *net.OpError
	var call *os.SyscallError
	switch {
	case errors.As(err, &call):
		return call.Err
	case errors.As(err, &op):
		return op.Err
	}
	return err
}

// chanCloser is closed once.
type chanCloser chan struct{}

// Close implements io.Closer.
func (c chanCloser) Close() error {
	close(c)
	return nil
}

// stream makes a connection a port. What it returns serves the port until the
// connection ends.
func (s *Switch) stream(c *net.UnixConn) (serve func()) {
	var length [4]byte
	out := &plain{write: func(frame [][]byte) error {
		binary.BigEndian.PutUint32(length[:], uint32(iovec.Len(frame)))
		c.SetWriteDeadline(time.Now().Add(writeTimeout))
		buffers := net.Buffers(append([][]byte{length[:]}, frame...))
		_, err := buffers.WriteTo(c)
		if err != nil {
			c.Close()
		}
		return err
	}}
	p := &port{out: out}
	if !s.own(c) || !s.add(p) {
		return func() { c.Close() }
	}
	return func() {
		s.receive(p, newStreamReader(c).read)
		s.disown(c)
		c.Close()
	}
}

// streamReader reads frames behind their lengths.
type streamReader struct {
	r    io.Reader
	buf  []byte
	from int
	to   int
}

func newStreamReader(r io.Reader) *streamReader {
	return &streamReader{r: r, buf: make([]byte, 4*maxMessage)}
}

// fill has at least n bytes be there.
func (r *streamReader) fill(n int) error {
	if r.to-r.from >= n {
		return nil
	}
	r.to = copy(r.buf, r.buf[r.from:r.to])
	r.from = 0
	k, err := io.ReadAtLeast(r.r, r.buf[r.to:], n-r.to)
	r.to += k
	return err
}

// read puts a frame behind an empty Header.
func (r *streamReader) read(b []byte) (int, error) {
	if err := r.fill(4); err != nil {
		return 0, err
	}
	n := int(binary.BigEndian.Uint32(r.buf[r.from:]))
	if n > ether.MaxFrame || n < 0 {
		return 0, fmt.Errorf("%w: a frame of %d bytes", ether.ErrMalformed, n)
	}
	r.from += 4
	if err := r.fill(n); err != nil {
		return 0, err
	}
	clear(b[:ether.HeaderSize])
	copy(b[ether.HeaderSize:], r.buf[r.from:r.from+n])
	r.from += n
	return ether.HeaderSize + n, nil
}

// Datagram makes a port of a unix datagram socket, each datagram a frame, as
// QEMU's "dgram" network backend has it: local is made, remote is the other
// side's, which need not be there yet.
func (s *Switch) Datagram(local, remote string) error {
	c, err := unixsocket.ListenPacket(local)
	if err != nil {
		return err
	}
	c.SetWriteBuffer(socketRoom)
	to := &net.UnixAddr{Name: remote, Net: "unixgram"}
	p := &port{out: &plain{write: func(frame [][]byte) error {
		b := frame[0]
		if len(frame) > 1 {
			b = append(append([]byte(nil), frame[0]...), frame[1]...)
		}
		c.SetWriteDeadline(time.Now().Add(peerTimeout))
		_, err := c.WriteToUnix(b, to)
		return err
	}}}
	if !s.own(datagramCloser{c, local}) || !s.add(p) {
		return c.Close()
	}
	s.group.Go(func() {
		s.receive(p, func(b []byte) (int, error) {
			clear(b[:ether.HeaderSize])
			n, err := c.Read(b[ether.HeaderSize:])
			return ether.HeaderSize + n, err
		})
	})
	return nil
}

// datagramCloser removes the socket's name too.
type datagramCloser struct {
	*net.UnixConn
	path string
}

// Close implements io.Closer.
func (c datagramCloser) Close() error { return errors.Join(c.UnixConn.Close(), os.Remove(c.path)) }
