package tests

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// mostInitAllocs bounds what all packages together allocate before main: each command pays for it.
const mostInitAllocs = 5000

var initLine = regexp.MustCompile(`(?m)^init (\S+) .* (\d+) allocs$`)

// TestInit: no dependency does much when the program starts (packaging/patched).
func TestInit(t *testing.T) {
	c := exec.Command(vmmPath, "--version")
	c.Env = append(os.Environ(), "GODEBUG=inittrace=1")
	out, err := c.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	type load struct {
		allocs int
		pkg    string
	}
	var loads []load
	total := 0
	for _, m := range initLine.FindAllSubmatch(out, -1) {
		n, err := strconv.Atoi(string(m[2]))
		if err != nil {
			t.Fatal(err)
		}
		total += n
		loads = append(loads, load{n, string(m[1])})
	}
	if total == 0 {
		t.Fatalf("the runtime says nothing of packages:\n%s", out)
	}
	slices.SortFunc(loads, func(a, b load) int { return b.allocs - a.allocs })
	if total > mostInitAllocs {
		t.Errorf("before main there are %d allocations, more than %d; most are of %s", total, mostInitAllocs, fmt.Sprint(loads[:3]))
	}
	t.Log(total, loads[:3])
}

// TestPatchedSchema: compose files are checked as by the library as it is, although vmm is built with
// one that makes its schemas when the first file is read.
func TestPatchedSchema(t *testing.T) {
	file := filepath.Join(t.TempDir(), "compose.yaml")
	if err := os.WriteFile(file, []byte("services: {web: {image: [1]}}\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(vmmPath, "up", "-f", file).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "services.web.image must be a string") {
		t.Errorf("%v\n%s", err, out)
	}
}
