package virtio

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"unsafe"
)

// MaxQueueSize bounds a split virtqueue, in descriptors (virtio 1.2, 2.7).
const MaxQueueSize = 32768

// Flags of a descriptor (virtio 1.2, 2.7.5).
const (
	descNext     = 1 // VIRTQ_DESC_F_NEXT
	descWrite    = 2 // VIRTQ_DESC_F_WRITE
	descIndirect = 4 // VIRTQ_DESC_F_INDIRECT

	descSize     = 16
	usedElemSize = 8

	noInterrupt = 1 // VIRTQ_AVAIL_F_NO_INTERRUPT
	noNotify    = 1 // VIRTQ_USED_F_NO_NOTIFY

	// maxChain bounds a chain's descriptors, for those in an indirect table.
	maxChain = 1024
	// maxChainBytes bounds what a chain's descriptors describe together, which may be
	// the same memory again and again (2.7.5.1).
	maxChainBytes = 1 << 32
)

// ErrMalformed is the error for a driver that breaks the rules of a virtqueue.
var ErrMalformed = errors.New("malformed virtqueue")

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrMalformed}, args...)...)
}

// Layout is where a driver has put the three areas of a queue (virtio 1.2, 2.7), of Size descriptors.
type Layout struct {
	Size              uint16
	Desc, Avail, Used uint64 // guest-physical addresses
}

// Queue is a split virtqueue (virtio 1.2, 2.7), seen from the device. Pop, Rewind and
// the kick methods belong to one goroutine, or to several one after the other; Push,
// PushMerged and Notify may come from any.
type Queue struct {
	mem      Memory
	size     uint16
	indirect bool
	eventIdx bool
	desc     []byte
	avail    []byte
	used     []byte

	nextAvail uint16 // what Pop takes next
	done      chan struct{}

	mu        sync.Mutex // of the used ring
	nextUsed  uint16
	signalled uint16 // nextUsed at the last interrupt
	interrupt func()
}

// NewQueue checks the layout and returns the queue, or ErrMalformed: the size is a
// power of two of at most MaxQueueSize, and the areas are aligned (2.7) and in RAM.
// interrupt is called, from any goroutine, to tell the driver that buffers were used.
func NewQueue(mem Memory, l Layout, features uint64, interrupt func()) (*Queue, error) {
	if l.Size == 0 || l.Size&(l.Size-1) != 0 || l.Size > MaxQueueSize {
		return nil, malformed("a queue of %d descriptors", l.Size)
	}
	q := &Queue{
		mem: mem, size: l.Size, interrupt: interrupt, done: make(chan struct{}),
		indirect: features&FeatureIndirectDesc != 0,
		eventIdx: features&FeatureEventIdx != 0,
	}
	n := uint64(l.Size)
	for _, a := range []struct {
		name            string
		to              *[]byte
		gpa, size, algn uint64
	}{
		{"descriptor table", &q.desc, l.Desc, n * descSize, 16},
		{"available ring", &q.avail, l.Avail, 6 + 2*n, 2},
		{"used ring", &q.used, l.Used, 6 + usedElemSize*n, 4},
	} {
		b, err := mem.Slice(a.gpa, a.size)
		if err != nil || a.gpa%a.algn != 0 {
			return nil, malformed("%s at %#x", a.name, a.gpa)
		}
		*a.to = b
	}
	return q, nil
}

// Done is closed when the queue is about to be stopped: what waits for
// something else than the host's storage gives up then.
func (q *Queue) Done() <-chan struct{} { return q.done }

// Size is the number of descriptors.
func (q *Queue) Size() int { return int(q.size) }

func half(b []byte, offset int) *uint16 { return (*uint16)(unsafe.Pointer(&b[offset])) }

// The fields of the rings: flags at 0, idx at 2, then the ring, then the
// other side's event index.
func (q *Queue) availIdx() uint16  { return load16(half(q.avail, 2)) }
func (q *Queue) usedEvent() uint16 { return load16(half(q.avail, 4+2*int(q.size))) }
func (q *Queue) setAvailEvent(v uint16) {
	at := 4 + usedElemSize*int(q.size)
	store16(half(q.used, at), v)
	q.mem.MarkDirty(q.used[at : at+2])
}

// setFlags sets the flags of the used ring.
func (q *Queue) setFlags(v uint16) {
	store16(half(q.used, 0), v)
	q.mem.MarkDirty(q.used[:2])
}

// Chain is a buffer that the driver made available: the parts for the device
// to read, then those for it to write (2.7.4.2). Its memory is reused by Pop.
type Chain struct {
	Readable, Writable [][]byte
	head               uint16
}

// Pop takes the next available chain into c; false means that there is none. After
// an error, which is ErrMalformed, the queue is unusable.
func (q *Queue) Pop(c *Chain) (bool, error) {
	pending := q.availIdx() - q.nextAvail
	if pending == 0 {
		return false, nil
	}
	if pending > q.size {
		return false, malformed("%d chains available in a queue of %d", pending, q.size)
	}
	head := load16(half(q.avail, 4+2*int(q.nextAvail&(q.size-1))))
	if err := q.walk(c, head); err != nil {
		return false, err
	}
	q.nextAvail++
	return true, nil
}

