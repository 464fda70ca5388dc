package cli

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"

	"vmm/internal/visible"
	"vmm/kerneltest"
)

// testProgress is what is seen while the tests run: a line for each that has ended,
// and on a terminal, below, one for each that runs.
type testProgress struct {
	out   io.Writer
	live  bool
	total int

	mu      sync.Mutex
	running []*kerneltest.VM
	since   map[*kerneltest.VM]time.Time
	done    int
	drawn   int // lines below

	stop    chan struct{}
	drawing sync.WaitGroup
}

func newTestProgress(out io.Writer, total int) *testProgress {
	p := &testProgress{out: out, total: total, since: map[*kerneltest.VM]time.Time{}, stop: make(chan struct{})}
	if f, ok := out.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		p.live = true
		p.drawing.Go(p.redraw)
	}
	return p
}

// close ends the display; what is drawn stays.
func (p *testProgress) close() {
	close(p.stop)
	p.drawing.Wait()
}

func (p *testProgress) redraw() {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			p.print("")
		case <-p.stop:
			return
		}
	}
}

// print prints a text above the lines of those that run.
func (p *testProgress) print(text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.draw(text)
}

// draw is print; mu is held.
func (p *testProgress) draw(text string) {
	if !p.live {
		io.WriteString(p.out, text)
		return
	}
	var b strings.Builder
	if p.drawn > 0 {
		fmt.Fprintf(&b, "\x1b[%dA\x1b[J", p.drawn)
	}
	b.WriteString(text)
	p.drawn = 0
	for _, vm := range p.running {
		fmt.Fprintf(&b, "  … %s (%v)\n", visible.Line(vm.Name()), time.Since(p.since[vm]).Round(time.Second))
		p.drawn++
	}
	io.WriteString(p.out, b.String())
}

// begin is a hook.
func (p *testProgress) begin(vm *kerneltest.VM) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.running = append(p.running, vm)
	p.since[vm] = time.Now()
	text := ""
	if !p.live {
		text = fmt.Sprintf("        %s ...\n", visible.Line(vm.Name()))
	}
	p.draw(text)
}

// end is a hook.
func (p *testProgress) end(r *kerneltest.Result) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.running = slices.DeleteFunc(p.running, func(vm *kerneltest.VM) bool { return vm == r.VM })
	p.done++
	line := fmt.Sprintf("[%d/%d] %s: %s (%v)", p.done, p.total, r.VM.Name(), r.Verdict, r.Duration.Round(100*time.Millisecond))
	if r.Reason != "" {
		line += ": " + r.Reason
	}
	p.draw(visible.Line(line) + "\n")
}

// output is a hook.
func (p *testProgress) output(vm *kerneltest.VM) io.Writer {
	return &prefixed{print: p.print, prefix: vm.Name() + " | "}
}

// prefixed prints whole lines, each with a name.
type prefixed struct {
	print  func(line string)
	prefix string

	mu   sync.Mutex
	line []byte // that has no end yet
}

// Write implements io.Writer.
func (w *prefixed) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.line = append(w.line, b...)
	for {
		line, rest, found := bytes.Cut(w.line, []byte("\n"))
		if !found {
			return len(b), nil
		}
		w.print(visible.Line(w.prefix+strings.TrimSuffix(string(line), "\r")) + "\n")
		w.line = rest
	}
}

// end prints a line that has no end.
func (w *prefixed) end() {
	if len(w.line) > 0 {
		w.Write([]byte("\n"))
	}
}
