package virtio

import (
	"errors"
	"fmt"
	"runtime"
	"sync"
	"time"

	"vmm/internal/loglimit"
)

// Bits of the device status field (virtio 1.2, 2.1).
const (
	statusAcknowledge = 1
	statusDriver      = 2
	statusDriverOK    = 4
	statusFeaturesOK  = 8
	statusNeedsReset  = 64
	statusFailed      = 128
)

// Bits of the ISR status (4.1.4.5).
const (
	isrQueue  = 1
	isrConfig = 2
)

// interrupter is how a transport interrupts the driver.
type interrupter interface {
	interruptQueue(i int)
	interruptConfig()
}

// notifier is how a transport makes a guest's notification an event. One that cannot be
// tied to its event, as where BARs lie over each other, comes by the register, only slower.
type notifier interface {
	attachKick(i int, e *Event)
	detachKick(i int, e *Event)
}

// queueState is what the driver has set of a queue, and the queue while it
// runs.
type queueState struct {
	max    uint16
	layout Layout
	ready  bool
	queue  *Queue
	kick   *Event
	done   chan struct{} // closed when its goroutine has ended
	// at is where the queue begins: where it was when it was suspended.
	at Position
}

// core is what the transports have in common: the device's status, its
// features and its queues.
type core struct {
	dev  Device
	mem  Memory
	irq  interrupter
	note notifier
	log  func(error)

	mu         sync.Mutex // of all below; held while the device starts and stops
	status     uint8
	accepted   uint64
	featureSel [2]uint32 // of the device's and the driver's features
	queues     []queueState
	generation uint8
	started    bool
	suspended  bool // from Suspend or Load until Resume
	closed     bool
	// wakeMu is of the queues' kicks, which Control reads without mu: StopQueue's
	// callers hold that.
	wakeMu  sync.RWMutex
	notices notices
}

func (c *core) init(dev Device, mem Memory, irq interrupter, note notifier, log func(error)) {
	c.dev, c.mem, c.irq, c.note, c.log = dev, mem, irq, note, loglimit.New(log)
	for _, n := range dev.QueueSizes() {
		c.queues = append(c.queues, queueState{max: n, layout: Layout{Size: n}})
	}
}

func (c *core) offered() uint64 { return c.dev.Features() | ringFeatures }

// deviceFeatures returns 32 bits of the offered features.
func (c *core) deviceFeatures() uint32 { return half64(c.offered(), c.featureSel[0]) }

// driverFeatures returns 32 bits of the accepted features.
func (c *core) driverFeatures() uint32 { return half64(c.accepted, c.featureSel[1]) }

func half64(v uint64, sel uint32) uint32 {
	if sel > 1 {
		return 0
	}
	return uint32(v >> (32 * sel))
}

// acceptFeatures sets 32 bits; once they are agreed on they stay.
func (c *core) acceptFeatures(v uint32) {
	if sel := c.featureSel[1]; sel <= 1 && c.status&statusFeaturesOK == 0 {
		c.accepted = c.accepted&^(0xffffffff<<(32*sel)) | uint64(v)<<(32*sel)
	}
}

// setStatus is the driver's write to the status field (3.1.1).
func (c *core) setStatus(s uint8) {
	if c.closed {
		return
	}
	if s == 0 {
		c.reset()
		return
	}
	set := s &^ c.status
	if set&statusFeaturesOK != 0 && (c.accepted&^c.offered() != 0 || c.accepted&FeatureVersion1 == 0) {
		s &^= statusFeaturesOK // the driver reads it back and gives up
	}
	c.status = s | c.status&statusNeedsReset
	if set&statusDriverOK != 0 && c.status&statusFeaturesOK != 0 && !c.started {
		c.started = true
		c.dev.Start(c.accepted, c)
		for i := range c.queues {
			if c.queues[i].ready {
				c.startQueue(i)
			}
		}
	}
}

// reset brings the device back to where it began (2.4).
func (c *core) reset() {
	for i := range c.queues {
		c.resetQueue(i)
	}
	if c.started {
		c.dev.Reset()
	}
	c.notices.forgive()
	c.started, c.status, c.accepted, c.featureSel = false, 0, 0, [2]uint32{}
}

// setReady is the driver's write to queue_enable.
func (c *core) setReady(i int, ready bool) {
	q := &c.queues[i]
	switch {
	case ready && !q.ready:
		q.ready = true
		if c.started {
			c.startQueue(i)
		}
	case !ready && q.ready: // MMIO's way to reset a queue
		c.resetQueue(i)
	}
}

