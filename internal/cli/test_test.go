package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"

	"vmm/kerneltest"
	"vmm/vm"
)

// completeTest reads a command line of vmm test.
func completeTest(t *testing.T, args ...string) (*testFlags, []*kerneltest.VM, error) {
	t.Helper()
	f := &testFlags{}
	fl := pflag.NewFlagSet("test", pflag.ContinueOnError)
	f.add(fl)
	if err := fl.Parse(args); err != nil {
		t.Fatal(err)
	}
	vms, err := f.complete(fl, fl.Args())
	return f, vms, err
}

// TestTestFlags has flags win over a file, and a file over what is not given.
func TestTestFlags(t *testing.T) {
	file := filepath.Join(t.TempDir(), "vmtest.toml")
	if err := os.WriteFile(file, []byte(`
jobs = 3
warm = true
timeout = "10m"
junit = "report.xml"
memory = "1G"
cpus = 2
rw = ["out"]
share = ["a:/a"]
root = "/srv/root"
engine = "kvm"
cpu-limit = 1.5
memory-limit = "2G"
pids-limit = 100
io-limit = ["/a:wbps=1M"]
[[kernel]]
image = "old"
append = "quiet"
[[kernel]]
image = "new"
modules = "own"
[[test]]
command = ["check"]
`), 0o644); err != nil {
		t.Fatal(err)
	}
	shape := kerneltest.Shape{Memory: 1 << 30, CPUs: 2, RW: []string{"out"}, Shares: []string{"a:/a"}, Root: "/srv/root", Engine: "kvm", Warm: true,
		Limits: kerneltest.Limits{CPULimit: 1.5, MemoryLimit: 2 << 30, PIDsLimit: 100, IOLimits: []string{"/a:wbps=1M"}}}
	f, vms, err := completeTest(t, "--config", file)
	if err != nil || len(vms) != 2 || !reflect.DeepEqual(vms[0].Shape, shape) || f.matrix.Jobs != 3 || f.matrix.JUnit != "report.xml" || vms[0].Test.Timeout != 10*time.Minute {
		t.Errorf("the file alone: %v, %+v, %+v", err, f.matrix, vms)
	}
	f, vms, err = completeTest(t, "--config", file, "-j", "1", "--warm=false", "--timeout", "1m", "--junit", "r", "-m", "2G", "-c", "4", "--rw", "x", "--rw", "y", "--share", "b:/b",
		"--root", "/", "--engine", "software", "--modules", "mods", "--append", "debug", "--cpu-limit", "2", "--memory-limit", "3G", "--pids-limit", "200", "--io-limit", "/b:rbps=2M", "--io-limit", "/c:riops=3")
	shape = kerneltest.Shape{Memory: 2 << 30, CPUs: 4, RW: []string{"x", "y"}, Shares: []string{"b:/b"}, Root: "/", Engine: "software",
		Limits: kerneltest.Limits{CPULimit: 2, MemoryLimit: 3 << 30, PIDsLimit: 200, IOLimits: []string{"/b:rbps=2M", "/c:riops=3"}}}
	if err != nil || len(vms) != 2 || !reflect.DeepEqual(vms[1].Shape, shape) || f.matrix.Jobs != 1 || f.matrix.JUnit != "r" || vms[0].Test.Timeout != time.Minute {
		t.Errorf("all flags: %v, %+v, %+v", err, f.matrix, vms)
	}
	if k := vms[0].Kernel; k != (kerneltest.Kernel{Name: "old", Image: "old", Modules: "mods", Append: "quiet debug"}) {
		t.Errorf("a kernel without modules: %+v", k)
	}
	if k := vms[1].Kernel; k != (kerneltest.Kernel{Name: "new", Image: "new", Modules: "own", Append: "debug"}) {
		t.Errorf("a kernel with modules: %+v", k)
	}
	_, vms, err = completeTest(t, "--config", file, "--kernel", "a", "--kernel", "b", "--", "other", "-x")
	if err != nil || len(vms) != 2 || vms[1].Name() != "b: other -x" {
		t.Errorf("kernels and a command: %v, %+v", err, vms)
	}
	_, vms, err = completeTest(t, "--append", "debug", "true")
	if want := (kerneltest.Shape{Memory: 512 << 20, CPUs: 1, Engine: "auto"}); err != nil || len(vms) != 1 || !reflect.DeepEqual(vms[0].Shape, want) ||
		vms[0].Kernel != (kerneltest.Kernel{Name: "default", Append: "debug"}) || vms[0].Test.Timeout != 5*time.Minute {
		t.Errorf("no file: %v, %+v", err, vms)
	}
	for _, c := range []struct{ args, want string }{
		{"", "no command to run: vmm test"}, {"--config /nowhere true", "--config: open /nowhere"}, {"-j -1 true", "jobs: -1"}, {"--timeout -1s true", "-1s"},
	} {
		if _, _, err := completeTest(t, strings.Fields(c.args)...); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("vmm test %s: %v", c.args, err)
		}
	}
}

