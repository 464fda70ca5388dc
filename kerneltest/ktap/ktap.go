// Package ktap reads the results of tests in the formats TAP 13 and 14, and KTAP
// as KUnit and kselftest print it, also from a kernel's console.
package ktap

import (
	"regexp"
	"strconv"
	"strings"
	"sync"
)

// Result is how a test ended.
type Result string

// The results.
const (
	Pass Result = "pass"
	Fail Result = "fail"
	Skip Result = "skip"
	Todo Result = "todo" // failed, as is known
)

// Case is one test. Its name has those of the tests that it is a part of.
type Case struct {
	Name   string
	Result Result
	Detail string // the reason given, and the diagnostics before it
}

// Report is what was found.
type Report struct {
	Cases []Case
	// Problems are what is wrong with the report itself: tests that are missing, or
	// an end before time.
	Problems []string
}

// Failed tells whether a test failed or the report is not whole.
func (r *Report) Failed() bool {
	for _, c := range r.Cases {
		if c.Result == Fail {
			return true
		}
	}
	return len(r.Problems) > 0
}

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

// patterns are what lines look like. They are compiled when they are needed: vmm's
// other commands should start at once.
type patterns struct{ printk, version, plan, result, directive, subtest *regexp.Regexp }

var lines = sync.OnceValue(func() patterns {
	return patterns{
		printk:  regexp.MustCompile(`^(<\d+>)?\[ *\d+\.\d+\](\[ *[TC]\d+\])? ?`),
		version: regexp.MustCompile(`^(K?TAP) version \d+`),
		plan:    regexp.MustCompile(`^1\.\.(\d+)(?:\s*#\s*(.*))?$`),
		result:  regexp.MustCompile(`^(not )?ok\b(?:\s+(\d+))?\s*-?\s*(.*)$`),
		// What follows a test's name.
		directive: regexp.MustCompile(`(?i)^(.*?)\s*(?:^|\s)#\s*(SKIP|TODO|XFAIL|XPASS|timeout|error)\b\s*(.*)$`),
		subtest:   regexp.MustCompile(`^# Subtest:\s*(.*)$`),
	}
})

// Printk takes what the kernel puts in front of a line off it.
func Printk(line string) string { return line[len(lines().printk.FindString(line)):] }

// maxDiagnostics bounds the diagnostics that are kept of one test, in bytes.
const maxDiagnostics = 16 << 10

// level is one depth of nesting.
type level struct {
	indent  int
	planned int // -1 while unknown
	seen    int
	name    string // of the subtest, if it is told before
	cases   []Case
}

// Reader reads a report a line at a time.
type Reader struct {
	report      Report
	levels      []*level
	started     bool
	diagnostics strings.Builder
	yaml        bool
	bailed      bool
}

// Parse reads a whole report.
func Parse(text string) *Report {
	var r Reader
	for _, line := range strings.Split(text, "\n") {
		r.Line(line)
	}
	return r.Report()
}

// Line takes the next line. Those that are no report are passed over.
func (r *Reader) Line(line string) {
	line = strings.TrimRight(Printk(line), "\r ")
	body := strings.TrimLeft(line, " ")
	indent := len(line) - len(body)
	if r.bailed || body == "" {
		return
	}
	if r.yaml {
		r.note(body)
		r.yaml = body != "..."
		return
	}
	is := lines()
	switch {
	case is.version.MatchString(body):
		r.started = true
		r.at(indent)
	case is.plan.MatchString(body):
		r.started = true
		m := is.plan.FindStringSubmatch(body)
		n, err := strconv.Atoi(m[1])
		if err != nil {
			return
		}
		l := r.at(indent)
		l.planned = n
		if n == 0 && m[2] != "" && len(r.levels) == 1 {
			l.cases = append(l.cases, Case{Name: "all", Result: Skip, Detail: m[2]})
		}
	case !r.started:
	case is.subtest.MatchString(body):
		r.at(indent).name = is.subtest.FindStringSubmatch(body)[1]
	case body == "---":
		r.yaml = true
	case strings.HasPrefix(body, "Bail out!"):
		r.report.Problems = append(r.report.Problems, body)
		r.bailed = true
	case is.result.MatchString(body):
		r.result(indent, is.result.FindStringSubmatch(body))
	case strings.HasPrefix(body, "#"):
		r.note(strings.TrimSpace(body[1:]))
	default: // what a test prints beside
		r.note(body)
	}
}

