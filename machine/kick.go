package machine

import "sync/atomic"

// attention is how others get a vCPU out of the guest, to look at what they want of
// it. Whoever wants something says so first (by the gate, or a flag of its own), and
// then raises attention; the vCPU takes it, and looks then at all that could be
// wanted. The order of the steps on both sides makes sure that nothing is missed and
// that nothing stays behind which nobody takes:
//
//   - raise sets the exit before the flag, so that a flag is never taken whose exit
//     is set later, and so for ever;
//   - take clears the flag before the exit. An exit that it clears too much belongs
//     to somebody whose wish is already there to be seen.
type attention struct {
	wanted atomic.Bool
	exit   exiter
	// gap is called between any two steps, by tests that widen it; else nil.
	gap func(step int)
}

// exiter makes KVM_RUN return, now or at once when it is called.
type exiter interface{ SetImmediateExit(on bool) }

// raise asks for attention; interrupt then gets the vCPU out of the guest.
func (a *attention) raise(interrupt func()) {
	a.step(0)
	a.exit.SetImmediateExit(true)
	a.step(1)
	a.wanted.Store(true)
	a.step(2)
	interrupt()
}

// take ends what raise began. The vCPU alone calls it, before it looks at what is
// wanted of it.
func (a *attention) take() {
	if !a.wanted.Swap(false) {
		return
	}
	a.step(3)
	a.exit.SetImmediateExit(false)
	a.step(4)
}

// hold makes KVM_RUN come back at once, to complete an instruction without going on.
// It returns what ends that.
func (a *attention) hold() (release func()) {
	a.exit.SetImmediateExit(true)
	return func() {
		a.step(5)
		a.exit.SetImmediateExit(a.wanted.Load())
	}
}

func (a *attention) step(n int) {
	if a.gap != nil {
		a.gap(n)
	}
}