// resetQueue is a queue reset (2.6.1).
func (c *core) resetQueue(i int) {
	c.stopQueue(i)
	c.wakeMu.Lock() // another vCPU may notify it just now
	defer c.wakeMu.Unlock()
	c.queues[i] = queueState{max: c.queues[i].max, layout: Layout{Size: c.queues[i].max}}
}

// startQueue makes a goroutine that serves queue i, which stopQueue ends. Of a
// suspended device, Resume starts the queues.
func (c *core) startQueue(i int) {
	s := &c.queues[i]
	if s.queue != nil || c.suspended {
		return
	}
	if s.layout.Size > s.max {
		c.fail(malformed("a queue of %d descriptors, at most %d", s.layout.Size, s.max))
		return
	}
	q, err := NewQueue(c.mem, s.layout, c.accepted, func() { c.irq.interruptQueue(i) })
	if err != nil {
		c.fail(err)
		return
	}
	kick, err := NewEvent()
	if err != nil {
		c.fail(err)
		return
	}
	c.note.attachKick(i, kick)
	q.seek(s.at)
	done := make(chan struct{})
	c.wakeMu.Lock()
	s.queue, s.kick, s.done = q, kick, done
	c.wakeMu.Unlock()
	go func() {
		defer close(done)
		c.serve(i, q, kick)
	}()
	kick.Signal() // for what is there already
}

// serve calls the device whenever there may be work in queue i.
func (c *core) serve(i int, q *Queue, kick *Event) {
	handle := func() bool {
		err := c.dev.HandleQueue(i, q)
		if err != nil {
			c.NeedsReset(err)
		}
		return err == nil
	}
	wait := func() bool {
		err := kick.Wait()
		if err != nil && !errors.Is(err, ErrCanceled) {
			c.NeedsReset(fmt.Errorf("queue %d cannot be notified any more: %w", i, err))
		}
		return err == nil
	}
	if r, ok := c.dev.(Receiver); ok && r.IsReceiveQueue(i) {
		for wait() && handle() {
		}
		return
	}
	// Where the driver comes back at once, looking for it is faster than going
	// to sleep; where that was in vain, sleep.
	for {
		asleep := time.Now()
		if !wait() {
			return
		}
		look := runtime.NumCPU() > 1 && time.Since(asleep) < lookFor
		for again := true; again; {
			q.DisableKicks()
			before := q.nextAvail
			if !handle() {
				return
			}
			again = look && q.nextAvail != before && q.lookOut()
		}
		// A chain that came just before the kicks were enabled has no kick. A
		// device that takes none of what is there leaves it on purpose.
		for !q.EnableKicks() {
			before := q.nextAvail
			if !handle() {
				return
			}
			if q.nextAvail == before {
				break
			}
		}
	}
}

// lookFor is how long a queue is looked at before its goroutine sleeps: about
// what sleeping and waking cost.
const lookFor = 30 * time.Microsecond

// lookOut waits a little for the next chain.
func (q *Queue) lookOut() bool {
	for start := time.Now(); time.Since(start) < lookFor; runtime.Gosched() {
		for range 50 {
			if q.Pending() {
				return true
			}
		}
	}
	return false
}

// stopQueue ends the queue's goroutine and waits for the device.
func (c *core) stopQueue(i int) {
	s := &c.queues[i]
	if s.queue == nil {
		return
	}
	c.note.detachKick(i, s.kick)
	close(s.queue.done)
	s.kick.Cancel()
	<-s.done
	c.dev.StopQueue(i)
	c.wakeMu.Lock()
	defer c.wakeMu.Unlock()
	s.kick.Close()
	s.queue, s.kick, s.done = nil, nil, nil
}

// Wake implements Control.
func (c *core) Wake(i int) {
	c.wakeMu.RLock()
	defer c.wakeMu.RUnlock()
	if i < len(c.queues) && c.queues[i].kick != nil {
		c.queues[i].kick.Signal()
	}
}

// fail sets DEVICE_NEEDS_RESET, unless the device is closed; mu is held.
func (c *core) fail(err error) {
	if c.closed || c.status&statusNeedsReset != 0 {
		return
	}
	c.status |= statusNeedsReset
	c.log(fmt.Errorf("virtio device of type %d: %w", c.dev.Type(), err))
	if c.status&statusDriverOK != 0 {
		c.irq.interruptConfig()
	}
}

// close resets and closes the device, which may be suspended. What the driver does
// after that has no effect.
func (c *core) close() error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil
	}
	c.closed = true
	c.reset()
	c.mu.Unlock()
	c.notices.close()
	return c.dev.Close()
}
