package ether

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// packet makes a frame of TCP or UDP with a payload, whose checksum is left
// open, and its Header.
func packet(v6, vlan, tcp bool, payload []byte) (Header, []byte) {
	frame := make([]byte, FrameHeader)
	kind := uint16(TypeIPv4)
	if v6 {
		kind = TypeIPv6
	}
	copy(frame[12:], []byte{byte(kind >> 8), byte(kind)})
	if vlan {
		frame = append(frame[:12], 0x81, 0, 0, 7, byte(kind>>8), byte(kind))
	}
	size, proto := header.TCPMinimumSize+12, header.TCPProtocolNumber
	if !tcp {
		size, proto = header.UDPMinimumSize, header.UDPProtocolNumber
	}
	l4 := make([]byte, size)
	length := uint16(size + len(payload))
	var pseudo uint16
	if v6 {
		ip := header.IPv6(make([]byte, header.IPv6MinimumSize))
		src, dst := tcpip.AddrFrom16([16]byte{1}), tcpip.AddrFrom16([16]byte{2})
		ip.Encode(&header.IPv6Fields{PayloadLength: length, TransportProtocol: proto, HopLimit: 64, SrcAddr: src, DstAddr: dst})
		pseudo = header.PseudoHeaderChecksum(proto, src, dst, length)
		frame = append(frame, ip...)
	} else {
		ip := header.IPv4(make([]byte, header.IPv4MinimumSize))
		src, dst := tcpip.AddrFrom4([4]byte{1}), tcpip.AddrFrom4([4]byte{2})
		ip.Encode(&header.IPv4Fields{TotalLength: header.IPv4MinimumSize + length, TTL: 64, Protocol: uint8(proto), ID: 7, SrcAddr: src, DstAddr: dst})
		ip.SetChecksum(^ip.CalculateChecksum())
		pseudo = header.PseudoHeaderChecksum(proto, src, dst, length)
		frame = append(frame, ip...)
	}
	h := Header{Flags: NeedsChecksum, ChecksumStart: uint16(len(frame)), Buffers: 1}
	if tcp {
		header.TCP(l4).Encode(&header.TCPFields{SrcPort: 1, DstPort: 2, SeqNum: 1000, DataOffset: uint8(size), Flags: header.TCPFlagAck | header.TCPFlagPsh | header.TCPFlagFin, Checksum: pseudo})
		h.ChecksumOffset = header.TCPChecksumOffset
	} else {
		header.UDP(l4).Encode(&header.UDPFields{SrcPort: 1, DstPort: 2, Length: length, Checksum: pseudo})
		h.ChecksumOffset = udpChecksumOffset
	}
	return h, append(append(frame, l4...), payload...)
}

// right reports whether a frame's checksums are.
func right(frame []byte) bool {
	at, kind := network(frame)
	if kind == TypeIPv4 {
		ip := header.IPv4(frame[at:])
		sum := header.PseudoHeaderChecksum(ip.TransportProtocol(), ip.SourceAddress(), ip.DestinationAddress(), ip.PayloadLength())
		return ip.IsValid(len(ip)) && ip.CalculateChecksum() == 0xffff && checksum.Checksum(ip.Payload(), sum) == 0xffff
	}
	ip := header.IPv6(frame[at:])
	sum := header.PseudoHeaderChecksum(ip.TransportProtocol(), ip.SourceAddress(), ip.DestinationAddress(), ip.PayloadLength())
	return ip.IsValid(len(ip)) && checksum.Checksum(ip.Payload(), sum) == 0xffff
}

// TestSegment cuts frames of all kinds, and puts their payload together again.
func TestSegment(t *testing.T) {
	payload := make([]byte, 10000)
	rand.NewChaCha8([32]byte{}).Read(payload)
	for _, c := range []struct {
		v6, vlan, tcp, partial bool
		gso                    uint8
	}{
		{gso: GSOTCPv4, tcp: true}, {gso: GSOTCPv6, v6: true, tcp: true}, {gso: GSOTCPv4 | GSOECN, vlan: true, tcp: true},
		{gso: GSOUDPL4}, {gso: GSOUDPL4, v6: true}, {gso: GSOTCPv4, tcp: true, partial: true}, {gso: GSOUDPL4, v6: true, partial: true},
	} {
		h, frame := packet(c.v6, c.vlan, c.tcp, payload)
		h.GSOType, h.GSOSize = c.gso, 1460
		h, err := Check(h, frame)
		if err != nil {
			t.Fatalf("%+v: %v", c, err)
		}
		var got []byte
		n := 0
		Segment(h, frame, c.partial, func(s Header, parts [][]byte) {
			one := bytes.Join(parts, nil)
			Complete(s, one)
			if !right(one) {
				t.Errorf("%+v: segment %d has a wrong checksum", c, n)
			}
			if c.tcp {
				tcp := header.TCP(one[h.ChecksumStart:])
				if tcp.SequenceNumber() != uint32(1000+len(got)) {
					t.Errorf("%+v: segment %d has sequence number %d", c, n, tcp.SequenceNumber())
				}
				last := len(got)+len(parts[1]) == len(payload)
				if tcp.Flags()&header.TCPFlagFin != 0 != last {
					t.Errorf("%+v: segment %d has flags %v", c, n, tcp.Flags())
				}
			}
			got = append(got, parts[1]...)
			n++
		})
		if n != 7 || !bytes.Equal(got, payload) {
			t.Errorf("%+v: %d segments, %d bytes", c, n, len(got))
		}
	}
}

