package vm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"vmm/guest-images/agent"
)

// HealthCheck is a command of the guest that finds out whether what the VM is there for is well: it is
// with status 0. Times of 0 are docker's: see WithDefaults.
type HealthCheck struct {
	Command  []string      `json:"command"`
	Interval time.Duration `json:"interval,omitempty"` // between two checks; 30 s if 0
	Timeout  time.Duration `json:"timeout,omitempty"`  // of a check, which has failed then; 30 s if 0
	// StartPeriod and one Interval are how long failures do not count after the guest has booted, unless
	// it was well before. It is looked at more often as long.
	StartPeriod time.Duration `json:"startPeriod,omitempty"`
	Retries     int           `json:"retries,omitempty"` // failures without a success between that make it ill; 3 if 0
}

// What a HealthCheck has that says nothing else.
const (
	healthInterval = 30 * time.Second
	healthTimeout  = 30 * time.Second
	healthRetries  = 3
)

// startInterval is the time between checks of a guest that may not be well yet.
const startInterval = time.Second

// maxHealthOutput is how much of a check's output is kept, in bytes.
const maxHealthOutput = 4096

// WithDefaults returns the check with what is left out filled in.
func (h HealthCheck) WithDefaults() HealthCheck {
	if h.Interval == 0 {
		h.Interval = healthInterval
	}
	if h.Timeout == 0 {
		h.Timeout = healthTimeout
	}
	if h.Retries == 0 {
		h.Retries = healthRetries
	}
	return h
}

// check finds what is wrong with a check by itself; nil is none.
func (h *HealthCheck) check() error {
	switch {
	case h == nil:
		return nil
	case len(h.Command) == 0:
		return wrong("Health", "no command")
	case h.Interval < 0 || h.Timeout < 0 || h.StartPeriod < 0 || h.Retries < 0:
		return wrong("Health", "a time or a number below 0")
	}
	return nil
}

// HealthStatus is whether what a VM is there for is well.
type HealthStatus string

// The values of HealthStatus, as docker has them; "" where nobody looks.
const (
	HealthStarting HealthStatus = "starting"
	Healthy        HealthStatus = "healthy"
	Unhealthy      HealthStatus = "unhealthy"
)

// Health is what the last checks of a VM have found.
type Health struct {
	Status   HealthStatus
	Failures int    // since the last success
	Output   string // of the last check that has ended, at most 4096 bytes; the guest's text
}

// health is the Health of a VM, for several goroutines.
type health struct {
	mu  sync.Mutex
	now Health
}

// note takes in how a check has ended; early failures do not count.
func (h *health) note(failed error, output string, early bool, retries int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.now.Output = output
	switch {
	case failed == nil:
		h.now.Status, h.now.Failures = Healthy, 0
	case early && h.now.Status == HealthStarting:
	default:
		if h.now.Failures++; h.now.Failures >= retries {
			h.now.Status = Unhealthy
		}
	}
}

// Health returns what Config.Health has found; the zero value if that is nil, or the VM does not run.
func (v *VM) Health() Health {
	v.health.mu.Lock()
	defer v.health.mu.Unlock()
	return v.health.now
}

// followHealth looks at the guest's health until ctx ends.
func (v *VM) followHealth(ctx context.Context) {
	if v.cfg.Health == nil {
		return
	}
	c := v.cfg.Health.WithDefaults()
	v.health.mu.Lock()
	v.health.now.Status = HealthStarting
	v.health.mu.Unlock()
	if v.untilEnded(ctx, v.guest.waitOpen) != nil {
		return
	}
	began := time.Now()
	early := func() bool { return time.Since(began) <= c.StartPeriod+c.Interval }
	for {
		pause := c.Interval
		if early() && v.Health().Status == HealthStarting {
			pause = min(pause, startInterval)
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return
		}
		if v.Paused() {
			continue
		}
		if output, err := v.checkHealth(ctx, &c); ctx.Err() == nil {
			v.health.note(err, output, early(), c.Retries)
		}
	}
}

// checkHealth checks once.
func (v *VM) checkHealth(ctx context.Context, c *HealthCheck) (output string, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, c.Timeout, fmt.Errorf("it has not ended within %v", c.Timeout))
	defer cancel()
	out := &head{}
	exit, err := v.guest.client().Exec(ctx, agent.Exec{Argv: c.Command}, agent.Streams{Out: out, Err: out})
	switch {
	case ctx.Err() != nil:
		err = context.Cause(ctx)
	case err == nil && exit.Error != "":
		err = errors.New(exit.Error)
	case err == nil && exit.Status != 0:
		return out.String(), &ExitError{Status: exit.Status}
	}
	if err != nil {
		return out.String() + err.Error(), err
	}
	return out.String(), nil
}

// head keeps the beginning of what is written to it, from several goroutines.
type head struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

// Write implements io.Writer.
func (h *head) Write(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.buf.Write(p[:min(len(p), maxHealthOutput-h.buf.Len())])
	return len(p), nil
}

// String is what was kept.
func (h *head) String() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.buf.String()
}