// walk collects the parts of the chain that begins at head.
func (q *Queue) walk(c *Chain, head uint16) error {
	c.Readable, c.Writable, c.head = c.Readable[:0], c.Writable[:0], head
	table, index, inTable := q.desc, uint32(head), false
	total := uint64(0)
	for n := 0; ; n++ {
		// A loop is a chain longer than its table.
		if index >= uint32(len(table)/descSize) {
			return malformed("descriptor %d of %d", index, len(table)/descSize)
		}
		if n >= len(table)/descSize || n >= maxChain {
			return malformed("a chain without an end")
		}
		// Copied once: the guest may change it while it is looked at.
		var d [descSize]byte
		copy(d[:], table[index*descSize:])
		addr, size := binary.LittleEndian.Uint64(d[:]), binary.LittleEndian.Uint32(d[8:])
		flags, next := binary.LittleEndian.Uint16(d[12:]), binary.LittleEndian.Uint16(d[14:])
		if size == 0 {
			return malformed("an empty descriptor")
		}
		slice := q.mem.ReadSlice
		if flags&descWrite != 0 && flags&descIndirect == 0 {
			slice = q.mem.Slice
		}
		part, err := slice(addr, uint64(size))
		if err != nil {
			return malformed("a descriptor of %d bytes at %#x", size, addr)
		}
		switch {
		case flags&descIndirect != 0:
			if !q.indirect || inTable || flags&descNext != 0 || size%descSize != 0 {
				return malformed("an indirect descriptor with flags %#x and %d bytes", flags, size)
			}
			table, index, inTable, n = part, 0, true, -1
			continue
		case total+uint64(size) > maxChainBytes:
			return malformed("a chain of more than %d bytes", uint64(maxChainBytes))
		case flags&descWrite != 0:
			c.Writable = append(c.Writable, part)
		case len(c.Writable) > 0:
			return malformed("a readable descriptor after a writable one")
		default:
			c.Readable = append(c.Readable, part)
		}
		if flags&descNext == 0 {
			return nil
		}
		total += uint64(size)
		index = uint32(next)
	}
}

// Push gives a chain back, of which the device has written the first n bytes
// of the writable part. The driver learns of it by Notify.
func (q *Queue) Push(c *Chain, n uint32) {
	q.markWritten(c, n)
	q.mu.Lock()
	q.putUsed(c.head, n)
	store16(half(q.used, 2), q.nextUsed)
	q.mu.Unlock()
}

// markWritten marks the first n bytes of the chain's writable part dirty.
func (q *Queue) markWritten(c *Chain, n uint32) {
	for _, b := range c.Writable {
		if n == 0 {
			return
		}
		b = b[:min(uint32(len(b)), n)]
		q.mem.MarkDirty(b)
		n -= uint32(len(b))
	}
}

// Head is the index of the chain's first descriptor: what names it in the used ring,
// and for Reload.
func (c *Chain) Head() uint16 { return c.head }

// Reload fills c with the chain that begins at a descriptor: one in flight, which was
// popped by another Queue of the same layout, before its device was saved. The error
// is ErrMalformed.
func (q *Queue) Reload(c *Chain, head uint16) error { return q.walk(c, head) }

// Position is how far a queue is: what makes one that continues another.
type Position struct {
	NextAvail uint16 `json:"nextAvail"` // index of the next chain in the available ring
	NextUsed  uint16 `json:"nextUsed"`  // index of the next place in the used ring
	Signalled uint16 `json:"signalled"` // nextUsed at the last interrupt
}

// position is where a queue that nobody uses is.
func (q *Queue) position() Position { return Position{q.nextAvail, q.nextUsed, q.signalled} }

// seek continues another queue.
func (q *Queue) seek(p Position) {
	q.nextAvail, q.nextUsed, q.signalled = p.NextAvail, p.NextUsed, p.Signalled
}

// Rewind takes the last n Pops back, of chains that nothing was done with.
func (q *Queue) Rewind(n int) { q.nextAvail -= uint16(n) }

// PushMerged gives back chains that hold one packet together (5.1.6.4), of which
// the device has written n[i] bytes of chain i. The driver sees all of them at
// once.
func (q *Queue) PushMerged(chains []Chain, n []uint32) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for i := range chains {
		q.markWritten(&chains[i], n[i])
		q.putUsed(chains[i].head, n[i])
	}
	store16(half(q.used, 2), q.nextUsed)
}

// putUsed fills the next element of the used ring; mu is held.
func (q *Queue) putUsed(head uint16, n uint32) {
	e := q.used[4+usedElemSize*int(q.nextUsed&(q.size-1)):]
	binary.LittleEndian.PutUint32(e, uint32(head))
	binary.LittleEndian.PutUint32(e[4:], n)
	q.mem.MarkDirty(e[:usedElemSize])
	q.mem.MarkDirty(q.used[:4])
	q.nextUsed++
}

// Notify interrupts the driver if it wants to hear of what was pushed since
// the last time (2.7.7).
func (q *Queue) Notify() {
	q.mu.Lock()
	now := q.nextUsed
	before := q.signalled
	q.signalled = now
	var want bool
	if q.eventIdx {
		want = now-q.usedEvent()-1 < now-before
	} else {
		want = now != before && load16(half(q.avail, 0))&noInterrupt == 0
	}
	q.mu.Unlock()
	if want {
		q.interrupt()
	}
}

// DisableKicks asks the driver not to notify: the device looks by itself.
func (q *Queue) DisableKicks() {
	if !q.eventIdx { // with it, the index of the last EnableKicks just ages
		q.setFlags(noNotify)
	}
}

// EnableKicks asks for a notification of the next chain. It returns false if
// one is there already, for which no notification may come.
func (q *Queue) EnableKicks() bool {
	if q.eventIdx {
		q.setAvailEvent(q.nextAvail)
	} else {
		q.setFlags(0)
	}
	return q.availIdx() == q.nextAvail
}

// Pending reports whether a chain is available.
func (q *Queue) Pending() bool { return q.availIdx() != q.nextAvail }
