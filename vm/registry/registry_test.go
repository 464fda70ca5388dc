package registry

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmm/vm/api"
)

// temporary is an empty registry.
func temporary(t *testing.T) *Registry {
	t.Setenv("XDG_RUNTIME_DIR", t.TempDir())
	return User()
}

// begin claims a name as vmm run does.
func begin(t *testing.T, r *Registry, name string, detached bool) *Entry {
	t.Helper()
	e, err := r.ClaimSimilar(api.VM{Name: name, PID: os.Getpid(), Detached: detached})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func TestValidName(t *testing.T) {
	for name, want := range map[string]bool{"a": true, "A-1": true, "1": true, strings.Repeat("a", 63): true, "switch": true,
		"": false, "-a": false, "a-": false, "a.b": false, "a/b": false, "..": false, "a b": false, strings.Repeat("a", 64): false, "a\n": false} {
		if ValidName(name) != want {
			t.Errorf("%q: %v", name, !want)
		}
	}
	r := temporary(t)
	for _, name := range []string{"", "../x", SwitchDir} {
		if _, err := r.Claim(api.VM{Name: name}); !errors.Is(err, ErrName) {
			t.Errorf("a VM called %q: %v", name, err)
		}
	}
}

func TestNames(t *testing.T) {
	r := temporary(t)
	a := begin(t, r, "vm", false)
	b := begin(t, r, "vm", true)
	if b.Name() != "vm-2" {
		t.Errorf("a second VM is called %q", b.Name())
	}
	var taken *TakenError
	if _, err := r.Claim(api.VM{Name: "vm"}); !errors.Is(err, ErrTaken) || !errors.As(err, &taken) || taken.Ended {
		t.Errorf("a name that is in use: %v", err)
	}
	if all, err := r.Running(); err != nil || len(all) != 2 || all[0].Name != "vm" || all[1].Name != "vm-2" {
		t.Errorf("running: %v, %v", all, err)
	}
	if vm, err := r.Find("vm-2"); err != nil || !vm.Detached {
		t.Errorf("%v, %v", vm, err)
	}
	if vm, err := r.Find(strconv.Itoa(os.Getpid())); err != nil || vm.Name != "vm" {
		t.Errorf("by its process: %v, %v", vm, err)
	}
	var none *NotFoundError
	if _, err := r.Find("../x"); !errors.Is(err, ErrNotFound) || !errors.As(err, &none) || !slices.Equal(none.Names, []string{"vm", "vm-2"}) ||
		!strings.Contains(err.Error(), "vm, vm-2") {
		t.Errorf("one that is not there: %v", err)
	}
	if err := r.Remove("vm-2"); !errors.Is(err, ErrRunning) {
		t.Errorf("one that runs is removed: %v", err)
	}
	if err := errors.Join(a.End(0, ""), b.End(7, "why")); err != nil {
		t.Error(err)
	}
	all, err := r.List()
	if err != nil || len(all) != 1 || all[0].State != api.Exited || *all[0].Status != 7 || all[0].Detail != "why" || all[0].Ended.IsZero() {
		t.Errorf("ended: %v, %v", all, err)
	}
	if _, err := r.FindRunning("vm-2"); !errors.Is(err, ErrNotRunning) {
		t.Errorf("one that has ended is running: %v", err)
	}
	if _, err := r.Claim(api.VM{Name: "vm-2"}); !errors.As(err, &taken) || !taken.Ended {
		t.Errorf("the name of one that has ended: %v", err)
	}
	c := begin(t, r, "vm-2", false)
	if c.Name() != "vm-2-2" {
		t.Errorf("beside one that has ended, a VM is called %q", c.Name())
	}
	if err := errors.Join(c.Remove(), r.Remove("vm-2")); err != nil {
		t.Error(err)
	}
	if err := r.Remove("vm-2"); !errors.Is(err, ErrNotFound) {
		t.Errorf("one is removed twice: %v", err)
	}
	if left, err := os.ReadDir(r.Dir()); err != nil || len(left) != 0 {
		t.Errorf("%v, %v is left", left, err)
	}
}

// TestStale: what a process that was killed has left is cleared away.
func TestStale(t *testing.T) {
	r := temporary(t)
	for _, detached := range []bool{false, true} {
		e := begin(t, r, "stale", detached)
		for _, f := range []string{e.Socket(), e.ConsoleLog(), e.OutputLog()} {
			if err := os.WriteFile(f, nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		e.lock.Close() // as the kernel does it
		vm, err := r.Look("stale")
		if (err == nil) != detached || err != nil && !errors.Is(err, ErrNotFound) || err == nil && (vm.State != api.Exited || vm.Status != nil) {
			t.Errorf("detached %v: %v, %v", detached, vm, err)
		}
		if _, err := os.Stat(r.path("stale")); (err == nil) != detached {
			t.Errorf("detached %v: its directory: %v", detached, err)
		}
		if _, err := os.Stat(e.Socket()); err == nil {
			t.Errorf("detached %v: its socket is there", detached)
		}
	}
}

func TestWaitEnded(t *testing.T) {
	r := temporary(t)
	ctx, cancel := context.WithCancelCause(context.Background())
	why := errors.New("why")
	cancel(why)
	first := begin(t, r, "a", false)
	if err := r.WaitEnded(ctx, first.VM()); !errors.Is(err, why) {
		t.Errorf("one that runs: %v", err)
	}
	if err := errors.Join(first.End(0, ""), r.WaitEnded(ctx, first.VM())); err != nil {
		t.Errorf("one that has ended: %v", err)
	}
	defer begin(t, r, "a", false).Remove()
	if err := r.WaitEnded(ctx, first.VM()); err != nil {
		t.Errorf("one whose name another has now: %v", err)
	}
}

// TestWaitListening: a VM that begins is waited for until it has its control socket, or never will.
func TestWaitListening(t *testing.T) {
	r := temporary(t)
	stop, cancel := context.WithCancelCause(context.Background())
	why := errors.New("why")
	cancel(why)
	for name, goOn := range map[string]func(*Entry) error{
		"listens":   func(e *Entry) error { return os.WriteFile(e.Socket(), nil, 0o600) },
		"has ended": func(e *Entry) error { return e.End(1, "") },
		"is gone":   (*Entry).Remove,
		"begins anew": func(e *Entry) error {
			_, err := r.Adopt(e.Name(), e.Lock())
			return err
		},
	} {
		e, err := r.ClaimSimilar(api.VM{Name: "a", PID: os.Getpid(), Detached: true})
		if err != nil {
			t.Fatal(err)
		}
		if err := r.WaitListening(stop, e.VM()); !errors.Is(err, why) {
			t.Errorf("before it %s: %v", name, err)
		}
		waited := make(chan error)
		go func() { waited <- r.WaitListening(context.Background(), e.VM()) }()
		if err := errors.Join(goOn(e), <-waited); err != nil {
			t.Errorf("it %s: %v", name, err)
		}
	}
}

// TestLookWhileEnding: who looks at a VM as it ends does not take it for one that was
// killed.
func TestLookWhileEnding(t *testing.T) {
	r := temporary(t)
	for range 300 {
		e, err := r.Claim(api.VM{Name: "a", Detached: true})
		if err != nil {
			t.Fatal(err)
		}
		var lookers sync.WaitGroup
		for range 2 {
			lookers.Go(func() { r.Look("a") })
		}
		if err := e.End(0, ""); err != nil {
			t.Error(err)
		}
		lookers.Wait()
		if vm, err := r.Look("a"); err != nil || vm.Status == nil || vm.Detail != "" {
			t.Fatalf("%+v, %v", vm, err)
		}
		if err := r.Remove("a"); err != nil {
			t.Fatal(err)
		}
	}
}

// TestRemoveWhileEnding: a VM that has said that it has ended can be removed, though its process is still
// about to go.
func TestRemoveWhileEnding(t *testing.T) {
	r := temporary(t)
	e, err := r.Claim(api.VM{Name: "a", Detached: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Remove("a"); !errors.Is(err, ErrRunning) {
		t.Errorf("one that runs: %v", err)
	}
	said := e.VM()
	said.State = api.Exited
	if err := writeInfo(e.Path(), said); err != nil {
		t.Fatal(err)
	}
	removed := make(chan error)
	go func() { removed <- r.Remove("a") }()
	select {
	case err := <-removed:
		t.Fatalf("its process is there: %v", err)
	case <-time.After(5 * waitCheck):
	}
	if err := e.lock.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-removed; err != nil {
		t.Error(err)
	}
}

// TestForeign refuses a directory that others can write, for all uses.
func TestForeign(t *testing.T) {
	t.Setenv("XDG_RUNTIME_DIR", "")
	t.Setenv("TMPDIR", t.TempDir())
	r := User()
	if all, err := r.List(); err != nil || len(all) != 0 {
		t.Errorf("before there are any: %v, %v", all, err)
	}
	if _, err := r.Find("a"); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
	e := begin(t, r, "a", false)
	defer e.Remove()
	refused := func() {
		t.Helper()
		_, claim := r.Claim(api.VM{Name: "b"})
		_, list := r.List()
		_, look := r.Look("a")
		_, find := r.FindRunning("a")
		for _, err := range []error{r.Make(), claim, list, look, find, r.Remove("a")} {
			if !errors.Is(err, ErrForeign) || !strings.Contains(err.Error(), "XDG_RUNTIME_DIR") {
				t.Errorf("err = %v", err)
			}
		}
	}
	if err := os.Chmod(r.private, 0o777); err != nil {
		t.Fatal(err)
	}
	refused()
	// One that leads elsewhere is not followed either.
	moved := r.private + "-moved"
	if err := errors.Join(os.Chmod(r.private, 0o700), os.Rename(r.private, moved), os.Symlink(moved, r.private)); err != nil {
		t.Fatal(err)
	}
	refused()
	if _, err := os.Stat(filepath.Join(moved, "vmm", "b")); err == nil {
		t.Error("a directory was made there")
	}
}

// TestAdopt: a VM that is started again keeps its name from the first start to the last end, whichever of its
// two processes lives.
func TestAdopt(t *testing.T) {
	r := temporary(t)
	supervisor, err := r.Claim(api.VM{Name: "a", PID: 1, Detached: true, Supervisor: 1})
	if err != nil {
		t.Fatal(err)
	}
	first := supervisor.VM()
	lock, err := unix.Dup(int(supervisor.Lock().Fd()))
	if err != nil {
		t.Fatal(err)
	}
	run, err := r.Adopt("a", os.NewFile(uintptr(lock), "lock"))
	if err != nil {
		t.Fatal(err)
	}
	now, err := r.Look("a")
	if err != nil || now.State != api.Running || now.PID != os.Getpid() || now.Supervisor != 1 || Over(first, now) {
		t.Errorf("it runs: %+v, %v", now, err)
	}
	if err := errors.Join(run.Leave(), supervisor.Restarting(3, "why")); err != nil {
		t.Fatal(err)
	}
	again, err := r.Look("a")
	if err != nil || again.State != api.Restarting || *again.Status != 3 || again.Restarts != 1 || !again.Started.Equal(now.Started) || Over(first, again) {
		t.Errorf("between two runs: %+v, %v", again, err)
	}
	for pid, want := range map[int]bool{os.Getpid(): true, 1: false} {
		if again.Supervisor = pid; r.Supervised(again) != want {
			t.Errorf("its supervisor is %d: %v", pid, !want)
		}
	}
	if err := r.Remove("a"); !errors.Is(err, ErrRunning) {
		t.Errorf("between two runs, it is removed: %v", err)
	}
	if _, err := r.Claim(api.VM{Name: "a"}); !errors.Is(err, ErrTaken) {
		t.Errorf("between two runs, its name: %v", err)
	}
	if err := supervisor.End(4, ""); err != nil {
		t.Error(err)
	}
	if now, err = r.Look("a"); err != nil || now.State != api.Exited || *now.Status != 4 || now.Restarts != 1 || !Over(first, now) {
		t.Errorf("it has ended: %+v, %v", now, err)
	}
	if err := r.Remove("a"); err != nil {
		t.Error(err)
	}
	// A supervisor that was killed between two runs leaves one that has ended.
	if supervisor, err = r.Claim(api.VM{Name: "a", Detached: true, Supervisor: 1}); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(supervisor.Restarting(0, ""), supervisor.lock.Close()); err != nil {
		t.Fatal(err)
	}
	if now, err := r.Look("a"); err != nil || now.State != api.Exited {
		t.Errorf("its supervisor was killed: %+v, %v", now, err)
	}
}
