package cli

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"

	"vmm/vm/api"
)

// progress shows on standard error how far something is that takes long. It is gone from
// a terminal at the end.
type progress struct {
	what  string
	start time.Time
	bar   *progressbar.ProgressBar
	tty   bool
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
		if p.bar == nil {
			p.bar = progressbar.NewOptions64(total, progressbar.OptionSetWriter(os.Stderr), progressbar.OptionSetDescription(p.what),
				progressbar.OptionSetWidth(40), progressbar.OptionSetPredictTime(true), progressbar.OptionClearOnFinish())
		}
		p.bar.ChangeMax64(total)
		p.bar.Set64(done)
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
	if p.bar != nil {
		p.bar.Clear()
		p.bar = nil
	}
}
