// Package ktap reads the results of tests in the formats TAP 13 and 14, and KTAP as
// KUnit and kselftest print it, out of whatever else a program or a kernel's console
// prints.
//
// An output may hold several streams of results, one after the other. A stream begins
// with a version line, a plan, or a result that has the number 1, and each must have
// as many results as its plan announces. A stream without a plan is taken as it is, for
// KTAP allows that. Tests have parts by indentation, as subtests of TAP 14 and KTAP do,
// or behind "# ", as kselftest prints what its tests print.
//
// See https://testanything.org/tap-version-14-specification.html, and
// Documentation/dev-tools/ktap.rst in the kernel's tree.
package ktap

import "strings"

// Result is how a test ended.
type Result string

// The results.
const (
	Pass Result = "pass"
	Fail Result = "fail"
	Skip Result = "skip"
	Todo Result = "todo" // failed, as is known: TODO and XFAIL
)

// Case is one test. Its name has those of the tests that it is a part of, with slashes
// between. A test that has parts is only a case if it failed and none of them did.
type Case struct {
	Name   string
	Result Result
	Detail string // the reason given, and the diagnostics before it
}

// Report is what was found.
type Report struct {
	Cases []Case
	// Problems are what is wrong with the report itself: tests that are missing or too
	// many, or an end before time.
	Problems []string
}

// Failed reports whether a test failed or the report is not whole.
func (r *Report) Failed() bool { return r.Count(Fail) > 0 || len(r.Problems) > 0 }

// Count is the number of cases with a result.
func (r *Report) Count(want Result) int {
	n := 0
	for _, c := range r.Cases {
		if c.Result == want {
			n++
		}
	}
	return n
}

// Parse reads a whole output.
func Parse(text string) *Report {
	var r Reader
	for _, line := range strings.Split(text, "\n") {
		r.Line(line)
	}
	return r.Report()
}
