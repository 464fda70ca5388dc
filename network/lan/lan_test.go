package lan

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"

	"vmm/network/ether"
	"vmm/network/gateway"
	"vmm/network/networktest"
)

// member makes guest number i on a switch.
func member(t *testing.T, s *Switch, i byte) *networktest.Guest {
	t.Helper()
	g, err := networktest.Start(s.Link(), mac(i), []netip.Prefix{netip.PrefixFrom(addr(i), 24)}, netip.MustParseAddr("10.0.2.2"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.Close() })
	return g
}

func mac(i byte) ether.MAC { return ether.MAC{2, 0, 0, 0, 0, i} }

func addr(i byte) netip.Addr { return netip.AddrFrom4([4]byte{10, 0, 2, 100 + i}) }

func join(t *testing.T, dir string, i byte) *Switch {
	t.Helper()
	s := New()
	if err := s.Join(dir, Member{Name: fmt.Sprint("vm", i), PID: os.Getpid(), MAC: mac(i).String()}); err != nil {
		t.Fatal(err)
	}
	return s
}

// serve has a guest send back what it gets, by TCP.
func serve(t *testing.T, g *networktest.Guest, i byte) {
	t.Helper()
	l, err := gonet.ListenTCP(g.Stack, tcpip.FullAddress{NIC: networktest.NIC, Addr: tcpip.AddrFrom4(addr(i).As4()), Port: 7}, ipv4.ProtocolNumber)
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
			go func() { io.Copy(c, c); c.(*gonet.TCPConn).CloseWrite() }()
		}
	}()
}

// talk sends data from one guest to another and back.
func talk(t *testing.T, from *networktest.Guest, to byte, n int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	c, err := gonet.DialContextTCP(ctx, from.Stack, tcpip.FullAddress{NIC: networktest.NIC, Addr: tcpip.AddrFrom4(addr(to).As4()), Port: 7}, ipv4.ProtocolNumber)
	if err != nil {
		t.Errorf("to %d: %v", to, err)
		return
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(30 * time.Second))
	data := make([]byte, n)
	rand.NewChaCha8([32]byte{to}).Read(data)
	go func() {
		c.Write(data)
		c.CloseWrite()
	}()
	if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, data) {
		t.Errorf("to %d: %d bytes of %d came back, %v", to, len(got), n, err)
	}
}

// TestMesh has five members talk to each other, one leave, and one come.
func TestMesh(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "lab")
	var guests []*networktest.Guest
	for i := byte(0); i < 5; i++ {
		g := member(t, join(t, dir, i), i)
		serve(t, g, i)
		guests = append(guests, g)
	}
	for i := range guests {
		for to := range guests {
			if to != i {
				talk(t, guests[i], byte(to), 100<<10)
			}
		}
	}
	if err := guests[2].Link.Close(); err != nil {
		t.Error(err)
	}
	late := member(t, join(t, dir, 9), 9)
	talk(t, late, 0, 1000)
	talk(t, guests[1], 3, 1000)
	left, _ := filepath.Glob(filepath.Join(dir, "*.sock"))
	if len(left) != 5 {
		t.Errorf("sockets: %v", left)
	}
}

// TestSameAddress refuses a second VM of the same name, and lets it in when the
// first is gone, however it went.
func TestSameAddress(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "lab")
	first := join(t, dir, 1)
	second := New()
	defer second.Close()
	err := second.Join(dir, Member{Name: "vm1", PID: 1, MAC: mac(1).String()})
	if !errors.Is(err, ErrAddressTaken) {
		t.Errorf("err = %v", err)
	}
	first.Close()
	// A socket that a killed process has left.
	stale := filepath.Join(dir, "1-stale.sock")
	if err := leaveStale(stale); err != nil {
		t.Fatal(err)
	}
	join(t, dir, 1).Close()
	if _, err := os.Stat(stale); err == nil {
		t.Error("the stale socket is still there")
	}
}

