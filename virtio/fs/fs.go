// Package fs is the virtio file system device (virtio 1.2, 5.11): FUSE requests of
// the guest, for a file system of the host's. go-fuse's protocol server takes them
// apart; what is read and written goes straight between the file and the guest's
// memory.
package fs

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"log"
	"sync"
	"sync/atomic"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"vmm/internal/iovec"
	"vmm/internal/loglimit"
	"vmm/virtio"
)

// MaxTag bounds a tag, in bytes (5.11.4).
const MaxTag = 36

const (
	queueHiprio = 0

	queueSize = 1024 // its chains hold requests of maxWrite
)

// maxWrite bounds what one request reads or writes, in bytes.
const maxWrite = 1 << 20

// Offsets in struct virtio_fs_config (5.11.4).
const (
	configTag    = 0
	configQueues = 36
	configSize   = 40
)

// FUSE's opcodes that count here (<linux/fuse.h>).
const (
	opWrite    = 16
	opFsync    = 20
	opSetXAttr = 21
	opInit     = 26
	opFsyncDir = 30
	opSetLkw   = 33
	opDestroy  = 38

	opForget      = 2
	opInterrupt   = 36
	opBatchForget = 42
)

// Offsets and sizes of FUSE's struct fuse_in_header and fuse_out_header.
const (
	inOpcode     = 4
	inUnique     = 8
	inHeaderSize = 40
	writeInSize  = inHeaderSize + 40 // with struct fuse_write_in

	outHeaderSize = 16
)

const (
	// maxMessage bounds a request but for what it writes, in bytes: names, a value
	// of an extended attribute, a batch of what is forgotten.
	maxMessage = 128 << 10
	// maxAnswer bounds an answer: with more room, no more is written.
	maxAnswer = maxWrite + 4096
	// maxWaiting bounds the requests that wait beside the queue, such as for a lock.
	maxWaiting = 512
)

// FileSystem is what a device serves to one mount of the guest. Requests come from several
// goroutines at a time; Save and Load while there are none.
type FileSystem interface {
	fuse.RawFileSystem
	io.Closer
	// Locks reports whether the guest may lock the host's files; else its kernel
	// keeps the locks of its programs to itself.
	Locks() bool
	// Interrupt ends what waits for a lock, with EINTR, and lets nothing wait, until
	// Continue. Either may come again without the other.
	Interrupt()
	Continue()
	// Save returns which files the guest knows and has open, and Load makes them
	// known again.
	Save() ([]byte, error)
	Load(state []byte) error
}

// Device is a virtio file system device.
type Device struct {
	tag     string
	open    func() (FileSystem, error)
	log     func(error)
	session atomic.Pointer[session] // nil while nothing is mounted
	waiting chan struct{}
	waits   sync.WaitGroup
	queues  [2]queue

	mu       sync.Mutex
	stopping bool     // the request queue is: what waits is to be parked
	parked   []uint16 // chains of what waited for a lock when the queue was stopped
}

// session is one mount of the guest: it begins with nothing known.
type session struct {
	fs     FileSystem
	server *fuse.ProtocolServer
	init   []byte // the request that began it
}

// header is FUSE's struct fuse_in_header.
type header [inHeaderSize]byte

func (h *header) opcode() uint32 { return binary.LittleEndian.Uint32(h[inOpcode:]) }

// queue is what the goroutine of a queue uses again and again.
type queue struct {
	chain   virtio.Chain
	message []byte
	in, out [][]byte
}

// New returns a device that the guest mounts by a tag, of 1 to MaxTag bytes: any other is
// the error. open makes the file system whenever the guest mounts it, in the goroutine of
// a queue; an error of open's is the guest's. log hears what goes wrong here, from any
// goroutine.
func New(tag string, open func() (FileSystem, error), log func(error)) (*Device, error) {
	if tag == "" || len(tag) > MaxTag {
		return nil, fmt.Errorf("tag %q: between 1 and %d bytes", tag, MaxTag)
	}
	return &Device{tag: tag, open: open, log: loglimit.New(log), waiting: make(chan struct{}, maxWaiting)}, nil
}

// Type implements virtio.Device.
func (d *Device) Type() virtio.DeviceType { return virtio.TypeFS }

// Features implements virtio.Device: there are no notifications.
func (d *Device) Features() uint64 { return 0 }

// QueueSizes implements virtio.Device: the one for what cannot wait, and one for
// requests.
func (d *Device) QueueSizes() []uint16 { return []uint16{queueSize, queueSize} }

