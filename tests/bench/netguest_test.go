package bench

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"vmm/internal/iovec"
	"vmm/network/ether"
)

// wire is a network as a guest's driver sees it.
type wire interface {
	// send sends a frame of headers and n bytes of payload; ready is false if it
	// must not wait for room and there is none.
	send(head []byte, n int, wait bool) (ready bool)
	// recv returns the beginning of a frame, which is good until the next recv;
	// nil if none comes in time.
	recv(wait bool) []byte
	// segment is the largest payload of a frame, and mss what it is cut to; 0 if
	// it is not.
	segment() (size, mss int)
}

// The guest, and the gateway that all have.
var (
	benchMAC     = ether.MAC{2, 0, 0, 0, 0, 1}
	benchGuest   = netip.MustParseAddr("10.0.2.15")
	benchGateway = netip.MustParseAddr("10.0.2.2")
)

const (
	headBytes = ether.FrameHeader + header.IPv4MinimumSize + header.TCPMinimumSize
	// pollTime is how long a player waits for a frame at once.
	pollTime = 20 * time.Millisecond
	// patience is how long anything may take.
	patience = 5 * time.Second
)

// player is a guest with just enough of TCP, UDP and ARP to keep a gateway
// busy: what is measured is the gateway.
type player struct {
	w       wire
	gateway ether.MAC
	head    [headBytes + 40]byte
}

