package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"vmm/bootloader"
	"vmm/kerneltest/crash"
	"vmm/kerneltest/ktap"
	"vmm/vm/registry"
)

// verdict is how a test on a kernel ended.
type verdict string

// The verdicts, from best to worst.
const (
	passed   verdict = "pass"
	skipped  verdict = "skip"    // all of its tests were skipped
	notBoot  verdict = "no boot" // the kernel did not get as far as the command
	hang     verdict = "timeout"
	crashed  verdict = "crash"
	failTest verdict = "fail"
)

// testRun is one command on one kernel.
type testRun struct {
	kernel kernelSpec
	test   testSpec

	verdict  verdict
	reason   string // in a line
	took     time.Duration
	report   *ktap.Report // of the command's output and the console
	findings []crash.Finding
	output   string
	console  string
}

func (t *testRun) name() string { return t.kernel.Name + ": " + t.test.Name }

// maxOutput bounds what is kept of a command's output, in bytes.
const maxOutput = 16 << 20

// cut is a buffer that forgets what is too much.
type cut struct{ bytes.Buffer }

// Write implements io.Writer.
func (c *cut) Write(p []byte) (int, error) {
	if room := maxOutput - c.Len(); room > 0 {
		c.Buffer.Write(p[:min(len(p), room)])
	}
	return len(p), nil
}

// run boots the kernel in a VM of its own process and judges what comes of it.
// What the command and the console say also goes to watch.
func (t *testRun) run(ctx context.Context, shape []string, watch io.Writer) {
	start := time.Now()
	defer func() { t.took = time.Since(start) }()
	dir, err := os.MkdirTemp("", "vmm-test-")
	if err != nil {
		t.verdict, t.reason = notBoot, err.Error()
		return
	}
	defer os.RemoveAll(dir)
	console, result := filepath.Join(dir, "console"), filepath.Join(dir, "result")
	name := testVMName(dir)
	defer registry.User().Look(name) // which clears away what is left of one that was killed
	args := append([]string{"run", "--name", name, "--console", console, "--result", result,
		"--timeout", t.test.Timeout.String(), "--append", "loglevel=7 " + t.kernel.Append}, shape...)
	if t.kernel.Image != "" {
		args = append(args, "--kernel", t.kernel.Image)
	}
	if t.kernel.Modules != "" {
		args = append(args, "--modules", t.kernel.Modules)
	}
	args = append(append(args, "--"), t.test.Command...)
	c := exec.CommandContext(ctx, "/proc/self/exe", args...)
	c.Cancel = func() error { return c.Process.Signal(unix.SIGKILL) }
	c.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL, Setpgid: true}
	var out cut
	var errs cut
	c.Stdout, c.Stderr = io.MultiWriter(&out, watch), io.MultiWriter(&errs, watch)
	runErr := c.Run()
	b, _ := os.ReadFile(console)
	t.console, t.output = string(b), out.String()
	var r runResult
	if b, err := os.ReadFile(result); err == nil {
		err = json.Unmarshal(b, &r)
		if err != nil {
			runErr = errors.Join(runErr, err)
		}
	}
	if c.ProcessState == nil || ctx.Err() != nil {
		t.verdict, t.reason = notBoot, fmt.Sprint(runErr)
		return
	}
	t.output += errs.String()
	t.judge(r, c.ProcessState.ExitCode(), lastLine(errs.String()))
}

// testVMName makes a VM's name of a directory's.
func testVMName(dir string) string {
	return "test-" + strings.TrimPrefix(filepath.Base(dir), "vmm-test-")
}

func lastLine(s string) string {
	s = strings.TrimSpace(s)
	return strings.TrimPrefix(s[strings.LastIndexByte(s, '\n')+1:], "vmm: ")
}

// judge finds the verdict: what the machine says, then the console, then the tests'
// own results, then the exit status.
func (t *testRun) judge(r runResult, status int, said string) {
	t.findings = crash.Find(t.console)
	t.report = &ktap.Report{}
	for _, text := range []string{t.console, t.output} {
		p := ktap.Parse(text)
		t.report.Cases = append(t.report.Cases, p.Cases...)
		t.report.Problems = append(t.report.Problems, p.Problems...)
	}
	failed := t.report.Count(ktap.Fail)
	switch {
	case !r.Started:
		t.verdict, t.reason = notBoot, said
		if advice := crash.Advice(t.console); r.End != "" && advice != "" {
			t.reason = advice
		} else if len(t.findings) > 0 {
			t.reason = t.findings[0].Line
		}
	case len(t.findings) > 0:
		t.verdict, t.reason = crashed, t.findings[0].Kind+": "+t.findings[0].Line
	case r.End == endTimeout:
		t.verdict, t.reason = hang, fmt.Sprintf("it did not end within %v", t.test.Timeout)
	case !r.Exited:
		t.verdict, t.reason = crashed, said
	case failed > 0:
		t.verdict, t.reason = failTest, fmt.Sprintf("%d of %d tests failed", failed, len(t.report.Cases))
	case len(t.report.Problems) > 0:
		t.verdict, t.reason = failTest, t.report.Problems[0]
	case status != statusOK:
		t.verdict, t.reason = failTest, fmt.Sprintf("exit status %d", status)
	case len(t.report.Cases) > 0 && t.report.Count(ktap.Skip) == len(t.report.Cases):
		t.verdict, t.reason = skipped, "all tests were skipped"
	default:
		t.verdict = passed
		if n := len(t.report.Cases); n > 0 {
			t.reason = fmt.Sprintf("%d tests, %d skipped", n, t.report.Count(ktap.Skip))
		}
	}
}

// kernelSpec is a kernel of the matrix.
type kernelSpec struct {
	Name    string `toml:"name"`
	Image   string `toml:"image"` // "" or "default" is the default guest's
	Modules string `toml:"modules"`
	Append  string `toml:"append"`
}

// testSpec is a command of the matrix.
type testSpec struct {
	Name    string   `toml:"name"`
	Command []string `toml:"command"`
	Timeout duration `toml:"timeout"`
}

// duration is a time.Duration as people write it.
type duration struct{ time.Duration }

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *duration) UnmarshalText(b []byte) (err error) {
	d.Duration, err = time.ParseDuration(string(b))
	return err
}

// name gives a kernel and a test their names, where they have none.
func (k *kernelSpec) complete() {
	if k.Image == defaultKernel {
		k.Image = ""
	}
	switch {
	case k.Name != "":
	case k.Image == "":
		k.Name = defaultKernel
	default:
		k.Name = filepath.Base(k.Image)
		if k.Name == "bzImage" || k.Name == "vmlinux" { // of a build: its directory says more
			if v := kernelVersion(k.Image); v != "" {
				k.Name = v
			}
		}
	}
}

// kernelVersion is what an image calls itself; empty if it does not.
func kernelVersion(path string) string {
	k, err := bootloader.Open(path)
	if err != nil {
		return ""
	}
	version, _, _ := strings.Cut(k.Version(), " ")
	return version
}

// memAvailable is the host's free memory, in bytes, by /proc/meminfo.
func memAvailable() uint64 {
	b, _ := os.ReadFile("/proc/meminfo")
	for _, line := range strings.Split(string(b), "\n") {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "MemAvailable:" {
			kib, _ := strconv.ParseUint(f[1], 10, 64)
			return kib << 10
		}
	}
	return 0
}
