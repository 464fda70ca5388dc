package cli

import (
	"bytes"
	"strings"
	"testing"

	"vmm/kerneltest"
	"vmm/kerneltest/crash"
	"vmm/kerneltest/ktap"
	"vmm/storage/image"
	"vmm/vm/api"
)

// TestGuestsText: what a guest has said does nothing to the terminal.
func TestGuestsText(t *testing.T) {
	const evil = "\x1b]0;x\x07\u009b2J"
	var b bytes.Buffer
	vm := &kerneltest.VM{Kernel: kerneltest.Kernel{Name: evil}, Test: kerneltest.Test{Name: evil}}
	p := newTestProgress(&b, 1)
	p.begin(vm)
	p.output(vm).Write([]byte(evil + "\r\n"))
	r := kerneltest.Result{VM: vm, Verdict: kerneltest.NoBoot, Reason: evil, Output: evil, Console: evil,
		Report: ktap.Report{Cases: []ktap.Case{{Name: evil, Result: ktap.Fail, Detail: evil}}}}
	p.end(&r)
	p.close()
	crashed := r
	crashed.Findings = []crash.Finding{{Excerpt: evil}}
	tellResults(&b, kerneltest.Results{r, crashed})
	b.WriteString(whatText(&api.VM{Command: []string{evil}}) + whatText(&api.VM{Kernel: evil}))
	if text := b.String(); strings.ContainsAny(text, "\x1b\x07\r\u009b") || strings.Count(text, "^[]0;x^G") < 12 {
		t.Errorf("%q", text)
	}
}

// TestImagesText: what an image names does nothing to the terminal, which a guest may have written.
func TestImagesText(t *testing.T) {
	const evil = "\x1b]0;x\x07\u009b2J"
	var b bytes.Buffer
	(&imageInfoJSON{Path: evil, Format: evil, Backing: evil, BackingFormat: evil}).print(&b)
	printTree(&b, &image.Node{Path: evil, Overlays: []*image.Node{{Path: evil, Error: evil}}}, "", "")
	if err := printJSON(&b, evil); err != nil {
		t.Fatal(err)
	}
	if text := b.String(); strings.ContainsAny(text, "\x1b\x07\u009b") || strings.Count(text, "^[]0;x^G") < 7 {
		t.Errorf("%q", text)
	}
}
