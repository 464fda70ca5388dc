package migration

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"time"

	"vmm/machine"
)

// Options say how a machine is moved.
type Options struct {
	Hello
	// Downtime is how long the guest may stand still, as far as that can be told
	// before.
	Downtime time.Duration
	// Progress is told how much memory was sent in all, in bytes, and in which round,
	// from 0 on; nil drops it.
	Progress func(sent int64, round int)
	// Release gives up what only one process can have, such as the disks, and
	// Reclaim takes it back. The guest stands still.
	Release func() error
	Reclaim func() error
	// Config returns how the machine is made again, as JSON. It is called after
	// Release.
	Config func() ([]byte, error)
}

// Result tells how it went.
type Result struct {
	Rounds   int           `json:"rounds"`   // over what was written meanwhile
	Sent     int64         `json:"sent"`     // bytes of memory
	Downtime time.Duration `json:"downtime"` // until the other side was running
	// Resume lets the machine go on here after ErrUnknown; else it is nil.
	Resume func() `json:"-"`
}

const (
	// maxRounds is when a guest is taken for one that writes faster than can be sent.
	maxRounds = 40
	chunk     = 1 << 20
)

// source is one that sends its machine.
type source struct {
	*link
	m      *machine.Machine
	o      Options
	result Result
	took   time.Duration // of sending memory
	size   int64         // of memory, in bytes
	buffer []byte        // pages on their way
}

// Send moves a machine over a connection, which it closes. If it returns nil, the
// machine runs at the other side, and here it is stopped. Else it goes on here, but
// for ErrUnknown: then it is paused until Result.Resume is called. A machine that ends
// meanwhile is machine.ErrEnded.
func Send(ctx context.Context, c net.Conn, m *machine.Machine, o Options) (*Result, error) {
	defer c.Close()
	s := &source{link: newLink(c), m: m, o: o, buffer: make([]byte, maxPages)}
	err := s.within(ctx, s.moveAway)
	return &s.result, err
}

func (s *source) moveAway() error {
	s.o.Version = Version
	if err := s.sendJSON(frameHello, s.o.Hello); err != nil {
		return err
	}
	if err := s.want(frameAccept, nil); err != nil {
		return err
	}
	if err := s.m.TrackDirty(); err != nil {
		return err
	}
	if _, err := s.m.TakeDirty(); err != nil {
		return err
	}
	if err := s.all(); err != nil {
		return err
	}
	for {
		dirty, err := s.m.TakeDirty()
		if err != nil {
			return err
		}
		s.result.Rounds++
		if s.fits(dirty.Len()) {
			return s.handOver(dirty)
		}
		if s.result.Rounds >= maxRounds {
			return fmt.Errorf("the guest writes to its memory faster than it can be sent: %d MiB are left after %d rounds; "+
				"a longer downtime than %v would do", dirty.Len()*pageSize>>20, maxRounds, s.o.Downtime)
		}
		if err := s.pages(dirty); err != nil {
			return err
		}
	}
}

// fits reports whether so many pages can be sent in the time that the guest may stand
// still. Half of it is for all else.
func (s *source) fits(pages int) bool {
	if s.result.Sent == 0 || s.took == 0 {
		return pages == 0
	}
	perByte := float64(s.took) / float64(s.result.Sent)
	return time.Duration(float64(pages*pageSize)*perByte) <= s.o.Downtime/2
}

// all sends all of memory but what was never used.
func (s *source) all() error {
	var populated []bool
	if err := s.m.Use(func(mem *machine.Memory) (err error) {
		for _, ram := range mem.RAM() {
			s.size += int64(len(ram))
		}
		populated, err = mem.Populated(chunk)
		return err
	}); err != nil {
		return err
	}
	return s.each(func(off int64) bool { return populated[off/chunk] })
}

// pages sends some.
func (s *source) pages(set machine.Bitmap) error {
	return s.each(func(off int64) bool { return set.Has(int(off / pageSize)) })
}

var zeroPage [pageSize]byte

// each sends the pages of which wanted says so, as runs of those that are zero and
// those that are not.
func (s *source) each(wanted func(off int64) bool) error {
	start := time.Now()
	for off := int64(0); off < s.size; {
		if !wanted(off) {
			off += pageSize
			continue
		}
		end := off + pageSize
		for end < s.size && wanted(end) {
			end += pageSize
		}
		for off < end {
			pages, zero, err := s.take(off, min(end-off, maxPages))
			if err != nil {
				return err
			}
			at := binary.LittleEndian.AppendUint64(nil, uint64(off))
			if zero {
				err = s.send(frameZeros, binary.LittleEndian.AppendUint64(at, uint64(len(pages))))
			} else {
				err = s.send(framePages, at, pages)
			}
			if err != nil {
				return err
			}
			off += int64(len(pages))
			s.result.Sent += int64(len(pages))
			if s.o.Progress != nil {
				s.o.Progress(s.result.Sent, s.result.Rounds)
			}
		}
	}
	err := s.w.Flush()
	s.took += time.Since(start)
	return err
}

// take returns a copy of pages from an offset on: of n bytes, those that are zero as
// the first page is, or not zero as it is not. A copy, so that a machine that ends
// need not wait for a slow connection; what the guest writes after that is sent again.
func (s *source) take(off, n int64) (pages []byte, zero bool, err error) {
	err = s.m.Use(func(mem *machine.Memory) error {
		ram := mem.Range(off, n)[0]
		isZero := func(at int) bool { return bytes.Equal(ram[at:at+pageSize], zeroPage[:]) }
		zero = isZero(0)
		end := pageSize
		for end < len(ram) && isZero(end) == zero {
			end += pageSize
		}
		if pages = s.buffer[:end]; !zero {
			copy(pages, ram)
		}
		return nil
	})
	return pages, zero, err
}

// handOver stops the guest, sends the rest, and lets the other side go on.
func (s *source) handOver(dirty machine.Bitmap) error {
	start := time.Now()
	return s.m.Freeze(func(f *machine.Frozen) error {
		released := false
		err := s.rest(f, dirty, &released)
		switch {
		case err == nil:
			s.result.Downtime = time.Since(start)
			s.m.Stop()
		case errors.Is(err, ErrUnknown):
			s.result.Resume = s.m.Pause()
		case released:
			err = errors.Join(err, s.o.Reclaim())
		}
		return err
	})
}

// rest sends what is left of a frozen machine.
func (s *source) rest(f *machine.Frozen, dirty machine.Bitmap, released *bool) error {
	last, err := f.TakeDirty()
	if err != nil {
		return err
	}
	for i := range last {
		last[i] |= dirty[i]
	}
	if err := s.pages(last); err != nil {
		return err
	}
	state, err := f.Save()
	if err != nil {
		return err
	}
	*released = true
	if err := s.o.Release(); err != nil {
		return err
	}
	config, err := s.o.Config()
	if err != nil {
		return err
	}
	if err := s.sendJSON(frameFinal, &Final{config, state}); err != nil {
		return err
	}
	if err := s.want(frameReady, nil); err != nil {
		return err
	}
	// From here on the other side may run it.
	if err := s.signal(frameGo); err != nil {
		return fmt.Errorf("%w: %w", ErrUnknown, err)
	}
	var remote RemoteError
	if err := s.want(frameRunning, nil); errors.As(err, &remote) {
		return err
	} else if err != nil {
		return fmt.Errorf("%w: %w", ErrUnknown, err)
	}
	return nil
}
