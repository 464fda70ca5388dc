package cli

import (
	"testing"

	"golang.org/x/sys/unix"
)

func TestReadSignal(t *testing.T) {
	for text, want := range map[string]unix.Signal{"SIGTERM": unix.SIGTERM, "term": unix.SIGTERM, "15": unix.SIGTERM, "SIGWINCH": unix.SIGWINCH, "QUIT": unix.SIGQUIT,
		"9": unix.SIGKILL, "SIGRTMIN+3": 37, "RTMIN": 34, "SIGRTMAX-14": 50, "RTMAX": 64, "64": 64} {
		if s, err := readSignal(text); err != nil || s != want {
			t.Errorf("%q: %d, %v", text, s, err)
		}
	}
	for _, text := range []string{"", "0", "65", "-1", "SIG", "NOTHING", "RTMIN+31", "RTMIN-1", "RTMAX+1", "RTMINx"} {
		if s, err := readSignal(text); err == nil {
			t.Errorf("%q is %d", text, s)
		}
	}
}