// newPlayer finds the gateway.
func newPlayer(w wire) (*player, error) {
	p := &player{w: w}
	for start := time.Now(); time.Since(start) < patience; {
		p.arp(header.ARPRequest, ether.Broadcast, benchGateway)
		for f := w.recv(false); f != nil; f = w.recv(false) {
			if p.handleARP(f) && p.gateway != (ether.MAC{}) {
				return p, nil
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
	return nil, errors.New("no gateway answers")
}

func (p *player) arp(op header.ARPOp, to ether.MAC, target netip.Addr) {
	b := p.head[:ether.FrameHeader+header.ARPSize]
	header.Ethernet(b).Encode(&header.EthernetFields{SrcAddr: tcpip.LinkAddress(benchMAC[:]), DstAddr: tcpip.LinkAddress(to[:]), Type: header.ARPProtocolNumber})
	a := header.ARP(b[ether.FrameHeader:])
	a.SetIPv4OverEthernet()
	a.SetOp(op)
	copy(a.HardwareAddressSender(), benchMAC[:])
	copy(a.ProtocolAddressSender(), benchGuest.AsSlice())
	copy(a.HardwareAddressTarget(), to[:])
	copy(a.ProtocolAddressTarget(), target.AsSlice())
	p.w.send(b, 0, true)
}

// handleARP answers a request and learns from an answer; false if a frame is
// neither.
func (p *player) handleARP(f []byte) bool {
	if len(f) < ether.FrameHeader+header.ARPSize || binary.BigEndian.Uint16(f[12:]) != ether.TypeARP {
		return false
	}
	a := header.ARP(f[ether.FrameHeader:])
	from := ether.MAC(a.HardwareAddressSender())
	addr, _ := netip.AddrFromSlice(a.ProtocolAddressSender())
	if addr == benchGateway {
		p.gateway = from
	}
	if target, _ := netip.AddrFromSlice(a.ProtocolAddressTarget()); a.Op() == header.ARPRequest && target == benchGuest {
		p.arp(header.ARPReply, from, addr)
	}
	return true
}

// ip puts Ethernet and IPv4 headers into p.head, for n bytes to follow.
func (p *player) ip(proto tcpip.TransportProtocolNumber, n int) []byte {
	header.Ethernet(p.head[:]).Encode(&header.EthernetFields{SrcAddr: tcpip.LinkAddress(benchMAC[:]), DstAddr: tcpip.LinkAddress(p.gateway[:]), Type: header.IPv4ProtocolNumber})
	ip := header.IPv4(p.head[ether.FrameHeader:])
	ip.Encode(&header.IPv4Fields{TotalLength: uint16(header.IPv4MinimumSize + n), TTL: 64, Protocol: uint8(proto),
		SrcAddr: tcpip.AddrFromSlice(benchGuest.AsSlice()), DstAddr: tcpip.AddrFromSlice(benchGateway.AsSlice())})
	ip.SetChecksum(^ip.CalculateChecksum())
	return p.head[ether.FrameHeader+header.IPv4MinimumSize:]
}

// conn is a TCP connection of the player's, whose payload is zeros.
type conn struct {
	*player
	local, remote    uint16
	next, acked, got uint32 // sequence numbers: to send, confirmed, received
	window           uint32
	scale            uint8
	established      bool
	finished         bool
}

const (
	windowScale = 9
	// ackEvery is how much is confirmed at once, in bytes.
	ackEvery = 128 << 10
)

// dial connects to a port of the host's loopback.
func (p *player) dial(remote uint16) (*conn, error) {
	c := &conn{player: p, local: 20000 + uint16(time.Now().UnixNano()%30000), remote: remote, next: 1000, acked: 1000}
	for start := time.Now(); time.Since(start) < patience && !c.established; {
		c.next = 1000
		c.segment(header.TCPFlagSyn, 0, true)
		c.next = 1001
		for again := time.Now(); time.Since(again) < time.Second && !c.established; {
			if f := p.w.recv(false); f != nil {
				c.handle(f)
			} else {
				time.Sleep(time.Millisecond)
			}
		}
	}
	if !c.established {
		return nil, errors.New("no connection")
	}
	c.segment(header.TCPFlagAck, 0, true)
	return c, nil
}

// segment sends one segment with n bytes of zeros.
func (c *conn) segment(flags header.TCPFlags, n int, wait bool) bool {
	size := header.TCPMinimumSize
	if flags&header.TCPFlagSyn != 0 {
		size += 8
	}
	l4 := c.ip(header.TCPProtocolNumber, size+n)[:size]
	t := header.TCP(l4)
	t.Encode(&header.TCPFields{SrcPort: c.local, DstPort: c.remote, SeqNum: c.next, AckNum: c.got, DataOffset: uint8(size), Flags: flags,
		WindowSize: 0xffff})
	if size > header.TCPMinimumSize {
		_, mss := c.w.segment()
		if mss == 0 {
			mss, _ = c.w.segment()
		}
		copy(l4[20:], []byte{2, 4, byte(mss >> 8), byte(mss), 3, 3, windowScale, 1})
	}
	// Zeros add nothing to the checksum; where it is left open, this is not used.
	pseudo := header.PseudoHeaderChecksum(header.TCPProtocolNumber, tcpip.AddrFromSlice(benchGuest.AsSlice()), tcpip.AddrFromSlice(benchGateway.AsSlice()), uint16(size+n))
	t.SetChecksum(0)
	t.SetChecksum(^checksum.Checksum(l4, pseudo))
	return c.w.send(c.head[:ether.FrameHeader+header.IPv4MinimumSize+size], n, wait)
}

// handle takes a frame; it returns how much new data was in it.
func (c *conn) handle(f []byte) int {
	if c.handleARP(f) || len(f) < headBytes || binary.BigEndian.Uint16(f[12:]) != ether.TypeIPv4 {
		return 0
	}
	ip := header.IPv4(f[ether.FrameHeader:])
	t := header.TCP(f[ether.FrameHeader+int(ip.HeaderLength()):])
	if ip.Protocol() != uint8(header.TCPProtocolNumber) || t.DestinationPort() != c.local {
		return 0
	}
	n := int(ip.TotalLength()) - int(ip.HeaderLength()) - int(t.DataOffset())
	if t.Flags()&header.TCPFlagSyn != 0 {
		c.got = t.SequenceNumber() + 1
		c.acked, c.established = t.AckNumber(), true
		o := header.ParseSynOptions(t.Options(), true)
		c.scale = uint8(max(o.WS, 0))
		c.window = uint32(t.WindowSize())
		return 0
	}
	if t.Flags()&header.TCPFlagRst != 0 {
		c.finished = true
		return 0
	}
	if int32(t.AckNumber()-c.acked) >= 0 {
		c.acked = t.AckNumber()
		c.window = uint32(t.WindowSize()) << c.scale
	}
	if t.SequenceNumber() != c.got {
		return 0
	}
	c.got += uint32(n)
	if t.Flags()&header.TCPFlagFin != 0 {
		c.finished = true
	}
	return n
}

// upload sends for a while and returns bytes a second that were confirmed.
func (c *conn) upload(d time.Duration) (float64, error) {
	size, _ := c.w.segment()
	start, first, last := time.Now(), c.acked, time.Now()
	for time.Since(start) < d {
		for {
			flying := int(c.next - c.acked)
			n := min(size, int(c.window)-flying)
			if n <= 0 || n < size && flying > 0 || !c.segment(header.TCPFlagAck|header.TCPFlagPsh, n, false) {
				break
			}
			c.next += uint32(n)
		}
		before := c.acked
		if f := c.w.recv(true); f != nil {
			c.handle(f)
			for f = c.w.recv(false); f != nil; f = c.w.recv(false) {
				c.handle(f)
			}
		}
		if c.acked != before {
			last = time.Now()
		} else if time.Since(last) > 50*time.Millisecond {
			c.next, last = c.acked, time.Now() // something was lost
		}
	}
	n := float64(c.acked - first)
	if n == 0 {
		return 0, errors.New("nothing was confirmed")
	}
	return n / time.Since(start).Seconds(), nil
}

// download receives for a while and returns bytes a second.
func (c *conn) download(d time.Duration) (float64, error) {
	start, total := time.Now(), 0
	for time.Since(start) < d {
		n := 0
		if f := c.w.recv(true); f != nil {
			n += c.handle(f)
			for n < ackEvery {
				if f = c.w.recv(false); f == nil {
					break
				}
				n += c.handle(f)
			}
		}
		total += n
		c.segment(header.TCPFlagAck, 0, true)
	}
	if total == 0 {
		return 0, errors.New("nothing came")
	}
	return float64(total) / time.Since(start).Seconds(), nil
}

func (c *conn) reset() { c.segment(header.TCPFlagRst|header.TCPFlagAck, 0, true) }

// flood sends small datagrams for a while.
func (p *player) flood(remote uint16, d time.Duration) {
	const size = 64
	u := header.UDP(p.ip(header.UDPProtocolNumber, header.UDPMinimumSize+size)[:header.UDPMinimumSize])
	length := uint16(header.UDPMinimumSize + size)
	u.Encode(&header.UDPFields{SrcPort: 5000, DstPort: remote, Length: length})
	pseudo := header.PseudoHeaderChecksum(header.UDPProtocolNumber, tcpip.AddrFromSlice(benchGuest.AsSlice()), tcpip.AddrFromSlice(benchGateway.AsSlice()), length)
	u.SetChecksum(^checksum.Checksum(u, pseudo))
	for start := time.Now(); time.Since(start) < d; {
		for range 64 {
			p.w.send(p.head[:ether.FrameHeader+header.IPv4MinimumSize+header.UDPMinimumSize], size, true)
		}
		for f := p.w.recv(false); f != nil; f = p.w.recv(false) {
			p.handleARP(f)
		}
	}
}

// socketWire is QEMU's stream framing: each frame behind its length.
type socketWire struct {
	fd       int
	mtu      int
	buf      []byte
	from, to int
	zeros    []byte
}

func dialWire(path string, mtu int) (*socketWire, error) {
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return nil, err
		}
		if err = unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err == nil {
			t := unix.NsecToTimeval(int64(pollTime))
			unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &t)
			return &socketWire{fd: fd, mtu: mtu, buf: make([]byte, 1<<20), zeros: make([]byte, 1<<16)}, nil
		}
		unix.Close(fd)
		if time.Now().After(deadline) {
			return nil, err
		}
	}
}

