package software

import (
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"

	"vmm/kvm"
)

// irqEvents are the eventfds that raise interrupts (KVM_IRQFD). One goroutine waits for all of
// a VM's.
type irqEvents struct {
	signal func(gsi uint32)
	epoll  int
	stop   int // an eventfd that ends the goroutine
	ended  chan struct{}

	mu     sync.Mutex          // held while an interrupt is raised: who is removed raises none any more
	events map[int32]*irqEvent // by their names for epoll, which are used once; nil once closed
	last   int32               // name
	// settled counts the calls of settle: what the goroutine was told of before one was taken by it.
	settled uint64
}

type irqEvent struct {
	gsi   uint32
	fd    int // as its owner calls it
	event int // the same eventfd, of our own
}

// stopName is the name of irqEvents.stop.
const stopName = 0

// newIRQEvents begins to wait for none; signal raises an interrupt.
func newIRQEvents(signal func(gsi uint32)) (*irqEvents, error) {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("epoll_create1: %w", err)
	}
	stop, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		unix.Close(epoll)
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	s := &irqEvents{signal: signal, epoll: epoll, stop: stop, ended: make(chan struct{}), events: map[int32]*irqEvent{}}
	if err := s.watch(stop, stopName); err != nil {
		return nil, errors.Join(err, unix.Close(epoll), unix.Close(stop))
	}
	go s.wait()
	return s, nil
}

// watch has the goroutine told of an eventfd, by a name.
func (s *irqEvents) watch(event int, name int32) error {
	if err := unix.EpollCtl(s.epoll, unix.EPOLL_CTL_ADD, event, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: name}); err != nil {
		return fmt.Errorf("epoll_ctl: %w", err)
	}
	return nil
}

// wait raises the interrupts until close.
func (s *irqEvents) wait() {
	defer close(s.ended)
	var ready [maxReady]unix.EpollEvent
	for {
		s.mu.Lock()
		settled := s.settled
		s.mu.Unlock()
		n, err := unix.EpollWait(s.epoll, ready[:], -1)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return // which no event can bring about
		}
		for _, e := range ready[:max(n, 0)] {
			if e.Fd == stopName {
				return
			}
			s.mu.Lock()
			if s.settled == settled { // else what counts still is told of again
				s.raiseLocked(e.Fd)
			}
			s.mu.Unlock()
		}
	}
}

// maxReady is how many events are told of at once.
const maxReady = 64

// settle raises the interrupts that were asked for until now, for the goroutine may not have come to
// it: who saves the interrupt chips would lose them.
func (s *irqEvents) settle() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.settled++
	var ready [maxReady]unix.EpollEvent
	for n := len(ready); s.events != nil && n == len(ready); {
		n, _ = unix.EpollWait(s.epoll, ready[:], 0) // it does not wait, so nothing ends it early
		for _, e := range ready[:max(n, 0)] {
			s.raiseLocked(e.Fd)
		}
	}
}

// raiseLocked takes what an eventfd has counted as one edge; mu is held.
func (s *irqEvents) raiseLocked(name int32) {
	e, ok := s.events[name]
	if !ok { // removed meanwhile, or stopName
		return
	}
	var count [8]byte
	if n, err := unix.Read(e.event, count[:]); err == nil && n == len(count) {
		s.signal(e.gsi)
	}
}

// set is KVM_IRQFD. The error is unix.EINVAL for flags that are not known, unix.EBUSY for an
// eventfd that has an interrupt, and unix.ENOENT to remove one that has not.
func (s *irqEvents) set(r *kvm.IRQFD) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.change(r); err != nil {
		return fmt.Errorf("KVM_IRQFD: GSI %d: %w", r.GSI, err)
	}
	return nil
}

func (s *irqEvents) change(r *kvm.IRQFD) error {
	fd := int(r.FD)
	var there *irqEvent
	var name int32
	for n, e := range s.events {
		if e.fd == fd {
			name, there = n, e
		}
	}
	switch {
	case r.Flags&^uint32(kvm.IRQFDDeassign) != 0 || s.events == nil:
		return unix.EINVAL
	case r.Flags&kvm.IRQFDDeassign != 0 && (there == nil || there.gsi != r.GSI):
		return unix.ENOENT
	case r.Flags&kvm.IRQFDDeassign != 0:
		delete(s.events, name)
		// A descriptor that is closed would still be told of: its file is the owner's, too.
		return errors.Join(unix.EpollCtl(s.epoll, unix.EPOLL_CTL_DEL, there.event, nil), unix.Close(there.event))
	case there != nil:
		return unix.EBUSY
	}
	event, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return err
	}
	s.last++
	if err := s.watch(event, s.last); err != nil {
		return errors.Join(err, unix.Close(event))
	}
	s.events[s.last] = &irqEvent{r.GSI, fd, event}
	return nil
}

// close ends the goroutine. It may be called twice.
func (s *irqEvents) close() error {
	s.mu.Lock()
	events := s.events
	s.events = nil
	s.mu.Unlock()
	if events == nil {
		return nil
	}
	if _, err := unix.Write(s.stop, one); err != nil {
		return fmt.Errorf("eventfd: %w", err)
	}
	<-s.ended
	var errs []error
	for _, e := range events {
		errs = append(errs, unix.Close(e.event))
	}
	return errors.Join(append(errs, unix.Close(s.epoll), unix.Close(s.stop))...)
}
