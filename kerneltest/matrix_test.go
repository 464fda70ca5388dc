package kerneltest

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"vmm/internal/bytesize"
	"vmm/internal/meminfo"
)

// load reads a matrix from a file with a text.
func load(t *testing.T, text string) (Matrix, error) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "vmtest.toml")
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return Load(file)
}

// TestLoad reads every key there is.
func TestLoad(t *testing.T) {
	got, err := load(t, `
jobs = 3
warm = true
timeout = "10m"
junit = "report.xml"
memory = "1G"
cpus = 2
rw = ["out"]
share = ["a:/a", "b:/b:ro"]
root = "/srv/root"
[[kernel]]
image = "default"
[[kernel]]
name = "new"
image = "new/bzImage"
modules = "new/modules"
append = "kasan.fault=panic"
[[test]]
command = ["true"]
[[test]]
name = "smoke"
command = ["sh", "-c", "./smoke.sh"]
timeout = "1m30s"
`)
	want := Matrix{
		Jobs: 3, Timeout: 10 * time.Minute, JUnit: "report.xml",
		Shape:   Shape{Memory: 1 << 30, CPUs: 2, RW: []string{"out"}, Shares: []string{"a:/a", "b:/b:ro"}, Root: "/srv/root", Warm: true},
		Kernels: []Kernel{{Image: "default"}, {Name: "new", Image: "new/bzImage", Modules: "new/modules", Append: "kasan.fault=panic"}},
		Tests:   []Test{{Command: []string{"true"}}, {Name: "smoke", Command: []string{"sh", "-c", "./smoke.sh"}, Timeout: 90 * time.Second}},
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%v\n got %+v\nwant %+v", err, got, want)
	}
	for text, want := range map[string]string{
		"= 1":                    "vmtest.toml:1",
		"color = 1":              `there is no "color"`,
		"[[test]]\ncomand = []":  `there is no "test.comand"`,
		"memory = \"lots\"":      "a size such as",
		"timeout = \"soon\"":     "soon",
		"cpus = \"many\"":        "cpus",
		"[[test]]\ncommand = 1":  "command",
		"kernel = \"bzImage\"":   "kernel",
		"[Shape]\nmemory=\"1G\"": `there is no "Shape"`,
	} {
		if _, err := load(t, text); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "vmtest.toml") {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}

func TestVMs(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "other"), 0o755); err != nil {
		t.Fatal(err)
	}
	text := filepath.Join(dir, "bzImage")
	if err := os.WriteFile(text, []byte("not a kernel"), 0o644); err != nil {
		t.Fatal(err)
	}
	m := Matrix{
		Timeout: time.Hour,
		Kernels: []Kernel{{}, {Image: "default", Name: "mine"}, {Image: "boot/vmlinuz-6.1", Append: "quiet"}, {Image: text}},
		Tests:   []Test{{Command: []string{"a", "b"}}, {Name: "n", Command: []string{"c"}, Timeout: time.Second}},
	}
	vms, err := m.VMs()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, vm := range vms {
		names = append(names, vm.Name())
		if vm.Memory != DefaultMemory || vm.CPUs != DefaultCPUs {
			t.Errorf("%s has %v of memory and %d CPUs", vm.Name(), vm.Memory, vm.CPUs)
		}
		if want := map[string]time.Duration{"a b": time.Hour, "n": time.Second}[vm.Test.Name]; vm.Test.Timeout != want {
			t.Errorf("%s has %v", vm.Name(), vm.Test.Timeout)
		}
	}
	if got, want := strings.Join(names, ", "), "default: a b, default: n, mine: a b, mine: n, vmlinuz-6.1: a b, vmlinuz-6.1: n, bzImage: a b, bzImage: n"; got != want {
		t.Errorf("the VMs are %s", got)
	}
	if vms[2].Kernel.Image != "" || vms[4].Kernel.Append != "quiet" || m.Kernels[0].Name != "" || m.Tests[0].Name != "" {
		t.Errorf("%+v and %+v; the matrix is %+v", vms[2], vms[4], m)
	}
	vms, err = (&Matrix{Tests: []Test{{Command: []string{"a"}}}, Shape: Shape{Memory: 1, CPUs: 3, RW: []string{"x"}}}).VMs()
	if err != nil || len(vms) != 1 || vms[0].Kernel.Name != "default" || vms[0].Test.Timeout != DefaultTimeout || vms[0].Memory != 1 || vms[0].CPUs != 3 || vms[0].RW[0] != "x" {
		t.Errorf("%v, %+v", err, vms)
	}
	for _, c := range []struct {
		m    Matrix
		want string
	}{
		{Matrix{}, "no command"},
		{Matrix{Tests: []Test{{Name: "x"}}}, `test "x" has no command`},
		{Matrix{Tests: m.Tests, Jobs: -1}, "jobs: -1"},
		{Matrix{Tests: m.Tests, Shape: Shape{CPUs: -1}}, "cpus: -1"},
		{Matrix{Tests: m.Tests, Timeout: -time.Second}, "timeout of -1s"},
		{Matrix{Tests: []Test{{Name: "x", Command: []string{"a"}, Timeout: 5}}}, `test "x": a timeout of 5ns`}, // timeout = 5 in a file
	} {
		if vms, err := c.m.VMs(); err == nil || !strings.Contains(err.Error(), c.want) || errors.Is(err, ErrNoTest) != (len(c.m.Tests) == 0) {
			t.Errorf("%+v: %v, %v", c.m, vms, err)
		}
	}
}

