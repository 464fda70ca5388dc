package main

import (
	"encoding/base64"
	"strings"
	"testing"
)

// TestCmdline has the job and the disks on the kernel's command line, and refuses what does not fit.
func TestCmdline(t *testing.T) {
	line, err := job{script: "true"}.cmdline("/dev/a", "/dev/b", "more=1")
	if err != nil {
		t.Fatal(err)
	}
	args := map[string]string{}
	for _, f := range strings.Fields(line) {
		name, value, _ := strings.Cut(f, "=")
		args[name] = value
	}
	script, err := base64.StdEncoding.DecodeString(args["vmm.job"])
	if err != nil || !strings.HasPrefix(string(script), "(true\n)\n") {
		t.Errorf("the job: %q, %v", script, err)
	}
	if args["vmm.root"] != "/dev/a" || args["vmm.tests"] != "/dev/b" || args["more"] != "1" {
		t.Errorf("the command line: %s", line)
	}
	if _, err := (job{script: strings.Repeat("x", maxCmdline)}).cmdline("/dev/a", "/dev/b", ""); err == nil {
		t.Error("a command that is longer than a command line")
	}
}

// TestBochsrc leaves no name in bochs's configuration that is for each host.
func TestBochsrc(t *testing.T) {
	config := bochsrc("/tmp/dir", "/keep/console")
	for line := range strings.Lines(config) {
		if !strings.HasPrefix(line, "#") && strings.Contains(line, "@") {
			t.Errorf("not replaced: %s", line)
		}
	}
	for _, want := range []string{`path="/tmp/dir/root.ext4"`, `path="/tmp/dir/tests.ext4"`, `dev="/keep/console"`, `log: "/tmp/dir/log"`} {
		if !strings.Contains(config, want) {
			t.Errorf("no %s in\n%s", want, config)
		}
	}
}
