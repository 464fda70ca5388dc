package cli

import (
	"path/filepath"
	"testing"

	"vmm/machine"
	"vmm/machine/snapshot"
	"vmm/vm"
)

// TestRestoreStatus: what does not go with the saved VM is a wrong use, and a snapshot
// that no VM can be made of is not.
func TestRestoreStatus(t *testing.T) {
	private(t)
	dir := filepath.Join(t.TempDir(), "saved")
	memory, err := machine.NewMemory(machine.MinMemory)
	if err != nil {
		t.Fatal(err)
	}
	defer memory.Close()
	w, err := snapshot.Create(dir, false)
	if err != nil {
		t.Fatal(err)
	}
	saved := map[string]any{"version": 2, "cid": 3, "config": vm.Config{Name: "saved", Memory: machine.MinMemory, Nets: vm.Nets{vm.None{}}}.WithDefaults()}
	if err := w.Memory(memory, snapshot.MemoryOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := w.Commit("test", saved, &machine.State{}); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args []string
		want int
	}{
		{[]string{"--net", "user", "--net", "user"}, statusUsage},
		{[]string{"--publish", "8080:80"}, statusUsage}, // it has no gateway
		{nil, statusFailed}, // the state is none
		{[]string{"--net", "stream,path=/nowhere"}, statusFailed},
	} {
		if got := Run(append(append([]string{"restore", "--console", "none"}, c.args...), dir)); got != c.want {
			t.Errorf("%v: status %d, want %d", c.args, got, c.want)
		}
	}
}
