package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"vmm/internal/tail"
)

// hostTries is how many hosts a job gets that stand still.
const hostTries = 3

// errStill is the error for a host that stands still.
var errStill = errors.New("the host stood still")

// runJob runs a job on a host of its own, and on another one if that stood still.
func (h *host) runJob(ctx context.Context, j job, logs string, r *reporter) {
	for try := 1; ; try++ {
		start := time.Now()
		var out strings.Builder
		status, err := h.start(ctx, j, filepath.Join(logs, fmt.Sprintf("%s-%d.console", j.name, try)), r.follow(&out))
		if ctx.Err() != nil {
			return
		}
		if errors.Is(err, errStill) && try < hostTries {
			r.note("%s: %v after %.0f s: once more on another", j.name, err, time.Since(start).Seconds())
			continue
		}
		r.done(j.name, out.String(), status, err, time.Since(start))
		return
	}
}

// start runs a host until its job is done, and writes to out what that says. It
// returns the exit status of the job.
func (h *host) start(ctx context.Context, j job, console string, out io.Writer) (status int, err error) {
	pace := h.emulator.pace(j)
	limit := j.limit*time.Duration(pace.limits) + pace.boot
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("not done after %v", limit))
	defer cancel()
	dir, err := os.MkdirTemp("", "vmm-host-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	c, err := h.emulator.command(ctx, h, j, dir, console)
	if err != nil {
		return 0, err
	}
	said, says, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	defer said.Close()
	c.ExtraFiles = append(c.ExtraFiles, says) // the descriptor 3
	own, err := os.Create(ownWords(dir))
	if err != nil {
		return 0, err
	}
	c.Stdout, c.Stderr = own, own
	err = c.Start()
	says.Close()
	own.Close()
	if err != nil {
		return 0, err
	}
	go h.emulator.attend(ctx, dir)
	status, err = pace.watch(said, out, cancel)
	if wait := c.Wait(); err == nil && status < 0 {
		words, _ := os.ReadFile(ownWords(dir))
		err = fmt.Errorf("the host ended early: %w: %s", errors.Join(wait, context.Cause(ctx)), strings.Join(tail.Lines(string(words), 10), "\n"))
	}
	return status, err
}

// ownWords is the file of what an emulator itself says.
func ownWords(dir string) string { return filepath.Join(dir, "emulator") }

// watch copies what the job says until it ends; status is -1 if it never says so.
// A host that says nothing for long is ended with stop.
func (p pace) watch(from io.Reader, out io.Writer, stop func()) (status int, err error) {
	lines := make(chan string)
	go func() {
		defer close(lines)
		for r := bufio.NewReader(from); ; {
			line, err := r.ReadString('\n')
			if line != "" {
				lines <- line
			}
			if err != nil {
				return
			}
		}
	}()
	status = -1
	silence := time.NewTimer(p.boot)
	defer silence.Stop()
	for {
		select {
		case line, ok := <-lines:
			if !ok {
				return status, err
			}
			silence.Reset(p.standstill)
			before, word, control := strings.Cut(line, "\x01")
			io.WriteString(out, before)
			if !control {
				continue
			}
			if s, ok := strings.CutPrefix(word, "end "); ok {
				status, err = strconv.Atoi(strings.TrimSpace(s))
			}
		case <-silence.C:
			if status < 0 {
				err = errStill
			}
			stop()
			for range lines {
			}
			return status, err
		}
	}
}
