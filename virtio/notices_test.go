package virtio

import (
	"errors"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestNothingAfterClose: what a device says while it is closed starts nothing that
// is still there after that.
func TestNothingAfterClose(t *testing.T) {
	before := runtime.NumGoroutine()
	g := newPCIGuest(t)
	g.negotiate(FeatureVersion1)
	g.run()
	control := g.dev.control
	g.dev.onReset = func() {
		for range 100 {
			control.ConfigChanged()
			control.NeedsReset(errors.New("too late"))
		}
	}
	g.Close()
	control.NeedsReset(errors.New("even later"))
	// One that was waited for may still be about to go.
	eventually(t, "no goroutine is left", func() bool { return runtime.NumGoroutine() <= before })
	if errs := g.log.all(); len(errs) > 0 {
		t.Errorf("after Close: %v", errs)
	}
}

// TestResetMends: a device that was broken before a reset is not after it.
func TestResetMends(t *testing.T) {
	g := newPCIGuest(t)
	defer g.Close()
	g.negotiate(FeatureVersion1)
	g.run()
	control := g.dev.control
	g.dev.onReset = func() { control.NeedsReset(errors.New("of the time before")) }
	g.set(regStatus, 1, 0)
	g.Suspend() // all that is to be told is told now
	g.Resume()
	if s := g.get(regStatus, 1); s != 0 || len(g.log.all()) > 0 {
		t.Errorf("status %#x after a reset: %v", s, g.log.all())
	}
}

// TestDeadQueue: a queue whose notifications cannot be read is no secret.
func TestDeadQueue(t *testing.T) {
	g := newPCIGuest(t)
	defer g.Close()
	g.negotiate(FeatureVersion1)
	g.run()
	fd := g.queues[0].kick.FD()
	kick, err := unix.Dup(fd)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(kick)
	bad, err := unix.Open("/dev/null", unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(bad)
	if err := unix.Dup3(bad, fd, unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	unix.Write(kick, one) // for the read that waits already
	eventually(t, "NEEDS_RESET", func() bool { return g.get(regStatus, 1)&statusNeedsReset != 0 })
	eventually(t, "the pin is up", g.pin.get)
	if errs := g.log.all(); len(errs) != 1 || !errors.Is(errs[0], unix.EBADF) || !strings.Contains(errs[0].Error(), "queue 0") {
		t.Errorf("%v", errs)
	}
}
