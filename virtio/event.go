package virtio

import (
	"encoding/binary"
	"errors"
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Event is an eventfd: what KVM turns a guest's notification into, and what
// it turns into an interrupt. All methods but Close may be called from any goroutine.
type Event struct {
	fd     int
	closed atomic.Bool
}

// NewEvent makes an event that has not happened.
func NewEvent() (*Event, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	return &Event{fd: fd}, nil
}

// FD is the descriptor, for the kernel's use.
func (e *Event) FD() int { return e.fd }

// one is the number that an eventfd is written.
var one = binary.NativeEndian.AppendUint64(nil, 1)

// Signal makes the event happen.
func (e *Event) Signal() { unix.Write(e.fd, one) }

// ErrCanceled is the error of Wait after Cancel.
var ErrCanceled = errors.New("the event is cancelled")

// Wait blocks until the event has happened since the last Wait, or returns
// ErrCanceled, or what is wrong with the descriptor.
func (e *Event) Wait() error {
	var count [8]byte
	for !e.closed.Load() {
		if _, err := unix.Read(e.fd, count[:]); err == nil {
			break
		} else if !errors.Is(err, unix.EINTR) {
			return os.NewSyscallError("reading an eventfd", err)
		}
	}
	if e.closed.Load() {
		return ErrCanceled
	}
	return nil
}

// Cancel ends all Waits for good.
func (e *Event) Cancel() {
	e.closed.Store(true)
	e.Signal()
}

// Close frees the descriptor; nobody may be waiting.
func (e *Event) Close() error { return unix.Close(e.fd) }
