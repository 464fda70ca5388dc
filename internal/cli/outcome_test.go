package cli

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"vmm/internal/output"
	"vmm/internal/paths"
	"vmm/kerneltest"
)

// TestReportInShare: the report of vmm test is not where its guests can write, nor where a
// link leads elsewhere.
func TestReportInShare(t *testing.T) {
	private(t)
	dir, root := t.TempDir(), t.TempDir()
	for _, d := range []string{"rw", "ro"} {
		os.Mkdir(filepath.Join(dir, d), 0o755)
	}
	for link, to := range map[string]string{"in": "rw", "link.xml": "victim"} {
		if err := os.Symlink(to, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	vm := &kerneltest.VM{Test: kerneltest.Test{Command: []string{"true"}, Timeout: time.Minute},
		Shape: kerneltest.Shape{Memory: 1 << 30, CPUs: 1, Root: root, RW: []string{dir + "/rw"}, Shares: []string{dir + "/ro:/ro:ro"}}}
	for path, refused := range map[string]bool{
		"rw/r.xml": true, "in/r.xml": true, "link.xml": true, "none/r.xml": true, "ro/r.xml": false, "r.xml": false,
	} {
		f := &testFlags{matrix: kerneltest.Matrix{JUnit: filepath.Join(dir, path)}}
		r, err := f.openReport([]*kerneltest.VM{vm})
		if refused != (err != nil) {
			t.Errorf("%s: %v", path, err)
		}
		var guest *paths.GuestError
		if in := path == "rw/r.xml" || path == "in/r.xml"; errors.As(err, &guest) != in {
			t.Errorf("%s: %v", path, err)
		}
		if path == "link.xml" && !errors.Is(err, output.ErrLink) {
			t.Errorf("a link: %v", err)
		}
		if err != nil {
			continue
		}
		if err := errors.Join(saveReport(r, kerneltest.Results{}), r.Close()); err != nil {
			t.Error(err)
		}
		if st, err := os.Stat(f.matrix.JUnit); err != nil || st.Size() == 0 {
			t.Errorf("%s: %v", path, err)
		}
	}
	if _, err := os.Lstat(filepath.Join(dir, "victim")); err == nil {
		t.Error("a link was followed")
	}
	if r, err := (&testFlags{}).openReport(nil); r != nil || err != nil {
		t.Error("a report that nobody wants")
	}
}

// TestSaveResult has the file of --result say how this VM ended, not an earlier one.
func TestSaveResult(t *testing.T) {
	path := filepath.Join(t.TempDir(), "result")
	for _, c := range []struct {
		end  string
		err  error
		want string
	}{
		{"power off", nil, `{"started":false,"exited":false,"status":0,"end":"power off"}`},
		{"stopped", &exitError{statusTimeout, nil}, `{"started":false,"exited":false,"status":124,"end":"timeout"}`},
		{endFailed, failed(errors.New("no KVM")), `{"started":false,"exited":false,"status":125,"end":"failed","detail":"no KVM"}`},
	} {
		f, err := output.Open(path, output.Report, nil)
		if err != nil {
			t.Fatal(err)
		}
		var r runResult
		if err := errors.Join(r.save(f, c.end, c.err), f.Close()); err != nil {
			t.Fatal(err)
		}
		if b, _ := os.ReadFile(path); string(b) != c.want+"\n" {
			t.Errorf("%s: %s", c.end, b)
		}
	}
}
