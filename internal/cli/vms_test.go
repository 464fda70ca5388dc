package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"vmm/vm/api"
	"vmm/vm/registry"
	"vmm/vm/server"
)

// served is a VM that is nothing but what it says of itself.
type served struct {
	server.VM
	info  func() api.VM
	stats func() api.Stats
	agent func(context.Context) (server.Conn, error)
}

func (s *served) Info() api.VM     { return s.info() }
func (s *served) Stats() api.Stats { return s.stats() }
func (s *served) Agent(ctx context.Context) (server.Conn, error) {
	return s.agent(ctx)
}

// begin claims a name and, unless vm is nil, serves what it gets.
func begin(t *testing.T, name string, vm *served) *registry.Entry {
	t.Helper()
	e, err := registry.User().Claim(api.VM{Name: name})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Remove() })
	if vm == nil {
		return e
	}
	s := server.New(vm)
	t.Cleanup(func() { s.Close() })
	if err := s.Listen(e.Socket()); err != nil {
		t.Fatal(err)
	}
	s.Serve()
	return e
}

// run executes a command and returns what it prints.
func run(t *testing.T, cmd *cobra.Command, args ...string) string {
	t.Helper()
	var out bytes.Buffer
	cmd.SetOut(&out)
	cmd.SetArgs(args)
	if err := cmd.ExecuteContext(context.Background()); err != nil {
		t.Errorf("%s %q: %v", cmd.Name(), args, err)
	}
	return out.String()
}

// TestPaused: ps tells of a VM that is paused, and of one that does not answer what is
// known of it.
func TestPaused(t *testing.T) {
	t.Setenv("XDG_RUNTIME_DIR", t.TempDir())
	var entry atomic.Pointer[registry.Entry]
	entry.Store(begin(t, "a", &served{info: func() api.VM {
		vm := entry.Load().VM()
		vm.Paused = true
		return vm
	}}))
	begin(t, "b", nil)
	lines := strings.Split(run(t, psCommand()), "\n")
	if len(lines) != 4 || !strings.Contains(lines[1], "paused (up ") || strings.Contains(lines[2], "paused") || !strings.Contains(lines[2], "up ") {
		t.Errorf("ps: %q", lines)
	}
	var vms []api.VM
	if err := json.Unmarshal([]byte(run(t, psCommand(), "--json")), &vms); err != nil || len(vms) != 2 || !vms[0].Paused || vms[1].Paused {
		t.Errorf("ps --json: %+v, %v", vms, err)
	}
	if out := run(t, psCommand(), "-q"); out != "a\nb\n" {
		t.Errorf("ps -q: %q", out)
	}
}

// TestStatsOfSeveral: all are asked at once, and one that has just ended is left out.
func TestStatsOfSeveral(t *testing.T) {
	t.Setenv("XDG_RUNTIME_DIR", t.TempDir())
	var both sync.WaitGroup // each answers only when the other was asked too
	both.Add(2)
	for _, name := range []string{"a", "b"} {
		begin(t, name, &served{stats: func() api.Stats {
			both.Done()
			both.Wait()
			return api.Stats{CPUSeconds: []float64{2}}
		}})
	}
	begin(t, "gone", nil)
	var all map[string]api.Stats
	if err := json.Unmarshal([]byte(run(t, statsCommand(), "--json")), &all); err != nil || len(all) != 2 || all["a"].CPUSeconds[0] != 2 {
		t.Errorf("stats --json: %+v, %v", all, err)
	}
	if vms, err := statsOf([]string{"gone", "b", "nobody"}); err != nil || len(vms) != 2 || vms[1].Name != "b" {
		t.Errorf("those that are named: %+v, %v", vms, err)
	}
	cmd := statsCommand()
	cmd.SetArgs([]string{"nobody"})
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	if err := cmd.Execute(); err == nil || !strings.Contains(err.Error(), `no VM "nobody"`) {
		t.Errorf("one that is not there: %v", err)
	}
}

// TestSilent: a VM that does not answer, such as one that is stopped, holds up no list of all.
func TestSilent(t *testing.T) {
	t.Setenv("XDG_RUNTIME_DIR", t.TempDir())
	info := func() api.VM { return api.VM{} }
	begin(t, "good", &served{info: info, stats: func() api.Stats { return api.Stats{Exits: map[string]uint64{"io": 7}} }})
	woken := make(chan struct{})
	begin(t, "stopped", &served{info: info, stats: func() api.Stats { <-woken; return api.Stats{} }})
	defer close(woken)
	got := run(t, statsCommand(), "--no-stream")
	if !strings.Contains(got, "io 7") || !strings.Contains(got, noAnswer) {
		t.Errorf("stats prints %q", got)
	}
}

// TestExecWaits: a signal ends a command that waits for a guest's agent.
func TestExecWaits(t *testing.T) {
	t.Setenv("XDG_RUNTIME_DIR", t.TempDir())
	begin(t, "boots", &served{agent: func(ctx context.Context) (server.Conn, error) {
		unix.Kill(os.Getpid(), unix.SIGTERM)
		<-ctx.Done()
		return nil, ctx.Err()
	}})
	ctx := withInterrupts(t.Context())
	defer endCommand(ctx)
	cmd := execCommand()
	cmd.SetArgs([]string{"boots", "true"})
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	var exit *exitError
	if err := cmd.ExecuteContext(ctx); !errors.As(err, &exit) || exit.status != 128+int(unix.SIGTERM) {
		t.Errorf("it ends with %v", err)
	}
}