// ReadConfig implements virtio.Device.
func (d *Device) ReadConfig(offset uint32, data []byte) {
	var c [configSize]byte
	copy(c[configTag:configQueues], d.tag)
	binary.LittleEndian.PutUint32(c[configQueues:], 1)
	clear(data)
	if offset < configSize {
		copy(data, c[offset:])
	}
}

// WriteConfig implements virtio.Device.
func (d *Device) WriteConfig(uint32, []byte) {}

// Start implements virtio.Device: a session begins when the guest mounts.
func (d *Device) Start(uint64, virtio.Control) {}

// begin makes a session that takes the place of an earlier one when it is stored.
func (d *Device) begin(init []byte) (*session, error) {
	d.end()
	f, err := d.open()
	if err != nil {
		return nil, err
	}
	return &session{f, fuse.NewProtocolServer(f, &fuse.MountOptions{
		MaxWrite:             maxWrite,
		EnableLocks:          f.Locks(),
		EnableSymlinkCaching: true,
		ExtraCapabilities:    fuse.CAP_READDIRPLUS_AUTO | fuse.CAP_ATOMIC_O_TRUNC | fuse.CAP_ASYNC_DIO,
		Logger:               log.New(io.Discard, "", 0), // of what the guest does wrong, which it is told
		PanicHandler: func(p any) fuse.Status {
			d.log(fmt.Errorf("virtio-fs: %v", p))
			return fuse.EIO
		},
	}), bytes.Clone(init)}, nil
}

// end closes the session's files. What waits for a lock is ended by that.
func (d *Device) end() {
	s := d.session.Swap(nil)
	if s == nil {
		return
	}
	if err := s.fs.Close(); err != nil {
		d.log(err)
	}
}

// StopQueue implements virtio.Device. What the queue for what cannot wait was asked
// for is done when HandleQueue returns.
func (d *Device) StopQueue(i int) {
	if i == queueHiprio {
		return
	}
	d.mu.Lock()
	d.stopping = true
	d.mu.Unlock()
	if s := d.session.Load(); s != nil {
		s.fs.Interrupt()
	}
	d.waits.Wait()
}

// Reset implements virtio.Device.
func (d *Device) Reset() {
	d.end()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.parked, d.stopping = nil, false
}

// Close implements virtio.Device.
func (d *Device) Close() error { return nil }

// HandleQueue implements virtio.Device.
func (d *Device) HandleQueue(i int, q *virtio.Queue) error {
	defer q.Notify()
	s := &d.queues[i]
	serve := d.request
	if i == queueHiprio {
		serve = d.hiprio
	} else if err := d.goOn(s, q); err != nil {
		return err
	}
	for {
		ok, err := q.Pop(&s.chain)
		if err != nil || !ok {
			return err
		}
		if err := serve(s, q); err != nil {
			return err
		}
	}
}

// goOn begins again what waited for a lock when the queue was stopped.
func (d *Device) goOn(s *queue, q *virtio.Queue) error {
	d.mu.Lock()
	parked, stopped := d.parked, d.stopping
	d.parked, d.stopping = nil, false
	d.mu.Unlock()
	if !stopped {
		return nil
	}
	if s := d.session.Load(); s != nil {
		s.fs.Continue()
	}
	for _, head := range parked {
		if err := q.Reload(&s.chain, head); err != nil {
			return err
		}
		if err := d.request(s, q); err != nil {
			return err
		}
	}
	return nil
}

// park keeps a request for the time when the queue goes on; false if it does now.
func (d *Device) park(head uint16) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.stopping {
		d.parked = append(d.parked, head)
	}
	return d.stopping
}

// request serves one request. All but those that may wait long are served at once:
// a queue has one goroutine, and passing them on costs more than most of them.
func (d *Device) request(s *queue, q *virtio.Queue) error {
	head, size, err := s.take()
	if err != nil {
		return err
	}
	if errno := tooLarge(head.opcode(), size); errno != 0 {
		q.Push(&s.chain, refuse(&head, s.out, errno))
		return nil
	}
	session := d.session.Load()
	switch head.opcode() {
	case opSetLkw, opFsync, opFsyncDir:
		d.aside(session, &head, s, q)
		return nil
	case opInit:
		if session, err = d.begin(s.in[0]); err != nil {
			d.log(err) // the guest's mount fails
		}
	}
	q.Push(&s.chain, d.serve(session, &head, s.in, s.out))
	switch head.opcode() {
	case opInit: // not before: the other queue's requests need what was agreed on
		d.session.Store(session)
	case opDestroy:
		d.end()
	}
	return nil
}