// TestCheck refuses Headers that do not fit their frames.
func TestCheck(t *testing.T) {
	payload := make([]byte, 5000)
	for name, change := range map[string]func(h *Header, frame []byte){
		"segments without a checksum":   func(h *Header, _ []byte) { h.Flags = 0 },
		"the checksum outside":          func(h *Header, f []byte) { h.ChecksumStart = uint16(len(f)) - 5 },
		"the checksum in Ethernet":      func(h *Header, _ []byte) { h.ChecksumStart = 2 },
		"the wrong place":               func(h *Header, _ []byte) { h.ChecksumOffset = 4 },
		"segments of a byte":            func(h *Header, _ []byte) { h.GSOSize = 1 },
		"an unknown type":               func(h *Header, _ []byte) { h.GSOType = 9 },
		"IPv6 segments of IPv4":         func(h *Header, _ []byte) { h.GSOType = GSOTCPv6 },
		"UDP segments of TCP":           func(h *Header, _ []byte) { h.GSOType = GSOUDPL4 },
		"a TCP header that is too long": func(h *Header, f []byte) { f[34+12] = 0xf0; h.GSOSize = 100; clear(f[12:14]) },
		"no TCP header":                 func(_ *Header, f []byte) { f[34+12] = 0x10 },
	} {
		h, frame := packet(false, false, true, payload)
		h.GSOType, h.GSOSize = GSOTCPv4, 1460
		change(&h, frame)
		if got, err := Check(h, frame); err == nil {
			t.Errorf("%s: accepted as %+v", name, got)
		}
	}
	h, frame := packet(false, false, true, payload[:100])
	h.GSOType, h.GSOSize = GSOTCPv4, 1460
	if got, err := Check(h, frame); err != nil || got.Segmented() {
		t.Errorf("one segment: %+v, %v", got, err)
	}
	if _, err := Check(Header{}, frame[:5]); err == nil {
		t.Error("half an Ethernet header was accepted")
	}
}

func TestMAC(t *testing.T) {
	a, b := DeriveMAC("dev", 0), DeriveMAC("dev", 1)
	if a == b || a != DeriveMAC("dev", 0) || a.Multicast() || a[0]&2 == 0 {
		t.Errorf("%v, %v", a, b)
	}
	if m, err := ParseMAC(a.String()); err != nil || m != a {
		t.Errorf("%v, %v", m, err)
	}
	for _, s := range []string{"", "1:2:3", "ff:ff:ff:ff:ff:ff", "00:00:00:00:00:00", "01:00:5e:00:00:01"} {
		if _, err := ParseMAC(s); err == nil {
			t.Errorf("%q was accepted", s)
		}
	}
}

// FuzzFrame lets anybody send any frame with any Header: what passes Check can be
// completed and cut.
func FuzzFrame(f *testing.F) {
	for _, tcp := range []bool{true, false} {
		for _, v6 := range []bool{true, false} {
			h, frame := packet(v6, tcp, tcp, make([]byte, 3000))
			h.GSOType, h.GSOSize = GSOUDPL4, 1000
			if tcp {
				h.GSOType = GSOTCPv4
			}
			var b [HeaderSize]byte
			h.Encode(b[:])
			f.Add(b[:], frame)
		}
	}
	f.Fuzz(func(t *testing.T, head, frame []byte) {
		if len(head) < HeaderSize {
			return
		}
		h, err := Check(Decode(head), frame)
		if err != nil {
			return
		}
		for _, partial := range []bool{true, false} {
			if !h.Segmented() {
				break
			}
			n := 0
			Segment(h, frame, partial, func(_ Header, parts [][]byte) { n += len(parts[1]) })
			if n != len(frame)-int(h.HeaderLength) {
				t.Errorf("%d bytes of %d", n, len(frame)-int(h.HeaderLength))
			}
		}
		Complete(h, frame)
	})
}
