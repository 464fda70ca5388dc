package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"vmm/internal/tail"
	"vmm/kerneltest"
	"vmm/vm/registry"
)

// selfRunner runs each VM of vmm test as a vmm run in a process of its own: its value
// is the program.
type selfRunner string

// Run implements kerneltest.Runner.
func (program selfRunner) Run(ctx context.Context, vm kerneltest.VM, s kerneltest.Streams) (out kerneltest.Outcome, err error) {
	dir, err := os.MkdirTemp("", "vmm-test-")
	if err != nil {
		return out, err
	}
	defer os.RemoveAll(dir)
	name := testVMName(dir)
	defer registry.User().Look(name) // which clears away what is left of one that was killed
	console, result := filepath.Join(dir, "console"), filepath.Join(dir, "result")
	args := append([]string{"run", "--name", name, "--console", console, "--result", result}, testArgs(&vm)...)
	var said tail.Buffer
	c := exec.CommandContext(ctx, string(program), args...)
	c.Stdout, c.Stderr = s.Stdout, io.MultiWriter(&said, s.Stderr)
	c.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL, Setpgid: true} // Ctrl-C is for us alone
	c.Cancel = func() error { return endTest(name, c.Process) }
	c.WaitDelay = testEnd
	runErr := c.Run()
	if err := copyConsole(s.Console, console); err != nil {
		return out, err
	}
	if ctx.Err() != nil {
		return out, ctx.Err()
	}
	if c.ProcessState == nil { // it could not be started
		return out, runErr
	}
	r, err := readResult(result)
	if err != nil {
		return out, err
	}
	return testOutcome(r, c.ProcessState.ExitCode(), strings.TrimPrefix(tail.Lines(said.String(), 1)[0], "vmm: ")), nil
}

// testVMName makes a VM's name of a directory's.
func testVMName(dir string) string {
	return "test-" + strings.TrimPrefix(filepath.Base(dir), "vmm-test-")
}

// testArgs is a VM of a matrix as flags of vmm run.
func testArgs(vm *kerneltest.VM) []string {
	args := []string{"--timeout", vm.Test.Timeout.String(), "--append", "loglevel=7 " + vm.Kernel.Append,
		"-m", vm.Memory.String(), "-c", fmt.Sprint(vm.CPUs)}
	if vm.Warm {
		args = append(args, "--warm")
	}
	for _, f := range []struct {
		flag   string
		values []string
	}{{"--root", []string{vm.Root}}, {"--rw", vm.RW}, {"--share", vm.Shares}, {"--kernel", []string{vm.Kernel.Image}}, {"--modules", []string{vm.Kernel.Modules}}} {
		for _, v := range f.values {
			if v != "" {
				args = append(args, f.flag, v)
			}
		}
	}
	return append(append(args, "--"), vm.Test.Command...)
}

// testEnd is how long a VM's process may take to end when it is told to.
const testEnd = 10 * time.Second

// endTest ends a VM as vmm kill does, so that it clears away what it has made; or its
// processes, if it does not listen.
func endTest(name string, p *os.Process) error {
	ctx, cancel := context.WithTimeout(context.Background(), testEnd)
	defer cancel()
	if vm, err := findRunning(name); err == nil && ask(vm).Kill(ctx) == nil {
		return nil
	}
	return unix.Kill(-p.Pid, unix.SIGKILL)
}

// copyConsole copies the console's file, which a VM that never ran has not made.
func copyConsole(to io.Writer, path string) error {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(to, f)
	return err
}

// readResult reads the file of --result, which a VM that never ran has not written.
func readResult(path string) (r runResult, err error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return r, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &r)
	}
	return r, err
}

// testOutcome is what a vmm run says of its end.
func testOutcome(r runResult, status int, said string) kerneltest.Outcome {
	out := kerneltest.Outcome{Status: status, TimedOut: r.End == endTimeout, Message: said}
	switch {
	case r.Exited:
		out.Stage = kerneltest.Exited
	case r.Started:
		out.Stage = kerneltest.Started
	case r.End != "":
		out.Stage = kerneltest.Booted
	}
	return out
}
