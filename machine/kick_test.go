package machine

import (
	"encoding/binary"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// fakeRun is KVM_RUN as far as attention is concerned: it returns at once when the
// exit is set, at a signal while it runs, and when the guest exits, which it does
// all the time. A signal that comes before is lost.
type fakeRun struct {
	exit    atomic.Bool
	entered atomic.Int64 // how often the guest ran
	mu      sync.Mutex
	running chan struct{}
}

func (f *fakeRun) SetImmediateExit(on bool) { f.exit.Store(on) }

func (f *fakeRun) run() {
	f.mu.Lock()
	if f.exit.Load() {
		f.mu.Unlock()
		return
	}
	c := make(chan struct{})
	f.running = c
	f.mu.Unlock()
	f.entered.Add(1)
	select {
	case <-c:
	case <-time.After(20 * time.Microsecond):
	}
}

func (f *fakeRun) signal() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.running != nil {
		close(f.running)
		f.running = nil
	}
}

// gaps are the steps of attention, to be widened in turn.
const gaps = 6

// TestAttention asks for attention again and again, with each gap between the steps
// widened in turn: every wish is seen, and afterwards the guest runs.
func TestAttention(t *testing.T) {
	for i := range 2 * gaps {
		wide, holds := i/2, i%2 == 1 // release of a hold clears what stays behind
		f := &fakeRun{}
		a := &attention{exit: f, gap: func(step int) {
			if step == wide {
				time.Sleep(200 * time.Microsecond)
			}
		}}
		var wish, seen atomic.Int64
		done := make(chan struct{})
		var over atomic.Bool
		go func() { // the vCPU
			defer close(done)
			for n := 0; !over.Load(); n++ {
				if holds && n%3 == 0 { // as an instruction that is completed
					release := a.hold()
					f.run()
					release()
				}
				a.take()
				seen.Store(wish.Load())
				f.run()
			}
		}()
		// Two that want something, as a pause and a profile.
		var askers sync.WaitGroup
		for range 2 {
			askers.Go(func() {
				for range 20 {
					want := wish.Add(1)
					a.raise(f.signal)
					for end := time.Now().Add(20 * time.Second); seen.Load() < want; {
						if time.Now().After(end) {
							t.Errorf("gap %d: wish %d is not seen", wide, want)
							return
						}
						time.Sleep(time.Microsecond)
					}
				}
			})
		}
		askers.Wait()
		// Nothing stays behind: the guest runs.
		before := f.entered.Load()
		for end := time.Now().Add(5 * time.Second); f.entered.Load() < before+3; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Errorf("gap %d: the vCPU spins and runs nothing", wide)
				break
			}
		}
		over.Store(true)
		<-done
	}
}

// TestGate closes a gate for two reasons: who takes one back does not open it for the
// other, nor leaves somebody waiting.
func TestGate(t *testing.T) {
	var g gate
	g.init()
	v := &vcpu{attention: attention{exit: &fakeRun{}}}
	var passed atomic.Int64
	var over sync.WaitGroup
	g.join(v)
	over.Go(func() {
		for {
			v.attention.take()
			if g.closed.Load() && !g.pass(v) {
				g.leave(v)
				return
			}
			passed.Add(1)
			time.Sleep(10 * time.Microsecond)
		}
	})
	goesOn := func(want bool, when string) {
		t.Helper()
		before := passed.Load()
		for end := time.Now().Add(time.Second); passed.Load() == before && time.Now().Before(end); {
			if time.Sleep(time.Millisecond); !want && time.Until(end) < 980*time.Millisecond {
				break
			}
		}
		if (passed.Load() != before) != want {
			t.Errorf("%s: the vCPU goes on: %v", when, !want)
		}
	}
	g.pause()
	g.halt()
	g.release(nil)
	goesOn(false, "paused, and let go by a debugger")
	g.halt()
	g.resume()
	goesOn(false, "held by a debugger, and resumed")
	g.release(v)
	goesOn(true, "the only one that may")
	g.halt()
	g.release(nil)
	goesOn(true, "open")
	g.pause()
	g.pause()
	g.resume()
	goesOn(false, "paused twice, and resumed once")
	g.resume()
	goesOn(true, "resumed as often as paused")
	// A halt that somebody ends before the vCPU has come.
	slow := &vcpu{attention: attention{exit: &fakeRun{}}}
	g.join(slow) // never comes
	done := make(chan struct{})
	go func() {
		g.halt()
		close(done)
	}()
	for !g.closed.Load() {
		time.Sleep(time.Millisecond)
	}
	g.release(nil)
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Error("a halt that was ended still waits")
	}
	g.leave(slow)
	g.stop()
	over.Wait()
}

// TestPauseGaps pauses a guest that exits all the time, with each gap widened in
// turn, and wants it to go on each time.
func TestPauseGaps(t *testing.T) {
	const counter = 0x10000
	code := []byte{0xf0, 0x48, 0xff, 0x04, 0x25, 0, 0, 1, 0, 0xe6, 0x80, 0xeb, 0xf3} // lock inc qword [counter]; out 0x80, al; jmp back
	for wide := range gaps {
		_, err := runPayload(t, Config{}, code, func(m *Machine) {
			defer m.Stop()
			read := func() uint64 {
				b, _ := m.mem.Slice(counter, 8)
				return binary.LittleEndian.Uint64(b)
			}
			goesOn := func(since uint64) bool {
				for end := time.Now().Add(20 * time.Second); read() == since; time.Sleep(10 * time.Microsecond) {
					if time.Now().After(end) {
						return false
					}
				}
				return true
			}
			if !goesOn(0) {
				t.Error("does not start")
				return
			}
			resume := m.Pause() // nobody looks at gap now
			m.cpus[0].attention.gap = func(step int) {
				if step == wide {
					time.Sleep(200 * time.Microsecond)
				}
			}
			resume()
			for i := range 300 {
				resume := m.Pause()
				before := read()
				resume()
				if !goesOn(before) {
					t.Errorf("gap %d: the guest stands still after pause %d", wide, i)
					return
				}
			}
		})
		if err != nil {
			t.Error(err)
		}
	}
}
