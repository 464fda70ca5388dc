package machine

import (
	"sync"
	"sync/atomic"
)

// gate is where vCPUs learn that they must stop or pause. A vCPU looks at
// closed before every entry into the guest, and passes where that is set.
type gate struct {
	mu      sync.Mutex
	changed sync.Cond
	cpus    []*vcpu // those that run
	// closed is set while vCPUs may not pass: read without the lock.
	closed  atomic.Bool
	stopped bool
	pauses  int   // by Machine.Pause, that were not ended
	held    bool  // by a debugger, which is another reason: who ends one leaves the other
	only    *vcpu // may pass while the others are held
	waiting int
}

func (g *gate) init() { g.changed.L = &g.mu }

// join adds a running vCPU; leave takes it away.
func (g *gate) join(v *vcpu) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.cpus = append(g.cpus, v)
}

func (g *gate) leave(v *vcpu) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for i, c := range g.cpus {
		if c == v {
			g.cpus = append(g.cpus[:i], g.cpus[i+1:]...)
			break
		}
	}
	g.changed.Broadcast()
}

// stop lets no vCPU pass ever again.
func (g *gate) stop() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.stopped = true
	g.closed.Store(true)
	g.kickAll()
	g.changed.Broadcast()
}

// isStopped reports whether stop was called.
func (g *gate) isStopped() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.stopped
}

func (g *gate) kickAll() {
	for _, v := range g.cpus {
		v.kick()
	}
}

// pause closes the gate and waits until every running vCPU stands before it.
func (g *gate) pause() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.pauses++
	g.shut()
	for !g.stopped && g.waiting < len(g.cpus) {
		g.changed.Wait()
	}
}

// resume ends a pause, of which the caller has one.
func (g *gate) resume() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.pauses--
	g.update()
}

// halt is pause for a debugger; it does not wait any longer if somebody calls
// release.
func (g *gate) halt() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.only, g.held = nil, true
	g.shut()
	for g.held && !g.stopped && g.waiting < len(g.cpus) {
		g.changed.Wait()
	}
}

// hold is halt for a vCPU itself: it does not wait.
func (g *gate) hold() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.only, g.held = nil, true
	g.shut()
}

// release lets one vCPU pass that a debugger holds, or all if it is nil.
func (g *gate) release(v *vcpu) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.held, g.only = v != nil, v
	g.update()
}

// shut closes the gate and tells the vCPUs; mu is held.
func (g *gate) shut() {
	g.closed.Store(true)
	g.kickAll()
}

// update opens the gate if there is no reason left; mu is held.
func (g *gate) update() {
	g.closed.Store(g.stopped || g.pauses > 0 || g.held)
	g.changed.Broadcast()
}

// pass waits while the gate is closed; false means that the vCPU must end.
func (g *gate) pass(v *vcpu) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	for !g.stopped && (g.pauses > 0 || g.held && g.only != v) {
		g.waiting++
		g.changed.Broadcast()
		g.changed.Wait()
		g.waiting--
	}
	return !g.stopped
}
