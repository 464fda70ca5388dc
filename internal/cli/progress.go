package cli

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/term"

	"vmm/vm/api"
)

// progress shows on standard error how far something is that takes long. It is gone from
// a terminal at the end.
type progress struct {
	what  string
	start time.Time
	tty   bool
	shown string // on the terminal
	// lines has a line for each tenth where standard error is no terminal.
	lines bool
	tenth int64
}

// progressDelay is what takes too short to be shown.
const progressDelay = 500 * time.Millisecond

func newProgress(what string) *progress {
	return &progress{what: what, start: time.Now(), tty: term.IsTerminal(int(os.Stderr.Fd())), tenth: -1}
}

// show tells how much is done, of a total.
func (p *progress) show(done, total int64) {
	switch {
	case total <= 0 || time.Since(p.start) < progressDelay:
	case p.tty:
		if line := p.line(done, total, time.Since(p.start)); line != p.shown {
			fmt.Fprint(os.Stderr, clearLine, line)
			p.shown = line
		}
	case p.lines && done*10/total != p.tenth:
		p.tenth = done * 10 / total
		fmt.Fprintf(os.Stderr, "%s: %d %%\n", p.what, p.tenth*10)
	}
}

// of shows what a VM tells.
func (p *progress) of(o api.Progress) { p.show(o.Done, o.Total) }

// until is for what takes bytes: it shows them, and ends with ctx.
func (p *progress) until(ctx context.Context) func(done, total int64) error {
	return func(done, total int64) error {
		p.show(done, total)
		return context.Cause(ctx)
	}
}

// end takes the display away.
func (p *progress) end() {
	if p.shown != "" {
		fmt.Fprint(os.Stderr, clearLine)
		p.shown = ""
	}
}

// barWidth is how many characters stand for all of something.
const barWidth = 40

// line is what a terminal shows when so much was done in a time: also when the rest will be, if
// it takes as long.
func (p *progress) line(done, total int64, passed time.Duration) string {
	part := float64(min(done, total)) / float64(total)
	full := int(part * barWidth)
	left := ""
	if part > 0 {
		left = time.Duration(float64(passed) * (1 - part) / part).Round(time.Second).String()
	}
	return fmt.Sprintf("%s %3.0f %% |%-*s| %s", p.what, 100*part, barWidth, strings.Repeat("█", full), left)
}
