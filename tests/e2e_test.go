// Package tests boots real guests and looks at what they report.
package tests

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/u-root/u-root/pkg/cpio"

	guestimages "vmm/guest-images"
	"vmm/tests/programs"
)

// vmmPath is the binary under test, guestCheck the program for the guest.
var vmmPath, guestCheck string

func TestMain(m *testing.M) {
	os.Exit(run(m))
}

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "vmm-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	os.Setenv("XDG_DATA_HOME", filepath.Join(dir, "data")) // where the key is that snapshots are signed with
	if err = programs.Init(".."); err == nil {
		if vmmPath, err = programs.Build(dir, "vmm", "vmm/cmd/vmm"); err == nil {
			guestCheck, err = programs.Build(dir, "guestcheck", "vmm/tests/guestcheck")
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// needKVM skips where there is no /dev/kvm at all.
func needKVM(t *testing.T) {
	t.Helper()
	if _, err := os.Stat("/dev/kvm"); err != nil {
		t.Skip("no /dev/kvm on this machine")
	}
}

// rcInitrd makes an initial RAM disk with a script that the guest's init runs.
func rcInitrd(t *testing.T, script string) string {
	t.Helper()
	check, err := os.ReadFile(guestCheck)
	if err != nil {
		t.Fatal(err)
	}
	b, err := guestimages.Archive(
		cpio.StaticFile("etc/rc.local", "#!/bin/sh\n"+script, 0o755),
		cpio.StaticFile("test/guestcheck", string(check), 0o755))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "rc.cpio")
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// bootLimit ends a guest that hangs; no boot comes near it.
const bootLimit = "8m"

// vmm runs the binary and returns what it wrote and its exit status.
func vmm(t *testing.T, args ...string) (out string, status int) {
	t.Helper()
	return vmmInput(t, "", args...)
}

// vmmInput is vmm with something to read on standard input.
func vmmInput(t *testing.T, input string, args ...string) (out string, status int) {
	t.Helper()
	return runProgram(t, input, vmmPath, args...)
}

// runProgram is vmmInput for a program that runs the binary.
func runProgram(t *testing.T, input, program string, args ...string) (out string, status int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Minute)
	defer cancel()
	c := exec.CommandContext(ctx, program, args...)
	var b bytes.Buffer
	c.Stdin = strings.NewReader(input)
	c.Stdout, c.Stderr = &b, &b
	err := c.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("%s %s: %v\n%s", program, strings.Join(args, " "), err, b.String())
	}
	return strings.ReplaceAll(b.String(), "\r", ""), c.ProcessState.ExitCode()
}

// refusal is a command that vmm is to refuse: with a status, and one line that
// has a text in it.
type refusal struct {
	args   string
	status int
	want   string
}

func wantRefusals(t *testing.T, refusals []refusal) {
	t.Helper()
	for _, c := range refusals {
		out, status := vmm(t, strings.Fields(c.args)...)
		if status != c.status || !strings.Contains(out, c.want) || strings.Count(out, "\n") != 1 {
			t.Errorf("%s: status %d, want %d and one line with %q:\n%s", c.args, status, c.status, c.want, out)
		}
	}
}

// checkScript runs the guest's checks and shuts down.
func checkScript(args string) string {
	return fmt.Sprintf("/test/guestcheck %s now=%d\npoweroff\nsleep 100\n", args, time.Now().Unix())
}

// sayings are the lines "SAYS NAME: TEXT" of a guest's, by their names.
func sayings(out string) map[string]string {
	said := map[string]string{}
	for line := range strings.Lines(out) {
		if rest, ok := strings.CutPrefix(line, "SAYS "); ok {
			if name, text, ok := strings.Cut(rest, ": "); ok {
				said[name] = strings.TrimSpace(text)
			}
		}
	}
	return said
}

// reportChecks makes a subtest of every line that guestcheck printed.
func reportChecks(t *testing.T, out string) {
	t.Helper()
	if !strings.Contains(out, "CHECKS DONE") {
		t.Fatalf("the checks did not come to their end:\n%s", out)
	}
	for _, line := range strings.Split(out, "\n") {
		f := strings.SplitN(line, " ", 4)
		if len(f) < 3 || f[0] != "CHECK" {
			continue
		}
		t.Run(f[1], func(t *testing.T) {
			if f[2] != "ok" {
				t.Error(line)
			}
		})
	}
}

// TestGuest takes a long look into two guests: a large one, with two CPUs and
// memory above 4 GiB, and a small one, entered by PVH.
func TestGuest(t *testing.T) {
	needKVM(t)
	for _, c := range []struct{ name, args, checks string }{
		{"large", "-c 2 -m 5G", "cpus=2 mib=5120"},
		{"small", "-m 80M --boot-protocol pvh", "cpus=1 mib=80 skip=processes,pipes,avx,sse,mappings"},
		{"kvm", "-c 2 -m 512M --engine kvm", "cpus=2 mib=512"},
		// Its own decompressor runs in the guest, as it does on hardware.
		{"bzimage", "-m 128M --boot-protocol bzimage", "cpus=1 mib=128 skip=processes,pipes,avx,sse,mappings,libc"},
	} {
		t.Run(c.name, func(t *testing.T) {
			args := append([]string{"run", "--timeout", bootLimit, "--initrd", rcInitrd(t, checkScript(c.checks))},
				strings.Fields(c.args)...)
			out, status := vmm(t, args...)
			if status != 0 {
				t.Errorf("exit status %d", status)
			}
			reportChecks(t, out)
		})
	}
}

