package vm

import (
	"errors"
	"strings"
	"testing"
)

// TestHealth: what checks find makes a VM healthy and unhealthy as docker's does.
func TestHealth(t *testing.T) {
	bad := errors.New("bad")
	for _, c := range []struct {
		name   string
		checks []error // nil is a success
		early  int     // of these, those that are early
		want   Health
	}{
		{"at first", nil, 0, Health{Status: HealthStarting}},
		{"a success", []error{nil}, 1, Health{Status: Healthy}},
		{"early failures", []error{bad, bad, bad, bad}, 4, Health{Status: HealthStarting}},
		{"an early failure after a success", []error{nil, bad}, 2, Health{Status: Healthy, Failures: 1}},
		{"failures that count", []error{bad, bad, bad, bad}, 2, Health{Status: HealthStarting, Failures: 2}},
		{"enough of them", []error{bad, bad, bad}, 0, Health{Status: Unhealthy, Failures: 3}},
		{"a success between", []error{bad, bad, nil, bad, bad}, 0, Health{Status: Healthy, Failures: 2}},
		{"well again", []error{bad, bad, bad, bad, nil}, 0, Health{Status: Healthy}},
	} {
		h := health{now: Health{Status: HealthStarting}}
		for i, err := range c.checks {
			h.note(err, "", i < c.early, 3)
		}
		if h.now != c.want {
			t.Errorf("%s: %+v, want %+v", c.name, h.now, c.want)
		}
	}
}

func TestHealthCheck(t *testing.T) {
	for _, h := range []*HealthCheck{{}, {Command: []string{"x"}, Interval: -1}, {Command: []string{"x"}, Retries: -1}} {
		c := Config{Health: h}
		var config *ConfigError
		if err := c.Check(); !errors.As(err, &config) || config.Field != "Health" {
			t.Errorf("%+v: %v", h, err)
		}
	}
	if h := (HealthCheck{Retries: 7}).WithDefaults(); h.Retries != 7 || h.Interval != healthInterval || h.Timeout != healthTimeout {
		t.Errorf("%+v", h)
	}
	out := &head{}
	for range 3 {
		out.Write([]byte(strings.Repeat("x", maxHealthOutput/2+1)))
	}
	if n := len(out.String()); n != maxHealthOutput {
		t.Errorf("%d bytes are kept", n)
	}
}
