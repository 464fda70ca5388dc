package gateway

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/miekg/dns"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"

	"vmm/network/ether"
	"vmm/network/networktest"
)

// recorder is a device that keeps what it receives.
type recorder struct{ frames chan []byte }

// Receive implements ether.NIC.
func (r *recorder) Receive(_ uint32, h ether.Header, parts [][]byte) bool {
	b := bytes.Join(parts, nil)
	ether.Complete(h, b)
	select {
	case r.frames <- b:
	default:
	}
	return true
}

// Flush implements ether.NIC.
func (r *recorder) Flush() {}

// record makes a gateway whose frames are kept.
func record(t testing.TB, cfg Config) (*Gateway, *recorder) {
	t.Helper()
	g, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	r := &recorder{make(chan []byte, 1000)}
	g.Attach(r)
	t.Cleanup(func() { g.Close() })
	return g, r
}

// sendDHCP has a client send a message and returns the answer, nil if there is
// none, and where it was sent.
func sendDHCP(t *testing.T, g *Gateway, r *recorder, m *dhcpv4.DHCPv4) (*dhcpv4.DHCPv4, ether.MAC) {
	t.Helper()
	client := &Gateway{mac: ether.MAC(m.ClientHWAddr)}
	payload := m.ToBytes()
	b := append(make([]byte, udpRoom), payload...)
	udp := header.UDP(b[headerRoom:])
	udp.Encode(&header.UDPFields{SrcPort: portDHCPClient, DstPort: portDHCPServer, Length: uint16(len(udp))})
	frame := client.putHeaders(b, ether.Broadcast, netip.IPv4Unspecified(), broadcast4, header.UDPProtocolNumber)
	g.Send(0, ether.Header{}, [][]byte{frame})
	select {
	case f := <-r.frames:
		answer, err := dhcpv4.FromBytes(f[ether.FrameHeader+header.IPv4MinimumSize+header.UDPMinimumSize:])
		if err != nil || !valid(ether.TypeIPv4, ether.Header{}, f[ether.FrameHeader:]) {
			t.Fatalf("%v in % x", err, f)
		}
		return answer, ether.MAC(f[:6])
	default:
		return nil, ether.MAC{}
	}
}

// TestDHCP has clients ask for addresses, properly and not.
func TestDHCP(t *testing.T) {
	g, r := record(t, Config{Guest: guestMAC, Hostname: "Dev", MTU: 9000})
	message := func(kind dhcpv4.MessageType, mac ether.MAC, o ...dhcpv4.Modifier) *dhcpv4.DHCPv4 {
		m, err := dhcpv4.New(append([]dhcpv4.Modifier{dhcpv4.WithMessageType(kind), dhcpv4.WithHwAddr(mac[:])}, o...)...)
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	offer, to := sendDHCP(t, g, r, message(dhcpv4.MessageTypeDiscover, guestMAC))
	if offer == nil || offer.MessageType() != dhcpv4.MessageTypeOffer || offer.YourIPAddr.String() != "10.0.2.15" || to != guestMAC {
		t.Fatalf("offer %v to %v", offer, to)
	}
	for name, ok := range map[string]bool{
		"router":   offer.Router()[0].String() == "10.0.2.2",
		"DNS":      offer.DNS()[0].String() == "10.0.2.3",
		"mask":     net.IP(offer.SubnetMask()).String() == "255.255.255.0",
		"domain":   offer.DomainName() == Domain,
		"hostname": offer.HostName() == "Dev",
		"MTU":      bytes.Equal(offer.Options.Get(dhcpv4.OptionInterfaceMTU), []byte{9000 >> 8, 9000 & 0xff}),
		"lease":    offer.IPAddressLeaseTime(0) == leaseTime,
	} {
		if !ok {
			t.Errorf("the offer's %s is wrong: %v", name, offer)
		}
	}
	ack, _ := sendDHCP(t, g, r, message(dhcpv4.MessageTypeRequest, guestMAC, dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(offer.YourIPAddr))))
	if ack == nil || ack.MessageType() != dhcpv4.MessageTypeAck {
		t.Errorf("ack %v", ack)
	}
	// Others: the next address, the one that was asked for, one that is taken, one
	// that is the router's.
	for i, c := range []struct{ want, get string }{{"", "10.0.2.16"}, {"10.0.2.77", "10.0.2.77"}, {"10.0.2.77", "10.0.2.17"}, {"10.0.2.2", "10.0.2.18"}, {"192.0.2.1", "10.0.2.19"}} {
		m := message(dhcpv4.MessageTypeDiscover, ether.MAC{2, 0, 0, 0, 1, byte(i)}, dhcpv4.WithBroadcast(true), dhcpv4.WithOption(dhcpv4.OptHostName(fmt.Sprint("vm", i))))
		if c.want != "" {
			m.UpdateOption(dhcpv4.OptRequestedIPAddress(net.ParseIP(c.want)))
		}
		if o, to := sendDHCP(t, g, r, m); o == nil || o.YourIPAddr.String() != c.get || to != ether.Broadcast || o.HostName() != "" {
			t.Errorf("wanting %q: %v to %v", c.want, o, to)
		}
	}
	if a, ok := g.leases.find("vm1"); !ok || a.String() != "10.0.2.77" {
		t.Errorf("vm1 is %v", a)
	}
	nak, _ := sendDHCP(t, g, r, message(dhcpv4.MessageTypeRequest, guestMAC, dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(net.IPv4(10, 0, 2, 99)))))
	if nak == nil || nak.MessageType() != dhcpv4.MessageTypeNak {
		t.Errorf("a request for another address: %v", nak)
	}
	other, _ := sendDHCP(t, g, r, message(dhcpv4.MessageTypeRequest, guestMAC, dhcpv4.WithOption(dhcpv4.OptServerIdentifier(net.IPv4(1, 2, 3, 4)))))
	if other != nil {
		t.Errorf("a request to another server: %v", other)
	}
	for i := range 400 {
		sendDHCP(t, g, r, message(dhcpv4.MessageTypeDiscover, ether.MAC{2, 0, 0, 0, 2, byte(i)}))
	}
	if o, _ := sendDHCP(t, g, r, message(dhcpv4.MessageTypeDiscover, ether.MAC{2, 3, 3, 3, 3, 3})); o != nil {
		t.Errorf("an address beyond the last: %v", o)
	}
}