// TestKernelNames: kernels of one name are told apart by their paths, or by their
// arguments, unless they were called so.
func TestKernelNames(t *testing.T) {
	for _, c := range []struct {
		kernels []Kernel
		want    string
	}{
		{[]Kernel{{Image: "old/bzImage"}, {Image: "new/bzImage"}}, "bzImage (old/bzImage), bzImage (new/bzImage)"},
		{[]Kernel{{Image: "a/vmlinuz"}, {Image: "a/vmlinuz", Append: "quiet"}, {Image: "b/vmlinuz"}},
			"vmlinuz (a/vmlinuz), vmlinuz (a/vmlinuz) (quiet), vmlinuz (b/vmlinuz)"},
		{[]Kernel{{}, {Append: "nosmp"}}, "default, default (nosmp)"},
		{[]Kernel{{Image: "a"}, {Image: "dir/b"}}, "a, b"},
		{[]Kernel{{Image: "a", Name: "x"}, {Image: "b", Name: "x"}, {Image: "dir/x"}}, "x, x, x (dir/x)"},
		{[]Kernel{{Image: "a"}, {Image: "a", Modules: "m"}}, "a, a (m)"},
		{[]Kernel{{Image: "a"}, {Image: "a"}}, "a, a"}, // they do not differ
	} {
		vms, err := (&Matrix{Kernels: c.kernels, Tests: []Test{{Command: []string{"true"}}}}).VMs()
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, vm := range vms {
			names = append(names, vm.Kernel.Name)
		}
		if got := strings.Join(names, ", "); got != c.want {
			t.Errorf("%+v: %s, want %s", c.kernels, got, c.want)
		}
	}
}

// TestJobs holds the number of VMs side by side between 1 and what there are.
func TestJobs(t *testing.T) {
	for _, c := range []struct {
		jobs, cpus, tests int
		memory            bytesize.Size
		want              int
	}{
		{1, 1, 5, 0, 1}, {3, 1, 5, 0, 3}, {9, 1, 5, 0, 5}, {0, 1, 1, 0, 1}, {0, 1 << 20, 5, 0, 1}, {0, 1, 5, 1 << 50, 1},
	} {
		m := matrix(1, c.tests)
		m.Jobs, m.CPUs, m.Memory = c.jobs, c.cpus, c.memory
		vms, err := m.VMs()
		if err != nil {
			t.Fatal(err)
		}
		if got := m.jobs(vms); got != c.want {
			t.Errorf("%+v: %d", c, got)
		}
	}
	if meminfo.Value("MemAvailable") == 0 {
		t.Error("the host has no memory")
	}
}
