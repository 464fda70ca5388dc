package ktap

import (
	"fmt"
	"strconv"
	"strings"
)

// Bounds of what is kept: a guest prints what it likes.
const (
	maxDiagnostics = 16 << 10 // of one test, in bytes
	maxName        = 1 << 10  // of one test, with those that it is a part of, in bytes
	maxDepth       = 32       // levels
	maxCases       = 1 << 16
	maxUnnumbered  = 1 << 10
)

// level is one depth of nesting, in the stream that it is in.
type level struct {
	indent  int
	name    string // of the subtest, if it is told before
	planned int    // -1 while unknown
	seen    int    // results
	again   int    // results before the number 1 came again; 0 if it has not
	ended   bool   // by a plan behind all of its results
	bailed  bool
	version bool // a version line began it
	loose   bool // nothing but its results says that it is a stream
	numbers bool // its results have some
	cases   []Case
}

// barren reports whether a stream was announced, and has nothing.
func (l *level) barren() bool { return l.version && l.fresh() }

// fresh reports whether nothing was told of the stream but that it begins.
func (l *level) fresh() bool { return l.planned < 0 && l.seen == 0 && !l.bailed }

// restart begins another stream, of which some results are there.
func (l *level) restart(planned, seen int) {
	*l = level{indent: l.indent, name: l.name, planned: planned, seen: seen, numbers: seen > 0, cases: l.cases}
}

// Reader reads an output a line at a time. The zero value is ready.
type Reader struct {
	report      Report
	levels      []*level // by indentation; none before the first stream
	diagnostics strings.Builder
	cut         string // the beginning of a line that the kernel's came into

	found int // cases

	unnumbered [][]string // results before the first stream, which a plan behind them may make one of
	begins     bool       // the last line was a version

	quotes int // how many "# " are in front of what is read

	subtest       string // of a level that is yet to come, further in than
	subtestIndent int

	yaml       bool // a block of it is open, with
	yamlIndent int
	yamlOf     *level // whose last case it tells of; nil if it is of none that is kept
	behind     bool   // diagnostics may be of that case, which had none in front
	resultAt   int    // the indentation of the last line, if it was a result; else -1
}

// line takes the next line, without what the kernel puts in front.
func (r *Reader) line(line string) {
	body := strings.TrimLeft(line, " ")
	if body == "" {
		return
	}
	indent, body, quotes := r.unquote(len(line)-len(body), body)
	is := lines()
	if r.yaml && (indent >= r.yamlIndent || body == "...") {
		if r.yaml = body != "..."; r.yaml {
			r.describe(body)
		}
		return
	}
	r.yaml = false
	again := r.begins
	r.begins = false
	isYAML := body == "---" && r.resultAt >= 0 && indent > r.resultAt
	r.resultAt = -1
	switch {
	case is.version.MatchString(body):
		r.version(indent, again)
		r.quotes = max(r.quotes, quotes)
	case is.plan.MatchString(body):
		r.plan(indent, is.plan.FindStringSubmatch(body))
	case is.bail.MatchString(body):
		r.at(indent).bailed = true
		r.report.Problems = append(r.report.Problems, body)
	case is.selftest.MatchString(body):
		r.quotes = quotes + 1
	case is.subtest.MatchString(body):
		r.begin(indent, is.subtest.FindStringSubmatch(body)[1])
	case isYAML:
		r.yaml, r.yamlIndent = true, indent
	case is.result.MatchString(body):
		r.result(indent, is.result.FindStringSubmatch(body), quotes)
	case strings.HasPrefix(body, "#"):
		text := strings.TrimSpace(body[1:])
		r.note(text)
		if r.behind && !strings.HasPrefix(text, "Totals:") { // TAP's libraries have them there, the kernel's in front
			r.describe(text)
		}
	default: // what a test prints beside
		r.behind = false
		r.note(body)
	}
}

// note keeps a line for the test whose result comes next.
func (r *Reader) note(s string) {
	if len(r.levels) > 0 && r.diagnostics.Len()+len(s) < maxDiagnostics {
		r.diagnostics.WriteString(s + "\n")
	}
}

// describe adds a line to what is told of the last case, behind its result.
func (r *Reader) describe(s string) {
	if l := r.yamlOf; l != nil {
		if c := &l.cases[len(l.cases)-1]; len(c.Detail)+len(s) < maxDiagnostics {
			c.Detail = strings.TrimSpace(c.Detail + "\n" + s)
		}
	}
}

