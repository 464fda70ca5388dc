package gateway

import (
	"encoding/binary"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"vmm/internal/iovec"
)

const (
	// maxBatch bounds the datagrams that are sent together: what the kernel's
	// UDP_MAX_SEGMENTS was before Linux 6.9.
	maxBatch = 64
	// batchSize is the largest datagram that is collected: it fits an Ethernet
	// packet of any path, so that the kernel need not refuse it.
	batchSize = 1200
)

// udpBatch collects datagrams of one flow and one size: the host's kernel takes
// them all in one call, as one packet that it cuts up when it leaves.
type udpBatch struct {
	mu    sync.Mutex
	flow  *udpFlow // nil while it is empty
	first datagram // its payload is data
	n     int
	parts [1][]byte
	data  [maxBatch * batchSize]byte
}

// add takes a datagram if it goes with those that are there; mu is held.
func (b *udpBatch) add(d *datagram) bool {
	if b.flow == nil || d.from != b.first.from || d.to != b.first.to || d.size != b.first.segment || d.segment != d.size ||
		d.dontFragment != b.first.dontFragment || d.mac != b.first.mac || b.n == maxBatch {
		return false
	}
	iovec.Gather(b.data[b.n*d.size:][:d.size], d.payload)
	b.n++
	return true
}

// begin takes the first datagram of a flow; false if it is better sent alone.
// mu is held, and the batch empty.
func (b *udpBatch) begin(f *udpFlow, d *datagram) bool {
	if d.size == 0 || d.size > batchSize || d.segment != d.size {
		return false
	}
	b.flow, b.first, b.n = f, *d, 1
	b.first.payload = nil
	iovec.Gather(b.data[:d.size], d.payload)
	return true
}

// flush sends what was collected; mu is held.
func (b *udpBatch) flush() {
	if b.flow == nil {
		return
	}
	d := &b.first
	d.size = b.n * d.segment
	b.parts[0] = b.data[:d.size]
	d.payload = b.parts[:]
	b.flow.send(d)
	b.flow = nil
}

// Sent implements ether.Link.
func (g *Gateway) Sent(queue int) {
	b := &g.udp.batches[queue%len(g.udp.batches)]
	b.mu.Lock()
	defer b.mu.Unlock()
	b.flush()
}

// cmsgSpace is the room of a control message with a number of 16 bits.
const cmsgSpace = (unix.SizeofCmsghdr + 2 + 7) &^ 7

// together sends datagrams in one call; false if that is not possible, and
// nothing was sent.
func (f *udpFlow) together(fd uintptr, d *datagram) bool {
	if d.size <= d.segment || d.segment > batchSize || d.size > maxBatch*d.segment || d.size > maxDatagram || len(d.payload) > maxIovecs {
		return false
	}
	iov := iovec.Append(f.iov[:0], d.payload...)
	h := (*unix.Cmsghdr)(unsafe.Pointer(&f.cmsg))
	h.Level, h.Type = unix.SOL_UDP, unix.UDP_SEGMENT
	h.SetLen(unix.SizeofCmsghdr + 2)
	binary.NativeEndian.PutUint16(f.cmsg[unix.SizeofCmsghdr:], uint16(d.segment))
	f.msg = unix.Msghdr{Iov: &f.iov[0], Iovlen: uint64(len(iov)), Control: &f.cmsg[0], Controllen: cmsgSpace}
	err := f.sendmsg(fd)
	if err == unix.EINVAL || err == unix.EIO { // the path's MTU is smaller, or its device cannot
		return false
	}
	f.err = err
	return true
}

// sendmsg sends f.msg; nil or an errno. A full socket loses it.
func (f *udpFlow) sendmsg(fd uintptr) error {
	if err := sendSocket(int(fd), &f.msg); err != unix.EAGAIN {
		return err
	}
	return nil
}
