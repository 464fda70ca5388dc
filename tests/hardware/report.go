package main

import (
	"fmt"
	"io"
	"regexp"
	"strings"
	"sync"
	"time"
)

// reporter shows what tests say, as go test does: their results at once, their
// output if they fail. It may be used concurrently.
type reporter struct {
	out     io.Writer
	module  string // of KVM, on the host
	verbose bool
	started time.Time

	mu                      sync.Mutex
	passed, failed, skipped int
	broken                  []string // names of jobs that failed
}

// result is a line that tells of a test's end.
var result = regexp.MustCompile(`^\s*--- (PASS|FAIL|SKIP): `)

// follow returns a writer that keeps what a job says, and shows results.
func (r *reporter) follow(keep io.Writer) io.Writer { return &follower{r: r, keep: keep} }

type follower struct {
	r    *reporter
	keep io.Writer
	line strings.Builder
}

// Write implements io.Writer.
func (f *follower) Write(p []byte) (int, error) {
	f.keep.Write(p)
	for _, b := range p {
		f.line.WriteByte(b)
		if b == '\n' {
			f.r.show(f.line.String())
			f.line.Reset()
		}
	}
	return len(p), nil
}

func (r *reporter) show(line string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.verbose || result.MatchString(line) || strings.HasPrefix(line, complaint) {
		io.WriteString(r.out, line)
	}
}

func (r *reporter) note(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	fmt.Fprintf(r.out, format+"\n", args...)
}

// done counts the results of a job that has ended.
func (r *reporter) done(name, output string, status int, err error, d time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	failed := 0
	for line := range strings.Lines(output) {
		if m := result.FindStringSubmatch(line); m != nil {
			switch m[1] {
			case "PASS":
				r.passed++
			case "FAIL":
				failed++
			case "SKIP":
				r.skipped++
			}
		}
	}
	if status != 0 || err != nil {
		if failed == 0 {
			failed = 1 // such as one that did not end
		}
		if !r.verbose {
			io.WriteString(r.out, output)
		}
		r.broken = append(r.broken, name)
	}
	r.failed += failed
	switch {
	case err != nil:
		fmt.Fprintf(r.out, "FAIL\t%s on %s\t%.1fs: %v\n", name, r.module, d.Seconds(), err)
	case status != 0:
		fmt.Fprintf(r.out, "FAIL\t%s on %s\t%.1fs: exit status %d\n", name, r.module, d.Seconds(), status)
	default:
		fmt.Fprintf(r.out, "ok  \t%s on %s\t%.1fs\n", name, r.module, d.Seconds())
	}
}

// summary ends the report, and reports whether all jobs went well.
func (r *reporter) summary() bool {
	if r.broken != nil {
		fmt.Fprintf(r.out, "FAIL: %s\n", strings.Join(r.broken, " "))
	}
	if r.passed+r.failed+r.skipped > 0 {
		fmt.Fprintf(r.out, "on %s in %.0f s:\n%d passed, %d failed, %d skipped\n", r.module, time.Since(r.started).Seconds(), r.passed, r.failed, r.skipped)
	}
	return r.broken == nil
}
