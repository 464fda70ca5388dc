package ktap

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

func summary(r *Report) string {
	var out []string
	for _, c := range r.Cases {
		out = append(out, fmt.Sprintf("%s=%s", c.Name, c.Result))
	}
	for _, p := range r.Problems {
		out = append(out, "!"+p)
	}
	return strings.Join(out, "; ")
}

func TestParse(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"no report", "hello\nok then\nnot ok either", ""},
		{"flat", "TAP version 13\n1..4\nok 1 - one\nnot ok 2 two\nok 3 three # SKIP no disk\nnot ok 4 four # TODO later",
			"one=pass; two=fail; three=skip; four=todo"},
		{"plan at the end", "TAP version 13\nok 1 a\nok 2 b\n1..2", "a=pass; b=pass"},
		{"without names", "1..2\nok 1\nnot ok", "test 1=pass; test 2=fail"},
		{"without numbers, plan at the end", "ok - a\n# why\nnot ok - b\nok\n1..3", "a=pass; b=fail; test 3=pass"},
		{"prose and a plan", "ok then\nok - on we go\n1..1\nok 1 a", "a=pass"},
		{"only a version", "KTAP version 1\n# begins", "!results were announced, and there are none"},
		{"only a version, then others", "TAP version 13\nhello\nTAP version 13\n1..1\nok 1 a", "a=pass; !results were announced, and there are none"},
		{"a version twice", "TAP version 13\nTAP version 13\n1..1\nok 1 a", "a=pass"},
		{"a version and no tests of one that passed", "TAP version 13\n1..1\n# selftests: a: b\n# TAP version 13\nok 1 selftests: a: b", "selftests: a: b=pass"},
		{"missing", "1..3\nok 1 a", "a=pass; !3 tests were announced, 1 ended"},
		{"all skipped", "1..0 # SKIP no hardware", "all=skip"},
		{"bail out", "1..2\nok 1 a\nBail out! disk full\nok 2 b", "a=pass; !Bail out! disk full; !2 tests were announced, 1 ended"},
		{"kselftest", "TAP version 13\n1..2\n# selftests: net: a\n# TAP version 13\n# 1..1\n# ok 1 inner\nok 1 selftests: net: a\n# timeout set to 45\nnot ok 2 selftests: net: b # exit=1",
			"selftests: net: a/inner=pass; selftests: net: b=fail"},
		{"kunit on a console", `[    0.060000] KTAP version 1
[    0.060000] 1..2
[    0.061000]     KTAP version 1
[    0.061000]     # Subtest: first
[    0.061000]     1..2
[    0.062000]     ok 1 good
[    0.062000]     # bad: EXPECTATION FAILED at lib/x.c:10
[    0.063000]     not ok 2 bad
[    0.063000] # first: pass:1 fail:1 skip:0 total:2
[    0.064000] not ok 1 first
[    0.065000]     KTAP version 1
[    0.065000]     # Subtest: second
[    0.065000]     1..2
[    0.066000]     ok 1 only
[    0.070000] BUG: kernel NULL pointer dereference`,
			"first/good=pass; first/bad=fail; second/only=pass; !second: 2 tests were announced, 1 ended; !2 tests were announced, 1 ended"},
		{"deep", "KTAP version 1\n1..1\n  KTAP version 1\n  1..1\n    KTAP version 1\n    1..1\n    ok 1 leaf\n  ok 1 mid\nok 1 top", "top/mid/leaf=pass"},
		{"suite fails by itself", "KTAP version 1\n1..1\n  1..1\n  ok 1 a\nnot ok 1 suite", "suite/a=pass; suite=fail"},
		{"yaml", "TAP version 13\n1..2\nnot ok 1 a\n  ---\n  message: ok 9 no result\n  ...\nok 2 b", "a=fail; b=pass"},
		{"thread ids", "[    0.06][    T1] TAP version 14\n[    0.06][    T1] 1..1\n[    0.07][    T1] ok 1 a", "a=pass"},
	} {
		if got := summary(Parse(c.text)); got != c.want {
			t.Errorf("%s:\n got %s\nwant %s", c.name, got, c.want)
		}
	}
	r := Parse("TAP version 13\n1..1\n# expected 1\n# got 2\nnot ok 1 a # XPASS")
	if d := r.Cases[0].Detail; !strings.Contains(d, "expected 1\ngot 2") {
		t.Errorf("the detail is %q", d)
	}
	r = Parse("1..2\nnot ok 1 a\n# (in test file x.bats, line 8)\n# `false' failed\nok 2 b")
	if d := r.Cases[0].Detail; d != "(in test file x.bats, line 8)\n`false' failed" {
		t.Errorf("the detail is %q", d)
	}
	r = Parse("1..1\nnot ok 1 a")
	if !r.Failed() || r.Count(Fail) != 1 || Parse("1..1\nok 1").Failed() {
		t.Error("Failed is wrong")
	}
}

