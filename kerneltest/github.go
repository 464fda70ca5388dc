package kerneltest

import (
	"fmt"
	"io"
	"strings"

	"vmm/internal/visible"
)

// Values of GitHub's workflow commands: those of properties have two delimiters more.
var (
	githubText     = strings.NewReplacer("%", "%25", "\r", "%0D", "\n", "%0A")
	githubProperty = strings.NewReplacer("%", "%25", "\r", "%0D", "\n", "%0A", ",", "%2C", ":", "%3A")
)

// WriteAnnotations writes the workflow commands by which GitHub Actions shows what did
// not pass beside the change, with the excerpts of crashes.
func (rs Results) WriteAnnotations(w io.Writer) error {
	for i := range rs {
		r := &rs[i]
		if r.Verdict.Good() {
			continue
		}
		text := r.Reason
		for _, f := range r.Findings {
			text += "\n" + f.Excerpt
		}
		title := visible.Line(r.VM.Name()) + " " + r.Verdict.String()
		if _, err := fmt.Fprintf(w, "::error title=%s::%s\n", githubProperty.Replace(title), githubText.Replace(visible.Text(text))); err != nil {
			return err
		}
	}
	return nil
}
