package machine

import (
	"context"
	"errors"
	"io"
	"runtime"
	"sync"
	"testing"
	"time"

	"vmm/virtio"
	"vmm/virtio/rng"
)

// withoutVM is a machine as far as it can be one without KVM: it cannot run.
func withoutVM(t *testing.T) *Machine {
	t.Helper()
	m := newMachine(Config{Console: io.Discard, Now: time.Now, Devices: []virtio.Device{rng.New()}})
	var err error
	if m.mem, err = newMemory(MinMemory, false); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(m.addPlatform(), m.addVirtio()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

// TestAfterClose calls all that there is of a machine that was closed, twice.
func TestAfterClose(t *testing.T) {
	m := withoutVM(t)
	for range 2 {
		if err := m.Close(); err != nil {
			t.Fatal(err)
		}
		m.PressPowerButton()
		m.Stop()
		resume := m.Pause()
		resume()
		resume()
		m.Exits()
		if n := m.PrivateMemory(); n != 0 || m.CPUTimes() != nil {
			t.Errorf("%d bytes of memory, CPUs %v", n, m.CPUTimes())
		}
		if err := m.Input([]byte("x")); !errors.Is(err, io.ErrClosedPipe) {
			t.Errorf("input: %v", err)
		}
		d := m.Debugger()
		if e := d.Wait(); e.Reason != StopEnded {
			t.Errorf("the debugger: %+v", e)
		}
		_, _, registers := d.Registers(0)
		_, run := m.Run(context.Background())
		_, dirty := m.TakeDirty()
		for what, err := range map[string]error{
			"Use": m.Use(func(*Memory) error { return nil }), "Freeze": m.Freeze(func(*Frozen) error { return nil }),
			"Run": run, "TrackDirty": m.TrackDirty(), "TakeDirty": dirty, "Registers": registers,
		} {
			if !errors.Is(err, ErrEnded) {
				t.Errorf("%s: %v", what, err)
			}
		}
	}
}

// TestCloseWaits: memory stays for as long as somebody uses it.
func TestCloseWaits(t *testing.T) {
	for name, hold := range map[string]func(m *Machine, do func(*Memory) error) error{
		"Use": (*Machine).Use,
		"Freeze": func(m *Machine, do func(*Memory) error) error {
			return m.Freeze(func(f *Frozen) error { return do(f.Memory()) })
		},
	} {
		m := withoutVM(t)
		var group sync.WaitGroup
		want := errors.New("what do returns")
		if err := hold(m, func(mem *Memory) error {
			for range 2 {
				group.Go(func() { m.Close() })
			}
			for !errors.Is(m.Use(func(*Memory) error { return nil }), ErrEnded) {
				runtime.Gosched()
			}
			for _, ram := range mem.RAM() {
				ram[0]++
			}
			select {
			case <-m.ended:
				t.Errorf("%s: the machine is gone", name)
			default:
			}
			return want
		}); err != want {
			t.Errorf("%s: %v", name, err)
		}
		group.Wait()
		if <-m.ended; m.mem.regions != nil {
			t.Errorf("%s: memory is left", name)
		}
	}
}

// TestFreeze: devices stand still for as long as the function runs, whatever becomes
// of it.
func TestFreeze(t *testing.T) {
	m := withoutVM(t)
	suspended := func() bool {
		_, err := m.virtio[0].Save()
		return err == nil
	}
	var inside int
	var group sync.WaitGroup
	for range 10 {
		group.Go(func() {
			m.Freeze(func(*Frozen) error {
				if inside++; !suspended() || m.gate.pauses == 0 {
					t.Error("not frozen")
				}
				return nil
			})
		})
	}
	group.Wait()
	func() {
		defer func() { recover() }()
		m.Freeze(func(*Frozen) error { panic("of a bug") })
	}()
	if inside != 10 || suspended() || m.gate.closed.Load() {
		t.Errorf("%d times; the machine stands still: %v", inside, m.gate.closed.Load())
	}
	if err := m.Debugger().Attach(); err != nil {
		t.Fatal(err)
	}
	if err := m.Freeze(func(*Frozen) error { return nil }); !errors.Is(err, ErrDebugged) {
		t.Errorf("with a debugger: %v", err)
	}
	m.Debugger().Detach()
	m.Stop()
	if err := m.Freeze(func(*Frozen) error { return nil }); !errors.Is(err, ErrEnded) {
		t.Errorf("stopped: %v", err)
	}
}

// TestCloseRunning closes a machine that runs, while all else is called.
func TestCloseRunning(t *testing.T) {
	over := make(chan struct{})
	r, err := runPayload(t, Config{CPUs: 2, Devices: []virtio.Device{rng.New()}}, codeForever, func(m *Machine) {
		defer close(over)
		var group sync.WaitGroup
		for _, do := range []func(){
			m.PressPowerButton, func() { m.Pause()() }, func() { m.CPUTimes() }, func() { m.PrivateMemory() }, func() { m.TakeDirty() },
			func() { m.TrackDirty() }, func() {
				m.Freeze(func(f *Frozen) error {
					_, err := f.Save()
					if err != nil {
						t.Error(err)
					}
					return err
				})
			},
		} {
			group.Go(func() {
				for {
					select {
					case <-m.ended:
						do()
						return
					default:
						do()
					}
				}
			})
		}
		time.Sleep(100 * time.Millisecond)
		for range 2 {
			group.Go(func() {
				if err := m.Close(); err != nil {
					t.Error(err)
				}
			})
		}
		group.Wait()
	})
	if <-over; err != nil || r.End != EndStopped {
		t.Errorf("%+v, %v", r, err)
	}
}

// closer is a device that says when it is closed.
type closer struct {
	*rng.Device
	closed bool
}

// Close implements virtio.Device.
func (c *closer) Close() error {
	c.closed = true
	return nil
}

// TestNewFails: what New takes over is freed when there comes no machine of it, however
// early.
func TestNewFails(t *testing.T) {
	for _, c := range []Config{{}, {State: &State{}}, {CPUs: -1, State: &State{}}} {
		var err error
		if c.Received, err = NewMemory(MinMemory); err != nil {
			t.Fatal(err)
		}
		d := &closer{Device: rng.New()}
		c.Devices = []virtio.Device{d}
		if _, err := New(c); err == nil {
			t.Fatalf("%+v: a machine", c)
		}
		if !d.closed || c.Received.regions != nil {
			t.Errorf("%+v: the device is closed: %v, memory: %d regions", c, d.closed, len(c.Received.regions))
		}
	}
}
