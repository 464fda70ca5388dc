package vm

import (
	"errors"
	"testing"

	"vmm/machine"
)

// TestEngine: what executes a guest is one of the engines, and a saved VM's is what the
// restore says, whatever did before.
func TestEngine(t *testing.T) {
	var wrong *ConfigError
	if err := (&Config{Engine: "tcg"}).Check(); !errors.As(err, &wrong) || wrong.Field != "Engine" {
		t.Errorf("an engine that there is not: %v", err)
	}
	for _, saves := range machine.Engines {
		for given, want := range map[machine.Engine]machine.Engine{"": machine.AutoEngine, machine.KVMEngine: machine.KVMEngine, machine.SoftwareEngine: machine.SoftwareEngine} {
			r := &source{vm: saved{Version: savedVersion, Config: Config{Engine: saves}}, trusted: true}
			v, err := r.make("saved", &RestoreOptions{Engine: given}, newOptions(nil))
			if err != nil {
				t.Fatal(err)
			}
			if got := v.Config().Engine; got != want {
				t.Errorf("saved by %s, restored by %q: %q, want %q", saves, given, got, want)
			}
			v.Close()
		}
	}
}
