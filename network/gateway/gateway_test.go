package gateway

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
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

var (
	guestMAC  = ether.MAC{2, 0, 0, 0, 0, 1}
	guestNets = []netip.Prefix{netip.MustParsePrefix("10.0.2.15/24"), netip.MustParsePrefix("fd00:766d:6d::15/64")}
	router4   = netip.MustParseAddr("10.0.2.2")
	router6   = netip.MustParseAddr("fd00:766d:6d::2")
)

// start makes a gateway with a guest that may reach the host.
func start(t testing.TB, cfg Config, allow ...string) (*Gateway, *networktest.Guest) {
	t.Helper()
	for _, a := range append([]string{"host"}, allow...) {
		if err := cfg.Policy.ParseRule(true, a); err != nil {
			t.Fatal(err)
		}
	}
	cfg.Guest = guestMAC
	cfg.Log = func(err error) { t.Log(err) }
	g, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	guest, err := networktest.Start(g, guestMAC, guestNets, router4, router6)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { guest.Close() })
	return g, guest
}

// dial connects from the guest.
func dial(t testing.TB, g *networktest.Guest, to netip.AddrPort) (*gonet.TCPConn, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	proto := ipv4.ProtocolNumber
	if to.Addr().Is6() {
		proto = ipv6.ProtocolNumber
	}
	return gonet.DialContextTCP(ctx, g.Stack, tcpip.FullAddress{NIC: networktest.NIC, Addr: address(to.Addr()), Port: to.Port()}, proto)
}

// listen serves connections on the host's loopback.
func listen(t testing.TB, network string, handle func(*net.TCPConn)) uint16 {
	t.Helper()
	at := "127.0.0.1:0"
	if network == "tcp6" {
		at = "[::1]:0"
	}
	l, err := net.Listen(network, at)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				handle(c.(*net.TCPConn))
			}()
		}
	}()
	return l.Addr().(*net.TCPAddr).AddrPort().Port()
}

func echoTCP(c *net.TCPConn) {
	io.Copy(c, c)
	c.CloseWrite()
}

// TestTCP moves data both ways, by IPv4 and IPv6, and holds half-closing to what
// it is on a wire.
func TestTCP(t *testing.T) {
	_, guest := start(t, Config{})
	for network, router := range map[string]netip.Addr{"tcp4": router4, "tcp6": router6} {
		t.Run(network, func(t *testing.T) {
			port := listen(t, network, echoTCP)
			c, err := dial(t, guest, netip.AddrPortFrom(router, port))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			sent := sha256.New()
			go func() {
				w := io.MultiWriter(c, sent)
				r := rand.NewChaCha8([32]byte{})
				io.CopyN(w, r, 8<<20)
				c.CloseWrite()
			}()
			got := sha256.New()
			n, err := io.Copy(got, c)
			if err != nil || n != 8<<20 || !bytes.Equal(got.Sum(nil), sent.Sum(nil)) {
				t.Errorf("%d bytes, %v; the same: %v", n, err, bytes.Equal(got.Sum(nil), sent.Sum(nil)))
			}
		})
	}
}

