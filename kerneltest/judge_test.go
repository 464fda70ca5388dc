package kerneltest

import (
	"strings"
	"testing"
	"time"
)

func TestJudge(t *testing.T) {
	const (
		oops = "[ 1.0] BUG: kernel NULL pointer dereference, address: 0"
		root = "[ 1.0] Kernel panic - not syncing: VFS: Unable to mount root fs"
	)
	exited := Outcome{Stage: Exited, Message: "said"}
	for _, c := range []struct {
		name            string
		outcome         Outcome
		console, output string
		want            Verdict
		reason          string // is in it
	}{
		{"pass", exited, "[ 1.0] fine", "hello", Pass, ""},
		{"status", Outcome{Stage: Exited, Status: 3}, "", "", Fail, "exit status 3"},
		{"tests", exited, "", "1..2\nok 1\nnot ok 2", Fail, "1 of 2 tests failed"},
		{"tests and status", Outcome{Stage: Exited, Status: 1}, "", "1..2\nok 1\nnot ok 2", Fail, "1 of 2 tests failed"},
		{"good tests, bad status", Outcome{Stage: Exited, Status: 1}, "", "1..1\nok 1", Fail, "exit status 1"},
		{"missing tests", exited, "", "1..2\nok 1", Fail, "2 tests were announced, 1 ended"},
		{"too many tests", exited, "", "1..1\nok 1\nok 2", Fail, "1 tests were announced, 2 ended"},
		{"missing tests of the first program", exited, "", "TAP version 13\n1..3\nok 1 a\nTAP version 13\n1..2\nok 1 b\nok 2 c", Fail, "3 tests were announced, 1 ended"},
		{"a plan at the end", exited, "", "ok 1 - a\nok 2 - b\n1..2", Pass, "2 tests, 0 skipped"},
		{"a kselftest", exited, "", "TAP version 13\n1..1\n# selftests: net: a\n# TAP version 13\n# 1..2\n# ok 1 x\n# not ok 2 y\nnot ok 1 selftests: net: a # exit=1", Fail, "1 of 2 tests failed"},
		{"bail out", exited, "", "Bail out! no disk", Fail, "Bail out! no disk"},
		{"console", exited, "[ 1.0] WARNING: CPU: 0", "", Crash, "WARNING: WARNING: CPU: 0"},
		{"console and tests", exited, "[ 1.0] WARNING: CPU: 0", "1..1\nnot ok 1", Crash, "WARNING: WARNING: CPU: 0"},
		{"console's tests", exited, "[ 1.0] KTAP version 1\n[ 1.0] 1..1\n[ 1.0] not ok 1 a", "", Fail, "1 of 1 tests failed"},
		{"both's tests", exited, "[ 1.0] KTAP version 1\n[ 1.0] 1..1\n[ 1.0] ok 1 a", "1..1\nok 1 b # SKIP", Pass, "2 tests, 1 skipped"},
		{"panic", Outcome{Stage: Started, Status: 123}, "[ 1.0] Kernel panic - not syncing: x", "", Crash, "panic: Kernel panic - not syncing: x"},
		{"silent crash", Outcome{Stage: Started, Status: 123, Message: "said"}, "", "", Crash, "said"},
		{"timeout", Outcome{Stage: Started, Status: 124, TimedOut: true}, "", "", Timeout, "did not end within 1m30s"},
		{"timeout after an oops", Outcome{Stage: Started, Status: 124, TimedOut: true}, oops, "", Crash, "oops: "},
		{"timeout of a boot", Outcome{Stage: Booted, TimedOut: true, Message: "said"}, "[ 1.0] Linux version", "", NoBoot, "said"},
		{"no boot", Outcome{Stage: Booted, Status: 123, Message: "said"}, root, "", NoBoot, "CONFIG_BLK_DEV_INITRD"},
		{"oops in the boot", Outcome{Stage: Booted, Message: "said"}, "[ 0.1] Linux version\n" + oops, "", NoBoot, "BUG: kernel NULL pointer"},
		{"silent boot", Outcome{Stage: Booted, Message: "said"}, "", "", NoBoot, "the kernel printed nothing"},
		{"no kernel", Outcome{Status: 125, Message: "said"}, "", "", NoBoot, "said"},
		{"skips", exited, "", "1..0 # SKIP x", Skip, "all tests were skipped"},
		{"known to fail", exited, "", "1..1\nnot ok 1 a # TODO later", Pass, "1 tests, 0 skipped"},
	} {
		r := &Result{VM: &VM{Test: Test{Timeout: 90 * time.Second}}, Console: c.console, Output: c.output}
		r.judge(c.outcome)
		if r.Verdict != c.want || !strings.Contains(r.Reason, c.reason) || r.Reason == "" && c.want != Pass {
			t.Errorf("%s: %v (%s), want %v (%s)", c.name, r.Verdict, r.Reason, c.want, c.reason)
		}
	}
}

func TestVerdicts(t *testing.T) {
	for _, c := range []struct {
		verdicts []Verdict
		want     Verdict
		good     bool
	}{
		{nil, Pass, true},
		{[]Verdict{Pass, Skip}, Skip, true},
		{[]Verdict{Pass, NoBoot, Skip}, NoBoot, false},
		{[]Verdict{Timeout, NoBoot}, Timeout, false},
		{[]Verdict{NoBoot, Crash}, Crash, false},
		{[]Verdict{Fail, Pass}, Fail, false},
		{[]Verdict{Fail, Cancelled, Pass}, Cancelled, false},
	} {
		var rs Results
		for _, v := range c.verdicts {
			rs = append(rs, Result{Verdict: v})
		}
		if got := rs.Verdict(); got != c.want || got.Good() != c.good {
			t.Errorf("%v: %v, good %v", c.verdicts, got, got.Good())
		}
	}
	names := map[string]bool{}
	for v := Pass; v <= Cancelled; v++ {
		names[v.String()] = true
	}
	if len(names) != int(Cancelled) || names["Verdict(1)"] || Verdict(0).String() != "Verdict(0)" {
		t.Errorf("verdicts are called %v, and the zero value %v", names, Verdict(0))
	}
}
