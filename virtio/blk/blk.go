// Package blk is the virtio block device (virtio 1.2, 5.2).
//
// A queue's goroutine takes the requests. Reads of what the host has in memory
// are done at once; all else goes to a few workers, so that one slow request
// does not hold up the others, but for a request that is alone.
package blk

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"sync"
	"sync/atomic"

	"vmm/virtio"
	"vmm/virtio/ratelimit"
)

// Backend is a disk. Offsets and lengths are in bytes, multiples of 512, and within Size:
// the device has checked that. Its methods are called concurrently; an error of theirs is
// VIRTIO_BLK_S_IOERR for the guest (5.2.6).
type Backend interface {
	// Size returns the disk's size.
	Size() int64
	// ReadOnly reports whether nothing can be written: VIRTIO_BLK_F_RO.
	ReadOnly() bool
	// ReadV fills all of v from off on.
	ReadV(v [][]byte, off int64) error
	// TryReadV is ReadV where that needs no waiting, and reports whether it was; else v
	// is undefined.
	TryReadV(v [][]byte, off int64) (bool, error)
	// WriteV writes all of v from off on.
	WriteV(v [][]byte, off int64) error
	// Flush returns when what was written before it is on stable storage
	// (VIRTIO_BLK_T_FLUSH, 5.2.6).
	Flush() error
	// Discard gives a range up, whatever it reads as afterwards.
	Discard(off, n int64) error
	// WriteZeroes makes a range read as zeros; with unmap its storage may go.
	WriteZeroes(off, n int64, unmap bool) error
	// Resize changes the size; what is new reads as zeros.
	Resize(size int64) error
	// Close frees what the backend holds; no other method is called after it.
	Close() error
}

// Options are a disk's properties. The zero values are good.
type Options struct {
	// Serial is what the guest sees as the disk's ID, at most MaxSerial bytes.
	Serial string
	// Queues is the number of request queues, at most MaxQueues; 1 if 0.
	Queues int
	// Writethrough begins without a volatile cache, which the driver can change
	// (VIRTIO_BLK_F_CONFIG_WCE).
	Writethrough bool
	Limit        Limit
	// NoSpace is called with an error that is unix.ENOSPC: the host's disk is full. It
	// may try the request again, until done is closed, and returns what comes of it. nil
	// gives the guest an I/O error.
	NoSpace func(err error, try func() error, done <-chan struct{}) error
	// Log is told the first error of the backend, from any goroutine; nil drops it.
	Log func(error)
}

// Feature bits (5.2.3).
const (
	featureSegMax      = 1 << 2  // VIRTIO_BLK_F_SEG_MAX
	featureRO          = 1 << 5  // VIRTIO_BLK_F_RO
	featureBlkSize     = 1 << 6  // VIRTIO_BLK_F_BLK_SIZE
	featureFlush       = 1 << 9  // VIRTIO_BLK_F_FLUSH
	featureTopology    = 1 << 10 // VIRTIO_BLK_F_TOPOLOGY
	featureConfigWCE   = 1 << 11 // VIRTIO_BLK_F_CONFIG_WCE
	featureMQ          = 1 << 12 // VIRTIO_BLK_F_MQ
	featureDiscard     = 1 << 13 // VIRTIO_BLK_F_DISCARD
	featureWriteZeroes = 1 << 14 // VIRTIO_BLK_F_WRITE_ZEROES
)

// Bounds of Options.
const (
	MaxSerial = 20 // of Serial, in bytes: VIRTIO_BLK_ID_BYTES (5.2.6)
	MaxQueues = 64 // of Queues
)

const (
	queueSize  = 256
	sectorSize = 512

	maxSectors  = 1 << 22 // of one discard or write zeroes: 2 GiB
	maxSegments = 64
	pageSectors = 8
	maxWorkers  = 16
)

// Offsets in struct virtio_blk_config (5.2.4).
const (
	configCapacity       = 0
	configSegMax         = 12
	configBlkSize        = 20
	configPhysicalExp    = 24
	configWriteback      = 32
	configNumQueues      = 34
	configMaxDiscard     = 36
	configDiscardSegs    = 40
	configDiscardAlign   = 44
	configMaxZeroes      = 48
	configZeroesSegs     = 52
	configZeroesMayUnmap = 56
	configSize           = 60
)

