package net

import (
	"sync"
	"time"

	"vmm/internal/iovec"
	"vmm/network/ether"
	"vmm/virtio"
)

// receiver is a receive queue. Frames come in from any goroutine.
type receiver struct {
	mu     sync.Mutex
	q      *virtio.Queue // nil while it does not run
	chains []virtio.Chain
	used   []uint32
	header [ether.HeaderSize]byte
	dirty  bool        // something was received since the last flush
	later  *time.Timer // has the link try again, when a limit allows
	copied []byte      // of a frame that the driver does not take as it is
}

// maxChains bounds the chains of one frame: those of the largest frame in the
// smallest buffers that Linux gives, and some.
const maxChains = 128

// supplied notes that the driver has given buffers.
func (r *receiver) supplied(q *virtio.Queue) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.q = q
	q.DisableKicks()
	if r.chains == nil {
		r.chains, r.used = make([]virtio.Chain, maxChains), make([]uint32, maxChains)
	}
}

func (r *receiver) stop() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.q, r.dirty = nil, false
}

// Receive implements ether.NIC.
func (d *Device) Receive(hash uint32, h ether.Header, parts [][]byte) bool {
	r := &d.rx[hash%uint32(d.pairs.Load())]
	size := iovec.Len(parts)
	if !d.linked() || !d.filter.accepts(parts) {
		d.counters.received.dropped.Add(1)
		return true
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.q == nil {
		d.counters.received.dropped.Add(1)
		return true
	}
	if d.limit.rx.Bounded() {
		if wait := d.limit.rx.Try(int64(size)); wait > 0 {
			d.again(r, wait)
			return false
		}
	}
	if !offloads(d.features.Load()).Takes(h) {
		return d.receivePlain(r, h, parts)
	}
	return d.put(r, h, parts, size)
}

// again has the link come back after a while; r.mu is held.
func (d *Device) again(r *receiver, wait time.Duration) {
	if r.later == nil {
		r.later = time.AfterFunc(wait, d.link.Ready)
	} else {
		r.later.Reset(wait)
	}
}

// receivePlain does the sender's work for a driver that does not take it off
// it. What does not fit in is dropped: part of a frame cannot be taken back.
func (d *Device) receivePlain(r *receiver, h ether.Header, parts [][]byte) bool {
	size := iovec.Len(parts)
	if cap(r.copied) < size {
		r.copied = make([]byte, max(size, ether.MaxFrame))
	}
	frame := r.copied[:iovec.Gather(r.copied[:size], parts)]
	if !h.Segmented() {
		ether.Complete(h, frame)
		return d.put(r, ether.Header{}, [][]byte{frame}, size)
	}
	took := 0
	partial := offloads(d.features.Load()).Checksum
	ether.Segment(h, frame, partial, func(h ether.Header, segment [][]byte) {
		if d.put(r, h, segment, iovec.Len(segment)) {
			took++
		} else if took > 0 {
			d.counters.received.dropped.Add(1)
		}
	})
	return took > 0
}

// put copies a frame into the driver's buffers; false if there are too few.
func (d *Device) put(r *receiver, h ether.Header, parts [][]byte, size int) bool {
	n, room := 0, 0
	need := ether.HeaderSize + size
	mergeable := d.features.Load()&featureMergeable != 0
	for room < need {
		if n == maxChains || n == 1 && !mergeable {
			r.q.Rewind(n) // it can never fit: the driver's buffers are too small
			d.counters.received.dropped.Add(1)
			return true
		}
		ok, err := r.q.Pop(&r.chains[n])
		if err == nil && !ok {
			if !r.q.EnableKicks() {
				r.q.DisableKicks() // some came just now
				continue
			}
			r.q.Rewind(n)
			return false
		}
		w := r.chains[n].Writable
		if err == nil && len(w) == 0 {
			err = virtio.ErrMalformed
		}
		if err != nil {
			r.q = nil
			if c := d.control.Load(); c != nil {
				(*c).NeedsReset(err)
			}
			return true
		}
		room += iovec.Len(w)
		n++
	}
	h.Buffers = uint16(n)
	h.Encode(r.header[:])
	r.fill(n, parts)
	r.q.PushMerged(r.chains[:n], r.used[:n])
	r.dirty = true
	d.counters.received.add(size)
	return true
}

// fill copies the header and the parts into the first n chains, of which it
// notes how much of each they took.
func (r *receiver) fill(n int, parts [][]byte) {
	from, next := r.header[:], 0
	for i := range r.chains[:n] {
		took := 0
		for _, to := range r.chains[i].Writable {
			for len(to) > 0 {
				for len(from) == 0 && next < len(parts) {
					from = parts[next]
					next++
				}
				k := copy(to, from)
				if k == 0 {
					break
				}
				to, from = to[k:], from[k:]
				took += k
			}
		}
		r.used[i] = uint32(took)
	}
}

// Flush implements ether.NIC.
func (d *Device) Flush() {
	for i := range d.rx[:d.pairs.Load()] {
		r := &d.rx[i]
		r.mu.Lock()
		if r.dirty && r.q != nil {
			r.q.Notify()
		}
		r.dirty = false
		r.mu.Unlock()
	}
}
