package ether

import (
	"encoding/binary"
	"errors"

	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// ErrMalformed is the error for a frame whose Header does not fit it.
var ErrMalformed = errors.New("malformed frame")

// Ethernet types.
const (
	TypeIPv4 = 0x0800
	TypeARP  = 0x0806
	TypeVLAN = 0x8100
	TypeIPv6 = 0x86dd
)

const (
	// minSegment is the least payload of a segment: what is cut finer is meant
	// to hurt.
	minSegment = 32
	// maxHeaders bounds the headers of a segment: Ethernet with a VLAN tag, IP
	// and TCP with all options that there can be.
	maxHeaders = 512
	// tcpFlagCWR says that the congestion window was reduced: only once.
	tcpFlagCWR = 1 << 7
	// udpChecksumOffset is where a UDP header has its checksum (RFC 768).
	udpChecksumOffset = 6
)

// network finds where the IP header of a frame is, and its type.
func network(frame []byte) (offset int, kind uint16) {
	offset = FrameHeader
	if len(frame) < offset {
		return 0, 0
	}
	kind = binary.BigEndian.Uint16(frame[12:])
	if kind == TypeVLAN && len(frame) >= offset+4 {
		kind = binary.BigEndian.Uint16(frame[16:])
		offset += 4
	}
	return offset, kind
}

// Check holds a Header against its frame, which must not change any more, and
// returns the Header as others can trust it. The error is ErrMalformed.
func Check(h Header, frame []byte) (Header, error) {
	if len(frame) < FrameHeader || len(frame) > MaxFrame {
		return Header{}, ErrMalformed
	}
	out := Header{Buffers: 1}
	if h.Flags&NeedsChecksum == 0 {
		if h.Segmented() { // 5.1.6.2: such a frame needs a checksum
			return Header{}, ErrMalformed
		}
		return out, nil
	}
	start, offset := int(h.ChecksumStart), int(h.ChecksumOffset)
	if start < FrameHeader || start+offset+2 > len(frame) {
		return Header{}, ErrMalformed
	}
	out.Flags, out.ChecksumStart, out.ChecksumOffset = NeedsChecksum, h.ChecksumStart, h.ChecksumOffset
	if !h.Segmented() {
		return out, nil
	}
	end, ok := headerEnd(h, frame)
	if !ok || end > maxHeaders || h.GSOSize < minSegment {
		return Header{}, ErrMalformed
	}
	out.GSOType, out.GSOSize, out.HeaderLength = h.GSOType, h.GSOSize, uint16(end)
	if end+int(h.GSOSize) >= len(frame) { // it is one segment only
		out.GSOType, out.GSOSize, out.HeaderLength = GSONone, 0, 0
	}
	return out, nil
}

// headerEnd returns where the payload of a frame to be segmented begins; false
// if the frame is not what its Header says.
func headerEnd(h Header, frame []byte) (int, bool) {
	at, kind := network(frame)
	start := int(h.ChecksumStart)
	gso, want := h.GSOType&^GSOECN, uint8(header.TCPProtocolNumber)
	if gso == GSOUDPL4 {
		want = uint8(header.UDPProtocolNumber)
	}
	switch {
	case kind == TypeIPv4 && (gso == GSOTCPv4 || gso == GSOUDPL4):
		if len(frame) < at+header.IPv4MinimumSize {
			return 0, false
		}
		ip := header.IPv4(frame[at:])
		if at+int(ip.HeaderLength()) != start || ip.HeaderLength() < header.IPv4MinimumSize || ip.Protocol() != want {
			return 0, false
		}
	case kind == TypeIPv6 && (gso == GSOTCPv6 || gso == GSOUDPL4):
		// Extension headers may lie between, so only where they must not is the
		// protocol known.
		if start < at+header.IPv6MinimumSize || start == at+header.IPv6MinimumSize && frame[at+6] != want {
			return 0, false
		}
	default:
		return 0, false
	}
	if want == uint8(header.UDPProtocolNumber) {
		end := start + header.UDPMinimumSize
		return end, h.ChecksumOffset == udpChecksumOffset && end < len(frame)
	}
	if h.ChecksumOffset != header.TCPChecksumOffset || start+header.TCPMinimumSize > len(frame) {
		return 0, false
	}
	size := int(header.TCP(frame[start:]).DataOffset())
	return start + size, size >= header.TCPMinimumSize && start+size < len(frame)
}

// Complete makes the checksum that a Header leaves open, in the frame. The Header is one
// that Check has returned for this frame.
func Complete(h Header, frame []byte) {
	if h.Flags&NeedsChecksum == 0 {
		return
	}
	sum := ^checksum.Checksum(frame[h.ChecksumStart:], 0)
	if sum == 0 { // for UDP, 0 is no checksum; for all others it is the same
		sum = 0xffff
	}
	binary.BigEndian.PutUint16(frame[int(h.ChecksumStart)+int(h.ChecksumOffset):], sum)
}

// Segment cuts a frame whose Header says so, one that Check has returned for it, into what
// a wire takes, and calls emit for each segment, of one part for the headers and one for
// the payload, which are good until emit returns.
// Checksums are complete unless partial is set, in which case each segment's
// Header leaves them open.
func Segment(h Header, frame []byte, partial bool, emit func(h Header, parts [][]byte)) {
	end, size := int(h.HeaderLength), int(h.GSOSize)
	var room [maxHeaders]byte
	at, kind := network(frame)
	start := int(h.ChecksumStart)
	tcp := h.GSOType&^GSOECN != GSOUDPL4
	parts := make([][]byte, 2)
	id := uint16(0)
	if kind == TypeIPv4 {
		id = header.IPv4(frame[at:]).ID()
	}
	out := Header{Flags: NeedsChecksum, ChecksumStart: h.ChecksumStart, ChecksumOffset: h.ChecksumOffset, Buffers: 1}
	if !partial {
		out = Header{Buffers: 1}
	}
	for done := 0; end+done < len(frame); done += size {
		payload := frame[end+done : min(end+done+size, len(frame))]
		head := room[:copy(room[:], frame[:end])]
		l4 := head[start:]
		length := len(l4) + len(payload)
		var pseudo uint16
		if kind == TypeIPv4 {
			ip := header.IPv4(head[at:])
			ip.SetTotalLength(uint16(start - at + length))
			ip.SetID(id)
			id++
			ip.SetChecksum(0)
			ip.SetChecksum(^ip.CalculateChecksum())
			pseudo = header.PseudoHeaderChecksum(ip.TransportProtocol(), ip.SourceAddress(), ip.DestinationAddress(), uint16(length))
		} else {
			ip := header.IPv6(head[at:])
			ip.SetPayloadLength(uint16(start - at - header.IPv6MinimumSize + length))
			proto := header.TCPProtocolNumber
			if !tcp {
				proto = header.UDPProtocolNumber
			}
			pseudo = header.PseudoHeaderChecksum(proto, ip.SourceAddress(), ip.DestinationAddress(), uint16(length))
		}
		if tcp {
			t := header.TCP(l4)
			t.SetSequenceNumber(t.SequenceNumber() + uint32(done))
			flags := t.Flags()
			if end+done+size < len(frame) {
				flags &^= header.TCPFlagFin | header.TCPFlagPsh
			}
			if done > 0 {
				flags &^= tcpFlagCWR
			}
			l4[header.TCPFlagsOffset] = byte(flags)
		} else {
			header.UDP(l4).SetLength(uint16(length))
		}
		sum := pseudo
		if !partial {
			sum = 0
		}
		binary.BigEndian.PutUint16(l4[h.ChecksumOffset:], sum)
		if !partial {
			sum = ^checksum.Checksum(payload, checksum.Checksum(l4, pseudo))
			if sum == 0 {
				sum = 0xffff
			}
			binary.BigEndian.PutUint16(l4[h.ChecksumOffset:], sum)
		}
		parts[0], parts[1] = head, payload
		emit(out, parts)
	}
}
