package cli

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/term"
)

// waiting tells who sits at a terminal what a command in a guest is waited for: in a line,
// or for a command with a terminal by a spinner, which is gone before the first byte of the
// command's output. A nil one says nothing.
type waiting struct {
	out  *os.File
	spin bool
	stop chan struct{}

	mu    sync.Mutex
	began time.Time
	what  string // empty at the end
	said  bool   // in a line
	turn  int
	shown bool // the spinner is on the terminal
}

const (
	spinEvery = 100 * time.Millisecond
	spinAfter = 500 * time.Millisecond // what takes less is not worth a look
	sayAfter  = 2 * time.Second
)

// firstOutput is what a spinner says while a command runs and has said nothing.
const firstOutput = "waiting for the command's first output"

const spinner = `-\|/`

// clearLine takes the cursor to the beginning of its line, and all that the line has away.
const clearLine = "\r\x1b[K"

// newWaiting is nil where out is no terminal: what comes there is somebody's output.
func newWaiting(out *os.File) *waiting {
	if !term.IsTerminal(int(out.Fd())) {
		return nil
	}
	return &waiting{out: out, stop: make(chan struct{})}
}

// begin begins to wait, once. spin is for a command that has the terminal.
func (w *waiting) begin(what string, spin bool) {
	if w == nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.what, w.spin, w.began = what, spin && os.Getenv("TERM") != "dumb", time.Now()
	go func() {
		ticks := time.NewTicker(spinEvery)
		defer ticks.Stop()
		for {
			select {
			case now := <-ticks.C:
				w.tick(now)
			case <-w.stop:
				return
			}
		}
	}()
}

// tick shows what there is to show at a time.
func (w *waiting) tick(now time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	since := now.Sub(w.began)
	switch {
	case w.what == "":
	case w.spin && since >= spinAfter:
		line := spinner[w.turn%len(spinner):][:1]
		if since >= sayAfter {
			line += " " + w.what
		}
		if cols, _, err := term.GetSize(int(w.out.Fd())); err == nil && cols > 0 {
			line = line[:min(len(line), cols-1)] // a line that wraps cannot be taken away
		}
		fmt.Fprint(w.out, clearLine, line)
		w.turn++
		w.shown = true
	case !w.spin && since >= sayAfter && !w.said:
		fmt.Fprintln(w.out, "vmm:", w.what)
		w.said = true
	}
}

// next waits for something else. Without a spinner there is nothing to say of it.
func (w *waiting) next(what string) {
	switch {
	case w == nil:
	case !w.spin:
		w.end()
	default:
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.what != "" {
			w.what = what
		}
	}
}

// clear makes room for a message.
func (w *waiting) clear() {
	if w == nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.clearLocked()
}

func (w *waiting) clearLocked() {
	if w.shown {
		io.WriteString(w.out, clearLine)
		w.shown = false
	}
}

// end ends the waiting. It may come again.
func (w *waiting) end() {
	if w == nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.what != "" {
		w.what = ""
		close(w.stop)
	}
	w.clearLocked()
}

// before ends the waiting before anything is written.
func (w *waiting) before(to io.Writer) io.Writer {
	if w == nil {
		return to
	}
	return &firstWrite{to: to, do: w.end}
}

// firstWrite does something before the first byte goes on.
type firstWrite struct {
	to   io.Writer
	do   func()
	once sync.Once
}

// Write implements io.Writer.
func (f *firstWrite) Write(p []byte) (int, error) {
	if len(p) > 0 {
		f.once.Do(f.do)
	}
	return f.to.Write(p)
}
