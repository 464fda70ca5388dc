package bench

import (
	"fmt"
	"net"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"vmm/network/ether"
	"vmm/virtio/virtiotest"
)

// virtioWire is a virtio-net device, driven as Linux does: with segments of 64
// KiB, whose checksums are left open.
type virtioWire struct {
	g       *virtiotest.Guest
	rx, tx  *virtiotest.Driver
	areas   map[uint16]uint64 // of receive buffers, by their chains
	slots   []uint64          // free transmit buffers
	busy    map[uint16]uint64
	held    uint16
	holding bool
}

const (
	netRing   = 256
	netBuffer = 68 << 10
	netSlots  = 64
	netMemory = 64 << 20
	mss       = 1460
)

func newVirtioWire(g *virtiotest.Guest) *virtioWire {
	w := &virtioWire{g: g, rx: g.Queues[0], tx: g.Queues[1], areas: map[uint16]uint64{}, busy: map[uint16]uint64{}}
	at := virtiotest.QueueEnd(3)
	from := w.rx.Added()
	for range netSlots {
		head, _ := w.rx.Add(virtiotest.Buffer{Addr: at, Len: netBuffer, Write: true})
		w.areas[head] = at
		w.slots = append(w.slots, at+netBuffer)
		at += 2 * netBuffer
	}
	w.rx.Kick(from)
	return w
}

func (w *virtioWire) segment() (int, int) { return 44 * mss, mss }

func (w *virtioWire) send(head []byte, n int, wait bool) bool {
	for {
		for h, _, ok := w.tx.Next(); ok; h, _, ok = w.tx.Next() {
			w.slots = append(w.slots, w.busy[h])
			delete(w.busy, h)
		}
		if len(w.slots) > 0 {
			break
		}
		if !wait {
			return false
		}
		h, _ := w.tx.Wait()
		w.slots = append(w.slots, w.busy[h])
		delete(w.busy, h)
	}
	at := w.slots[len(w.slots)-1]
	w.slots = w.slots[:len(w.slots)-1]
	h := ether.Header{Buffers: 1}
	if f := head[12:]; f[0] == 8 && f[1] == 0 && f[11] == uint8(header.TCPProtocolNumber) {
		// What others do with the whole payload, here it is left open.
		t := header.TCP(head[ether.FrameHeader+header.IPv4MinimumSize:])
		t.SetChecksum(header.PseudoHeaderChecksum(header.TCPProtocolNumber, tcpip.AddrFromSlice(benchGuest.AsSlice()), tcpip.AddrFromSlice(benchGateway.AsSlice()), uint16(len(t)+n)))
		h.Flags, h.ChecksumStart, h.ChecksumOffset = ether.NeedsChecksum, ether.FrameHeader+header.IPv4MinimumSize, header.TCPChecksumOffset
		if n > mss {
			h.GSOType, h.GSOSize, h.HeaderLength = ether.GSOTCPv4, mss, uint16(len(head))
		}
	}
	b := w.g.Mem.Bytes[at:]
	h.Encode(b)
	copy(b[ether.HeaderSize:], head)
	from := w.tx.Added()
	id, ok := w.tx.Add(virtiotest.Buffer{Addr: at, Len: uint32(ether.HeaderSize + len(head) + n)})
	if !ok {
		panic("the ring is full")
	}
	w.busy[id] = at
	w.tx.Kick(from)
	return true
}

func (w *virtioWire) recv(wait bool) []byte {
	if w.holding {
		from := w.rx.Added()
		at := w.areas[w.held]
		delete(w.areas, w.held)
		head, _ := w.rx.Add(virtiotest.Buffer{Addr: at, Len: netBuffer, Write: true})
		w.areas[head] = at
		w.rx.Kick(from)
		w.holding = false
	}
	head, n, ok := w.rx.Next()
	if !ok && wait {
		head, n, ok = w.rx.WaitFor(pollTime)
	}
	if !ok {
		return nil
	}
	w.held, w.holding = head, true
	at := w.areas[head]
	return w.g.Mem.Bytes[at+ether.HeaderSize : at+uint64(n)]
}

// tcpServer accepts connections on the loopback, and either discards what comes
// or sends zeros.
func tcpServer(source bool) (net.Listener, uint16, error) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return nil, 0, err
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				b := make([]byte, 256<<10)
				for {
					var err error
					if source {
						_, err = c.Write(b)
					} else {
						_, err = c.Read(b)
					}
					if err != nil {
						return
					}
				}
			}()
		}
	}()
	return l, l.Addr().(*net.TCPAddr).AddrPort().Port(), nil
}

// udpCounter is a UDP port that is never read: the host's kernel counts what it
// drops.
func udpCounter() (*net.UDPConn, uint16, error) {
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return nil, 0, err
	}
	return c, c.LocalAddr().(*net.UDPAddr).AddrPort().Port(), nil
}

// arrived reads how many datagrams came to a udpCounter's port beyond what its
// buffer holds.
func arrived(port uint16) (float64, error) {
	lines, err := readLines("/proc/net/udp")
	if err != nil {
		return 0, err
	}
	for _, l := range lines {
		var slot, local, remote, state, queues, timer, retransmits string
		var uid, timeout, inode, ref, drops uint64
		var pointer string
		if n, _ := fmt.Sscan(l, &slot, &local, &remote, &state, &queues, &timer, &retransmits, &uid, &timeout, &inode, &ref, &pointer, &drops); n == 13 &&
			local == fmt.Sprintf("0100007F:%04X", port) {
			return float64(drops), nil
		}
	}
	return 0, fmt.Errorf("no UDP port %d", port)
}
