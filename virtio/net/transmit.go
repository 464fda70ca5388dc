package net

import (
	"vmm/internal/iovec"
	"vmm/network/ether"
	"vmm/virtio"
	"vmm/virtio/ratelimit"
)

// notifyEvery is after how many frames the driver gets its buffers back, while
// more are there.
const notifyEvery = 64

// transmitter is what the device keeps of a transmit queue; it belongs to the
// queue's goroutine.
type transmitter struct {
	chain virtio.Chain
	parts [][]byte
}

// transmit sends what the guest has in a queue.
func (d *Device) transmit(i int, q *virtio.Queue) error {
	defer q.Notify()
	defer d.link.Sent(i)
	t := &d.tx[i]
	for n := 1; ; n++ {
		ok, err := q.Pop(&t.chain)
		if err != nil || !ok {
			return err
		}
		var b [ether.HeaderSize]byte
		if iovec.Gather(b[:], t.chain.Readable) < len(b) {
			return virtio.ErrMalformed
		}
		t.parts = iovec.Skip(t.parts[:0], t.chain.Readable, len(b))
		size := iovec.Len(t.parts)
		switch {
		case size < ether.FrameHeader || size > ether.MaxFrame || !d.linked():
			d.counters.sent.dropped.Add(1)
		case !d.mayTransmit(i, size, q):
			q.Rewind(1)
			return nil
		default:
			d.link.Send(i, ether.Decode(b[:]), t.parts)
			d.counters.sent.add(size)
		}
		q.Push(&t.chain, 0)
		if n%notifyEvery == 0 {
			q.Notify()
		}
	}
}

// mayTransmit waits while the limit says so; false when the queue stops.
func (d *Device) mayTransmit(i, size int, q *virtio.Queue) bool {
	if !d.limit.tx.Bounded() {
		return true
	}
	wait := d.limit.tx.Take(int64(size))
	if wait == 0 {
		return true
	}
	d.link.Sent(i)
	q.Notify()
	return ratelimit.Sleep(wait, q.Done())
}
