package cli

import (
	"context"
	"encoding/json"
	"errors"
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
	"vmm/machine"
	vmm "vmm/vm"
	"vmm/vm/registry"
	"vmm/vm/spec"
)

// selfRunner runs each VM of vmm test in a process of its own: its value is the program.
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
	job, err := testSession(&vm)
	if err != nil {
		return out, err
	}
	job.Config.Name, job.Config.Console.File, job.Result = name, console, result
	var said tail.Buffer
	var c *exec.Cmd
	err = startBest(job.isolations(), func(how isolation) (err error) {
		job.NoPID = how.noPID
		if c, err = job.process(ctx, string(program)); err != nil {
			return err
		}
		c.Stdout, c.Stderr = s.Stdout, io.MultiWriter(&said, s.Stderr)
		c.SysProcAttr = how.attributes() // in a session of its own, for Ctrl-C is for us alone
		c.SysProcAttr.Pdeathsig = unix.SIGKILL
		c.Cancel = func() error { return endTest(name, c.Process) }
		c.WaitDelay = testEnd
		return c.Start()
	})
	if err != nil {
		return out, err
	}
	runErr := c.Wait()
	if err := copyConsole(s.Console, console); err != nil {
		return out, err
	}
	if ctx.Err() != nil {
		return out, ctx.Err()
	}
	if c.ProcessState == nil { // nobody knows how it has ended
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

// testSession is what runs a VM of a matrix, but for its name and its files.
func testSession(vm *kerneltest.VM) (*session, error) {
	c := &vmm.Config{CPUs: vm.CPUs, Memory: vm.Memory, Engine: machine.Engine(vm.Engine),
		Boot: vmm.Boot{Kernel: vm.Kernel.Image, Modules: vm.Kernel.Modules, Args: []string{"loglevel=7", vm.Kernel.Append}}}
	if vm.Root != "" {
		c.Root = &vmm.Root{Path: vm.Root}
	}
	s := &session{Config: c, Named: true, Sandbox: true, Command: vm.Test.Command, Timeout: vm.Test.Timeout, ConsoleGiven: true, Warm: vm.Warm, Jail: vmm.JailFull}
	if err := parse("share", vm.Shares, spec.Share, &c.Shares); err != nil {
		return nil, err
	}
	if err := shareWritable(c, vm.RW); err != nil {
		return nil, err
	}
	if err := hideCredentials(c, nil, nil); err != nil {
		return nil, err
	}
	var err error
	if c.Limits, err = testLimits(&vm.Limits); err != nil {
		return nil, err
	}
	if err := s.completeSandbox(); err != nil {
		return nil, err
	}
	*c = c.WithDefaults()
	return s, inFlags(c.Check())
}

// testEnd is how long a VM's process may take to end when it is told to.
const testEnd = 10 * time.Second

// endTest ends a VM as vmm kill does, so that it clears away what it has made; or its
// processes, if it does not listen.
func endTest(name string, p *os.Process) error {
	ctx, cancel := context.WithTimeout(context.Background(), testEnd)
	defer cancel()
	if vm, err := registry.User().FindRunning(name); err == nil && ask(vm).Kill(ctx) == nil {
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
	case r.End == endFailed: // which says nothing of the kernel
	case r.Exited:
		out.Stage = kerneltest.Exited
	case r.Started:
		out.Stage = kerneltest.Started
	case r.End != "":
		out.Stage = kerneltest.Booted
	}
	return out
}
