package machine

import (
	"errors"
	"sync"
)

// ErrEnded is the error for what needs a machine that is still there.
var ErrEnded = errors.New("the VM has ended")

// life is whether a machine is there: it goes when nobody uses it any more.
type life struct {
	mu      sync.Mutex
	started bool // Run was called: what ends it closes the machine
	closed  bool
	users   sync.WaitGroup
}

// start begins the only run, of a machine that is still there.
func (l *life) start() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.closed:
		return ErrEnded
	case l.started:
		return errors.New("the machine runs already")
	}
	l.started = true
	return nil
}

// use calls do, and close waits for that; ErrEnded once close was called.
func (l *life) use(do func() error) error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return ErrEnded
	}
	l.users.Add(1)
	l.mu.Unlock()
	defer l.users.Done()
	return do()
}

// closeUnlessStarted is close of a machine that no Run closes; else it does nothing
// and returns false.
func (l *life) closeUnlessStarted() bool {
	l.mu.Lock()
	if l.started {
		l.mu.Unlock()
		return false
	}
	l.closed = true
	l.mu.Unlock()
	l.users.Wait()
	return true
}

// close lets nobody use the machine any more, and returns when nobody does.
func (l *life) close() {
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	l.users.Wait()
}

// Pause stops all vCPUs and waits until they have, or the machine has stopped. They
// go on when the resume of every Pause was called; calling one again does nothing.
func (m *Machine) Pause() (resume func()) {
	m.gate.pause()
	return sync.OnceFunc(m.gate.resume)
}

// Stop ends the machine as pulling the plug does. It does not wait for that.
func (m *Machine) Stop() {
	m.gate.stop()
	m.uart.Release()
}

// Close ends the machine and frees what New made, at any time: a machine that runs
// is stopped, and Run returns. It waits for a Freeze and a Use, within which, as
// within Config.Ending, it must not be called. Run closes the machine itself; the
// error is always that of the first time.
func (m *Machine) Close() error {
	if !m.life.closeUnlessStarted() {
		m.Stop()
		<-m.ended
	}
	return m.free()
}

// release frees what New made: once, by free. No vCPU runs.
func (m *Machine) release() error {
	defer close(m.ended)
	m.debug.close()
	m.life.close()
	var errs []error
	if m.uart != nil {
		errs = append(errs, m.uart.Close())
	}
	errs = append(errs, m.closeVirtio())
	for _, v := range m.cpus {
		errs = append(errs, v.close())
	}
	if m.helper != nil {
		errs = append(errs, m.helper.close())
	}
	if m.vm != nil {
		errs = append(errs, m.vm.Close())
	}
	if m.mem != nil {
		errs = append(errs, m.mem.close())
	}
	if m.engine != nil {
		errs = append(errs, m.engine.Close())
	}
	return errors.Join(errs...)
}

// Use calls do with the guest's memory, which stays until do has returned: a machine
// that ends meanwhile waits for it. It returns ErrEnded if the machine has ended,
// else what do returns.
func (m *Machine) Use(do func(*Memory) error) error {
	return m.life.use(func() error { return do(m.mem) })
}

// Frozen is a machine that stands still: its memory and its state stay as they are.
// It is one for as long as the function runs that Freeze has called with it.
type Frozen struct{ m *Machine }

// Freeze stops the guest and its devices where they are, calls do, and lets them go
// on. A machine that is stopped meanwhile ends after that. Two calls come one after
// the other. It returns ErrDebugged for a machine with a debugger, ErrEnded for one
// that has ended, else what do returns.
func (m *Machine) Freeze(do func(*Frozen) error) error {
	return m.life.use(func() error {
		m.freeze.Lock()
		defer m.freeze.Unlock()
		if m.debug.isAttached() {
			return ErrDebugged
		}
		defer m.Pause()()
		if m.gate.isStopped() {
			return ErrEnded
		}
		for _, d := range m.virtio[m.loaded:] { // the others wait for Run
			d.Suspend()
			defer d.Resume()
		}
		return do(&Frozen{m})
	})
}

// Memory is the guest's RAM.
func (f *Frozen) Memory() *Memory { return f.m.mem }

// Save returns the machine's state, which shares no memory with it.
func (f *Frozen) Save() (*State, error) { return f.m.save() }

// TrackDirty is Machine.TrackDirty.
func (f *Frozen) TrackDirty() error { return f.m.trackDirty() }

// TakeDirty is Machine.TakeDirty.
func (f *Frozen) TakeDirty() (Bitmap, error) { return f.m.takeDirty() }

// PressPowerButton asks the guest to shut down in an orderly way, and does not wait
// for that.
func (m *Machine) PressPowerButton() {
	m.life.use(func() error {
		m.pm.PressPowerButton()
		return nil
	})
}
