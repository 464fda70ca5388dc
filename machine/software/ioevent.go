package software

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"vmm/kvm"
)

// ioAddress is where a guest writes to: an address without memory, or a port.
type ioAddress struct {
	at   uint64
	port bool
}

// ioEvent is an eventfd that a write signals.
type ioEvent struct {
	size  int // of the write, in bytes; 0 for any
	any   bool
	value uint64 // that is written, unless any
	fd    int    // as its owner calls it
	event int    // the same, of our own
}

func (e *ioEvent) matches(data []byte) bool {
	if e.size != 0 && e.size != len(data) {
		return false
	}
	return e.any || e.value == littleEndian(data)
}

// collides reports whether there would be no telling which of two a write is for.
func (e *ioEvent) collides(other *ioEvent) bool {
	return (e.size == 0 || other.size == 0 || e.size == other.size) && (e.any || other.any || e.value == other.value)
}

// littleEndian is a number of up to 8 bytes.
func littleEndian(data []byte) uint64 {
	var b [8]byte
	copy(b[:], data)
	return binary.LittleEndian.Uint64(b[:])
}

// maxIOEvents bounds how many there are (the kernel's NR_IOBUS_DEVS).
const maxIOEvents = 1000

// ioEvents are the eventfds that stand for a guest's writes (KVM_IOEVENTFD).
type ioEvents struct {
	mu sync.RWMutex // read by CPUs while they signal: who is removed is not signalled any more
	at map[ioAddress][]ioEvent
	n  int
}

// one is what is written to an eventfd.
var one = binary.NativeEndian.AppendUint64(nil, 1)

// written signals the eventfd that a write is for, and reports whether there is one.
func (s *ioEvents) written(to ioAddress, data []byte) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	events := s.at[to]
	for i := range events {
		if events[i].matches(data) {
			unix.Write(events[i].event, one) // fails where its count is full: it is signalled then
			return true
		}
	}
	return false
}

// set is KVM_IOEVENTFD. The error is unix.EINVAL for what is no write, unix.EEXIST if such a
// write signals another, unix.ENOENT if there is none to remove, unix.ENOSPC for one too
// many.
func (s *ioEvents) set(r *kvm.IOEventFD) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.change(r); err != nil {
		return fmt.Errorf("KVM_IOEVENTFD: %d bytes at %#x: %w", r.Len, r.Addr, err)
	}
	return nil
}

func (s *ioEvents) change(r *kvm.IOEventFD) error {
	const flags = kvm.IOEventFDDatamatch | kvm.IOEventFDPIO | kvm.IOEventFDDeassign
	sizes := []uint32{0, 1, 2, 4, 8}
	to := ioAddress{r.Addr, r.Flags&kvm.IOEventFDPIO != 0}
	e := ioEvent{size: int(r.Len), any: r.Flags&kvm.IOEventFDDatamatch == 0, value: r.Datamatch, fd: int(r.FD)}
	if r.Flags&^uint32(flags) != 0 || !slices.Contains(sizes, r.Len) || e.size == 0 && !e.any || r.Addr+uint64(r.Len) < r.Addr ||
		to.port && r.Addr > 0xffff {
		return unix.EINVAL
	}
	if e.any {
		e.value = 0
	}
	if r.Flags&kvm.IOEventFDDeassign != 0 {
		return s.remove(to, &e)
	}
	if slices.ContainsFunc(s.at[to], func(other ioEvent) bool { return e.collides(&other) }) {
		return unix.EEXIST
	}
	if s.n == maxIOEvents {
		return unix.ENOSPC
	}
	var err error
	if e.event, err = unix.FcntlInt(uintptr(e.fd), unix.F_DUPFD_CLOEXEC, 0); err != nil {
		return err
	}
	if s.at == nil {
		s.at = map[ioAddress][]ioEvent{}
	}
	s.at[to] = append(s.at[to], e)
	s.n++
	return nil
}

func (s *ioEvents) remove(to ioAddress, e *ioEvent) error {
	events := s.at[to]
	at := slices.IndexFunc(events, func(o ioEvent) bool {
		return o.fd == e.fd && o.size == e.size && o.any == e.any && o.value == e.value
	})
	if at < 0 {
		return unix.ENOENT
	}
	event := events[at].event
	if s.at[to] = slices.Delete(events, at, at+1); len(s.at[to]) == 0 {
		delete(s.at, to)
	}
	s.n--
	return unix.Close(event)
}

func (s *ioEvents) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, events := range s.at {
		for _, e := range events {
			errs = append(errs, unix.Close(e.event))
		}
	}
	s.at, s.n = nil, 0
	return errors.Join(errs...)
}
