package cli

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spf13/pflag"
)

// FuzzControl sends the control socket requests with any bodies. Those that need a
// machine are left to the tests with a guest.
func FuzzControl(f *testing.F) {
	needMachine := []string{"/stats", "/metrics", "/stop", "/kill", "/gdb", "/pause", "/resume", "/snapshot", "/migrate"}
	for _, path := range []string{"/vm", "/disks/resize", "/ports", "/nics", "/nics/link", "/agent", "/console", "/nowhere"} {
		for _, method := range []string{"GET", "POST", "DELETE"} {
			f.Add(method, path, `{"path":"/x","size":1,"nic":0,"up":true,"host":"127.0.0.1:1","guest":2}`)
		}
	}
	h := (&control{dir: &vmDir{}, nets: &networks{}, saver: &saver{flags: newRunFlags(), parts: &parts{disks: &diskSet{}}}}).handler()
	f.Fuzz(func(t *testing.T, method, path, body string) {
		r, err := http.NewRequest(method, "http://vmm", strings.NewReader(body))
		if err != nil {
			return
		}
		r.URL.Path = path
		if slices.Contains(needMachine, filepath.Clean("/"+path)) {
			return
		}
		h.ServeHTTP(httptest.NewRecorder(), r)
	})
}

// begin claims a name as vmm run does.
func begin(t *testing.T, name string, detached, given bool) *vmDir {
	t.Helper()
	d, err := claimName(vmInfo{Name: name, PID: os.Getpid(), State: stateRunning, Started: time.Now(), Detached: detached}, given)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestNames(t *testing.T) {
	t.Setenv("XDG_RUNTIME_DIR", t.TempDir())
	a := begin(t, "vm", false, false)
	b := begin(t, "vm", true, false)
	if b.info.Name != "vm-2" {
		t.Errorf("a second VM is called %q", b.info.Name)
	}
	var taken takenError
	if _, err := claimName(vmInfo{Name: "vm"}, true); !errors.As(err, &taken) {
		t.Errorf("a name that is in use: %v", err)
	}
	if all := runningVMs(); len(all) != 2 || all[0].Name != "vm" || all[1].Name != "vm-2" {
		t.Errorf("running: %v", all)
	}
	if vm, err := findVM("vm-2"); err != nil || !vm.Detached {
		t.Errorf("%v, %v", vm, err)
	}
	if _, err := findVM("../x"); err == nil || !strings.Contains(err.Error(), "vm, vm-2") {
		t.Errorf("one that is not there: %v", err)
	}
	a.close(nil, false)
	b.close(&exitError{7, errors.New("why")}, false)
	all, err := listVMs()
	if err != nil || len(all) != 1 || all[0].State != stateExited || *all[0].Status != 7 || all[0].Detail != "why" {
		t.Errorf("ended: %v, %v", all, err)
	}
	if _, err := findRunning("vm-2"); err == nil {
		t.Error("one that has ended is running")
	}
	if c := begin(t, "vm-2", false, false); c.info.Name != "vm-2-2" {
		t.Errorf("beside one that has ended, a VM is called %q", c.info.Name)
	}
}

// TestStale: what a process that was killed has left is cleared away.
func TestStale(t *testing.T) {
	t.Setenv("XDG_RUNTIME_DIR", t.TempDir())
	for _, detached := range []bool{false, true} {
		d := begin(t, "stale", detached, true)
		d.lock.Close() // as the kernel does it
		vm, ok := lookVM("stale")
		if ok != detached || ok && (vm.State != stateExited || vm.Status != nil) {
			t.Errorf("detached %v: %v, %v", detached, vm, ok)
		}
		if _, err := os.Stat(d.path); (err == nil) != detached {
			t.Errorf("detached %v: its directory: %v", detached, err)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if !waitEnded(ctx, "stale") || !waitEnded(ctx, "nobody") {
		t.Error("what has ended is waited for")
	}
}

// TestEndWhileLooked: what is seen of a VM that ends at that moment is the status that
// it ends with.
func TestEndWhileLooked(t *testing.T) {
	t.Setenv("XDG_RUNTIME_DIR", t.TempDir())
	for round := range 100 {
		d := begin(t, "ending", true, true)
		began := d.info
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				vm := began
				for vm.State == stateRunning {
					vm, _ = lookVM("ending")
				}
				if vm.Status == nil || *vm.Status != 9 {
					t.Errorf("round %d: %s, %s", round, vm.status(), vm.Detail)
				}
			})
		}
		d.close(&exitError{9, errors.New("why")}, false)
		wg.Wait()
		if t.Failed() {
			return
		}
		os.RemoveAll(d.path)
	}
}