// TestLeaseFile has a gateway take over from another.
func TestLeaseFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "leases")
	cfg := Config{Leases: path, Log: func(err error) { t.Error(err) }}
	other := ether.MAC{2, 7, 7, 7, 7, 7}
	first, _ := record(t, cfg)
	first.leases.get(guestMAC, netip.Addr{}, "alice")
	first.leases.get(other, netip.Addr{}, "bob")
	first.Close()
	cfg.Guest, cfg.Hostname = other, "bob"
	second, _ := record(t, cfg)
	if a, _ := second.leases.of(other); a.String() != "10.0.2.16" {
		t.Errorf("bob is %v now", a)
	}
	if a, _ := second.leases.find("alice"); a.String() != "10.0.2.15" {
		t.Errorf("alice is %v now", a)
	}
	if e, _ := second.leases.get(ether.MAC{2, 8}, netip.Addr{}, ""); e.addr.String() != "10.0.2.17" {
		t.Errorf("the next is %v", e.addr)
	}
	second.Close()
	os.WriteFile(path, []byte("{"), 0o600)
	told := false
	record(t, Config{Leases: path, Log: func(error) { told = true }})
	if !told {
		t.Error("nobody is told of a broken file")
	}
}

// TestAdvertise asks for a router.
func TestAdvertise(t *testing.T) {
	g, r := record(t, Config{MTU: 1400})
	g.advertise(guestMAC, netip.MustParseAddr("fe80::1"))
	f := <-r.frames
	ip := header.IPv6(f[ether.FrameHeader:])
	if !valid(ether.TypeIPv6, ether.Header{}, ip) || ip.HopLimit() != 255 || ether.MAC(f[:6]) != guestMAC {
		t.Fatalf("% x", f)
	}
	advert := header.NDPRouterAdvert(header.ICMPv6(ip.Payload()).MessageBody())
	it, err := advert.Options().Iter(true)
	if err != nil || advert.RouterLifetime() != routerLifetime*time.Second {
		t.Fatalf("%v, lifetime %v", err, advert.RouterLifetime())
	}
	var seen []string
	for {
		o, done, err := it.Next()
		if err != nil {
			t.Fatal(err)
		}
		if done {
			break
		}
		switch o := o.(type) {
		case header.NDPPrefixInformation:
			seen = append(seen, o.Subnet().String())
		case header.NDPRecursiveDNSServer:
			a, _ := o.Addresses()
			seen = append(seen, a[0].String())
		}
	}
	if !slices.Contains(seen, "fd00:766d:6d::/64") || !slices.Contains(seen, "fd00:766d:6d::3") || !bytes.HasSuffix(f, []byte{5, 1, 0, 0, 0, 0, 1400 >> 8, 1400 & 0xff}) {
		t.Errorf("options %v in % x", seen, f)
	}
}

