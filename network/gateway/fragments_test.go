package gateway

import (
	"net/netip"
	"runtime"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/header"

	"vmm/network/ether"
)

// fragmentsOf are frames of a datagram from the guest to the name server, cut at multiples of 8 bytes.
func fragmentsOf(id uint16, datagram []byte, cuts ...int) [][]byte {
	guest := &Gateway{mac: guestMAC}
	var frames [][]byte
	from := 0
	for i, to := range append(cuts, len(datagram)) {
		b := append(make([]byte, headerRoom), datagram[from:to]...)
		frame := guest.putHeaders(b, routerMAC, netip.MustParseAddr("10.0.2.15"), netip.MustParseAddr("10.0.2.3"), header.UDPProtocolNumber)
		ip := header.IPv4(frame[ether.FrameHeader:])
		flags := uint8(0)
		if i < len(cuts) {
			flags = header.IPv4FlagMoreFragments
		}
		ip.SetID(id)
		setFragment(ip, flags, uint16(from))
		frames = append(frames, frame)
		from = to
	}
	return frames
}

// setFragment says which piece of a datagram a packet is; offset is in bytes.
func setFragment(ip header.IPv4, flags uint8, offset uint16) {
	ip.SetFlagsFragmentOffset(flags, offset)
	ip.SetChecksum(0)
	ip.SetChecksum(^ip.CalculateChecksum())
}

// TestFragments: a datagram in pieces arrives as one, in whatever order they come; pieces of what never becomes whole, and
// such as overlap, are kept within bounds, and in nobody's way.
func TestFragments(t *testing.T) {
	g, r := record(t, Config{})
	send := func(frame []byte) {
		g.Send(0, ether.Header{}, [][]byte{frame})
		g.Sent(0)
	}
	query := []byte("\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x04host\x03vmm\x08internal\x00\x00\x01\x00\x01")
	datagram := append(make([]byte, header.UDPMinimumSize), query...)
	header.UDP(datagram).Encode(&header.UDPFields{SrcPort: 4000, DstPort: 53, Length: uint16(len(datagram))})
	answered := func() bool {
		for end := time.After(20 * time.Second); ; {
			select {
			case f := <-r.frames:
				if arp := header.ARP(f[ether.FrameHeader:]); header.Ethernet(f).Type() == ether.TypeARP {
					if arp.Op() == header.ARPRequest { // where the guest is
						guest := &Gateway{mac: guestMAC}
						answer := make([]byte, ether.FrameHeader+header.ARPSize)
						guest.putEthernet(answer, routerMAC, ether.TypeARP)
						to := header.ARP(answer[ether.FrameHeader:])
						to.SetIPv4OverEthernet()
						to.SetOp(header.ARPReply)
						copy(to.HardwareAddressSender(), guestMAC[:])
						copy(to.ProtocolAddressSender(), arp.ProtocolAddressTarget())
						copy(to.HardwareAddressTarget(), arp.HardwareAddressSender())
						copy(to.ProtocolAddressTarget(), arp.ProtocolAddressSender())
						send(answer)
					}
					continue
				}
				if ip := header.IPv4(f[ether.FrameHeader:]); ip.Protocol() == uint8(header.UDPProtocolNumber) && header.UDP(ip.Payload()).SourcePort() == 53 {
					return true
				}
			case <-end:
				return false
			}
		}
	}
	whole := fragmentsOf(1, datagram, 16, 32)
	for _, i := range []int{2, 0, 1} {
		send(whole[i])
	}
	if !answered() {
		t.Fatal("a datagram in three pieces was not answered")
	}
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	large := make([]byte, 30000)
	for id := range 1600 { // 48 MB of them
		f := fragmentsOf(uint16(id), append(large, large...), len(large))
		send(f[id%2])
		if id%20 == 0 { // one behind the end of what a datagram can be, and two that overlap
			over := fragmentsOf(uint16(id)+7, append(datagram, make([]byte, 64)...), 32)
			send(over[0])
			ip := header.IPv4(over[1][ether.FrameHeader:])
			for _, at := range []uint16{24, 65528} {
				setFragment(ip, 0, at)
				send(over[1])
			}
		}
		for len(r.frames) > 0 {
			<-r.frames
		}
	}
	if grown := int64(heap()) - int64(before); grown > 16<<20 {
		t.Errorf("pieces take %d bytes", grown)
	}
	for _, f := range fragmentsOf(40000, datagram, 24) {
		send(f)
	}
	if !answered() {
		t.Error("after many pieces, a datagram in two was not answered")
	}
}