func TestTestStatus(t *testing.T) {
	for _, c := range []struct {
		verdicts []kerneltest.Verdict
		want     int
	}{
		{[]kerneltest.Verdict{kerneltest.Pass, kerneltest.Skip}, 0},
		{[]kerneltest.Verdict{kerneltest.NoBoot, kerneltest.Crash}, 1},
		{[]kerneltest.Verdict{kerneltest.Pass, kerneltest.Fail}, 1},
		{[]kerneltest.Verdict{kerneltest.Timeout}, 1},
		{[]kerneltest.Verdict{kerneltest.Pass, kerneltest.NoBoot}, 125},
	} {
		var rs kerneltest.Results
		for _, v := range c.verdicts {
			rs = append(rs, kerneltest.Result{Verdict: v})
		}
		if got, _ := statusOf(testStatus(rs)); got != c.want {
			t.Errorf("%v: status %d, want %d", c.verdicts, got, c.want)
		}
	}
}

// TestTestOutcome has what vmm run says of its end as the engine takes it.
func TestTestOutcome(t *testing.T) {
	for _, c := range []struct {
		name   string
		result runResult
		status int
		want   kerneltest.Outcome
	}{
		{"pass", runResult{Started: true, Exited: true, End: "stopped"}, 0, kerneltest.Outcome{Stage: kerneltest.Exited}},
		{"status", runResult{Started: true, Exited: true, End: "stopped"}, 3, kerneltest.Outcome{Stage: kerneltest.Exited, Status: 3}},
		{"crash", runResult{Started: true, End: "crash"}, 123, kerneltest.Outcome{Stage: kerneltest.Started, Status: 123}},
		{"timeout", runResult{Started: true, End: endTimeout}, 124, kerneltest.Outcome{Stage: kerneltest.Started, Status: 124, TimedOut: true}},
		{"no boot", runResult{End: "crash"}, 123, kerneltest.Outcome{Stage: kerneltest.Booted, Status: 123}},
		{"vmm failed", runResult{Started: true, End: endFailed}, 125, kerneltest.Outcome{Stage: kerneltest.NotRun, Status: 125}},
		{"no kernel", runResult{}, 125, kerneltest.Outcome{Stage: kerneltest.NotRun, Status: 125}},
	} {
		c.want.Message = "said"
		if got := testOutcome(c.result, c.status, "said"); got != c.want {
			t.Errorf("%s: %+v, want %+v", c.name, got, c.want)
		}
	}
}

// fakeVMM is a program in the place of vmm: a shell script that has the session it is
// told to run in $job, and of that the console's file in $console and the result's in
// $result.
func fakeVMM(t *testing.T, script string) selfRunner {
	t.Helper()
	path := filepath.Join(t.TempDir(), "vmm")
	text := `#!/bin/sh
job=$(cat)
of() { printf %s "$job" | sed 's/.*"'$1'":"\([^"]*\)".*/\1/'; }
console=$(of file) result=$(of Result)
` + script
	if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	return selfRunner(path)
}

// private gives the test temporary and runtime directories of its own, and returns the
// first.
func private(t *testing.T) string {
	t.Helper()
	tmp := t.TempDir()
	t.Setenv("TMPDIR", tmp)
	t.Setenv("XDG_RUNTIME_DIR", t.TempDir())
	return tmp
}