// TestNeighbors asks for hardware addresses: the gateway's are answered, those of
// other guests and of nobody are not.
func TestNeighbors(t *testing.T) {
	g, r := record(t, Config{})
	client := &Gateway{mac: guestMAC}
	for addr, answered := range map[string]bool{"10.0.2.2": true, "10.0.2.3": true, "10.0.2.77": false, "192.0.2.1": false,
		"fd00:766d:6d::2": true, "fd00:766d:6d::77": false} {
		a := netip.MustParseAddr(addr)
		var frame []byte
		if a.Is4() {
			frame = make([]byte, ether.FrameHeader+header.ARPSize)
			client.putEthernet(frame, ether.Broadcast, ether.TypeARP)
			arp := header.ARP(frame[ether.FrameHeader:])
			arp.SetIPv4OverEthernet()
			arp.SetOp(header.ARPRequest)
			copy(arp.HardwareAddressSender(), guestMAC[:])
			copy(arp.ProtocolAddressSender(), guestNets[0].Addr().AsSlice())
			copy(arp.ProtocolAddressTarget(), a.AsSlice())
		} else {
			b := make([]byte, headerRoom+header.ICMPv6NeighborSolicitMinimumSize+8)
			icmp := header.ICMPv6(b[headerRoom:])
			icmp.SetType(header.ICMPv6NeighborSolicit)
			header.NDPNeighborSolicit(icmp.MessageBody()).SetTargetAddress(address(a))
			copy(icmp[header.ICMPv6NeighborSolicitMinimumSize:], append([]byte{1, 1}, guestMAC[:]...))
			src := guestNets[1].Addr()
			icmp.SetChecksum(^checksum.Checksum(icmp, header.PseudoHeaderChecksum(header.ICMPv6ProtocolNumber, address(src), address(a), uint16(len(icmp)))))
			frame = client.putHeaders(b, routerMAC, src, a, header.ICMPv6ProtocolNumber)
		}
		g.Send(0, ether.Header{}, [][]byte{frame})
		select {
		case f := <-r.frames:
			if !answered {
				t.Errorf("%s: answered by % x", addr, f)
			}
		case <-time.After(200 * time.Millisecond):
			if answered {
				t.Errorf("%s: no answer", addr)
			}
		}
	}
}

// TestNames asks the name server.
func TestNames(t *testing.T) {
	upstream := startResolver(t)
	dead := netip.MustParseAddrPort("127.0.0.1:9")
	for _, c := range []struct {
		name string
		cfg  Config
		ask  string
		want string
	}{
		{"the host", Config{}, "host.vmm.internal.", "10.0.2.2"},
		{"a VM", Config{Hostname: "dev"}, "dev.vmm.internal.", "10.0.2.15"},
		{"a VM without the domain, in capitals", Config{Hostname: "dev"}, "DEV.", "10.0.2.15"},
		{"a host", Config{Hosts: map[string]netip.Addr{"db.lab": netip.MustParseAddr("10.9.0.7")}}, "DB.lab.", "10.9.0.7"},
		{"a host without that kind of address", Config{Hosts: map[string]netip.Addr{"db": netip.MustParseAddr("fd00::7")}}, "db.", "NOERROR"},
		{"nobody", Config{}, "nobody.vmm.internal.", "NXDOMAIN"},
		{"the world", Config{Resolvers: []netip.AddrPort{upstream}}, "example.org.", "192.0.2.1"},
		{"much of the world", Config{Resolvers: []netip.AddrPort{upstream}}, "many.example.org.", "192.0.2.1"},
		{"the second resolver", Config{Resolvers: []netip.AddrPort{dead, upstream}}, "example.org.", "192.0.2.1"},
		{"no resolver", Config{Resolvers: []netip.AddrPort{dead}}, "example.org.", "SERVFAIL"},
		{"not allowed", Config{Resolvers: []netip.AddrPort{upstream}, Policy: Policy{NoNames: true}}, "example.org.", "REFUSED"},
	} {
		for _, network := range []string{"udp", "tcp"} {
			t.Run(c.name+" by "+network, func(t *testing.T) {
				_, guest := start(t, c.cfg)
				a := askNames(t, guest, network, new(dns.Msg).SetQuestion(c.ask, dns.TypeA))
				got := dns.RcodeToString[a.Rcode]
				for _, rr := range a.Answer {
					got += " " + rr.(*dns.A).A.String()
				}
				if a.Truncated && network == "udp" && c.ask == "many.example.org." {
					return // it is asked again by TCP
				}
				if !strings.Contains(got, c.want) || a.Truncated {
					t.Errorf("got %s, want %s", got, c.want)
				}
			})
		}
	}
}

