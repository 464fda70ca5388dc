package lan

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"vmm/internal/iovec"
	"vmm/network/ether"
)

// Member says who joins a switch.
type Member struct {
	Version int    `json:"version"` // of what is said between switches: Join sets it
	Name    string `json:"name"`    // of the VM
	PID     int    `json:"pid"`     // of its process
	MAC     string `json:"mac"`     // of its device, as ether.MAC.String has it
}

const (
	// meshVersion changes with what is said between switches.
	meshVersion  = 1
	helloTimeout = 5 * time.Second
	// peerTimeout is how long a frame waits for a switch that is slow to take it:
	// once, then not again until it takes one.
	peerTimeout = 20 * time.Millisecond
	maxMessage  = ether.HeaderSize + ether.MaxFrame
	socketRoom  = 4 << 20 // asked for; the host's limits may be lower
	maxParts    = 128
)

// ErrAddressTaken is in the error for a member whose address another one has.
var ErrAddressTaken = errors.New("there is a device of this address already")

// Join makes the switch one with all others that have joined in a directory,
// which is made if it is not there. Each has a socket there, on which the later
// ones connect to it. The error is ErrAddressTaken if a member has the same address.
func (s *Switch) Join(dir string, me Member) error {
	me.Version = meshVersion
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	// One joins at a time: so of any two, just one connects to the other.
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return err
	}
	paths, err := filepath.Glob(filepath.Join(dir, "*.sock"))
	if err != nil {
		return err
	}
	for _, path := range paths {
		c, err := dialUnix("unixpacket", path)
		if errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.ENOENT) {
			os.Remove(path) // its process is gone
			continue
		}
		if err != nil {
			return fmt.Errorf("joining the switch: %w", err)
		}
		if err := s.meet(c, me); err != nil {
			c.Close()
			if errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, net.ErrClosed) {
				continue // it is ending, or stuck
			}
			return err
		}
	}
	path := filepath.Join(dir, fmt.Sprintf("%d-%s.sock", me.PID, strings.ReplaceAll(me.MAC, ":", "")))
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		return fmt.Errorf("joining the switch: %w", err)
	}
	if !s.own(l) {
		return l.Close()
	}
	s.group.Go(func() { s.acceptPeers(l, me) })
	return nil
}

func dialUnix(network, path string) (*net.UnixConn, error) {
	return net.DialUnix(network, nil, &net.UnixAddr{Name: path, Net: network})
}

// acceptPeers meets those who join later.
func (s *Switch) acceptPeers(l *net.UnixListener, me Member) {
	for {
		c, err := l.AcceptUnix()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			time.Sleep(10 * time.Millisecond) // no descriptors left
			continue
		}
		if s.meet(c, me) != nil {
			c.Close() // the other one says why
		}
	}
}

// meet says hello, hears hello, and makes the peer a port.
func (s *Switch) meet(c *net.UnixConn, me Member) error {
	c.SetDeadline(time.Now().Add(helloTimeout))
	hello, err := json.Marshal(me)
	if err != nil {
		return err
	}
	if _, err := c.Write(hello); err != nil {
		return err
	}
	b := make([]byte, 4096)
	n, err := c.Read(b)
	if err != nil {
		return err
	}
	var other Member
	if n == 0 {
		return net.ErrClosed
	}
	if err := json.Unmarshal(b[:n], &other); err != nil {
		return fmt.Errorf("joining the switch: what a member says makes no sense: %w", err)
	}
	if other.Version != me.Version {
		return fmt.Errorf("joining the switch: VM %s (process %d) runs another version of vmm", other.Name, other.PID)
	}
	if other.MAC == me.MAC {
		return fmt.Errorf("joining the switch: %w: VM %s (process %d) has %s", ErrAddressTaken, other.Name, other.PID, other.MAC)
	}
	c.SetDeadline(time.Time{})
	c.SetWriteBuffer(socketRoom)
	c.SetReadBuffer(socketRoom)
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	p := &peer{conn: c, raw: raw}
	p.write = p.tryWrite
	p.port = &port{out: p, mesh: true}
	if !s.own(c) || !s.add(p.port) {
		return net.ErrClosed
	}
	s.group.Go(func() {
		s.receive(p.port, func(b []byte) (int, error) { return c.Read(b) })
		s.disown(c)
		c.Close()
	})
	return nil
}

// peer is a switch of another process.
type peer struct {
	conn *net.UnixConn
	raw  syscall.RawConn
	port *port

	mu     sync.Mutex
	header [ether.HeaderSize]byte
	iov    [maxParts]unix.Iovec
	msg    unix.Msghdr
	write  func(fd uintptr) bool
	errno  unix.Errno
	slow   bool
}

// send implements output. The kernel copies the frame out of the guest's memory;
// the other side checks it.
func (p *peer) send(_ int, h ether.Header, parts [][]byte) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	h.Encode(p.header[:])
	if len(parts) >= len(p.iov) {
		return true // finer than any driver has it
	}
	iov := iovec.Append(iovec.Append(p.iov[:0], p.header[:]), parts...)
	p.msg = unix.Msghdr{Iov: &p.iov[0], Iovlen: uint64(len(iov))}
	p.conn.SetWriteDeadline(time.Now().Add(peerTimeout)) // a slow one too: an old deadline would keep it from the try
	err := p.raw.Write(p.write)
	p.slow = errors.Is(err, os.ErrDeadlineExceeded) || p.slow && p.errno == unix.EAGAIN
	return true
}

// tryWrite sends p.msg; false waits until there is room.
func (p *peer) tryWrite(fd uintptr) bool {
	_, _, p.errno = unix.RawSyscall(unix.SYS_SENDMSG, fd, uintptr(unsafe.Pointer(&p.msg)), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
	return p.errno != unix.EAGAIN && p.errno != unix.EINTR || p.slow
}

// sent implements output.
func (p *peer) sent(int) {}

// receive forwards the frames that read brings, each behind its Header, until
// there is an error. The port goes with it.
func (s *Switch) receive(p *port, read func(b []byte) (int, error)) {
	defer s.remove(p)
	b := make([]byte, maxMessage)
	parts := make([][]byte, 1)
	for {
		n, err := read(b)
		if err != nil || n == 0 {
			return
		}
		if n < ether.HeaderSize+ether.FrameHeader {
			continue
		}
		h, err := ether.Check(ether.Decode(b), b[ether.HeaderSize:n])
		if err != nil {
			continue
		}
		parts[0] = b[ether.HeaderSize:n]
		s.forwardLater(p, h, parts)
		s.sent(p, 0)
	}
}