// Device is a disk of the guest.
type Device struct {
	backend Backend
	opts    Options
	limit   ratelimit.Limiter
	queues  []queue

	work    chan *request
	idle    atomic.Int32
	mu      sync.Mutex
	workers int
	group   sync.WaitGroup

	writeback atomic.Bool
	canFlush  atomic.Bool // the driver does
	logged    atomic.Bool
	read      atomic.Uint64 // bytes
	written   atomic.Uint64
	control   atomic.Pointer[virtio.Control]
}

// queue is what the device keeps of a virtqueue.
type queue struct {
	mu    sync.Mutex
	free  []*request // to be used again
	busy  int        // requests that workers have
	empty sync.Cond
}

// New returns a disk, which owns the backend from now on. After an error, which is about
// the Options, the backend is still the caller's.
func New(b Backend, o Options) (*Device, error) {
	o.Queues = max(o.Queues, 1)
	switch {
	case len(o.Serial) > MaxSerial:
		return nil, fmt.Errorf("serial %q: at most %d characters", o.Serial, MaxSerial)
	case o.Queues > MaxQueues:
		return nil, fmt.Errorf("%d queues: at most %d", o.Queues, MaxQueues)
	}
	d := &Device{backend: b, opts: o, queues: make([]queue, o.Queues),
		work: make(chan *request, o.Queues*queueSize)}
	d.limit.Set(o.Limit.BytesPerSecond, o.Limit.IOPS)
	for i := range d.queues {
		d.queues[i].empty.L = &d.queues[i].mu
	}
	d.writeback.Store(!o.Writethrough)
	return d, nil
}

// Type implements virtio.Device.
func (d *Device) Type() virtio.DeviceType { return virtio.TypeBlock }

// Features implements virtio.Device.
func (d *Device) Features() uint64 {
	f := uint64(featureSegMax | featureBlkSize | featureTopology | featureMQ | featureFlush)
	if d.backend.ReadOnly() {
		return f | featureRO
	}
	return f | featureConfigWCE | featureDiscard | featureWriteZeroes
}

// QueueSizes implements virtio.Device.
func (d *Device) QueueSizes() []uint16 {
	out := make([]uint16, len(d.queues))
	for i := range out {
		out[i] = queueSize
	}
	return out
}

// ReadConfig implements virtio.Device.
func (d *Device) ReadConfig(offset uint32, data []byte) {
	var c [configSize]byte
	le := binary.LittleEndian
	le.PutUint64(c[configCapacity:], uint64(d.backend.Size())/sectorSize)
	le.PutUint32(c[configSegMax:], queueSize-2)
	le.PutUint32(c[configBlkSize:], sectorSize)
	c[configPhysicalExp] = 3 // 4 KiB
	if d.writeback.Load() {
		c[configWriteback] = 1
	}
	le.PutUint16(c[configNumQueues:], uint16(len(d.queues)))
	le.PutUint32(c[configMaxDiscard:], maxSectors)
	le.PutUint32(c[configDiscardSegs:], maxSegments)
	le.PutUint32(c[configDiscardAlign:], pageSectors)
	le.PutUint32(c[configMaxZeroes:], maxSectors)
	le.PutUint32(c[configZeroesSegs:], maxSegments)
	c[configZeroesMayUnmap] = 1
	clear(data)
	if offset < configSize {
		copy(data, c[offset:])
	}
}

// WriteConfig implements virtio.Device: the driver chooses the cache mode.
func (d *Device) WriteConfig(offset uint32, data []byte) {
	if offset == configWriteback && len(data) == 1 && !d.backend.ReadOnly() {
		d.writeback.Store(data[0] != 0)
	}
}

// Start implements virtio.Device.
func (d *Device) Start(features uint64, c virtio.Control) {
	d.canFlush.Store(features&featureFlush != 0)
	d.control.Store(&c)
}

