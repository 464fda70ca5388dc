// Package kerneltest tests kernels: it runs commands on each of several, in VMs side
// by side, and judges each by how the VM ended, by what the kernel says on its console
// of crashes, and by the TAP and KTAP that the command and the console print.
//
// A [Matrix] says what to test. [Matrix.Run] has a [Runner] run the VMs, of which this
// package knows nothing, and returns [Results], which are reported as JUnit and as
// GitHub's annotations.
package kerneltest

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"
)

// Runner runs VMs.
type Runner interface {
	// Run boots the VM's kernel, runs the test's command in it, and ends it when that
	// has ended or the test's timeout is over. What comes out of it goes to the streams.
	// When Run returns, the VM is gone, and so is all that was made for it.
	//
	// When ctx is done, Run ends the VM at once and returns an error. Any other error is
	// that it cannot be told how the VM ended, or that there was none. Run is called by
	// several goroutines at a time.
	Run(ctx context.Context, vm VM, s Streams) (Outcome, error)
}

// RunnerFunc is a function as a Runner.
type RunnerFunc func(ctx context.Context, vm VM, s Streams) (Outcome, error)

// Run implements Runner.
func (f RunnerFunc) Run(ctx context.Context, vm VM, s Streams) (Outcome, error) { return f(ctx, vm, s) }

// Streams are where a VM's output goes. Each can be written to by a goroutine of its
// own, and never blocks for long. Writing ends before Run returns.
type Streams struct {
	Console io.Writer // what the kernel prints
	Stdout  io.Writer // what the command does
	Stderr  io.Writer // the same, and what the VMM says of itself
}

// Stage is how far a VM came.
type Stage int

// The stages.
const (
	NotRun  Stage = iota // there was no machine, or no kernel to enter
	Booted               // the kernel was entered, and the command not started
	Started              // the command was started, and the VM ended before it
	Exited               // the command ended
)

// Outcome is how a VM ended.
type Outcome struct {
	Stage    Stage
	Status   int    // the exit status, from the stage Exited on; 0 is success
	TimedOut bool   // the VM was ended because the test's timeout was over
	Message  string // what the VMM says of the end, in a line; may be empty
}

// Hooks are told of VMs as they come and go, by several goroutines at a time. Those
// that are nil are not. A VM is the same pointer in all of them.
type Hooks struct {
	Begin func(vm *VM)
	End   func(r *Result) // of VMs that had begun
	// Output returns where the command's output goes as it comes, beside the result's.
	// Standard output and error may write at the same time.
	Output func(vm *VM) io.Writer
}

// Run runs the matrix's VMs, as many side by side as its Jobs say, and returns a result
// for each, in the order of VMs. When ctx is done, those that run are ended, no other
// begins, and both have the verdict Cancelled; the error is ctx's cause then. Any other
// error is that of VMs. When Run returns, nothing of it runs any more.
func (m *Matrix) Run(ctx context.Context, runner Runner, hooks Hooks) (Results, error) {
	vms, err := m.VMs()
	if err != nil {
		return nil, err
	}
	results := make(Results, len(vms))
	for i, vm := range vms {
		results[i] = Result{VM: vm, Verdict: Cancelled, Reason: "before it began"}
	}
	next := make(chan int)
	var workers sync.WaitGroup
	for range m.jobs(vms) {
		workers.Go(func() {
			for i := range next {
				if ctx.Err() == nil { // select may have had the choice
					results[i].run(ctx, runner, hooks)
				}
			}
		})
	}
	for i := range vms {
		select {
		case next <- i:
		case <-ctx.Done():
		}
	}
	close(next)
	workers.Wait()
	if results.Verdict() == Cancelled {
		return results, context.Cause(ctx)
	}
	return results, nil
}

// run runs the result's VM and judges what comes of it.
func (r *Result) run(ctx context.Context, runner Runner, hooks Hooks) {
	if hooks.Begin != nil {
		hooks.Begin(r.VM)
	}
	if hooks.End != nil {
		defer func() { hooks.End(r) }()
	}
	console, stdout, stderr := &excerpt{half: maxExcerpt / 2}, &excerpt{half: maxExcerpt / 2}, &excerpt{half: maxExcerpt / 2}
	streams := Streams{console, stdout, stderr}
	if hooks.Output != nil {
		also := hooks.Output(r.VM)
		streams.Stdout, streams.Stderr = io.MultiWriter(stdout, also), io.MultiWriter(stderr, also)
	}
	start := time.Now()
	outcome, err := runner.Run(ctx, *r.VM, streams)
	r.Duration = time.Since(start)
	r.Console, r.Output = console.String(), stdout.String()
	if errs := stderr.String(); errs != "" {
		if r.Output != "" && r.Output[len(r.Output)-1] != '\n' {
			r.Output += "\n"
		}
		r.Output += errs
	}
	switch {
	case err == nil:
		r.judge(outcome)
	case ctx.Err() != nil:
		r.Verdict, r.Reason = Cancelled, "while it ran"
		if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) {
			r.Reason += ": " + cause.Error()
		}
	default:
		r.Verdict, r.Reason = NoBoot, err.Error()
	}
}