func FuzzParse(f *testing.F) {
	f.Add("KTAP version 1\n1..1\n  1..2\n  ok 1 a\nnot ok 1 b # SKIP\nBail out!")
	f.Add("[ 1.0] 1..3\n---\nok")
	f.Add("# selftests: a\n# TAP version 13\n# ok 1 a[    1.000000] x\n    # Subtest: b\n    1..2\nok 1 c\n1..1\nok 1 d\n1..1")
	f.Fuzz(func(t *testing.T, text string) {
		r := Parse(text)
		// A line of a console may be several.
		if n := strings.Count(text, "\n") + strings.Count(text, "[") + 2; len(r.Cases) > n {
			t.Errorf("%d cases of %d lines", len(r.Cases), n)
		}
		for _, c := range r.Cases {
			if c.Name == "" || len(c.Name) > maxName || !slices.Contains([]Result{Pass, Fail, Skip, Todo}, c.Result) {
				t.Errorf("a case %+v", c)
			}
		}
	})
}

// TestBounds holds what is kept of an output that is made to be large.
func TestBounds(t *testing.T) {
	long := strings.Repeat("ä", maxName)
	r := Parse("1..1\n" + strings.Repeat("x", 2*maxDiagnostics) + "\n# " + long + "\nnot ok 1 " + long)
	if c := r.Cases[0]; len(c.Name) > maxName || !strings.HasPrefix(long, c.Name) || len(c.Detail) > maxDiagnostics || len(r.Problems) > 0 {
		t.Errorf("a name of %d bytes, details of %d, %v", len(c.Name), len(c.Detail), r.Problems)
	}
	many := Reader{found: maxCases - 5}
	for _, line := range strings.Split("1..10\n"+strings.Repeat("ok\n", 10), "\n") {
		many.Line(line)
	}
	if r = many.Report(); len(r.Cases) != 5 || len(r.Problems) != 1 || !strings.Contains(r.Problems[0], "more than 65536 tests") {
		t.Errorf("%d cases, %v", len(r.Cases), r.Problems)
	}
	var deep strings.Builder
	for i := range 3 * maxDepth {
		fmt.Fprintf(&deep, "%s1..1\n", strings.Repeat(" ", i))
	}
	for i := 3*maxDepth - 1; i >= 0; i-- {
		fmt.Fprintf(&deep, "%sok 1 %d\n", strings.Repeat(" ", i), i)
	}
	if r = Parse(deep.String()); len(r.Cases) == 0 || !r.Failed() { // what is too deep is not read as it is meant
		t.Errorf("deep: %+v", r)
	}
	stamps := strings.Repeat("[    1.000000] ", 1<<10)
	if r = Parse("1..1\nok 1 a" + stamps + "b"); summary(r) != "a=pass" {
		t.Errorf("stamps: %s", summary(r))
	}
}