// find is the level of an indentation, nil if it is not open.
func (r *Reader) find(indent int) *level {
	for _, l := range r.levels {
		if l.indent == indent {
			return l
		}
	}
	return nil
}

// at is the level of an indentation: a new one, or one that is open, which ends
// those in it only when its own result comes.
func (r *Reader) at(indent int) *level {
	if l := r.find(indent); l != nil {
		return l
	}
	if n := len(r.levels); n == maxDepth {
		return r.levels[n-1]
	}
	l := &level{indent: indent, planned: -1}
	if r.subtest != "" && indent > r.subtestIndent {
		l.name, r.subtest = r.subtest, ""
	}
	i := len(r.levels)
	for i > 0 && r.levels[i-1].indent > indent {
		i--
	}
	r.levels = append(r.levels[:i], append([]*level{l}, r.levels[i:]...)...)
	return l
}

// version begins a stream. One that is open there, or further in, was cut off. A version that
// comes twice is one.
func (r *Reader) version(indent int, again bool) {
	r.begins = true
	if l := r.find(indent); l != nil && l.fresh() && (again || !l.version) {
		r.keep(r.close(indent, "", false))
		l.version = true
		return
	}
	r.keep(r.close(indent-1, "", false))
	r.at(indent).version = true
}

// begin names the subtest that begins: KTAP says so inside, where the stream is new,
// TAP 14 in front.
func (r *Reader) begin(indent int, name string) {
	l := r.find(indent)
	if indent > 0 && (l == nil || l.fresh()) {
		r.at(indent).name = name
		return
	}
	r.at(indent)
	r.subtest, r.subtestIndent = name, indent
}

// plan takes a plan: in front of the results or behind them.
func (r *Reader) plan(indent int, m []string) {
	n, err := strconv.Atoi(m[1])
	if err != nil {
		return
	}
	r.adopt(indent, n)
	l := r.at(indent)
	switch before := l.again; {
	case l.planned >= 0 || l.bailed: // another stream's
		now := 0
		if before > 0 {
			now, l.seen = l.seen-before, before
		}
		l.cases = append(l.cases, r.close(indent, "", false)...)
		r.check(l, l.name)
		l.restart(n, now)
	case before > 0 && n == l.seen-before:
		r.problem(l.name, "%d tests ended, without a plan, before another stream", before)
		l.restart(n, n)
	default:
		l.planned, l.loose = n, false
	}
	l.ended = l.seen > 0 && l.seen == n
	if n == 0 && len(r.levels) == 1 && l.seen == 0 {
		l.cases = append(l.cases, r.test(Case{Name: "all", Result: Skip, Detail: m[2]})...)
	}
}

// adopt makes a stream of results without numbers, if a plan comes behind just as many.
func (r *Reader) adopt(indent, planned int) {
	if len(r.levels) == 0 && planned == len(r.unnumbered) && planned > 0 {
		r.at(indent)
		for _, m := range r.unnumbered {
			r.result(indent, m, 0)
		}
	}
	r.unnumbered = nil
}

// number takes the number of a result, and reports whether the result counts: where
// there is nothing but results, or the plan is fulfilled, "ok" without a number is
// prose.
func (r *Reader) number(indent int, text string) (*level, bool) {
	n, err := strconv.Atoi(text)
	if len(r.levels) == 0 {
		if err != nil || n != 1 {
			return nil, false
		}
		r.at(indent).loose = true
	}
	l := r.at(indent)
	full := l.planned >= 0 && l.seen >= l.planned && l.seen > 0
	if full && l.numbers && err != nil {
		return nil, false
	}
	if l.ended || full && n == 1 {
		l.cases = append(l.cases, r.close(indent, "", false)...)
		r.check(l, l.name)
		l.restart(-1, 0)
		l.loose = n == 1
	}
	if l.bailed || l.loose && n != 1 && n != l.seen-l.again+1 {
		return nil, false
	}
	if n == 1 && l.seen > 0 {
		l.again = l.seen
	}
	l.seen++
	l.numbers = l.numbers || err == nil
	return l, true
}

