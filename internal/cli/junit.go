package cli

import (
	"encoding/xml"
	"fmt"
	"io"
	"os"
	"strings"
	"unicode/utf8"

	"vmm/kerneltest/ktap"
)

// The elements of a JUnit report, as CI systems read it.
type (
	junitSuites struct {
		XMLName  xml.Name     `xml:"testsuites"`
		Tests    int          `xml:"tests,attr"`
		Failures int          `xml:"failures,attr"`
		Errors   int          `xml:"errors,attr"`
		Suites   []junitSuite `xml:"testsuite"`
	}
	junitSuite struct {
		Name     string      `xml:"name,attr"`
		Tests    int         `xml:"tests,attr"`
		Failures int         `xml:"failures,attr"`
		Errors   int         `xml:"errors,attr"`
		Skipped  int         `xml:"skipped,attr"`
		Time     float64     `xml:"time,attr"` // seconds
		Cases    []junitCase `xml:"testcase"`
		Output   string      `xml:"system-out,omitempty"`
		Console  string      `xml:"system-err,omitempty"`
	}
	junitCase struct {
		Name    string       `xml:"name,attr"`
		Class   string       `xml:"classname,attr"`
		Time    float64      `xml:"time,attr,omitempty"`
		Failure *junitDetail `xml:"failure"`
		Error   *junitDetail `xml:"error"`
		Skipped *junitDetail `xml:"skipped"`
	}
	junitDetail struct {
		Message string `xml:"message,attr"`
		Text    string `xml:",chardata"`
	}
)

// junitText bounds the texts in a report, in bytes: their ends are kept.
const junitText = 256 << 10

// plain is a text without what XML cannot have.
func plain(s string) string {
	if len(s) > junitText {
		s = s[len(s)-junitText:]
	}
	return strings.Map(func(r rune) rune {
		if r == utf8.RuneError || r < ' ' && r != '\n' && r != '\t' {
			return -1
		}
		return r
	}, s)
}

// suite is a run as JUnit has it: its own tests, if it reports any, and the run
// itself.
func (t *testRun) suite() junitSuite {
	s := junitSuite{Name: t.name(), Time: t.took.Seconds(), Output: plain(t.output)}
	if t.verdict != passed {
		s.Console = plain(t.console)
	}
	whole := junitCase{Name: t.test.Name, Class: t.kernel.Name, Time: t.took.Seconds()}
	switch t.verdict {
	case passed:
	case skipped:
		whole.Skipped = &junitDetail{Message: t.reason}
	case failTest:
		whole.Failure = &junitDetail{Message: plain(t.reason)}
	default:
		text := ""
		for _, f := range t.findings {
			text += f.Kind + "\n" + f.Excerpt + "\n\n"
		}
		whole.Error = &junitDetail{Message: plain(string(t.verdict) + ": " + t.reason), Text: plain(text)}
	}
	s.Cases = append(s.Cases, whole)
	if t.report != nil {
		for _, c := range t.report.Cases {
			x := junitCase{Name: plain(c.Name), Class: t.kernel.Name + "." + t.test.Name}
			message, _, _ := strings.Cut(c.Detail, "\n")
			d := &junitDetail{Message: plain(message), Text: plain(c.Detail)}
			switch c.Result {
			case ktap.Fail:
				x.Failure = d
			case ktap.Skip, ktap.Todo:
				x.Skipped = d
			}
			s.Cases = append(s.Cases, x)
		}
	}
	for _, c := range s.Cases {
		s.Tests++
		switch {
		case c.Failure != nil:
			s.Failures++
		case c.Error != nil:
			s.Errors++
		case c.Skipped != nil:
			s.Skipped++
		}
	}
	return s
}

// writeJUnit writes the report of all runs.
func writeJUnit(path string, runs []*testRun) error {
	var all junitSuites
	for _, t := range runs {
		s := t.suite()
		all.Tests, all.Failures, all.Errors = all.Tests+s.Tests, all.Failures+s.Failures, all.Errors+s.Errors
		all.Suites = append(all.Suites, s)
	}
	b, err := xml.MarshalIndent(all, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(path, append([]byte(xml.Header), append(b, '\n')...), 0o644); err != nil {
		return fmt.Errorf("--junit: %w", err)
	}
	return nil
}

// shownLines is how much of its output is shown of a test that failed.
const shownLines = 30

// tellFailure prints why a run did not pass.
func (t *testRun) tellFailure(out io.Writer) {
	if t.verdict == passed || t.verdict == skipped {
		return
	}
	fmt.Fprintf(out, "\n--- %s: %s: %s\n", t.name(), t.verdict, t.reason)
	for _, f := range t.findings {
		fmt.Fprintf(out, "%s\n\n", f.Excerpt)
	}
	if t.report != nil {
		for _, c := range t.report.Cases {
			if c.Result == ktap.Fail {
				fmt.Fprintf(out, "not ok %s\n", c.Name)
				if c.Detail != "" {
					fmt.Fprintf(out, "    %s\n", strings.ReplaceAll(c.Detail, "\n", "\n    "))
				}
			}
		}
	}
	if len(t.findings) == 0 {
		if s := lastLines(t.output, shownLines); s != "" {
			fmt.Fprintln(out, s)
		}
		if t.verdict == notBoot || t.verdict == hang {
			fmt.Fprintf(out, "The end of the console:\n%s\n", lastLines(t.console, shownLines))
		}
	}
}

// annotate prints what GitHub shows beside the change.
func (t *testRun) annotate(out io.Writer) {
	if t.verdict == passed || t.verdict == skipped {
		return
	}
	escape := strings.NewReplacer("%", "%25", "\r", "%0D", "\n", "%0A")
	text := t.reason
	for _, f := range t.findings {
		text += "\n" + f.Excerpt
	}
	title := strings.NewReplacer("%", "%25", "\n", " ", ",", "%2C", ":", "%3A").Replace(t.name() + " " + string(t.verdict))
	fmt.Fprintf(out, "::error title=%s::%s\n", title, escape.Replace(text))
}
