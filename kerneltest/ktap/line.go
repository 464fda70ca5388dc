package ktap

import (
	"regexp"
	"strings"
	"sync"
)

// patterns are what lines look like. They are compiled when they are needed: vmm's
// other commands should start at once.
type patterns struct {
	escape, printk, inside, version, plan, result, bail, directive, subtest, selftest, time *regexp.Regexp
}

var lines = sync.OnceValue(func() patterns {
	return patterns{
		// What sets a terminal's colours and title (ECMA-48).
		escape: regexp.MustCompile(`\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\a\x1b]*(?:\a|\x1b\\))`),
		printk: regexp.MustCompile(`^(<\d+>)?\[ *\d+\.\d+\](\[ *[TC]\d+\])? ?`),
		// Where the kernel's next line begins inside of another one.
		inside:  regexp.MustCompile(`(<\d+>)?\[ *\d+\.\d{6}\](\[ *[TC]\d+\])? `),
		version: regexp.MustCompile(`^K?TAP version \d+$`),
		plan:    regexp.MustCompile(`^1\.\.(\d+)(?:\s*#\s*(?i:SKIP\S*)?\s*(.*))?$`),
		result:  regexp.MustCompile(`^(not )?ok(?:\s+(\d+))?(?:\s*-(?:\s+|$)|\s+|$)(.*)$`),
		bail:    regexp.MustCompile(`^(?i:Bail out!)`),
		// What follows a test's name.
		directive: regexp.MustCompile(`(?i)^(.*?)\s*(?:^|\s)#\s*(SKIP\S*|TODO\b|XFAIL\b|XPASS\b|timeout\b|error\b|exit=\d+$)\s*(.*)$`),
		time:      regexp.MustCompile(`\s+#\s*time=\S+`), // another one in each run
		subtest:   regexp.MustCompile(`^# Subtest:\s*(.*)$`),
		// What kselftest prints in front of a test.
		selftest: regexp.MustCompile(`^# selftests: `),
	}
})

// Printk takes what the kernel puts in front of a line off it.
func Printk(line string) string { return line[len(lines().printk.FindString(line)):] }

// isReport reports whether a line, without what is in front of it, is of a report.
func (p *patterns) isReport(body string) bool {
	return p.version.MatchString(body) || p.plan.MatchString(body) || p.result.MatchString(body) || p.bail.MatchString(body)
}

// Line takes the next line, without the newline. What is no report is passed over.
//
// A program's line on a console may be cut by lines of the kernel, and goes on after
// them: it is put together again where only that makes sense of it.
func (r *Reader) Line(line string) {
	is := lines()
	if strings.Contains(line, "\x1b") {
		line = is.escape.ReplaceAllString(line, "")
	}
	line = strings.TrimRight(line, "\r ")
	body := Printk(line)
	ofKernel := len(body) < len(line)
	for at := is.inside.FindStringIndex(body); at != nil; at = is.inside.FindStringIndex(body) {
		head := strings.TrimRight(body[:at[0]], " ")
		switch {
		case ofKernel || is.isReport(strings.TrimLeft(head, " ")):
			r.line(head)
		case head != "":
			r.cut = body[:at[0]]
		}
		body, ofKernel = Printk(body[at[0]:]), true
	}
	if !ofKernel && r.cut != "" {
		whole := r.cut + body
		r.cut = ""
		if !is.isReport(strings.TrimSpace(body)) && is.isReport(strings.TrimSpace(whole)) {
			body = whole
		}
	}
	r.line(body)
}

// unquote takes the "# " off a line that kselftest has put in front of what a test
// printed, and counts it as two columns of indentation. It returns how many it took.
func (r *Reader) unquote(indent int, body string) (int, string, int) {
	is := lines()
	for n := 0; ; n++ {
		inner, ok := strings.CutPrefix(body, "# ")
		inner = strings.TrimLeft(inner, " ")
		if !ok || n >= r.quotes && !is.version.MatchString(inner) {
			return indent, body, n
		}
		indent, body = indent+len(body)-len(inner), inner
	}
}