func (r *Reader) note(s string) {
	if r.started && r.diagnostics.Len()+len(s) < maxDiagnostics {
		r.diagnostics.WriteString(s + "\n")
	}
}

// at is the level of an indentation: a new one, or one that is open, which ends
// those in it only when its own result comes.
func (r *Reader) at(indent int) *level {
	for _, l := range r.levels {
		if l.indent == indent {
			return l
		}
	}
	l := &level{indent: indent, planned: -1}
	i := len(r.levels)
	for i > 0 && r.levels[i-1].indent > indent {
		i--
	}
	r.levels = append(r.levels[:i], append([]*level{l}, r.levels[i:]...)...)
	return l
}

// result takes a test's result. The levels in it were its parts.
func (r *Reader) result(indent int, m []string) {
	name, detail := m[3], ""
	how := Pass
	if m[1] != "" {
		how = Fail
	}
	if d := lines().directive.FindStringSubmatch(name); d != nil {
		name, detail = d[1], d[3]
		switch strings.ToUpper(d[2]) {
		case "SKIP":
			how = Skip
		case "TODO", "XFAIL":
			if how == Fail {
				how = Todo
			}
		default:
			detail = strings.TrimSpace(d[2] + " " + detail)
		}
	}
	if name == "" {
		name = "test " + m[2]
	}
	l := r.at(indent)
	l.seen++
	parts := r.close(indent, name)
	if len(parts) == 0 {
		if r.diagnostics.Len() > 0 && how != Pass {
			detail = strings.TrimSpace(detail + "\n" + r.diagnostics.String())
		}
		l.cases = append(l.cases, Case{name, how, detail})
	} else {
		failed := false
		for i := range parts {
			parts[i].Name = name + "/" + parts[i].Name
			failed = failed || parts[i].Result == Fail
		}
		l.cases = append(l.cases, parts...)
		if how == Fail && !failed { // it has a reason of its own
			l.cases = append(l.cases, Case{name, how, strings.TrimSpace(detail + "\n" + r.diagnostics.String())})
		}
	}
	r.diagnostics.Reset()
}

// close ends the levels deeper than an indentation, and returns their cases.
func (r *Reader) close(indent int, name string) (cases []Case) {
	for len(r.levels) > 0 && r.levels[len(r.levels)-1].indent > indent {
		l := r.levels[len(r.levels)-1]
		r.levels = r.levels[:len(r.levels)-1]
		r.missing(l, name)
		cases = append(l.cases, cases...)
	}
	return cases
}

// missing notes that a level is not whole.
func (r *Reader) missing(l *level, name string) {
	if l.planned >= 0 && l.seen < l.planned {
		where := ""
		if name != "" {
			where = name + ": "
		}
		r.report.Problems = append(r.report.Problems, where+strconv.Itoa(l.planned)+" tests were announced, "+strconv.Itoa(l.seen)+" ended")
	}
}

// Report ends the report and returns it.
func (r *Reader) Report() *Report {
	for len(r.levels) > 0 {
		l := r.levels[len(r.levels)-1]
		r.levels = r.levels[:len(r.levels)-1]
		r.missing(l, l.name)
		prefix := ""
		if len(r.levels) > 0 && l.name != "" {
			prefix = l.name + "/"
		}
		for i := range l.cases {
			l.cases[i].Name = prefix + l.cases[i].Name
		}
		if len(r.levels) > 0 {
			up := r.levels[len(r.levels)-1]
			up.cases = append(up.cases, l.cases...)
		} else {
			r.report.Cases = append(r.report.Cases, l.cases...)
		}
	}
	return &r.report
}
