// Package pcapng writes what crosses network cables to a file that Wireshark
// and tcpdump read (draft-ietf-opsawg-pcapng).
package pcapng

import (
	"bufio"
	"encoding/binary"
	"io"
	"sync"
	"time"

	"vmm/internal/iovec"
	"vmm/network/ether"
)

// Block types (section 11.1) and options.
const (
	blockSection   = 0x0a0d0d0a
	blockInterface = 1
	blockPacket    = 6 // enhanced

	byteOrder    = 0x1a2b3c4d
	linkEthernet = 1

	optEnd        = 0
	optUserAppl   = 4 // of a section
	optName       = 2 // of an interface
	optResolution = 9 // of an interface's times
	optFlags      = 2 // of a packet
	nanoseconds   = 9 // 10^-9 s
	inbound       = 1 // to the guest
	outbound      = 2 // from it
	alignment     = 4 // bytes
	flushEvery    = 200 * time.Millisecond
	writeBuffer   = 1 << 20
	packetHeader  = 28 // an enhanced packet block before its data
	blockOverhead = 12
)

// Writer is a capture file. A frame that stands for several segments is one
// record, as in a capture of Linux's.
type Writer struct {
	mu     sync.Mutex
	file   io.WriteCloser
	out    *bufio.Writer
	count  uint32 // interfaces
	err    error  // the first
	stop   chan struct{}
	ended  chan struct{}
	header [packetHeader]byte
}

// New begins a capture in a file, which is empty, and which it closes, also after an
// error. program is what writes it, as the file tells.
func New(f io.WriteCloser, program string) (*Writer, error) {
	w := &Writer{file: f, out: bufio.NewWriterSize(f, writeBuffer), stop: make(chan struct{}), ended: make(chan struct{})}
	body := le32(byteOrder)
	body = append(body, 1, 0, 0, 0) // version 1.0
	body = append(body, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff)
	w.block(blockSection, append(body, option(optUserAppl, []byte(program))...))
	if err := w.out.Flush(); err != nil {
		f.Close()
		return nil, err
	}
	go w.flush()
	return w, nil
}

// flush has what was written be seen soon, for those who follow the file.
func (w *Writer) flush() {
	defer close(w.ended)
	t := time.NewTicker(flushEvery)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			w.mu.Lock()
			w.keep(w.out.Flush())
			w.mu.Unlock()
		case <-w.stop:
			return
		}
	}
}

// keep notes an error; mu is held.
func (w *Writer) keep(err error) {
	if w.err == nil {
		w.err = err
	}
}

// Close writes what is left, and returns the first error that there was: from
// then on the file has a gap.
func (w *Writer) Close() error {
	close(w.stop)
	<-w.ended
	w.mu.Lock()
	defer w.mu.Unlock()
	w.keep(w.out.Flush())
	w.keep(w.file.Close())
	return w.err
}

func le32(v uint32) []byte { return binary.LittleEndian.AppendUint32(nil, v) }

// option is a code, a length, and a padded value, then the end of options.
func option(code uint16, value []byte) []byte {
	b := binary.LittleEndian.AppendUint16(nil, code)
	b = binary.LittleEndian.AppendUint16(b, uint16(len(value)))
	b = append(b, value...)
	return append(append(b, make([]byte, padding(len(value)))...), optEnd, 0, 0, 0)
}

func padding(n int) int { return -n & (alignment - 1) }

// block writes a block without data of its own; before anything concurrent, or
// with mu held.
func (w *Writer) block(kind uint32, body []byte) {
	total := le32(uint32(len(body) + blockOverhead))
	for _, b := range [][]byte{le32(kind), total, body, total} {
		_, err := w.out.Write(b)
		w.keep(err)
	}
}

// Tap puts the writer into a cable: the link that it returns takes the place of the one
// that it is given, and closes it. name is the interface's in the file. Several cables can
// have one Writer, which is closed after them.
func (w *Writer) Tap(link ether.Link, name string) ether.Link {
	w.mu.Lock()
	defer w.mu.Unlock()
	body := append([]byte{linkEthernet, 0, 0, 0}, le32(0)...) // no limit of a record's size
	options := option(optName, []byte(name))
	options = append(options[:len(options)-4], option(optResolution, []byte{nanoseconds})...)
	w.block(blockInterface, append(body, options...))
	w.count++
	return &tap{Link: link, w: w, id: w.count - 1}
}

// packet writes one frame.
func (w *Writer) packet(id uint32, flags uint32, parts [][]byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := iovec.Len(parts)
	now := uint64(time.Now().UnixNano())
	total := uint32(packetHeader + n + padding(n) + 12 + 4)
	h, le := w.header[:], binary.LittleEndian
	le.PutUint32(h, blockPacket)
	le.PutUint32(h[4:], total)
	le.PutUint32(h[8:], id)
	le.PutUint32(h[12:], uint32(now>>32))
	le.PutUint32(h[16:], uint32(now))
	le.PutUint32(h[20:], uint32(n))
	le.PutUint32(h[24:], uint32(n))
	w.out.Write(h)
	for _, p := range parts {
		w.out.Write(p)
	}
	le.PutUint32(h, 0)
	w.out.Write(h[:padding(n)])
	le.PutUint16(h, optFlags)
	le.PutUint16(h[2:], 4)
	le.PutUint32(h[4:], flags)
	le.PutUint32(h[8:], optEnd)
	le.PutUint32(h[12:], total)
	_, err := w.out.Write(h[:16])
	w.keep(err)
}

// tap is a cable that is listened to. It is the link for the device, and the
// device for the link.
type tap struct {
	ether.Link
	nic ether.NIC
	w   *Writer
	id  uint32
}

// Attach implements ether.Link.
func (t *tap) Attach(n ether.NIC) {
	t.nic = n
	t.Link.Attach(t)
}

// Send implements ether.Link.
func (t *tap) Send(queue int, h ether.Header, parts [][]byte) {
	t.w.packet(t.id, outbound, parts)
	t.Link.Send(queue, h, parts)
}

// Receive implements ether.NIC.
func (t *tap) Receive(hash uint32, h ether.Header, parts [][]byte) bool {
	if !t.nic.Receive(hash, h, parts) {
		return false // it comes again
	}
	t.w.packet(t.id, inbound, parts)
	return true
}

// Flush implements ether.NIC.
func (t *tap) Flush() { t.nic.Flush() }