// TestSharedGateway has one gateway for all, which moves when its member goes.
func TestSharedGateway(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "lab")
	made := make(chan byte, 10)
	share := func(s *Switch, i byte) {
		err := s.Share(dir, func() (ether.Link, error) {
			made <- i
			return gateway.New(gateway.Config{})
		}, func(err error) { t.Error(err) })
		if err != nil {
			t.Fatal(err)
		}
	}
	a, b := join(t, dir, 1), join(t, dir, 2)
	guestA, guestB := member(t, a, 1), member(t, b, 2)
	share(a, 1)
	share(b, 2)
	if n := len(made); n != 1 {
		t.Errorf("%d gateways", n)
	}
	ask := func(g *networktest.Guest) error { // the name server listens by TCP too
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		c, err := gonet.DialContextTCP(ctx, g.Stack, tcpip.FullAddress{NIC: networktest.NIC, Addr: tcpip.AddrFrom4([4]byte{10, 0, 2, 3}), Port: 53}, ipv4.ProtocolNumber)
		if err == nil {
			c.Close()
		}
		return err
	}
	for _, g := range []*networktest.Guest{guestA, guestB} {
		if err := ask(g); err != nil {
			t.Error(err)
		}
	}
	guestA.Link.Close()
	if i := <-made; i != 1 {
		t.Errorf("member %d was first", i)
	}
	select {
	case i := <-made:
		if i != 2 {
			t.Errorf("member %d took over", i)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("nobody took over")
	}
	if err := ask(guestB); err != nil {
		t.Error(err)
	}
}

// TestStream joins two switches by QEMU's framing, by a stream and by datagrams.
func TestStream(t *testing.T) {
	dir := t.TempDir()
	for _, kind := range []string{"stream", "dgram"} {
		t.Run(kind, func(t *testing.T) {
			a, b := New(), New()
			one, two := filepath.Join(dir, kind+"1"), filepath.Join(dir, kind+"2")
			guestA, guestB := member(t, a, 1), member(t, b, 2)
			var err error
			if kind == "stream" {
				if err = a.Listen(one); err == nil {
					err = b.Dial(one)
				}
			} else if err = a.Datagram(one, two); err == nil {
				err = b.Datagram(two, one)
			}
			if err != nil {
				t.Fatal(err)
			}
			serve(t, guestB, 2)
			talk(t, guestA, 2, 300<<10)
		})
	}
	if err := New().Dial("/nowhere"); err == nil || !strings.Contains(err.Error(), "/nowhere: no such file") {
		t.Errorf("err = %v", err)
	}
}

// TestSegmentsToPlain sends a segment of 40 KB to a peer that must get it cut.
func TestSegmentsToPlain(t *testing.T) {
	a, b := New(), New()
	path := filepath.Join(t.TempDir(), "s")
	if err := a.Listen(path); err != nil {
		t.Fatal(err)
	}
	if err := b.Dial(path); err != nil {
		t.Fatal(err)
	}
	// A gateway on a's side sends large segments to the guest on b's.
	gw, err := gateway.New(gateway.Config{Guest: mac(15)})
	if err != nil {
		t.Fatal(err)
	}
	a.Connect(gw)
	defer a.Close()
	guest, err := networktest.Start(b.Link(), mac(15), []netip.Prefix{netip.MustParsePrefix("10.0.2.15/24")}, netip.MustParseAddr("10.0.2.2"))
	if err != nil {
		t.Fatal(err)
	}
	defer guest.Close()
	guest.SetFilter(func(sent bool, h ether.Header, frame []byte) bool {
		if !sent && (h.Segmented() || len(frame) > 1514) {
			t.Errorf("a frame of %d bytes, %+v", len(frame), h)
		}
		return true
	})
	l, err := gonet.ListenTCP(guest.Stack, tcpip.FullAddress{NIC: networktest.NIC, Port: 7}, ipv4.ProtocolNumber)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	p, err := gw.Publish(gateway.Publication{Host: netip.MustParseAddrPort("127.0.0.1:0"), Guest: 7})
	if err != nil {
		t.Fatal(err)
	}
	got := make(chan []byte, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		b, _ := io.ReadAll(c)
		got <- b
	}()
	data := make([]byte, 1<<20)
	rand.NewChaCha8([32]byte{}).Read(data)
	if err := upload(p.Host.String(), data); err != nil {
		t.Fatal(err)
	}
	select {
	case b := <-got:
		if !bytes.Equal(b, data) {
			t.Errorf("%d bytes of %d", len(b), len(data))
		}
	case <-time.After(30 * time.Second):
		t.Error("nothing arrived")
	}
}