func (s *socketWire) segment() (int, int) {
	return s.mtu - header.IPv4MinimumSize - header.TCPMinimumSize, 0
}

func (s *socketWire) send(head []byte, n int, wait bool) bool {
	var length [4]byte
	binary.BigEndian.PutUint32(length[:], uint32(len(head)+n))
	parts := [][]byte{length[:], head, s.zeros[:n]}
	flags := unix.MSG_NOSIGNAL
	if !wait {
		flags |= unix.MSG_DONTWAIT
	}
	total, done := 4+len(head)+n, 0
	for done < total {
		k, err := unix.SendmsgBuffers(s.fd, parts, nil, nil, flags)
		switch {
		case errors.Is(err, unix.EAGAIN) && done == 0:
			return false
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			panic(err)
		}
		done += k
		parts = iovec.Skip(nil, parts, k)
		flags &^= unix.MSG_DONTWAIT // a frame that has begun is finished
	}
	return true
}

func (s *socketWire) recv(wait bool) []byte {
	for {
		if s.to-s.from >= 4 {
			n := int(binary.BigEndian.Uint32(s.buf[s.from:]))
			if s.to-s.from >= 4+n {
				f := s.buf[s.from+4 : s.from+4+n]
				s.from += 4 + n
				return f
			}
		}
		if s.from > 0 && s.from == s.to {
			s.from, s.to = 0, 0
		} else if len(s.buf)-s.from < 1<<17 {
			s.to = copy(s.buf, s.buf[s.from:s.to])
			s.from = 0
		}
		flags := 0
		if !wait {
			flags = unix.MSG_DONTWAIT
		}
		n, _, err := unix.Recvfrom(s.fd, s.buf[s.to:], flags)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if n <= 0 {
			return nil
		}
		s.to += n
	}
}
