package vm

import (
	"errors"
	"io"
	"testing"
)

// TestBeforeAndAfter: nothing panics on a VM that was never made, or is closed.
func TestBeforeAndAfter(t *testing.T) {
	v, err := New(Config{}, WithLog(nil))
	if err != nil {
		t.Fatal(err)
	}
	look := func() {
		v.HoldForDebugger()
		v.StartProfile()
		v.PressPowerButton()
		v.Kill()
		v.ResizeConsole(80, 25)
		if v.Interpreted() || v.Exits() != nil || v.LastLines(1) != "" || v.InitErrors() != nil || v.Paused() || v.AgentAlive() || len(v.DiskPaths()) > 0 {
			t.Error("a VM that is none says something")
		}
		for name, err := range map[string]error{"Ready": v.Ready(t.Context()), "Exec": v.Exec(t.Context(), Cmd{Args: []string{"true"}}), "Pause": v.Pause(),
			"WriteProfile": v.WriteProfile(io.Discard), "Shutdown": v.Shutdown(t.Context())} {
			if !errors.Is(err, ErrNotRunning) {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	look()
	if err := errors.Join(v.Close(), v.Close()); err != nil {
		t.Error(err)
	}
	look()
	if err := v.Start(t.Context()); !errors.Is(err, ErrNotRunning) {
		t.Errorf("Start after Close: %v", err)
	}
}