// result takes a test's result. The levels in it were its parts.
func (r *Reader) result(indent int, m []string, quotes int) {
	l, counts := r.number(indent, m[2])
	if !counts {
		if len(r.levels) == 0 && m[2] == "" && len(r.unnumbered) < maxUnnumbered {
			r.unnumbered = append(r.unnumbered, m)
		}
		r.note(m[0])
		return
	}
	how, name, detail := outcome(m)
	if name == "" {
		name = fmt.Sprintf("test %d", l.seen)
	}
	r.resultAt, r.quotes, r.subtest, r.yamlOf, r.behind = indent, quotes, "", nil, false
	parts := r.close(indent, name, how == Skip)
	failed := false
	for i := range parts {
		failed = failed || parts[i].Result == Fail
	}
	l.cases = append(l.cases, parts...)
	if len(parts) == 0 || how == Fail && !failed { // it has a reason of its own
		if how != Pass {
			detail = strings.TrimSpace(detail + "\n" + r.diagnostics.String())
		}
		if c := r.test(Case{join("", name), how, detail}); len(c) > 0 {
			l.cases = append(l.cases, c...)
			if how != Pass {
				r.yamlOf, r.behind = l, how == Fail && detail == ""
			}
		}
	}
	r.diagnostics.Reset()
}

// outcome is what a result's line says.
func outcome(m []string) (how Result, name, detail string) {
	how, name = Pass, lines().time.ReplaceAllString(m[3], "")
	if m[1] != "" {
		how = Fail
	}
	if d := lines().directive.FindStringSubmatch(name); d != nil {
		name, detail = d[1], d[3]
		switch word := strings.ToUpper(d[2]); {
		case strings.HasPrefix(word, "SKIP"):
			how = Skip
		case word == "XFAIL", word == "TODO" && how == Fail: // kselftest's "ok # XFAIL" is one
			how = Todo
		case word != "TODO":
			detail = strings.TrimSpace(d[2] + " " + detail)
		}
	}
	return how, strings.ReplaceAll(name, `\#`, "#"), detail
}

// test is a case to keep, or none if there are too many.
func (r *Reader) test(c Case) []Case {
	if r.found++; r.found > maxCases {
		if r.found == maxCases+1 {
			r.problem("", "there are more than %d tests", maxCases)
		}
		return nil
	}
	return []Case{c}
}

// join is the name of a part of a test.
func join(of, name string) string {
	if of != "" {
		name = of + "/" + name
	}
	if len(name) > maxName {
		name = strings.ToValidUTF8(name[:maxName], "")
	}
	return name
}

// close ends the levels deeper than an indentation, and returns their cases, with
// the name of the test that they are parts of: that of the outermost is name, if it is
// not empty. Tests may be missing in one that was skipped.
func (r *Reader) close(indent int, name string, skipped bool) (cases []Case) {
	for len(r.levels) > 0 && r.levels[len(r.levels)-1].indent > indent {
		n := len(r.levels) - 1
		l := r.levels[n]
		r.levels = r.levels[:n]
		outermost := n == 0 || r.levels[n-1].indent <= indent
		of := l.name
		if outermost && name != "" {
			of = name
		}
		if !skipped {
			r.check(l, of)
		}
		cases = append(l.cases, cases...)
		if n > 0 && of != "" {
			for i := range cases {
				cases[i].Name = join(of, cases[i].Name)
			}
		}
	}
	return cases
}

// keep puts the cases of streams that have ended where they belong.
func (r *Reader) keep(cases []Case) {
	if n := len(r.levels); n > 0 {
		l := r.levels[n-1]
		l.cases = append(l.cases, cases...)
	} else {
		r.report.Cases = append(r.report.Cases, cases...)
	}
}

// check notes that a stream is not whole.
func (r *Reader) check(l *level, name string) {
	switch {
	case l.barren() && len(r.levels) == 0:
		r.problem(name, "results were announced, and there are none")
	case l.planned < 0:
	case l.seen != l.planned:
		r.problem(name, "%d tests were announced, %d ended", l.planned, l.seen)
	case l.again > 0: // of a stream that was cut off and another one, or numbered wrongly
		r.problem(name, "%d tests were announced, and number 1 came again after %d", l.planned, l.again)
	}
}

// problem notes what is wrong with the report of a test.
func (r *Reader) problem(name, format string, args ...any) {
	if name != "" {
		name += ": "
	}
	r.report.Problems = append(r.report.Problems, name+fmt.Sprintf(format, args...))
}

// Report ends the report and returns it.
func (r *Reader) Report() *Report {
	r.keep(r.close(-1, "", false))
	return &r.report
}
