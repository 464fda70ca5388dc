package machine

import (
	"bytes"
	"io"
	"sync"
	"sync/atomic"
)

// panicText begins the last report of a Linux kernel.
const panicText = "Kernel panic - not syncing"

// faultTexts are in the reports of a kernel about a fault of its own, after which a
// triple fault is no way to reboot any more. Those of a program's faults, which it
// reports too, are not among them.
var faultTexts = []string{
	panicText, "PANIC: ", "Oops: ", "BUG: unable to handle", "BUG: kernel NULL pointer", "kernel BUG at ",
	"general protection fault: ", "general protection fault, ", "invalid opcode: ", "divide error: ", "double fault: ",
}

// longestText is the length of the longest of them.
var longestText = func() (n int) {
	for _, t := range faultTexts {
		n = max(n, len(t))
	}
	return n
}()

// panicWatch passes the console's output on and looks in it for what the guest's end
// means: after a panic, a reboot is not taken for an ordinary one, also with kernels
// that have no pvpanic driver.
type panicWatch struct {
	mu       sync.Mutex // a guest can have a console on more than one device
	out      io.Writer
	tail     []byte
	spoke    atomic.Bool // the guest has said something
	faulted  atomic.Bool
	panicked atomic.Bool
}

// Write implements io.Writer.
func (w *panicWatch) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(b) > 0 {
		w.spoke.Store(true)
	}
	if !w.panicked.Load() {
		w.tail = append(w.tail, b...)
		for _, t := range faultTexts {
			if bytes.Contains(w.tail, []byte(t)) {
				w.faulted.Store(true)
				if t == panicText {
					w.panicked.Store(true)
				}
			}
		}
		if n := len(w.tail) - longestText; n > 0 {
			w.tail = w.tail[:copy(w.tail, w.tail[n:])]
		}
	}
	return w.out.Write(b)
}

// tripleFault is what it means that a CPU shut down. On a PC that is a reset, and
// for Linux the way to reboot that always works (reboot=t): so it is one, unless the
// guest has reported a fault before, or has not got far enough for a reboot.
func (m *Machine) tripleFault(where string) Result {
	got := m.watch.spoke.Load() || m.driven.Load() || m.cfg.State != nil
	if got && !m.watch.faulted.Load() {
		return Result{End: EndReset, Detail: "triple fault"}
	}
	return Result{End: EndCrash, Detail: "triple fault: " + where}
}

// ConsoleWriter takes what the guest says on a console that is another device than the
// serial port. It goes to Config.Console, and a panic in it is one of the machine's.
func (m *Machine) ConsoleWriter() io.Writer { return m.watch }