// manyAddresses is more than fits in a datagram.
const manyAddresses = 300

// startResolver starts a name server on the host, and returns its address.
func startResolver(t *testing.T) netip.AddrPort {
	t.Helper()
	handler := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		a := new(dns.Msg).SetReply(q)
		count := 1
		if strings.HasPrefix(q.Question[0].Name, "many") {
			count = manyAddresses
		}
		for n := range count {
			a.Answer = append(a.Answer, &dns.A{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET}, A: net.IPv4(192, 0, byte(2+n/256), byte(1+n))})
		}
		w.WriteMsg(a)
	})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	at := l.Addr().(*net.TCPAddr).AddrPort()
	c, err := net.ListenPacket("udp", at.String())
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []*dns.Server{{Listener: l, Handler: handler}, {PacketConn: c, Handler: handler}} {
		begun := make(chan struct{})
		s.NotifyStartedFunc = func() { close(begun) }
		go s.ActivateAndServe()
		<-begun
		t.Cleanup(func() { s.Shutdown() })
	}
	return at
}

// askNames sends the gateway's name server a query.
func askNames(t *testing.T, guest *networktest.Guest, network string, q *dns.Msg) *dns.Msg {
	t.Helper()
	at := tcpip.FullAddress{NIC: networktest.NIC, Addr: tcpip.AddrFrom4([4]byte{10, 0, 2, 3}), Port: 53}
	var conn net.Conn
	var err error
	if network == "udp" {
		conn, err = gonet.DialUDP(guest.Stack, nil, &at, ipv4.ProtocolNumber)
	} else {
		conn, err = gonet.DialTCP(guest.Stack, at, ipv4.ProtocolNumber)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	client := dns.Client{Net: network, Timeout: 10 * time.Second, UDPSize: 8192}
	a, _, err := client.ExchangeWithConnContext(context.Background(), q, &dns.Conn{Conn: conn})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// TestTruncated wants an answer of which a datagram has no room for all to say so, and
// one that the guest has room for to be whole.
func TestTruncated(t *testing.T) {
	_, guest := start(t, Config{Resolvers: []netip.AddrPort{startResolver(t)}})
	q := new(dns.Msg).SetQuestion("many.example.org.", dns.TypeA)
	if a := askNames(t, guest, "udp", q); !a.Truncated || a.Len() > dns.MinMsgSize {
		t.Errorf("without room: truncated %v, %d bytes", a.Truncated, a.Len())
	}
	if a := askNames(t, guest, "tcp", q); a.Truncated || len(a.Answer) != manyAddresses {
		t.Errorf("by TCP: truncated %v, %d addresses", a.Truncated, len(a.Answer))
	}
}

// TestNoQuery sends what is no query, and then one.
func TestNoQuery(t *testing.T) {
	_, guest := start(t, Config{})
	at := tcpip.FullAddress{NIC: networktest.NIC, Addr: tcpip.AddrFrom4([4]byte{10, 0, 2, 3}), Port: 53}
	conn, err := gonet.DialUDP(guest.Stack, nil, &at, ipv4.ProtocolNumber)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	answer, err := new(dns.Msg).SetReply(new(dns.Msg).SetQuestion("host.vmm.internal.", dns.TypeA)).Pack()
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range [][]byte{{0}, make([]byte, 11), bytes.Repeat([]byte{0xff}, 100), answer, append(make([]byte, 5), 9, 0, 9, 0, 9, 0, 9)} {
		if _, err := conn.Write(b); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		q    *dns.Msg
		want int
	}{
		{&dns.Msg{MsgHdr: dns.MsgHdr{Id: 1}}, dns.RcodeRefused},
		{&dns.Msg{MsgHdr: dns.MsgHdr{Id: 2, Opcode: dns.OpcodeUpdate}, Question: []dns.Question{{Name: "x.", Qtype: dns.TypeA, Qclass: dns.ClassINET}}}, dns.RcodeRefused},
		{new(dns.Msg).SetQuestion("host.vmm.internal.", dns.TypeAAAA), dns.RcodeSuccess},
	} {
		if a := askNames(t, guest, "udp", c.q); a.Rcode != c.want || len(a.Answer) != 0 {
			t.Errorf("%v: got %v", c.q, a)
		}
	}
}

// TestManyNameConnections: a guest's connections to the name server are bounded: one more
// is closed, and the others are served. Which one that is, is not said: the last segment of
// a handshake can be lost, and then the server knows of the connection later than the guest.
func TestManyNameConnections(t *testing.T) {
	// None may end for being idle: a loaded host makes them slowly.
	_, guest := start(t, Config{nameIdle: time.Hour})
	at := tcpip.FullAddress{NIC: networktest.NIC, Addr: tcpip.AddrFrom4([4]byte{10, 0, 2, 3}), Port: 53}
	query, err := new(dns.Msg).SetQuestion("host.vmm.internal.", dns.TypeA).Pack()
	if err != nil {
		t.Fatal(err)
	}
	message := append(binary.BigEndian.AppendUint16(nil, uint16(len(query))), query...)
	type answer struct {
		conn int
		got  []byte
		err  error
	}
	answers := make(chan answer, maxNameConns+1)
	var conns []*gonet.TCPConn
	for i := range maxNameConns + 1 {
		c, err := gonet.DialTCP(guest.Stack, at, ipv4.ProtocolNumber)
		if err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
		defer c.Close()
		conns = append(conns, c)
		c.Write(message[:1]) // is sent until the server has it
	}
	for i, c := range conns {
		c.SetDeadline(time.Now().Add(time.Minute))
		go func() {
			got, err := readMessage(c)
			answers <- answer{i, got, err}
		}()
	}
	closed := <-answers
	var timeout net.Error
	if closed.err == nil || errors.As(closed.err, &timeout) && timeout.Timeout() {
		t.Fatalf("one more than there may be got %x, %v", closed.got, closed.err)
	}
	asking := (closed.conn + 1) % len(conns)
	if _, err := conns[asking].Write(message[1:]); err != nil {
		t.Fatal(err)
	}
	if a := <-answers; a.conn != asking || a.err != nil || new(dns.Msg).Unpack(a.got) != nil {
		t.Errorf("connection %d asked, and %d got %x, %v", asking, a.conn, a.got, a.err)
	}
}

// FuzzGateway lets the guest send any frame with any header.
func FuzzGateway(f *testing.F) {
	g, r := record(f, Config{Policy: Policy{Restrict: true, NoNames: true}})
	guest := &Gateway{mac: guestMAC}
	src, dst := netip.MustParseAddr("10.0.2.15"), router4
	udp := append(make([]byte, udpRoom), 1, 2, 3)
	header.UDP(udp[headerRoom:]).Encode(&header.UDPFields{SrcPort: 1, DstPort: 2, Length: 11})
	f.Add(make([]byte, ether.HeaderSize), guest.putHeaders(bytes.Clone(udp), routerMAC, src, dst, header.UDPProtocolNumber))
	f.Add([]byte{1, 5, 0, 0, 1, 0, 34, 0, 6, 0, 0, 0}, guest.putHeaders(bytes.Clone(udp), routerMAC, guestNets[1].Addr(), router6, header.UDPProtocolNumber))
	dhcp, err := dhcpv4.NewDiscovery(guestMAC[:])
	if err != nil {
		f.Fatal(err)
	}
	b := append(make([]byte, udpRoom), dhcp.ToBytes()...)
	header.UDP(b[headerRoom:]).Encode(&header.UDPFields{SrcPort: 68, DstPort: 67, Length: uint16(len(b) - headerRoom)})
	f.Add(make([]byte, ether.HeaderSize), guest.putHeaders(b, ether.Broadcast, netip.IPv4Unspecified(), broadcast4, header.UDPProtocolNumber))
	tcp := make([]byte, headerRoom+header.TCPMinimumSize)
	header.TCP(tcp[headerRoom:]).Encode(&header.TCPFields{SrcPort: 1, DstPort: 53, DataOffset: 20, Flags: header.TCPFlagSyn})
	f.Add([]byte{1, 1, 0, 0, 1, 0, 34, 0, 16, 0, 0, 0}, guest.putHeaders(tcp, routerMAC, src, netip.MustParseAddr("10.0.2.3"), header.TCPProtocolNumber))
	icmp := append(make([]byte, headerRoom), 8, 0, 0, 0, 0, 1, 0, 1)
	f.Add(make([]byte, ether.HeaderSize), guest.putHeaders(icmp, routerMAC, src, netip.MustParseAddr("192.0.2.1"), header.ICMPv4ProtocolNumber))
	f.Fuzz(func(_ *testing.T, head, frame []byte) {
		if len(head) < ether.HeaderSize {
			return
		}
		n := len(frame) / 3
		g.Send(0, ether.Decode(head), [][]byte{frame[:n], frame[n:]})
		g.Sent(0)
		for len(r.frames) > 0 {
			<-r.frames
		}
	})
}
