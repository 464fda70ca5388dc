package cli

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// restartPolicy says when a VM in the background is started again after its end, as docker's does.
type restartPolicy struct {
	// Always is after every end that nobody has asked for; else only after failures, at most Times if that is not 0.
	Always bool   `json:",omitempty"`
	Times  int    `json:",omitempty"`
	Text   string // as the user wrote it
}

const restartForm = "no, on-failure[:TIMES], always or unless-stopped"

// readRestart reads a policy; nil is never.
func readRestart(text string) (*restartPolicy, error) {
	kind, times, counted := strings.Cut(text, ":")
	p := &restartPolicy{Text: text}
	switch kind {
	case "no", "":
		p = nil
	case "always", "unless-stopped": // nobody starts what was stopped
		p.Always = true
	case "on-failure":
		if counted {
			n, err := strconv.Atoi(times)
			if err != nil || n < 1 {
				return nil, fmt.Errorf("%s: how many times, 1 or more", text)
			}
			p.Times, counted = n, false
		}
	default:
		return nil, fmt.Errorf("%s: %s", text, restartForm)
	}
	if counted {
		return nil, fmt.Errorf("%s: only on-failure takes a number", text)
	}
	return p, nil
}

// applies reports whether a VM is started again that has ended with a status, and was started again
// so many times.
func (p *restartPolicy) applies(status, restarts int) bool {
	return p.Always || status != statusOK && (p.Times == 0 || restarts < p.Times)
}

// The time until a VM is started again: twice as long each time, unless it has run for a while.
const (
	firstRestart = 100 * time.Millisecond
	longestPause = time.Minute
	goodRun      = 10 * time.Second
)

// restartPause is the time until the next start, after the last one's pause and a run.
func restartPause(last, ran time.Duration) time.Duration {
	if last == 0 || ran >= goodRun {
		return firstRestart
	}
	return min(2*last, longestPause)
}
