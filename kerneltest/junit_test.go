package kerneltest

import (
	"encoding/xml"
	"strings"
	"testing"
	"time"

	"vmm/kerneltest/crash"
	"vmm/kerneltest/ktap"
)

// of is a result of a kernel "k" and a test "t".
func of(v Verdict, reason string) Result {
	return Result{VM: &VM{Kernel: Kernel{Name: "k"}, Test: Test{Name: "t"}}, Verdict: v, Reason: reason, Duration: 1500 * time.Millisecond}
}

// report writes and reads a report.
func report(t *testing.T, rs Results) (text string, all junitSuites) {
	t.Helper()
	var b strings.Builder
	if err := rs.WriteJUnit(&b); err != nil {
		t.Fatal(err)
	}
	if err := xml.Unmarshal([]byte(b.String()), &all); err != nil {
		t.Fatalf("%v:\n%s", err, b.String())
	}
	return b.String(), all
}

// TestJUnit has each verdict as what CI systems take for it.
func TestJUnit(t *testing.T) {
	tests := of(Fail, "1 of 4 tests failed")
	tests.Output, tests.Console = "the output", "the console"
	tests.Report.Cases = []ktap.Case{{Name: "a", Result: ktap.Pass}, {Name: "b", Result: ktap.Fail, Detail: "expected 1\ngot 2"},
		{Name: "c", Result: ktap.Skip, Detail: "no disk"}, {Name: "d", Result: ktap.Todo}}
	crashed := of(Crash, "oops: BUG")
	crashed.Findings = []crash.Finding{{Kind: "oops", Line: "BUG", Excerpt: "before\nBUG"}}
	passed := of(Pass, "")
	passed.Console = "the console"
	_, all := report(t, Results{passed, of(Skip, "all tests were skipped"), of(NoBoot, "no kernel"), of(Timeout, "late"), crashed, tests, of(Cancelled, "while it ran")})
	if all.Tests != 11 || all.Failures != 2 || all.Errors != 4 || len(all.Suites) != 7 {
		t.Errorf("in all %d tests, %d failures, %d errors, %d suites", all.Tests, all.Failures, all.Errors, len(all.Suites))
	}
	for i, want := range []struct{ failure, err, skipped string }{
		{}, {skipped: "all tests were skipped"}, {err: "no boot: no kernel"}, {err: "timeout: late"}, {err: "crash: oops: BUG"},
		{failure: "1 of 4 tests failed"}, {err: "cancelled: while it ran"},
	} {
		s := all.Suites[i]
		c := s.Cases[0]
		message := func(d *junitDetail) string {
			if d == nil {
				return ""
			}
			return d.Message
		}
		if message(c.Failure) != want.failure || message(c.Error) != want.err || message(c.Skipped) != want.skipped ||
			s.Name != "k: t" || c.Name != "t" || c.Class != "k" || c.Time != 1.5 || s.Time != 1.5 {
			t.Errorf("suite %d: %+v, want %+v", i, c, want)
		}
	}
	if s := all.Suites[0]; s.Console != "" {
		t.Errorf("the console of what passed: %q", s.Console)
	}
	if c := all.Suites[4].Cases[0]; c.Error.Text != "oops\nbefore\nBUG\n\n" {
		t.Errorf("the crash: %q", c.Error.Text)
	}
	s := all.Suites[5]
	if s.Tests != 5 || s.Failures != 2 || s.Skipped != 2 || s.Output != "the output" || s.Console != "the console" {
		t.Errorf("the suite with tests: %+v", s)
	}
	if b := s.Cases[2]; b.Class != "k.t" || b.Failure == nil || b.Failure.Message != "expected 1" || b.Failure.Text != "expected 1\ngot 2" {
		t.Errorf("a test that failed: %+v", b)
	}
	if s.Cases[1].Failure != nil || s.Cases[3].Skipped == nil || s.Cases[3].Skipped.Message != "no disk" || s.Cases[4].Skipped == nil {
		t.Errorf("the others: %+v", s.Cases)
	}
}

// TestJUnitText holds what cannot be in XML out of it, wherever it comes from.
func TestJUnitText(t *testing.T) {
	for _, c := range []struct{ name, in, want string }{
		{"plain", "plain", "plain"},
		{"lines", "a\nb\tc", "a\nb\tc"},
		{"carriage returns", "a\r\nb", "a\nb"},
		{"colours", "\x1b[31mred\x1b[0m", "^[[31mred^[[0m"},
		{"NUL, BEL and backspace", "a\x00b\x07c\x08", "a^@b^Gc^H"},
		{"DEL and C1", "a\x7fb\u0085c", `a^?b\x85c`},
		{"markup", "<a b=\"c\">&]]>'", "<a b=\"c\">&]]>'"},
		{"no UTF-8", "a\xffb\xc3", `a\xffb\xc3`},
		{"no characters", "a\uFFFEb\uFFFFc", `a\ufffeb\uffffc`},
		{"others", "ä→😀", "ä→😀"},
	} {
		r := of(Fail, c.in)
		r.VM.Kernel.Name, r.VM.Test.Name = c.in, c.in
		r.Output, r.Console = c.in, c.in
		r.Report.Cases = []ktap.Case{{Name: c.in, Result: ktap.Fail, Detail: c.in}}
		text, all := report(t, Results{r})
		for _, x := range text {
			if x < ' ' && x != '\n' && x != '\t' || x == '\uFFFD' {
				t.Errorf("%s: %U in the report", c.name, x)
			}
		}
		s := all.Suites[0]
		first, _, _ := strings.Cut(c.want, "\n")
		for what, got := range map[string][2]string{
			"suite": {s.Name, c.want + ": " + c.want}, "output": {s.Output, c.want}, "console": {s.Console, c.want},
			"name": {s.Cases[0].Name, c.want}, "class": {s.Cases[0].Class, c.want}, "reason": {s.Cases[0].Failure.Message, c.want},
			"case": {s.Cases[1].Name, c.want}, "case's class": {s.Cases[1].Class, c.want + "." + c.want},
			"message": {s.Cases[1].Failure.Message, first}, "detail": {s.Cases[1].Failure.Text, c.want},
		} {
			if got[0] != got[1] {
				t.Errorf("%s: %s: %q, want %q", c.name, what, got[0], got[1])
			}
		}
	}
	// The end of what is long, cut inside a character.
	r := of(Fail, "x")
	r.Output = strings.Repeat("a", 100) + "ä" + strings.Repeat("b", junitText-1)
	if _, all := report(t, Results{r}); all.Suites[0].Output != strings.Repeat("b", junitText-1) {
		t.Errorf("%d bytes of a long output", len(all.Suites[0].Output))
	}
}

func TestAnnotations(t *testing.T) {
	crashed := of(Crash, "oops: 100%")
	crashed.VM.Test.Name = "a,b\r\nc"
	crashed.Findings = []crash.Finding{{Excerpt: "before\r\nBUG: 1, 2"}}
	var b strings.Builder
	if err := (Results{of(Pass, ""), crashed, of(Skip, ""), of(Cancelled, "while it ran")}).WriteAnnotations(&b); err != nil {
		t.Fatal(err)
	}
	want := "::error title=k%3A a%2Cb^M^Jc crash::oops: 100%25%0Abefore%0ABUG: 1, 2\n" +
		"::error title=k%3A t cancelled::while it ran\n"
	if b.String() != want {
		t.Errorf("got %q", b.String())
	}
}
