package main

import (
	"io"
	"strings"
	"testing"
	"time"
)

// TestReport counts what jobs say, and fails for those that end badly, whatever they
// have said before.
func TestReport(t *testing.T) {
	const passes = "=== RUN   TestA\n--- PASS: TestA (0.1s)\n    --- PASS: TestA/x (0.1s)\n    --- SKIP: TestA/y (0.0s)\nPASS\n"
	for _, c := range []struct {
		name, output string
		status       int
		err          error
		ok           bool
		want         string
	}{
		{"passes", passes, 0, nil, true, "2 passed, 0 failed, 1 skipped\n"},
		{"fails", "--- FAIL: TestA (0.1s)\n    a_test.go:1: bad\nFAIL\n", 1, nil, false, "0 passed, 1 failed, 0 skipped\n"},
		{"crashes", passes + "panic: oh\n", 2, nil, false, "2 passed, 1 failed, 1 skipped\n"},
		{"stands still", "--- PASS: TestA (0.1s)\n", -1, errStill, false, "1 passed, 1 failed, 0 skipped\n"},
		{"status alone", "", 127, nil, false, "0 passed, 1 failed, 0 skipped\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var shown, kept strings.Builder
			r := &reporter{out: &shown, started: time.Now()}
			io.WriteString(r.follow(&kept), c.output)
			r.done("job", kept.String(), c.status, c.err, time.Second)
			if ok := r.summary(); ok != c.ok || !strings.HasSuffix(shown.String(), c.want) {
				t.Errorf("%v, want %v and %q at the end of:\n%s", ok, c.ok, c.want, shown.String())
			}
			if !c.ok && !strings.Contains(shown.String(), c.output) {
				t.Errorf("the output of what failed is not shown:\n%s", shown.String())
			}
		})
	}
}

// TestWatch reads what a host says: the job's output, and what is for who started it.
func TestWatch(t *testing.T) {
	p := qemu{}.pace(job{})
	for _, c := range []struct {
		said   string
		out    string
		status int
	}{
		{"\x01begin\nhello\n\x01alive\nworld\n\n\x01end 0\n", "hello\nworld\n\n", 0},
		{"half a line\x01alive\n, and the rest\n\x01end 3\n", "half a line, and the rest\n", 3},
		{"\x01begin\nhello\n", "hello\n", -1}, // it ended early
	} {
		var out strings.Builder
		status, err := p.watch(strings.NewReader(c.said), &out, func() {})
		if status != c.status || err != nil || out.String() != c.out {
			t.Errorf("%q: status %d, %v, %q", c.said, status, err, out.String())
		}
	}
	if _, err := p.watch(strings.NewReader("\x01end of it\n"), io.Discard, func() {}); err == nil {
		t.Error("an end without a status")
	}
}

// TestJobs picks tests as go test does.
func TestJobs(t *testing.T) {
	for _, c := range []struct {
		o    options
		jobs int
		err  bool
	}{
		{options{emulator: "qemu", hosts: 1, run: "^TestEnds$"}, 1, false},
		{options{emulator: "qemu", hosts: 1, run: "TestEnds$/panic"}, 1, false},
		{options{emulator: "qemu", hosts: 1, run: "TestNothing"}, 0, true},
		{options{emulator: "qemu", hosts: 1, run: "("}, 0, true},
		{options{emulator: "qemu", hosts: 1, run: "TestEnds/("}, 0, true},
		{options{emulator: "qemu", hosts: 1, exec: "true"}, 1, false},
		{options{emulator: "qemu", hosts: 1, exec: "true", smoke: true}, 0, true},
		{options{emulator: "qemu", hosts: 1, given: []string{"exec"}}, 0, true},
		{options{emulator: "qemu", run: "TestEnds"}, 0, true},
		{options{emulator: "bochs", hosts: 1, run: "^TestGDB$"}, 1, false},
		{options{emulator: "bochs", hosts: 1, run: "^TestTap$"}, 1, false},
		{options{emulator: "bochs", hosts: 1, bench: true}, 0, true},
		{options{emulator: "bochs", hosts: 1, kernels: true}, 0, true},
		{options{emulator: "bochs", hosts: 1, cpus: 2}, 0, true},
		{options{emulator: "bochs", hosts: 1, counted: true}, 0, true},
		{options{emulator: "other", hosts: 1}, 0, true},
	} {
		jobs, err := c.o.jobs()
		if len(jobs) != c.jobs || (err != nil) != c.err {
			t.Errorf("%+v: %d jobs, %v", c.o, len(jobs), err)
		}
	}
	jobs, _ := (&options{emulator: "qemu", hosts: 1, smoke: true}).jobs()
	all, _ := (&options{emulator: "qemu", hosts: 1}).jobs()
	if len(jobs) == 0 || len(jobs) >= len(all) {
		t.Errorf("%d of %d jobs are the smoke set", len(jobs), len(all))
	}
	if some, _ := (&options{emulator: "bochs", hosts: 1}).jobs(); len(some) == 0 || len(some) >= len(all) {
		t.Errorf("%d of %d jobs are for bochs", len(some), len(all))
	}
}
