package tests

import (
	"os/exec"
	"sync"
	"testing"
	"time"
)

// usualStart is what it takes to start vmm and to end it on a host that tests usually
// run on, with something else to do.
const usualStart = 50 * time.Millisecond

// slowness is how many times slower than that this host is: 1 or more. An emulated
// one is ten times as slow, and a busy one too.
var slowness = sync.OnceValue(func() float64 {
	var fastest time.Duration
	for range 5 {
		start := time.Now()
		if exec.Command(vmmPath, "version").Run() != nil {
			return 1 // which other tests will tell of
		}
		if d := time.Since(start); fastest == 0 || d < fastest {
			fastest = d
		}
	}
	return max(1, float64(fastest)/float64(usualStart))
})

// patience is how long to wait on this host for what takes at most d elsewhere.
func patience(t *testing.T, d time.Duration) time.Duration {
	t.Helper()
	return time.Duration(float64(d) * slowness()).Round(time.Millisecond)
}

// lapse is patience for what never ends, so that all of it passes.
func lapse(t *testing.T, d time.Duration) time.Duration {
	t.Helper()
	return min(patience(t, d), 3*d).Round(time.Second)
}
