package kerneltest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// matrix is one of so many kernels and tests.
func matrix(kernels, tests int) *Matrix {
	m := &Matrix{}
	for i := range kernels {
		m.Kernels = append(m.Kernels, Kernel{Name: fmt.Sprint("k", i), Image: "x"})
	}
	for i := range tests {
		m.Tests = append(m.Tests, Test{Name: fmt.Sprint("t", i), Command: []string{"true"}})
	}
	return m
}

// TestRun holds the results to the matrix's order, the number of VMs side by side to
// Jobs, and the hooks to what happens.
func TestRun(t *testing.T) {
	m := matrix(3, 4)
	m.Jobs = 3
	var now, most atomic.Int32
	all := make(chan struct{}) // is closed when as many run as may
	runner := RunnerFunc(func(_ context.Context, vm VM, s Streams) (Outcome, error) {
		n := now.Add(1)
		defer now.Add(-1)
		if most.Load() < n {
			most.Store(n)
		}
		if n == int32(m.Jobs) {
			select {
			case <-all:
			default:
				close(all)
			}
		}
		<-all
		fmt.Fprintf(s.Console, "[ 1.0] console of %s\n", vm.Name())
		fmt.Fprint(s.Stdout, "output of "+vm.Name())
		fmt.Fprintf(s.Stderr, "errors of %s\n", vm.Name())
		if vm.Name() == "k1: t2" {
			return Outcome{}, errors.New("no such host")
		}
		return Outcome{Stage: Exited}, nil
	})
	var mu sync.Mutex
	begun, ended, seen := map[*VM]bool{}, map[*VM]bool{}, map[*VM]*bytes.Buffer{}
	results, err := m.Run(t.Context(), runner, Hooks{
		Begin: func(vm *VM) {
			mu.Lock()
			defer mu.Unlock()
			begun[vm] = true
		},
		End: func(r *Result) {
			mu.Lock()
			defer mu.Unlock()
			ended[r.VM] = begun[r.VM] && r.Verdict != Cancelled
		},
		Output: func(vm *VM) io.Writer {
			mu.Lock()
			defer mu.Unlock()
			seen[vm] = &bytes.Buffer{}
			return seen[vm]
		},
	})
	if err != nil || len(results) != 12 || most.Load() != 3 {
		t.Fatalf("%d results, %d side by side, %v", len(results), most.Load(), err)
	}
	for i := range results {
		r := &results[i]
		name := fmt.Sprintf("k%d: t%d", i/4, i%4)
		if r.VM.Name() != name || !ended[r.VM] {
			t.Errorf("result %d is of %s; it has ended: %v", i, r.VM.Name(), ended[r.VM])
		}
		if want := "output of " + name + "\nerrors of " + name + "\n"; r.Output != want || r.Console != "[ 1.0] console of "+name+"\n" {
			t.Errorf("%s: output %q, console %q", name, r.Output, r.Console)
		}
		if want := "output of " + name + "errors of " + name + "\n"; seen[r.VM].String() != want {
			t.Errorf("%s: %q was seen", name, seen[r.VM])
		}
		if name == "k1: t2" {
			if r.Verdict != NoBoot || r.Reason != "no such host" {
				t.Errorf("an error of the runner: %v: %s", r.Verdict, r.Reason)
			}
		} else if r.Verdict != Pass {
			t.Errorf("%s: %v: %s", name, r.Verdict, r.Reason)
		}
	}
	if results, err := (&Matrix{}).Run(t.Context(), runner, Hooks{}); !errors.Is(err, ErrNoTest) || results != nil {
		t.Errorf("an empty matrix: %v, %v", results, err)
	}
}

// TestCancel ends a matrix when one of its VMs has ended and two run.
func TestCancel(t *testing.T) {
	cause := errors.New("the lights went out")
	ctx, cancel := context.WithCancelCause(t.Context())
	m := matrix(1, 5)
	m.Jobs = 2
	var running sync.WaitGroup
	running.Add(2)
	var gone atomic.Int32
	runner := RunnerFunc(func(ctx context.Context, vm VM, s Streams) (Outcome, error) {
		if vm.Test.Name == "t0" {
			return Outcome{Stage: Exited}, nil
		}
		io.WriteString(s.Stdout, "so far\n")
		running.Done()
		<-ctx.Done()
		gone.Add(1)
		return Outcome{}, ctx.Err()
	})
	go func() {
		running.Wait()
		cancel(cause)
	}()
	begun := atomic.Int32{}
	results, err := m.Run(ctx, runner, Hooks{Begin: func(*VM) { begun.Add(1) }})
	if !errors.Is(err, cause) || gone.Load() != 2 || begun.Load() != 3 || len(results) != 5 {
		t.Fatalf("%v; %d begun, %d gone, %d results", err, begun.Load(), gone.Load(), len(results))
	}
	for i, want := range []string{"pass: ", "cancelled: while it ran: the lights went out", "cancelled: while it ran: the lights went out",
		"cancelled: before it began", "cancelled: before it began"} {
		r := &results[i]
		if got := fmt.Sprintf("%v: %s", r.Verdict, r.Reason); got != want {
			t.Errorf("%s: %s, want %s", r.VM.Name(), got, want)
		}
		if running := strings.Contains(want, "while"); running != (r.Output == "so far\n") {
			t.Errorf("%s: the output is %q", r.VM.Name(), r.Output)
		}
	}
	var report strings.Builder
	if err := results.WriteJUnit(&report); err != nil || !strings.Contains(report.String(), `tests="5" failures="0" errors="4"`) ||
		strings.Count(report.String(), `message="cancelled: before it began"`) != 2 {
		t.Errorf("the report: %v\n%s", err, report.String())
	}

	// What was cancelled before begins nothing.
	ctx, stop := context.WithCancel(t.Context())
	stop()
	results, err = m.Run(ctx, RunnerFunc(func(context.Context, VM, Streams) (Outcome, error) {
		t.Error("a VM is run")
		return Outcome{}, nil
	}), Hooks{})
	if !errors.Is(err, context.Canceled) || len(results) != 5 || results[0].Verdict != Cancelled {
		t.Errorf("cancelled before: %v, %+v", err, results)
	}
	// One that ends by itself at that moment has its verdict.
	ctx, stop = context.WithCancel(t.Context())
	results, err = matrix(1, 1).Run(ctx, RunnerFunc(func(context.Context, VM, Streams) (Outcome, error) {
		stop()
		return Outcome{Stage: Exited}, nil
	}), Hooks{})
	if err != nil || results[0].Verdict != Pass {
		t.Errorf("one that had ended: %v, %+v", err, results)
	}
}

func TestExcerpt(t *testing.T) {
	const half = 1000
	for _, c := range []struct{ size, step int }{{0, 1}, {100, 7}, {2 * half, 10}, {2*half + 1, 1}, {5*half + 123, half + 7}, {3 * half, 3 * half}} {
		all := make([]byte, c.size)
		for i := range all {
			all[i] = "0123456789abcdef\n"[i%17]
		}
		e := excerpt{half: half}
		for rest := all; len(rest) > 0; {
			n, err := e.Write(rest[:min(c.step, len(rest))])
			if err != nil || n == 0 {
				t.Fatal(n, err)
			}
			rest = rest[n:]
		}
		want := string(all)
		if lost := c.size - 2*half; lost > 0 {
			want = fmt.Sprintf("%s\n[%d bytes left out]\n%s", all[:half], lost, all[c.size-half:])
		}
		if got := e.String(); got != want {
			t.Errorf("%d bytes in steps of %d: %d are kept, and not the right ones", c.size, c.step, len(got))
		}
	}
}