// TestTCPEnds holds refusals, resets and half-closing to what they are on a
// wire.
func TestTCPEnds(t *testing.T) {
	_, guest := start(t, Config{})
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed := l.Addr().(*net.TCPAddr).AddrPort().Port()
	l.Close()
	if _, err := dial(t, guest, netip.AddrPortFrom(router4, closed)); err == nil {
		t.Error("a closed port was open")
	}
	t.Run("host resets", func(t *testing.T) {
		port := listen(t, "tcp4", func(c *net.TCPConn) {
			io.ReadFull(c, make([]byte, 1))
			c.SetLinger(0)
		})
		c, err := dial(t, guest, netip.AddrPortFrom(router4, port))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.Write([]byte("x"))
		if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
			t.Errorf("the guest sees %v instead of a reset", err)
		}
	})
	t.Run("guest resets", func(t *testing.T) {
		saw := make(chan error, 1)
		port := listen(t, "tcp4", func(c *net.TCPConn) {
			_, err := io.Copy(io.Discard, c)
			saw <- err
		})
		var queue = dialEndpoint(t, guest, netip.AddrPortFrom(router4, port))
		queue.Abort()
		select {
		case err := <-saw:
			if !errors.Is(err, unix.ECONNRESET) {
				t.Errorf("the host sees %v instead of a reset", err)
			}
		case <-time.After(20 * time.Second):
			t.Error("the host sees nothing")
		}
	})
	t.Run("host ends first", func(t *testing.T) {
		got := make(chan string, 1)
		port := listen(t, "tcp4", func(c *net.TCPConn) {
			c.Write([]byte("bye"))
			c.CloseWrite()
			b, _ := io.ReadAll(c)
			got <- string(b)
		})
		c, err := dial(t, guest, netip.AddrPortFrom(router4, port))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if b, err := io.ReadAll(c); string(b) != "bye" || err != nil {
			t.Errorf("%q, %v", b, err)
		}
		c.Write([]byte("still here"))
		c.CloseWrite()
		if s := <-got; s != "still here" {
			t.Errorf("after its end the host got %q", s)
		}
	})
}

// dialEndpoint is dial for an endpoint that can be aborted.
func dialEndpoint(t *testing.T, g *networktest.Guest, to netip.AddrPort) tcpip.Endpoint {
	t.Helper()
	ep, err := connect(g.Stack, to)
	if err != nil {
		t.Fatal(err)
	}
	return ep
}

// TestSlowPeer lets a peer that reads nothing not hold up another.
func TestSlowPeer(t *testing.T) {
	_, guest := start(t, Config{})
	wait := make(chan struct{})
	slow := listen(t, "tcp4", func(c *net.TCPConn) { <-wait })
	defer close(wait)
	c, err := dial(t, guest, netip.AddrPortFrom(router4, slow))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	go io.Copy(c, rand.NewChaCha8([32]byte{})) // until it is stuck
	time.Sleep(200 * time.Millisecond)
	fast := listen(t, "tcp4", echoTCP)
	d, err := dial(t, guest, netip.AddrPortFrom(router4, fast))
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	d.SetDeadline(time.Now().Add(20 * time.Second))
	d.Write([]byte("hello"))
	if _, err := io.ReadFull(d, make([]byte, 5)); err != nil {
		t.Error(err)
	}
}

