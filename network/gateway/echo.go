package gateway

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"vmm/network/ether"
)

const (
	// maxEcho bounds the pings; more are not answered.
	maxEcho     = 64
	echoIdle    = 30 * time.Second
	echoHeader  = 8 // type, code, checksum, identifier, sequence number
	maxEchoSize = 65507
)

// echoKey is who pings whom.
type echoKey struct {
	guest, peer netip.Addr
	ident       uint16
}

// echoFlows are the guest's pings.
type echoFlows struct {
	mu     sync.Mutex
	flows  map[echoKey]*echoFlow
	closed bool
	group  sync.WaitGroup
}

// echoFlow is one, with an ICMP socket of its own.
type echoFlow struct {
	g     *Gateway
	key   echoKey
	mac   ether.MAC
	file  *os.File
	raw   bool   // the socket sees all ICMP of the peer, and IPv4 headers
	ident uint16 // of a raw socket
	used  atomic.Int64
}

// handleEcho sends an echo request on; false if the packet is none, or one that
// the stack answers.
func (g *Gateway) handleEcho(mac ether.MAC, guest, peer netip.Addr, packet []byte) bool {
	request := byte(header.ICMPv4Echo)
	if guest.Is6() {
		request = byte(header.ICMPv6EchoRequest)
	}
	if g.ours(peer) || len(packet) < echoHeader || packet[0] != request {
		// Nothing else that is for others is any use to them.
		return !g.ours(peer) && !peer.IsMulticast()
	}
	to, ok := g.target(netip.AddrPortFrom(peer, 0))
	if !ok {
		return true
	}
	k := echoKey{guest, peer, uint16(packet[4])<<8 | uint16(packet[5])}
	f, err := g.echoFlow(k, mac, to.Addr())
	if err != nil {
		g.noEcho.Do(func() { g.cfg.Log(err) })
		return true
	}
	f.used.Store(clock())
	if f.raw {
		packet[4], packet[5] = byte(f.ident>>8), byte(f.ident)
	}
	if guest.Is4() { // for IPv6, and for ping sockets, the kernel does it
		icmp := header.ICMPv4(packet)
		icmp.SetChecksum(0)
		icmp.SetChecksum(^checksum.Checksum(packet, 0))
	}
	f.file.Write(packet) // lost if it cannot be sent, as on any network
	return true
}

// echoFlow returns the flow of a key, a new one if there is none.
func (g *Gateway) echoFlow(k echoKey, mac ether.MAC, to netip.Addr) (*echoFlow, error) {
	e := &g.echo
	e.mu.Lock()
	defer e.mu.Unlock()
	if f := e.flows[k]; f != nil {
		return f, nil
	}
	if e.closed || len(e.flows) >= maxEcho {
		return nil, errors.New("the guest pings too many hosts at once: more are not answered")
	}
	fd, raw, err := pingSocket(to)
	if err != nil {
		return nil, err
	}
	f := &echoFlow{g: g, key: k, mac: mac, file: os.NewFile(uintptr(fd), "icmp"), raw: raw, ident: uint16(rand.Uint32())}
	f.used.Store(clock())
	e.flows[k] = f
	e.group.Go(f.receive)
	return f, nil
}

// pingSocket opens an unprivileged ICMP socket, or else a raw one.
func pingSocket(to netip.Addr) (fd int, raw bool, err error) {
	family, proto := unix.AF_INET, unix.IPPROTO_ICMP
	var sa unix.Sockaddr = &unix.SockaddrInet4{Addr: [4]byte(to.AsSlice()[:4])}
	if to.Is6() {
		family, proto = unix.AF_INET6, unix.IPPROTO_ICMPV6
		sa = &unix.SockaddrInet6{Addr: to.As16()}
	}
	fd, err = unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, proto)
	if err != nil {
		raw = true
		fd, err = unix.Socket(family, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, proto)
	}
	if err != nil {
		return -1, false, fmt.Errorf("the guest's pings are not sent on: the host's net.ipv4.ping_group_range does not permit it: %w", err)
	}
	if err := unix.Connect(fd, sa); err != nil {
		return -1, false, errors.Join(err, unix.Close(fd))
	}
	return fd, raw, nil
}

// receive gives the guest the answers.
func (f *echoFlow) receive() {
	answer := byte(header.ICMPv4EchoReply)
	if f.key.peer.Is6() {
		answer = byte(header.ICMPv6EchoReply)
	}
	b := make([]byte, headerRoom+60+maxEchoSize)
	for {
		n, err := f.file.Read(b[headerRoom:])
		if err != nil {
			if errors.Is(err, os.ErrClosed) || errors.Is(err, net.ErrClosed) {
				return
			}
			continue // what an earlier request met with
		}
		m := b[headerRoom : headerRoom+n]
		if f.raw && f.key.peer.Is4() && n > 0 {
			size := int(m[0]&15) * 4
			n = copy(m, m[min(size, n):])
			m = m[:n]
		}
		if n < echoHeader || m[0] != answer || f.raw && uint16(m[4])<<8|uint16(m[5]) != f.ident {
			continue
		}
		m[4], m[5] = byte(f.key.ident>>8), byte(f.key.ident)
		f.used.Store(clock())
		f.g.emitICMP(b[:headerRoom+n], f.mac, f.key.peer, f.key.guest)
	}
}

// expire ends pings that have ended.
func (e *echoFlows) expire(now int64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for k, f := range e.flows {
		if now-f.used.Load() > int64(echoIdle) {
			delete(e.flows, k)
			f.file.Close()
		}
	}
}

func (e *echoFlows) close() {
	e.mu.Lock()
	e.closed = true
	for k, f := range e.flows {
		delete(e.flows, k)
		f.file.Close()
	}
	e.mu.Unlock()
	e.group.Wait()
}
