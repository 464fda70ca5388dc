package kerneltest

import (
	"fmt"
	"time"

	"vmm/kerneltest/crash"
	"vmm/kerneltest/ktap"
)

// Verdict is how a test on a kernel ended. Verdicts are ordered: a greater one says
// more against the kernel, or against all results.
type Verdict int

// The verdicts.
const (
	Pass      Verdict = iota + 1 // the command succeeded, its tests passed, the console is clean
	Skip                         // all of its tests were skipped
	NoBoot                       // the kernel did not get as far as the command
	Timeout                      // the command did not end in time
	Crash                        // the kernel found a fault in itself, or ended before the command
	Fail                         // the command or one of its tests failed, or tests are missing
	Cancelled                    // nothing is known: it was ended from outside, or did not begin
)

// String is the verdict in a word or two.
func (v Verdict) String() string {
	switch v {
	case Pass:
		return "pass"
	case Skip:
		return "skip"
	case NoBoot:
		return "no boot"
	case Timeout:
		return "timeout"
	case Crash:
		return "crash"
	case Fail:
		return "fail"
	case Cancelled:
		return "cancelled"
	}
	return fmt.Sprintf("Verdict(%d)", int(v))
}

// Good reports whether there is nothing to tell of.
func (v Verdict) Good() bool { return v == Pass || v == Skip }

// Result is what came of a VM.
type Result struct {
	VM       *VM
	Verdict  Verdict
	Reason   string // in a line; may be empty if it passed
	Duration time.Duration
	Report   ktap.Report     // of the command's output and the console
	Findings []crash.Finding // on the console
	Output   string          // of the command: standard output, then standard error
	Console  string
}

// Results are those of a matrix.
type Results []Result

// Verdict is the greatest of all; Pass if there is none.
func (rs Results) Verdict() Verdict {
	worst := Pass
	for i := range rs {
		worst = max(worst, rs[i].Verdict)
	}
	return worst
}

// judge finds the verdict: by how far the VM came, then by the console, then by the
// tests' own results, then by the exit status.
func (r *Result) judge(o Outcome) {
	r.Findings = crash.Find(r.Console)
	r.Report = ktap.Report{}
	for _, text := range []string{r.Console, r.Output} {
		p := ktap.Parse(text)
		r.Report.Cases = append(r.Report.Cases, p.Cases...)
		r.Report.Problems = append(r.Report.Problems, p.Problems...)
	}
	cases := len(r.Report.Cases)
	failed, skipped := r.Report.Count(ktap.Fail), r.Report.Count(ktap.Skip)
	switch {
	case o.Stage < Started:
		r.Verdict, r.Reason = NoBoot, o.Message
		if advice := crash.Advice(r.Console); o.Stage == Booted && advice != "" {
			r.Reason = advice
		} else if len(r.Findings) > 0 {
			r.Reason = r.Findings[0].Line
		}
	case len(r.Findings) > 0:
		r.Verdict, r.Reason = Crash, r.Findings[0].Kind+": "+r.Findings[0].Line
	case o.TimedOut:
		r.Verdict, r.Reason = Timeout, fmt.Sprintf("it did not end within %v", r.VM.Test.Timeout)
	case o.Stage < Exited:
		r.Verdict, r.Reason = Crash, o.Message
	case failed > 0:
		r.Verdict, r.Reason = Fail, fmt.Sprintf("%d of %d tests failed", failed, cases)
	case len(r.Report.Problems) > 0:
		r.Verdict, r.Reason = Fail, r.Report.Problems[0]
	case o.Status != 0:
		r.Verdict, r.Reason = Fail, fmt.Sprintf("exit status %d", o.Status)
	case cases > 0 && skipped == cases:
		r.Verdict, r.Reason = Skip, "all tests were skipped"
	default:
		r.Verdict, r.Reason = Pass, ""
		if cases > 0 {
			r.Reason = fmt.Sprintf("%d tests, %d skipped", cases, skipped)
		}
	}
}