// TestManyConnections opens and closes many, some at a time, and wants nothing
// left.
func TestManyConnections(t *testing.T) {
	total := 10000
	if testing.Short() {
		total = 500
	}
	g, guest := start(t, Config{})
	port := listen(t, "tcp4", echoTCP)
	before := openSockets(t)
	var group sync.WaitGroup
	var failed atomic.Int64
	for w := range 50 {
		group.Go(func() {
			for i := range total / 50 {
				c, err := dial(t, guest, netip.AddrPortFrom(router4, port))
				if err != nil {
					failed.Add(1)
					t.Logf("connection %d of %d: %v", i, w, err)
					continue
				}
				c.SetDeadline(time.Now().Add(30 * time.Second))
				c.Write([]byte("ping"))
				if _, err := io.ReadFull(c, make([]byte, 4)); err != nil {
					failed.Add(1)
				}
				c.Close()
			}
		})
	}
	group.Wait()
	if n := failed.Load(); n > 0 {
		t.Errorf("%d of %d connections failed", n, total)
	}
	for range 300 {
		if n, _ := g.Connections(); n == 0 && openSockets(t) <= before {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	n, _ := g.Connections()
	t.Errorf("%d connections and %d open sockets are left; %d before", n, openSockets(t), before)
}

// TestLoss moves data although frames are lost, doubled and out of order.
func TestLoss(t *testing.T) {
	_, guest := start(t, Config{})
	var mu sync.Mutex
	random := rand.New(rand.NewPCG(1, 2))
	guest.SetFilter(func(sent bool, h ether.Header, frame []byte) bool {
		mu.Lock()
		dice := random.IntN(100)
		mu.Unlock()
		switch {
		case dice < 3:
			return false
		case dice < 6 && sent: // twice
			guest.Link.Send(0, h, [][]byte{frame})
		case dice < 9 && sent: // late
			late := bytes.Clone(frame)
			time.AfterFunc(3*time.Millisecond, func() { guest.Link.Send(0, h, [][]byte{late}) })
			return false
		}
		return true
	})
	port := listen(t, "tcp4", echoTCP)
	c, err := dial(t, guest, netip.AddrPortFrom(router4, port))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	data := make([]byte, 256<<10)
	rand.NewChaCha8([32]byte{}).Read(data)
	go func() {
		c.Write(data)
		c.CloseWrite()
	}()
	if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, data) {
		t.Errorf("%d bytes of %d, %v", len(got), len(data), err)
	}
}

// TestNoRoom has a guest without receive buffers for a while.
func TestNoRoom(t *testing.T) {
	g, guest := start(t, Config{})
	port := listen(t, "tcp4", echoTCP)
	c, err := dial(t, guest, netip.AddrPortFrom(router4, port))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	guest.Full.Store(true)
	data := make([]byte, 64<<10)
	go c.Write(data)
	time.Sleep(100 * time.Millisecond)
	guest.Full.Store(false)
	g.Ready()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.ReadFull(c, make([]byte, len(data))); err != nil {
		t.Error(err)
	}
}

func openSockets(t *testing.T) int {
	t.Helper()
	n, err := countSockets()
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestClose wants no goroutine to be left.
func TestClose(t *testing.T) {
	before := runtime.NumGoroutine()
	for range 3 {
		g, err := New(Config{})
		if err != nil {
			t.Fatal(err)
		}
		g.Close()
	}
	for range 200 {
		if runtime.NumGoroutine() <= before+2 {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	b := make([]byte, 1<<20)
	t.Errorf("%d goroutines, %d before:\n%s", runtime.NumGoroutine(), before, b[:runtime.Stack(b, true)])
}

// TestDuplicateSYN sends each SYN three times, and wants one connection of it.
func TestDuplicateSYN(t *testing.T) {
	_, guest := start(t, Config{})
	guest.SetFilter(func(sent bool, h ether.Header, frame []byte) bool {
		const flags = 14 + 20 + header.TCPFlagsOffset
		if sent && len(frame) > flags && frame[23] == uint8(header.TCPProtocolNumber) && frame[flags] == byte(header.TCPFlagSyn) {
			guest.Link.Send(0, h, [][]byte{frame})
			guest.Link.Send(0, h, [][]byte{frame})
		}
		return true
	})
	var connections atomic.Int64
	port := listen(t, "tcp4", func(c *net.TCPConn) {
		connections.Add(1)
		echoTCP(c)
	})
	for i := range 20 {
		c, err := dial(t, guest, netip.AddrPortFrom(router4, port))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := exchange(c, []byte("hello")); err != nil || string(got) != "hello" {
			t.Errorf("connection %d: %q, %v", i, got, err)
		}
		c.Close()
	}
	if n := connections.Load(); n != 20 {
		t.Errorf("the host saw %d connections", n)
	}
}

// TestZeroWindow has a guest that reads nothing until its window is closed and
// everything on the way is full, and then all.
func TestZeroWindow(t *testing.T) {
	_, guest := start(t, Config{})
	data := make([]byte, 24<<20)
	rand.NewChaCha8([32]byte{7}).Read(data)
	var sent atomic.Int64
	port := listen(t, "tcp4", func(c *net.TCPConn) {
		for b := data; len(b) > 0; {
			n, err := c.Write(b[:min(len(b), 64<<10)])
			if err != nil {
				return
			}
			sent.Add(int64(n))
			b = b[n:]
		}
		c.CloseWrite()
	})
	c, err := dial(t, guest, netip.AddrPortFrom(router4, port))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for before := int64(-1); sent.Load() != before; time.Sleep(300 * time.Millisecond) {
		before = sent.Load()
	}
	if sent.Load() == int64(len(data)) {
		t.Fatal("all of it is on the way: there is no bound")
	}
	c.SetDeadline(time.Now().Add(60 * time.Second))
	if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, data) {
		t.Errorf("%d bytes of %d, %v", len(got), len(data), err)
	}
}