func TestLog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	l, err := newLog(path)
	if err != nil {
		t.Fatal(err)
	}
	line := strings.Repeat("x", 1<<20)
	for range 3 * logSize >> 20 {
		l.Write([]byte(line))
	}
	l.Write([]byte("last"))
	l.close()
	now, err := os.ReadFile(path)
	if err != nil || !strings.HasSuffix(string(now), "last") || len(now) > logSize {
		t.Errorf("the log has %d bytes, %v", len(now), err)
	}
	if old, err := os.Stat(path + oldLog); err != nil || old.Size() > logSize {
		t.Errorf("the log before: %v, %v", old, err)
	}
}

// configFlags are vmm run's.
func configFlags(f *runFlags) *pflag.FlagSet {
	fl := pflag.NewFlagSet("run", pflag.ContinueOnError)
	f.add(fl)
	return fl
}

func TestConfigFile(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "vm.toml")
	write := func(text string) {
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("memory = \"1G\"\ncpus = 2\nshare = [\"a:/a\", \"b:/b:ro\"]\nverbose = true\ncommand = [\"make\", \"check\"]\n")
	f := newRunFlags()
	fl := configFlags(f)
	if err := fl.Parse([]string{"--config", file, "-c", "3"}); err != nil {
		t.Fatal(err)
	}
	if err := f.read(fl, fl.Args()); err != nil {
		t.Fatal(err)
	}
	if f.memory != 1<<30 || f.cpus != 3 || !slices.Equal(f.shares, []string{"a:/a", "b:/b:ro"}) || !f.verbose || !slices.Equal(f.command, []string{"make", "check"}) {
		t.Errorf("read %+v", f)
	}
	var out strings.Builder
	if err := writeConfig(&out, fl, f.command); err != nil {
		t.Fatal(err)
	}
	write(out.String())
	again := newRunFlags()
	fl = configFlags(again)
	fl.Parse([]string{"--config", file})
	if err := again.read(fl, nil); err != nil || again.memory != f.memory || again.cpus != 3 || !slices.Equal(again.command, f.command) {
		t.Errorf("what was written is read as %+v, %v", again, err)
	}
	for text, want := range map[string]string{
		"= 1": "vm.toml:1", "color = 1": "color", "memory = [[1]]": "", "cpus = \"many\"": "cpus", "config = \"x\"": "no such flag", "memory = 1979-05-27": "a text",
	} {
		write(text)
		f := newRunFlags()
		fl := configFlags(f)
		fl.Parse([]string{"--config", file})
		err := f.read(fl, nil)
		if want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestVerdicts(t *testing.T) {
	for _, c := range []struct {
		name            string
		result          runResult
		status          int
		console, output string
		want            verdict
	}{
		{"pass", runResult{Started: true, Exited: true, End: "stopped"}, 0, "[ 1.0] fine", "hello", passed},
		{"status", runResult{Started: true, Exited: true, End: "stopped"}, 3, "", "", failTest},
		{"tests", runResult{Started: true, Exited: true, End: "stopped"}, 0, "", "1..2\nok 1\nnot ok 2", failTest},
		{"missing tests", runResult{Started: true, Exited: true, End: "stopped"}, 0, "", "1..2\nok 1", failTest},
		{"console", runResult{Started: true, Exited: true, End: "stopped"}, 0, "[ 1.0] WARNING: CPU: 0", "", crashed},
		{"console's tests", runResult{Started: true, Exited: true, End: "stopped"}, 0, "[ 1.0] KTAP version 1\n[ 1.0] 1..1\n[ 1.0] not ok 1 a", "", failTest},
		{"panic", runResult{Started: true, End: "crash"}, 123, "[ 1.0] Kernel panic - not syncing: x", "", crashed},
		{"silent crash", runResult{Started: true, End: "crash"}, 123, "", "", crashed},
		{"timeout", runResult{Started: true, End: endTimeout}, 124, "", "", hang},
		{"no boot", runResult{End: "crash"}, 123, "[ 1.0] Kernel panic - not syncing: VFS: Unable to mount root fs", "", notBoot},
		{"no kernel", runResult{}, 125, "", "", notBoot},
		{"skips", runResult{Started: true, Exited: true, End: "stopped"}, 0, "", "1..0 # SKIP x", skipped},
	} {
		r := &testRun{console: c.console, output: c.output}
		r.judge(c.result, c.status, "said")
		if r.verdict != c.want || r.reason == "" && c.want != passed {
			t.Errorf("%s: %s (%s), want %s", c.name, r.verdict, r.reason, c.want)
		}
	}
	runs := func(v ...verdict) (out []*testRun) {
		for _, x := range v {
			out = append(out, &testRun{verdict: x})
		}
		return out
	}
	for want, v := range map[int][]*testRun{0: runs(passed, skipped), 1: runs(notBoot, crashed), 125: runs(passed, notBoot)} {
		got := 0
		var exit *exitError
		if errors.As(verdictOf(v), &exit) {
			got = exit.status
		}
		if got != want {
			t.Errorf("%d runs: status %d, want %d", len(v), got, want)
		}
	}
}

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
