package virtio

import "sync"

// notices are what a device has to tell its driver of itself and not of a queue.
// The device may hold a lock then for which a reset waits, with the transport's
// mutex held: so a goroutine of the transport's tells the driver.
type notices struct {
	mu      sync.Mutex
	changed bool  // the configuration is another
	broken  error // why the device needs a reset
	coming  bool  // a teller is on its way, or Resume will tell
	closed  bool
	tellers sync.WaitGroup
}

// ConfigChanged implements Control.
func (c *core) ConfigChanged() { c.notice(func(n *notices) { n.changed = true }) }

// NeedsReset implements Control.
func (c *core) NeedsReset(err error) {
	c.notice(func(n *notices) {
		if n.broken == nil {
			n.broken = err
		}
	})
}

// notice adds one, and has the driver told soon.
func (c *core) notice(add func(*notices)) {
	n := &c.notices
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return
	}
	add(n)
	if n.coming {
		return
	}
	n.coming = true
	n.tellers.Go(func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if !c.suspended {
			c.tell()
		}
	})
}

// tell tells the driver what there is; mu is held.
func (c *core) tell() {
	n := &c.notices
	n.mu.Lock()
	changed, broken := n.changed, n.broken
	n.changed, n.broken, n.coming = false, nil, false
	n.mu.Unlock()
	if changed {
		c.generation++
		if c.status&statusDriverOK != 0 {
			c.irq.interruptConfig()
		}
	}
	if broken != nil {
		c.fail(broken)
	}
}

// forgive drops what a reset has mended.
func (n *notices) forgive() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.broken = nil
}

// close lets nobody tell any more, and returns when nobody does. The transport's
// mutex is not held.
func (n *notices) close() {
	n.mu.Lock()
	n.closed = true
	n.mu.Unlock()
	n.tellers.Wait()
}
