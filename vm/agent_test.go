package vm

import (
	"testing"
	"time"
)

func TestClockJumps(t *testing.T) {
	a := moment{time.Hour, time.Minute}
	for _, c := range []struct {
		wall, monotonic time.Duration
		want            bool
	}{
		{time.Second, time.Second, false},
		{time.Second + maxDrift/2, time.Second, false},
		{time.Hour, time.Second, true},  // slept
		{-time.Hour, time.Second, true}, // set back
	} {
		if got := (moment{a.wall + c.wall, a.monotonic + c.monotonic}).jumped(a); got != c.want {
			t.Errorf("%v against %v: %v", c.wall, c.monotonic, got)
		}
	}
	if now := readClocks(); now.jumped(now) || now.wall == 0 || now.monotonic == 0 {
		t.Errorf("the clocks show %+v", now)
	}
}
