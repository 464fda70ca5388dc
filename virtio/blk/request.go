package blk

import (
	"encoding/binary"
	"errors"

	"golang.org/x/sys/unix"

	"vmm/internal/iovec"
	"vmm/virtio"
)

// Types of requests (virtio 1.2, 5.2.6).
const (
	typeIn          = 0
	typeOut         = 1
	typeFlush       = 4
	typeGetID       = 8
	typeDiscard     = 11
	typeWriteZeroes = 13
)

// Statuses.
const (
	statusOK     = 0
	statusIOErr  = 1
	statusUnsupp = 2
)

const (
	headerSize  = 16 // struct virtio_blk_req before its data
	segmentSize = 16 // struct virtio_blk_discard_write_zeroes
	flagUnmap   = 1
)

// request is one of the guest's requests. It is used again and again.
type request struct {
	device    *Device
	queue     *queue
	virtqueue *virtio.Queue
	chain     virtio.Chain

	kind   uint32
	off    int64 // bytes; negative if it cannot be
	data   [][]byte
	status *byte
	result byte
	in     uint32 // bytes of data that the device writes
}

// parse takes the chain apart: the header is the first 16 readable bytes, the
// status the last writable one (2.7.4.3: their framing is the driver's choice).
func (r *request) parse() error {
	var head [headerSize]byte
	r.data, r.in = r.data[:0], 0
	got := iovec.Gather(head[:], r.chain.Readable)
	r.data = iovec.Skip(r.data, r.chain.Readable, got)
	w := r.chain.Writable
	if got < headerSize || len(w) == 0 {
		return virtio.ErrMalformed
	}
	r.kind = binary.LittleEndian.Uint32(head[:])
	r.off = -1
	if sector := binary.LittleEndian.Uint64(head[8:]); sector < 1<<53 {
		r.off = int64(sector * sectorSize)
	}
	last := w[len(w)-1]
	r.status, r.result = &last[len(last)-1], statusOK
	if r.kind != typeIn && r.kind != typeGetID {
		return nil
	}
	r.data = r.data[:0]
	for i, b := range w {
		if i == len(w)-1 {
			b = b[:len(b)-1]
		}
		if len(b) > 0 {
			r.data = append(r.data, b)
			r.in += uint32(len(b))
		}
	}
	return nil
}

// bytes is how much data the request moves.
func (r *request) bytes() int64 {
	n := int64(0)
	for _, b := range r.data {
		n += int64(len(b))
	}
	return n
}

// inRange reports whether n bytes from the request's offset are whole sectors of
// the disk.
func (r *request) inRange(n int64) bool {
	size := r.device.backend.Size()
	return r.off >= 0 && n%sectorSize == 0 && r.off <= size && n <= size-r.off
}

// atOnce does what needs no waiting, or what nothing else would wait for.
func (r *request) atOnce(q *virtio.Queue) bool {
	switch r.kind {
	case typeIn:
		if !r.inRange(r.bytes()) {
			break
		}
		done, err := r.device.backend.TryReadV(r.data, r.off)
		if done && err == nil {
			return true
		}
	case typeGetID:
		r.execute()
		return true
	case typeOut:
	default:
		return false
	}
	if q.Pending() || !r.queue.alone() {
		return false
	}
	r.execute()
	return true
}

// execute does the request.
func (r *request) execute() {
	err := r.try()
	if errors.Is(err, unix.ENOSPC) && r.device.opts.NoSpace != nil {
		err = r.device.opts.NoSpace(err, r.try, r.virtqueue.Done())
	}
	if err != nil {
		r.device.failed(err)
		r.result = statusIOErr
	}
}

// try does the request once. What the guest did wrong is a result, not an
// error.
func (r *request) try() error {
	d := r.device
	switch r.kind {
	case typeIn:
		if !r.inRange(r.bytes()) {
			r.result = statusIOErr
			return nil
		}
		return d.backend.ReadV(r.data, r.off)
	case typeOut:
		if !r.inRange(r.bytes()) || d.backend.ReadOnly() {
			r.result = statusIOErr
			return nil
		}
		if err := d.backend.WriteV(r.data, r.off); err != nil || d.writeback.Load() && d.canFlush.Load() {
			return err
		}
		return d.backend.Flush()
	case typeFlush:
		return d.backend.Flush()
	case typeGetID:
		id := [MaxSerial]byte{}
		copy(id[:], d.opts.Serial)
		r.in = uint32(iovec.Scatter(r.data, id[:]))
		return nil
	case typeDiscard, typeWriteZeroes:
		return r.segments()
	}
	r.result = statusUnsupp
	return nil
}

// segments does a discard or write zeroes.
func (r *request) segments() error {
	d := r.device
	total := r.bytes()
	if total == 0 || total%segmentSize != 0 || total > maxSegments*segmentSize || d.backend.ReadOnly() {
		r.result = statusIOErr
		return nil
	}
	all := make([]byte, total)
	iovec.Gather(all, r.data)
	le := binary.LittleEndian
	for ; len(all) > 0; all = all[segmentSize:] {
		sector, n, flags := le.Uint64(all), le.Uint32(all[8:]), le.Uint32(all[12:])
		known := uint32(flagUnmap)
		if r.kind == typeDiscard {
			known = 0 // 5.2.6.2
		}
		if flags&^known != 0 {
			r.result = statusUnsupp
			return nil
		}
		r.off = -1
		if sector < 1<<53 {
			r.off = int64(sector * sectorSize)
		}
		bytes := int64(n) * sectorSize
		if n > maxSectors || !r.inRange(bytes) {
			r.result = statusIOErr
			return nil
		}
		if bytes == 0 {
			continue
		}
		var err error
		if r.kind == typeDiscard {
			err = d.backend.Discard(r.off, bytes)
		} else {
			err = d.backend.WriteZeroes(r.off, bytes, flags&flagUnmap != 0)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// finish gives the request back to the driver.
func (r *request) finish() {
	*r.status = r.result
	switch {
	case r.result != statusOK:
		r.in = 0
	case r.kind == typeIn:
		r.device.read.Add(uint64(r.in))
	case r.kind == typeOut:
		r.device.written.Add(uint64(r.bytes()))
	}
	r.virtqueue.Push(&r.chain, r.in+1)
	r.queue.put(r)
}
