package kerneltest

import (
	"encoding/xml"
	"io"
	"strings"
	"unicode/utf8"

	"vmm/internal/visible"
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

// plain is a text for XML, which cannot have all, and for the terminals where reports are
// read.
func plain(s string) string {
	if len(s) > junitText {
		for s = s[len(s)-junitText:]; s != "" && !utf8.RuneStart(s[0]); {
			s = s[1:]
		}
	}
	return visible.Text(s)
}

// suite is a result as JUnit has it: the VM as a whole, then its own tests, if it
// reports any.
func (r *Result) suite() junitSuite {
	kernel, test := plain(r.VM.Kernel.Name), plain(r.VM.Test.Name)
	s := junitSuite{Name: plain(r.VM.Name()), Time: r.Duration.Seconds(), Output: plain(r.Output)}
	if r.Verdict != Pass {
		s.Console = plain(r.Console)
	}
	whole := junitCase{Name: test, Class: kernel, Time: r.Duration.Seconds()}
	switch r.Verdict {
	case Pass:
	case Skip:
		whole.Skipped = &junitDetail{Message: plain(r.Reason)}
	case Fail:
		whole.Failure = &junitDetail{Message: plain(r.Reason)}
	default:
		text := ""
		for _, f := range r.Findings {
			text += f.Kind + "\n" + f.Excerpt + "\n\n"
		}
		whole.Error = &junitDetail{Message: plain(r.Verdict.String() + ": " + r.Reason), Text: plain(text)}
	}
	s.add(whole)
	for _, c := range r.Report.Cases {
		x := junitCase{Name: plain(c.Name), Class: kernel + "." + test}
		message, _, _ := strings.Cut(plain(c.Detail), "\n")
		d := &junitDetail{Message: plain(message), Text: plain(c.Detail)}
		switch c.Result {
		case ktap.Fail:
			x.Failure = d
		case ktap.Skip, ktap.Todo:
			x.Skipped = d
		}
		s.add(x)
	}
	return s
}

// add adds a case and counts it.
func (s *junitSuite) add(c junitCase) {
	s.Cases = append(s.Cases, c)
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

// WriteJUnit writes a JUnit report: a suite for each VM, whose first case is the VM as
// a whole, and further ones are the tests that it reports. A VM that crashed, did not
// boot, took too long or was cancelled is an error. Of long texts the last 256 KiB are
// there; characters that XML cannot have are left out.
func (rs Results) WriteJUnit(w io.Writer) error {
	var all junitSuites
	for i := range rs {
		s := rs[i].suite()
		all.Tests, all.Failures, all.Errors = all.Tests+s.Tests, all.Failures+s.Failures, all.Errors+s.Errors
		all.Suites = append(all.Suites, s)
	}
	b, err := xml.MarshalIndent(all, "", "  ")
	if err == nil {
		_, err = w.Write(append([]byte(xml.Header), append(b, '\n')...))
	}
	return err
}
