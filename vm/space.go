package vm

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"vmm/machine"
)

// spaceWatch pauses a machine while the host's disk is full (Config.OnNoSpace).
type spaceWatch struct {
	log func(error)

	mu      sync.Mutex
	machine *machine.Machine
	waiting int
	over    chan struct{} // closed when the machine can go on, while it cannot
}

// spaceCheck is how often a full disk is tried again.
const spaceCheck = time.Second

// holds reports whether the machine is paused now; on nil it is not.
func (s *spaceWatch) holds() bool {
	if s == nil {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.waiting > 0
}

// attach names the machine to pause; on nil it does nothing.
func (s *spaceWatch) attach(m *machine.Machine) {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.machine = m
}

// hold implements blk.Options.NoSpace: it tries until there is room.
func (s *spaceWatch) hold(err error, try func() error, done <-chan struct{}) error {
	s.add(1, err)
	defer s.add(-1, nil)
	for errors.Is(err, unix.ENOSPC) {
		select {
		case <-time.After(spaceCheck):
			err = try()
		case <-done:
			return err
		}
	}
	return err
}

// add counts the requests that wait; the first pauses the machine, the last
// lets it go on.
func (s *spaceWatch) add(n int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.waiting += n
	// Not from here: a vCPU may be waiting for this very request, in a reset.
	switch {
	case s.machine == nil: // it does not run yet
	case n > 0 && s.waiting == 1:
		s.log(fmt.Errorf("%w: the guest waits until there is room", err))
		s.over = make(chan struct{})
		go func(m *machine.Machine, over <-chan struct{}) {
			resume := m.Pause()
			<-over
			resume()
		}(s.machine, s.over)
	case s.over != nil && s.waiting == 0:
		s.log(errors.New("there is room again: the guest goes on"))
		close(s.over)
		s.over = nil
	}
}
