package bench

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/u-root/u-root/pkg/cpio"
)

// A project of C, as make sees it: units compiled with optimization, and linked to one object.
const (
	compiledMake = `units = unit1.o unit2.o unit3.o unit4.o
all.o: $(units)
	ld -r -o $@ $(units)
unit%.o: costs.c
	gcc -O2 -Dmain=main$* -c -o $@ costs.c
`
	compiledGuest = `cd /project
echo "AT making"
make -s
test -s all.o && echo "AT made"
`
)

// compileCosts are what is measured of a guest that compiles.
var compileCosts = []cost{{"make", "make of a small C project, s", 1e-9}}

// TestCompareCompile compares who TestCompareSoftware compares by make, a compiler and a linker: programs
// that are large, start others, and look into many files.
func TestCompareCompile(t *testing.T) {
	if !*compare {
		t.Skip("make bench runs this")
	}
	sides := softwareSides(t, bootInitrd(t, compiledGuest, toolchain(t)...), "")
	runSides(t, sides, func(t *testing.T, p passage) map[string]float64 {
		made, ok := p.at["made"]
		if !ok {
			t.Fatalf("the guest has made nothing:\n%s", p.said)
		}
		return map[string]float64{"make": float64(made - p.at["making"])}
	})
	printCosts(sides, compileCosts)
}

// toolchain returns the files of make and this host's compiler, with a project for them.
func toolchain(t *testing.T) []cpio.Record {
	t.Helper()
	output := func(name string, args ...string) string {
		out, err := exec.Command(name, args...).Output()
		if err != nil {
			t.Fatalf("%s %s: %v", name, strings.Join(args, " "), err)
		}
		return strings.TrimSpace(string(out))
	}
	var paths []string
	for _, name := range []string{"gcc", "make", "as", "ld"} {
		path, err := exec.LookPath(name)
		if err != nil {
			t.Skip(err)
		}
		paths = append(paths, path)
	}
	cc1 := output("gcc", "-print-prog-name=cc1")
	paths = append(paths, cc1)
	for word := range strings.FieldsSeq(output("ldd", paths...)) {
		if strings.HasPrefix(word, "/") && !strings.HasSuffix(word, ":") {
			paths = append(paths, word)
		}
	}
	for word := range strings.FieldsSeq(output("gcc", "-O2", "-M", "costs/costs.c")) {
		if strings.HasPrefix(word, "/") {
			paths = append(paths, word)
		}
	}
	slices.Sort(paths)
	var files []cpio.Record
	for _, path := range slices.Compact(paths) {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, cpio.StaticFile(strings.TrimPrefix(filepath.Clean(path), "/"), string(b), 0o755))
	}
	source, err := os.ReadFile("costs/costs.c")
	if err != nil {
		t.Fatal(err)
	}
	return append(files, cpio.StaticFile("project/costs.c", string(source), 0o644), cpio.Directory("tmp", 0o777),
		cpio.StaticFile("project/Makefile", compiledMake, 0o644))
}