// TestPasst has a guest reach the host by passt, which speaks QEMU's framing.
func TestPasst(t *testing.T) {
	if _, err := exec.LookPath("passt"); err != nil {
		t.Skip("no passt: make test installs it")
	}
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { io.Copy(c, c); c.Close() }()
		}
	}()
	if err := passtEcho(t, uint16(l.Addr().(*net.TCPAddr).Port)); err != nil {
		t.Error(err)
	}
}

// passtEcho has a guest behind a new passt talk to a port of the host's.
func passtEcho(t *testing.T, port uint16) error {
	dir, err := os.MkdirTemp("/tmp", "vmm-passt-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o777); err != nil { // passt gives root up
		return err
	}
	path := filepath.Join(dir, "socket")
	c := exec.Command("passt", "-f", "-q", "-4", "-s", path, "-a", "10.0.2.101", "-n", "24", "-g", "10.0.2.2", "-t", "none", "-u", "none")
	if err := c.Start(); err != nil {
		return err
	}
	defer func() {
		c.Process.Kill()
		c.Wait()
	}()
	s := New()
	guest := member(t, s, 1)
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if err = s.Dial(path); err == nil {
			break
		} else if time.Now().After(deadline) {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	g, err := gonet.DialContextTCP(ctx, guest.Stack, tcpip.FullAddress{NIC: networktest.NIC, Addr: tcpip.AddrFrom4([4]byte{10, 0, 2, 2}), Port: port}, ipv4.ProtocolNumber)
	if err != nil {
		return err
	}
	defer g.Close()
	g.SetDeadline(time.Now().Add(10 * time.Second))
	g.Write([]byte("hello passt"))
	b := make([]byte, 11)
	if _, err := io.ReadFull(g, b); err != nil || string(b) != "hello passt" {
		return fmt.Errorf("%q, %w", b, err)
	}
	return nil
}

// TestSlowMember has a member that takes nothing until frames for it are lost,
// and then takes all: it gets frames again.
func TestSlowMember(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "lab")
	s := join(t, dir, 1)
	guest := member(t, s, 1)
	paths, err := filepath.Glob(filepath.Join(dir, "*.sock"))
	if err != nil || len(paths) != 1 {
		t.Fatal(paths, err)
	}
	c, err := dialUnix("unixpacket", paths[0])
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	b := make([]byte, maxMessage)
	fmt.Fprintf(c, `{"version":%d,"name":"slow","mac":"02:09:09:09:09:09"}`, meshVersion)
	if _, err := c.Read(b); err != nil { // its hello
		t.Fatal(err)
	}
	broadcast := func(n int, mark byte) {
		frame := bytes.Repeat([]byte{0xff}, n)
		copy(frame[6:], guest.MAC[:])
		frame[n-1] = mark
		guest.SendFrame(ether.Header{}, frame)
	}
	for range 200 {
		broadcast(60000, 1)
	}
	// It takes what there is, and is told of something new while it does.
	c.SetReadDeadline(time.Now().Add(20 * time.Second))
	go func() {
		for range 100 {
			broadcast(100, 2)
			time.Sleep(20 * time.Millisecond)
		}
	}()
	for {
		n, err := c.Read(b)
		if err != nil {
			t.Fatalf("nothing new came: %v", err)
		}
		if b[n-1] == 2 {
			return
		}
	}
}
