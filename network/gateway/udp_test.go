package gateway

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"

	"vmm/network/ether"
	"vmm/network/networktest"
)

// TestUDP sends datagrams of all sizes, and has them back.
func TestUDP(t *testing.T) {
	_, guest := start(t, Config{})
	for _, c := range []struct {
		at     string
		router netip.Addr
	}{{"127.0.0.1:0", router4}, {"[::1]:0", router6}} {
		t.Run(c.at, func(t *testing.T) {
			port := serveUDP(t, c.at, bytes.Clone)
			u := dialUDP(t, guest, netip.AddrPortFrom(c.router, port))
			defer u.Close()
			for _, n := range []int{0, 1, 512, 1400, 1472, 1473, 4000, 20000} {
				data := make([]byte, n)
				rand.NewChaCha8([32]byte{byte(n)}).Read(data)
				if got, err := exchange(u, data); err != nil || !bytes.Equal(got, data) {
					t.Errorf("%d bytes: got %d back, %v", n, len(got), err)
				}
			}
		})
	}
}

// serveUDP answers datagrams on the host with what answer makes of them, and
// returns the port.
func serveUDP(t *testing.T, at string, answer func([]byte) []byte) uint16 {
	t.Helper()
	host, err := net.ListenPacket("udp", at)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { host.Close() })
	go func() {
		b := make([]byte, 1<<16)
		for {
			n, from, err := host.ReadFrom(b)
			if err != nil {
				return
			}
			host.WriteTo(answer(b[:n]), from)
		}
	}()
	return host.LocalAddr().(*net.UDPAddr).AddrPort().Port()
}

// exchange sends a datagram and waits for one.
func exchange(c net.Conn, data []byte) ([]byte, error) {
	c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := c.Write(data); err != nil {
		return nil, err
	}
	b := make([]byte, 1<<16)
	n, err := c.Read(b)
	return b[:n], err
}

func dialUDP(t testing.TB, g *networktest.Guest, to netip.AddrPort) *gonet.UDPConn {
	t.Helper()
	proto := ipv4.ProtocolNumber
	if to.Addr().Is6() {
		proto = ipv6.ProtocolNumber
	}
	c, err := gonet.DialUDP(g.Stack, nil, &tcpip.FullAddress{NIC: networktest.NIC, Addr: address(to.Addr()), Port: to.Port()}, proto)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestUDPRefused wants an ICMP error from a port that nobody listens on, which a
// later write tells.
func TestUDPRefused(t *testing.T) {
	_, guest := start(t, Config{})
	for _, router := range []netip.Addr{router4, router6} {
		u := dialUDP(t, guest, netip.AddrPortFrom(router, 9))
		defer u.Close()
		var err error
		for i := 0; i < 1000 && err == nil; i++ {
			_, err = u.Write([]byte("x"))
			time.Sleep(10 * time.Millisecond)
		}
		if err == nil || !strings.Contains(err.Error(), "refused") {
			t.Errorf("%v: %v instead of a refusal", router, err)
		}
	}
}

// TestPublish reaches the guest from the host, by TCP and UDP.
func TestPublish(t *testing.T) {
	g, guest := start(t, Config{})
	at := tcpip.FullAddress{NIC: networktest.NIC, Addr: address(guestNets[0].Addr()), Port: 80}
	l, err := gonet.ListenTCP(guest.Stack, at, ipv4.ProtocolNumber)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { io.Copy(c, c); c.(*gonet.TCPConn).CloseWrite() }()
		}
	}()
	defer l.Close()
	u, err := gonet.DialUDP(guest.Stack, &at, nil, ipv4.ProtocolNumber)
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	go func() {
		b := make([]byte, 1<<16)
		for {
			n, from, err := u.ReadFrom(b)
			if err != nil {
				return
			}
			u.WriteTo(b[:n], from)
		}
	}()
	for _, proto := range []string{"tcp", "udp"} {
		list, err := ParsePublications("127.0.0.1:0:80/" + proto)
		if err != nil {
			t.Fatal(err)
		}
		p, err := g.Publish(list[0])
		if err != nil {
			t.Fatal(err)
		}
		for i := range 3 {
			c, err := net.Dial(proto, p.Host.String())
			if err != nil {
				t.Fatal(err)
			}
			data := []byte(fmt.Sprint("hello ", i))
			// The guest's address is known once it has said something.
			pingRouter(t, guest)
			if got, err := exchange(c, data); err != nil || !bytes.Equal(got, data) {
				t.Errorf("%v: got %q, %v", p, got, err)
			}
			c.Close()
		}
		if got := g.Publications(); len(got) != 1 || got[0] != p {
			t.Errorf("published are %v", got)
		}
		if _, err := g.Publish(p); err == nil {
			t.Errorf("%v was published twice", p)
		}
		if err := g.Unpublish(p); err != nil {
			t.Error(err)
		}
		if err := g.Unpublish(p); err == nil {
			t.Errorf("%v was unpublished twice", p)
		}
	}
	// Nobody listens on port 81.
	p, _ := g.Publish(Publication{Host: netip.MustParseAddrPort("127.0.0.1:0"), Guest: 81})
	c, err := net.Dial("tcp", p.Host.String())
	if err == nil {
		defer c.Close()
		c.SetDeadline(time.Now().Add(20 * time.Second))
		_, err = c.Read(make([]byte, 1))
	}
	if !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("a port that is closed in the guest: %v", err)
	}
}

// pingRouter has the guest send something.
func pingRouter(t *testing.T, guest *networktest.Guest) {
	t.Helper()
	u := dialUDP(t, guest, netip.AddrPortFrom(router4, 9))
	defer u.Close()
	u.Write([]byte("x"))
}

// TestSegmentedUDP sends a packet that stands for several datagrams, small and
// large ones.
func TestSegmentedUDP(t *testing.T) {
	_, guest := start(t, Config{})
	host, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	host.SetDeadline(time.Now().Add(20 * time.Second))
	to := netip.AddrPortFrom(router4, host.LocalAddr().(*net.UDPAddr).AddrPort().Port())
	client := &Gateway{mac: guestMAC}
	for _, c := range []struct{ total, segment int }{{1000, 100}, {1050, 100}, {5000, 1472}, {20000, 1200}} {
		data := make([]byte, c.total)
		rand.NewChaCha8([32]byte{byte(c.segment)}).Read(data)
		b := append(make([]byte, udpRoom), data...)
		udp := header.UDP(b[headerRoom:])
		udp.Encode(&header.UDPFields{SrcPort: 4000, DstPort: to.Port(), Length: uint16(len(udp))})
		frame := client.putHeaders(b, routerMAC, guestNets[0].Addr(), router4, header.UDPProtocolNumber)
		guest.SendFrame(ether.Header{Flags: ether.NeedsChecksum, ChecksumStart: 34, ChecksumOffset: 6,
			GSOType: ether.GSOUDPL4, GSOSize: uint16(c.segment), HeaderLength: 42}, frame)
		got, one := []byte{}, make([]byte, 1<<16)
		for len(got) < c.total {
			n, _, err := host.ReadFrom(one)
			if err != nil {
				t.Fatalf("%+v: after %d bytes: %v", c, len(got), err)
			}
			if n != min(c.segment, c.total-len(got)) {
				t.Errorf("%+v: a datagram of %d bytes", c, n)
			}
			got = append(got, one[:n]...)
		}
		if !bytes.Equal(got, data) {
			t.Errorf("%+v: the data has changed", c)
		}
	}
}