// Reset implements virtio.Device.
func (d *Device) Reset() {
	d.control.Store(nil)
	d.writeback.Store(!d.opts.Writethrough)
}

// State is what the driver has set, as Save returns it.
type State struct {
	Writeback bool `json:"writeback"` // the cache mode that it chose
}

// Save implements virtio.Device.
func (d *Device) Save() (any, error) { return &State{d.writeback.Load()}, nil }

// Load implements virtio.Device.
func (d *Device) Load(state []byte) error {
	var s State
	err := json.Unmarshal(state, &s)
	d.writeback.Store(s.Writeback)
	return err
}

// Swap puts another backend of the same disk, with the same size, in the place of the one
// there is, which it returns and does not close. All queues must be stopped.
func (d *Device) Swap(b Backend) Backend {
	old := d.backend
	d.backend = b
	return old
}

// Size is the disk's, in bytes. Size, Resize and Transferred can be called from any
// goroutine.
func (d *Device) Size() int64 { return d.backend.Size() }

// Resize changes the disk's size, in bytes and a multiple of 512, while the guest runs,
// whose driver is told. The error is the backend's.
func (d *Device) Resize(size int64) error {
	if err := d.backend.Resize(size); err != nil {
		return err
	}
	if c := d.control.Load(); c != nil {
		(*c).ConfigChanged()
	}
	return nil
}

// Close implements virtio.Device.
func (d *Device) Close() error {
	close(d.work)
	d.group.Wait()
	return d.backend.Close()
}

// HandleQueue implements virtio.Device.
func (d *Device) HandleQueue(i int, q *virtio.Queue) error {
	defer q.Notify()
	s := &d.queues[i]
	for {
		r := s.get()
		ok, err := q.Pop(&r.chain)
		if err == nil && ok {
			err = r.parse()
		}
		if err != nil || !ok {
			s.put(r)
			return err
		}
		r.device, r.queue, r.virtqueue = d, s, q
		if d.limit.Bounded() && !ratelimit.Sleep(d.limit.Take(r.bytes()), q.Done()) {
			q.Rewind(1)
			s.put(r)
			return nil
		}
		if !r.atOnce(q) {
			s.started()
			d.submit(r)
			continue
		}
		r.finish()
	}
}

// StopQueue implements virtio.Device.
func (d *Device) StopQueue(i int) {
	s := &d.queues[i]
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.busy > 0 {
		s.empty.Wait()
	}
}

// submit gives a request to a worker, a new one if all are at work.
func (d *Device) submit(r *request) {
	if d.idle.Load() <= int32(len(d.work)) {
		d.mu.Lock()
		if d.workers < maxWorkers {
			d.workers++
			d.group.Go(d.worker)
		}
		d.mu.Unlock()
	}
	d.work <- r // has room for all requests that there can be
}

func (d *Device) worker() {
	for {
		d.idle.Add(1)
		r, ok := <-d.work
		d.idle.Add(-1)
		if !ok {
			return
		}
		r.execute()
		q, s := r.virtqueue, r.queue
		r.finish()
		q.Notify()
		s.ended()
	}
}

func (s *queue) get() *request {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := len(s.free); n > 0 {
		r := s.free[n-1]
		s.free = s.free[:n-1]
		return r
	}
	return &request{}
}

func (s *queue) put(r *request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.free = append(s.free, r)
}

func (s *queue) started() {
	s.mu.Lock()
	s.busy++
	s.mu.Unlock()
}

func (s *queue) ended() {
	s.mu.Lock()
	if s.busy--; s.busy == 0 {
		s.empty.Broadcast()
	}
	s.mu.Unlock()
}

// alone reports whether no worker has a request of the queue.
func (s *queue) alone() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.busy == 0
}

// Transferred returns how many bytes the guest has read and written, since New.
func (d *Device) Transferred() (read, written uint64) { return d.read.Load(), d.written.Load() }

// failed notes an error of the backend and tells the first.
func (d *Device) failed(err error) {
	if d.opts.Log != nil && !d.logged.Swap(true) {
		d.opts.Log(fmt.Errorf("the guest gets an I/O error: %w", err))
	}
}
