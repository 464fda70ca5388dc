package cli

import (
	"testing"
	"time"
)

func TestReadRestart(t *testing.T) {
	for text, want := range map[string]*restartPolicy{
		"": nil, "no": nil, "always": {Always: true, Text: "always"}, "unless-stopped": {Always: true, Text: "unless-stopped"},
		"on-failure": {Text: "on-failure"}, "on-failure:3": {Times: 3, Text: "on-failure:3"},
	} {
		got, err := readRestart(text)
		if err != nil || (got == nil) != (want == nil) || got != nil && *got != *want {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
	for _, text := range []string{"on-failure:", "on-failure:0", "on-failure:-1", "on-failure:x", "always:1", "no:1", "never"} {
		if got, err := readRestart(text); err == nil {
			t.Errorf("%q is taken: %+v", text, got)
		}
	}
}

func TestRestartApplies(t *testing.T) {
	for _, c := range []struct {
		policy           string
		status, restarts int
		want             bool
	}{
		{"always", 0, 1000, true}, {"always", 3, 0, true}, {"unless-stopped", 0, 0, true},
		{"on-failure", 0, 0, false}, {"on-failure", 1, 1000, true}, {"on-failure:2", 137, 1, true}, {"on-failure:2", 137, 2, false},
	} {
		p, err := readRestart(c.policy)
		if err != nil {
			t.Fatal(err)
		}
		if got := p.applies(c.status, c.restarts); got != c.want {
			t.Errorf("%+v: %v", c, got)
		}
	}
}

func TestRestartPause(t *testing.T) {
	pause := time.Duration(0)
	for i, c := range []struct{ ran, want time.Duration }{{0, firstRestart}, {0, 2 * firstRestart}, {goodRun - 1, 4 * firstRestart}, {goodRun, firstRestart}} {
		if pause = restartPause(pause, c.ran); pause != c.want {
			t.Errorf("%d: %v, want %v", i, pause, c.want)
		}
	}
	if got := restartPause(longestPause-1, 0); got != longestPause {
		t.Errorf("the longest: %v", got)
	}
}