// hiprio serves one request of the queue for what cannot wait: of those that the
// driver may send by it (5.11.6.1), none begins or ends a mount, or waits.
func (d *Device) hiprio(s *queue, q *virtio.Queue) error {
	head, size, err := s.take()
	if err != nil {
		return err
	}
	switch head.opcode() {
	case opForget, opBatchForget, opInterrupt:
	default:
		q.Push(&s.chain, refuse(&head, s.out, unix.EINVAL))
		return nil
	}
	if errno := tooLarge(head.opcode(), size); errno != 0 {
		q.Push(&s.chain, refuse(&head, s.out, errno))
		return nil
	}
	q.Push(&s.chain, d.serve(d.session.Load(), &head, s.in, s.out))
	return nil
}

// tooLarge is how a request of more bytes than were agreed on is refused: as by
// /dev/fuse, with E2BIG if it sets an extended attribute and EIO if not; 0 if it is not
// too large.
func tooLarge(opcode uint32, size int) unix.Errno {
	switch {
	case opcode == opWrite && size <= writeInSize+maxWrite, opcode != opWrite && size <= maxMessage:
		return 0
	case opcode == opSetXAttr:
		return unix.E2BIG
	}
	return unix.EIO
}

// take takes a request out of the guest's memory, once: there it could change while it
// is looked at. Only what a write carries stays there. It returns the request's header
// and size, and sets in and out to what is to be served.
func (s *queue) take() (head header, size int, err error) {
	if s.message == nil {
		s.message = make([]byte, maxMessage)
	}
	size = iovec.Len(s.chain.Readable)
	if iovec.Gather(head[:], s.chain.Readable) < inHeaderSize {
		return head, 0, fmt.Errorf("%w: a FUSE request without a header", virtio.ErrMalformed)
	}
	s.out = iovec.Cut(s.out[:0], s.chain.Writable, 0, maxAnswer)
	n := maxMessage
	if head.opcode() == opWrite {
		n = writeInSize
	}
	n = iovec.Gather(s.message[:n], s.chain.Readable)
	copy(s.message, head[:])
	s.in = append(s.in[:0], s.message[:n])
	if head.opcode() == opWrite {
		s.in = iovec.Cut(s.in, s.chain.Readable, writeInSize, maxWrite)
	}
	return head, size, nil
}

// aside serves a request in a goroutine of its own.
func (d *Device) aside(session *session, head *header, s *queue, q *virtio.Queue) {
	select {
	case d.waiting <- struct{}{}:
	default:
		q.Push(&s.chain, refuse(head, s.out, unix.ENOLCK))
		return
	}
	h, message := *head, bytes.Clone(s.in[0])
	chain, out := s.chain, s.out
	s.chain, s.out = virtio.Chain{}, nil // the goroutine's from now on
	d.waits.Go(func() {
		defer func() { <-d.waiting }()
		n := d.serve(session, &h, [][]byte{message}, out)
		if h.opcode() == opSetLkw && interrupted(out) && d.park(chain.Head()) {
			return
		}
		q.Push(&chain, n)
		q.Notify()
	})
}

// serve answers a request, and returns the size of the answer.
func (d *Device) serve(session *session, head *header, in, out [][]byte) (size uint32) {
	defer func() { // go-fuse takes requests of an honest kernel apart
		if p := recover(); p != nil {
			d.log(fmt.Errorf("virtio-fs: %v", p))
			size = refuse(head, out, unix.EIO)
		}
	}()
	if session == nil {
		return refuse(head, out, unix.EIO)
	}
	n, s := session.server.HandleRequest(in, out)
	if s != fuse.OK {
		return refuse(head, out, unix.Errno(s))
	}
	return uint32(n)
}

// interrupted reports whether an answer is EINTR.
func interrupted(out [][]byte) bool {
	var b [outHeaderSize]byte
	return iovec.Gather(b[:], out) == outHeaderSize && int32(binary.LittleEndian.Uint32(b[4:])) == -int32(unix.EINTR)
}

// refuse answers with an error.
func refuse(head *header, out [][]byte, errno unix.Errno) uint32 {
	var b [outHeaderSize]byte
	binary.LittleEndian.PutUint32(b[0:], outHeaderSize)
	binary.LittleEndian.PutUint32(b[4:], uint32(-int32(errno)))
	copy(b[8:], head[inUnique:inUnique+8])
	if iovec.Scatter(out, b[:]) < outHeaderSize {
		return 0 // there is nobody to tell
	}
	return outHeaderSize
}