// wantEmpty holds a directory to be empty.
func wantEmpty(t *testing.T, dir string) {
	t.Helper()
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestSelfRunner(t *testing.T) {
	tmp := private(t)
	program := fakeVMM(t, `printf %s "$job"; echo "vmm: $1" >&2; echo "[ 1.0] hello" > $console
echo '{"started":true,"exited":true,"end":"stopped"}' > $result; exit 7`)
	root, a, b := t.TempDir(), t.TempDir(), t.TempDir()
	test := kerneltest.VM{
		Kernel: kerneltest.Kernel{Image: "bzImage", Modules: "mods", Append: "quiet"},
		Test:   kerneltest.Test{Command: []string{"check", "--all"}, Timeout: 90 * time.Second},
		Shape: kerneltest.Shape{Memory: 1 << 30, CPUs: 2, RW: []string{a, b}, Shares: []string{"c:/c:ro"}, Root: root, Warm: true,
			Limits: kerneltest.Limits{CPULimit: 1.5, MemoryLimit: 2 << 30, PIDsLimit: 100, IOLimits: []string{"/a:wbps=1M"}}},
	}
	var console, stdout, stderr bytes.Buffer
	streams := kerneltest.Streams{Console: &console, Stdout: &stdout, Stderr: &stderr}
	out, err := program.Run(t.Context(), test, streams)
	if want := (kerneltest.Outcome{Stage: kerneltest.Exited, Status: 7, Message: sessionName}); err != nil || out != want {
		t.Errorf("%+v, %v", out, err)
	}
	if console.String() != "[ 1.0] hello\n" || stderr.String() != "vmm: "+sessionName+"\n" {
		t.Errorf("console %q, standard error %q", console.String(), stderr.String())
	}
	got := &session{}
	if err := json.Unmarshal(stdout.Bytes(), got); err != nil {
		t.Fatalf("run as %s: %v", stdout.String(), err)
	}
	if !strings.HasPrefix(got.Config.Name, "test-") || got.Config.Console.File == "" || got.Result == "" {
		t.Errorf("run as %s", stdout.String())
	}
	if !slices.Contains(got.Config.Hide, "/etc/shadow") {
		t.Error("the guest is shown the host's credentials")
	}
	config := vm.Config{Name: got.Config.Name, Hide: got.Config.Hide, CPUs: 2, Memory: 1 << 30, Boot: vm.Boot{Kernel: "bzImage", Modules: "mods", Args: []string{"loglevel=7", "quiet"}},
		Root: &vm.Root{Path: root}, Console: got.Config.Console,
		Limits: vm.Limits{CPUs: 1.5, Memory: 2 << 30, PIDs: 100, IO: []vm.IOLimit{{Path: "/a", WriteBPS: 1 << 20}}},
		Shares: []vm.Share{{Host: "c", Guest: "/c", ReadOnly: true}, {Host: a, Guest: a}, {Host: b, Guest: b}}}.WithDefaults()
	if want := (&session{Config: &config, Named: true, Sandbox: true, Command: []string{"check", "--all"}, Timeout: 90 * time.Second,
		ConsoleGiven: true, Warm: true, Jail: vm.JailFull, NoPID: got.NoPID, Result: got.Result}); !reflect.DeepEqual(got, want) {
		t.Errorf("run as %+v with %+v, want %+v with %+v", got, got.Config, want, want.Config)
	}
	wantEmpty(t, tmp)

	// What is wrong with the VM is said without a process.
	for want, wrong := range map[string]kerneltest.Shape{"--share": {Shares: []string{"c"}}, "--rw": {RW: []string{"/nowhere"}}, "--root": {Root: "/nowhere"},
		"--io-limit": {Limits: kerneltest.Limits{IOLimits: []string{"/a:fast"}}}, "--memory-limit": {Memory: 1 << 30, CPUs: 1, Limits: kerneltest.Limits{MemoryLimit: 1 << 20}}} {
		bad := test
		bad.Shape = wrong
		if out, err := program.Run(t.Context(), bad, streams); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%s: %+v, %v", want, out, err)
		}
	}

	// One that never ran, one that tells nonsense, one that is not there.
	if out, err := fakeVMM(t, "echo 'vmm: no kernel' >&2; exit 125").Run(t.Context(), test, streams); err != nil || out != (kerneltest.Outcome{Status: 125, Message: "no kernel"}) {
		t.Errorf("no kernel: %+v, %v", out, err)
	}
	if out, err := fakeVMM(t, "echo nonsense > $result").Run(t.Context(), test, streams); err == nil {
		t.Errorf("nonsense: %+v", out)
	}
	if out, err := selfRunner("/nowhere/vmm").Run(t.Context(), test, streams); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no program: %+v, %v", out, err)
	}
	wantEmpty(t, tmp)
}

// onWrite calls a function when something is written.
type onWrite func()

// Write implements io.Writer.
func (f onWrite) Write(p []byte) (int, error) {
	f()
	return len(p), nil
}

// TestSelfRunnerCancel leaves nothing of a VM that is cancelled: no file, and no
// process, not even one that its process has started and that holds its streams.
func TestSelfRunnerCancel(t *testing.T) {
	tmp := private(t)
	pids := filepath.Join(t.TempDir(), "pids")
	t.Setenv("PIDS", pids)
	// $$ is a number of the process's own namespace, but /proc is of this one.
	program := fakeVMM(t, `echo so far > $console; number='read pid rest < /proc/self/stat; echo $pid >> $PIDS'
eval "$number"; sh -c "$number; exec sleep 1000" & while [ $(wc -l < $PIDS) -lt 2 ]; do sleep 0.1; done; echo ready; wait`)
	ctx, cancel := context.WithCancel(t.Context())
	var console bytes.Buffer
	out, err := program.Run(ctx, kerneltest.VM{Test: kerneltest.Test{Command: []string{"true"}, Timeout: time.Hour}},
		kerneltest.Streams{Console: &console, Stdout: onWrite(cancel), Stderr: &bytes.Buffer{}})
	if !errors.Is(err, context.Canceled) || console.String() != "so far\n" {
		t.Errorf("%+v, %v, console %q", out, err, console.String())
	}
	wantEmpty(t, tmp)
	b, err := os.ReadFile(pids)
	if err != nil {
		t.Fatal(err)
	}
	for _, pid := range strings.Fields(string(b)) {
		// One that has ended may wait for init to take note of it.
		var stat []byte
		for try := 0; err == nil && !strings.Contains(string(stat), ") Z "); try++ {
			if try == 1000 {
				t.Errorf("a process is left: %s", stat)
				break
			}
			time.Sleep(10 * time.Millisecond)
			stat, err = os.ReadFile("/proc/" + pid + "/stat")
		}
		err = nil
	}
}
