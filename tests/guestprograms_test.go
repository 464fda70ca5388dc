package tests

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// guestPrograms are programs whose output says how the CPU has executed them, by how they are
// compiled: in tests/guestprograms, in C.
var guestPrograms = map[string][]string{
	"selfmodify": {"-O1", "-fwrapv", "-pthread"},
	"narrow":     {"-O1", "-no-pie"},
	"debugregs":  {"-O1", "-no-pie"},
}

// TestGuestPrograms runs programs in a guest of the software engine, and here: code that
// changes, 32-bit code, debug registers, an interpreter with its libraries, and a compiler. Both
// say the same.
func TestGuestPrograms(t *testing.T) {
	needTools(t, "gcc", "python3")
	runtimeDirFor(t)
	dir := t.TempDir()
	commands := map[string]string{
		"library": "python3 library.py",
		"compile": "gcc -O2 -S -w -o - selfmodify.c | md5sum",
	}
	for name, flags := range guestPrograms {
		if out, err := exec.Command("gcc", append(flags, "-w", "-o", filepath.Join(dir, name), "guestprograms/"+name+".c")...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", name, err, out)
		}
		commands[name] = "./" + name
	}
	for _, name := range []string{"library.py", "selfmodify.c"} {
		b, err := os.ReadFile(filepath.Join("guestprograms", name))
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name), b, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	var script strings.Builder
	for name, command := range commands {
		script.WriteString("(" + command + ") >" + name + ".out 2>&1; echo status $? >>" + name + ".out\n")
	}
	_, errs, status := inDir(t, dir, nil, "run", "--engine", "software", "-c", "2", "-m", "1G", "--rw", ".", "--timeout", bootLimit, "--", "sh", "-c", script.String())
	if status != 0 || errs != "" {
		t.Errorf("status %d, %q", status, errs)
	}
	for name, command := range commands {
		t.Run(name, func(t *testing.T) {
			got, err := os.ReadFile(filepath.Join(dir, name+".out"))
			if err != nil {
				t.Fatal(err)
			}
			c := exec.Command("sh", "-c", "("+command+") 2>&1; echo status $?")
			c.Dir = dir
			want, err := c.Output()
			if err != nil {
				t.Fatal(err)
			}
			if !strings.HasSuffix(string(want), "status 0\n") {
				t.Skipf("this host does not run it either: %s", want)
			}
			if string(got) != string(want) {
				t.Errorf("the guest says:\n%s\nthis host:\n%s", got, want)
			}
		})
	}
}