// TestEnds holds every way to end to its exit status.
func TestEnds(t *testing.T) {
	needKVM(t)
	limit := lapse(t, 15*time.Second).String()
	for _, c := range []struct {
		name, script string
		input        string
		args         []string
		status       int
		want         string
	}{
		{name: "poweroff", script: "poweroff; sleep 100"},
		{name: "reboot", script: "reboot; sleep 100"},
		{name: "reboot by a triple fault", script: "reboot; sleep 100", args: []string{"--append", "reboot=t"}},
		{name: "reboot by the BIOS", script: "reboot; sleep 100", args: []string{"--append", "reboot=b"}},
		{name: "triple fault after an oops", script: "mount -t debugfs none /sys/kernel/debug; echo 0 > /proc/sys/kernel/panic_on_oops; (echo EXCEPTION > /sys/kernel/debug/provoke-crash/DIRECT); reboot; sleep 100",
			args: []string{"--append", "reboot=t"}, status: 123, want: "the guest crashed: triple fault"},
		{name: "shell ends", input: "exit\n"},
		{name: "panic", script: "echo c >/proc/sysrq-trigger", status: 123, want: "the guest crashed: kernel panic"},
		{name: "panic on a virtio console", script: "echo c >/proc/sysrq-trigger", args: []string{"--console-device", "virtio", "--append", "initcall_blacklist=pvpanic_mmio_driver_init"},
			status: 123, want: "the guest crashed: kernel panic"},
		{name: "no init", args: []string{"--append", "rdinit=/nowhere init=/nowhere"}, status: 123, want: "the guest crashed: kernel panic"},
		{name: "debug exit", script: "printf '\\003' | dd of=/dev/port bs=1 seek=1281", status: 7},
		{name: "timeout", script: "sleep 1000", args: []string{"--timeout", limit}, status: 124, want: "did not end within " + limit},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			args := append([]string{"run", "-m", "256M", "--initrd", rcInitrd(t, c.script), "--timeout", bootLimit}, c.args...)
			out, status := vmmInput(t, c.input, args...)
			if status != c.status || !strings.Contains(out, c.want) {
				t.Errorf("exit status %d, want %d and %q; output:\n%s", status, c.status, c.want, out)
			}
		})
	}
}

// TestStock boots Debian's own cloud kernel, without special arguments. It is
// slow where guest kernel mode is interpreted, so it has a target of its own.
func TestStock(t *testing.T) {
	if os.Getenv("VMM_TEST_STOCK") == "" {
		t.Skip("make test-stock runs this")
	}
	needKVM(t)
	kernel, err := (&guestimages.Builder{Log: os.Stderr}).StockKernel(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	check, err := os.ReadFile(guestCheck)
	if err != nil {
		t.Fatal(err)
	}
	// guestcheck itself is the init: it mounts nothing and ends in a panic,
	// which is fine, for it has said what it has to say by then.
	b, err := guestimages.Archive(cpio.StaticFile("init", string(check), 0o755), cpio.CharDev("dev/console", 0o600, 5, 1))
	if err != nil {
		t.Fatal(err)
	}
	initrd := filepath.Join(t.TempDir(), "init.cpio")
	if err := os.WriteFile(initrd, b, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, cpus := range []string{"1", "2"} {
		t.Run("cpus="+cpus, func(t *testing.T) {
			start := time.Now()
			out, status := vmm(t, "run", "--kernel", kernel.Image, "--initrd", initrd, "-c", cpus, "--timeout", "30m")
			t.Logf("took %v", time.Since(start))
			for _, want := range []string{"CHECK sse ok", "CHECK avx ok", "CHECK threads ok", "CHECK faults ok", "CHECK timers ok", "CHECK clock ok", "CHECKS DONE"} {
				if !strings.Contains(out, want) {
					t.Errorf("no %q in the output; exit status %d:\n%s", want, status, out)
				}
			}
		})
	}
}

// TestStockCommand runs a command on Debian's own cloud kernel, which has all that
// it takes as modules.
func TestStockCommand(t *testing.T) {
	if os.Getenv("VMM_TEST_STOCK") == "" {
		t.Skip("make test-stock runs this")
	}
	needKVM(t)
	needTools(t, "depmod")
	runtimeDirFor(t)
	kernel, err := (&guestimages.Builder{Log: os.Stderr}).StockKernel(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	must(t, "cp", "-r", filepath.Join(filepath.Dir(kernel.Image), "lib"), dir)
	trees, err := filepath.Glob(filepath.Join(dir, "lib/modules/*"))
	if err != nil || len(trees) != 1 {
		t.Fatalf("modules %v, %v", trees, err)
	}
	version := filepath.Base(trees[0])
	must(t, "depmod", "-b", dir, version)
	out, status := vmm(t, "run", "--kernel", kernel.Image, "--modules", dir, "--timeout", "20m", "--", "sh", "-c", "uname -r; modinfo -n dummy; exit 3")
	if status != 3 || !strings.HasPrefix(out, version+"\n/lib/modules/") {
		t.Errorf("status %d, %q", status, out)
	}
	if out, status := vmm(t, "run", "--kernel", kernel.Image, "--timeout", "20m", "--", "true"); status != 125 || !strings.Contains(out, "CONFIG_VIRTIO_") {
		t.Errorf("without modules: status %d, %q", status, out)
	}
}
