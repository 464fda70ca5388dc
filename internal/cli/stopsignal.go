package cli

import (
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Bounds of Linux's real-time signals as the C libraries number them (signal(7)).
const (
	sigRTMin = 34
	sigRTMax = 64
)

// readSignal reads a signal as docker does: its number, or its name with or without SIG, of which
// real-time ones are RTMIN+N and RTMAX-N.
func readSignal(text string) (unix.Signal, error) {
	if n, err := strconv.Atoi(text); err == nil {
		if n < 1 || n > sigRTMax {
			return 0, fmt.Errorf("%q: there is no such signal", text)
		}
		return unix.Signal(n), nil
	}
	name := strings.TrimPrefix(strings.ToUpper(text), "SIG")
	if s := unix.SignalNum("SIG" + name); s != 0 {
		return s, nil
	}
	for base, first := range map[string]int{"RTMIN": sigRTMin, "RTMAX": sigRTMax} {
		rest, ok := strings.CutPrefix(name, base)
		if !ok {
			continue
		}
		n, err := strconv.Atoi(rest)
		if s := first + n; rest == "" || err == nil && s >= sigRTMin && s <= sigRTMax {
			return unix.Signal(s), nil
		}
	}
	return 0, fmt.Errorf("%q: there is no such signal", text)
}

// fillStop sets how the command is stopped.
func (f *runFlags) fillStop(s *session) (err error) {
	if f.stopSignal != "" {
		if s.StopSignal, err = readSignal(f.stopSignal); err != nil {
			return usage("--stop-signal %w", err)
		}
	}
	if f.fl.Changed("stop-timeout") {
		if f.stopSeconds < 0 {
			return usage("--stop-timeout %d: a time cannot be negative", f.stopSeconds)
		}
		s.StopSeconds = &f.stopSeconds
	}
	return nil
}
