package tests

import (
	"encoding/xml"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"vmm/internal/jail"
)

// provoke has the kernel's test module for crashes do one.
const provoke = "mount -t debugfs none /sys/kernel/debug; echo %s > /sys/kernel/debug/provoke-crash/DIRECT; exit 0"

// TestKernelTests runs a matrix whose tests end in every way there is.
func TestKernelTests(t *testing.T) {
	needKVM(t)
	runtimeDirFor(t)
	dir := t.TempDir()
	hang := lapse(t, 30*time.Second).String()
	tests := []struct {
		name, script, timeout, verdict, reason string
	}{
		{"good", "echo fine", "", "pass", ""},
		{"status", "echo bad >&2; exit 5", "", "fail", "exit status 5"},
		{"panics", "echo c > /proc/sysrq-trigger", "", "crash", "panic: Kernel panic - not syncing: sysrq triggered crash"},
		{"hangs", "sleep 1000", hang, "timeout", "did not end within " + hang},
		{"oopses", fmt.Sprintf(provoke, "EXCEPTION"), "", "crash", "oops: BUG: kernel NULL pointer dereference"},
		{"warns", fmt.Sprintf(provoke, "WARNING"), "", "crash", "WARNING: "},
		{"ktap", `printf 'KTAP version 1\n1..3\nok 1 a\nnot ok 2 b\nok 3 c # SKIP no\n'`, "", "fail", "1 of 3 tests failed"},
		{"ktap on the console", `printf 'KTAP version 1\n1..1\n    KTAP version 1\n    1..1\n    ok 1 inner\nok 1 suite\n' | while IFS= read -r l; do echo "$l" > /dev/kmsg; done`, "", "pass", "1 tests, 0 skipped"},
		{"skips", `printf 'TAP version 13\n1..0 # SKIP no hardware\n'`, "", "skip", "all tests were skipped"},
	}
	var config strings.Builder
	fmt.Fprintf(&config, "timeout = \"5m\"\njunit = %q\nmemory = \"256M\"\n[[kernel]]\nimage = \"default\"\n", filepath.Join(dir, "report.xml"))
	for _, x := range tests {
		fmt.Fprintf(&config, "[[test]]\nname = %q\ncommand = [\"sh\", \"-c\", %q]\n", x.name, x.script)
		if x.timeout != "" {
			fmt.Fprintf(&config, "timeout = %q\n", x.timeout)
		}
	}
	file := filepath.Join(dir, "vmtest.toml")
	if err := os.WriteFile(file, []byte(config.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Setenv("GITHUB_ACTIONS", "true")
	out, status := vmm(t, "test", "--config", file)
	if status != 1 {
		t.Errorf("exit status %d", status)
	}
	b, err := os.ReadFile(filepath.Join(dir, "report.xml"))
	if err != nil {
		t.Fatal(err)
	}
	var report struct {
		Suites []struct {
			Name  string `xml:"name,attr"`
			Cases []struct {
				Name    string    `xml:"name,attr"`
				Failure *struct{} `xml:"failure"`
				Error   *struct{} `xml:"error"`
				Skipped *struct{} `xml:"skipped"`
			} `xml:"testcase"`
		} `xml:"testsuite"`
	}
	if err := xml.Unmarshal(b, &report); err != nil {
		t.Fatal(err)
	}
	if len(report.Suites) != len(tests) {
		t.Fatalf("%d suites in the report:\n%s", len(report.Suites), out)
	}
	for i, x := range tests {
		c := report.Suites[i].Cases[0]
		got := "pass"
		switch {
		case c.Failure != nil:
			got = "fail"
		case c.Error != nil:
			got = "crash or timeout"
		case c.Skipped != nil:
			got = "skip"
		}
		if c.Name != x.name || !strings.Contains(got, x.verdict) {
			t.Errorf("%s: %s is %s in the report", x.name, c.Name, got)
		}
		want := fmt.Sprintf("default: %s: %s (", x.name, x.verdict)
		if !strings.Contains(out, want) || !strings.Contains(out, x.reason) {
			t.Errorf("%s: no %q with %q in the output", x.name, want, x.reason)
		}
		if bad := x.verdict != "pass" && x.verdict != "skip"; bad != strings.Contains(out, "::error title=default%3A "+x.name+" ") {
			t.Errorf("%s: an annotation for GitHub: %v", x.name, !bad)
		}
	}
	if t.Failed() {
		t.Log(out)
	}

	wantRefusals(t, []refusal{
		{"test", 2, "no command to run"},
		{"test --config /nowhere -- true", 2, "/nowhere"},
		{"test --memory lots -- true", 2, "--memory"},
	})
	bad := filepath.Join(dir, "bad")
	os.WriteFile(bad, []byte("no kernel"), 0o644)
	if out, status := vmm(t, "test", "--kernel", bad, "--", "true"); status != 125 || !strings.Contains(out, "not a Linux kernel") {
		t.Errorf("a file that is no kernel: status %d\n%s", status, out)
	}
}

// TestKernelTestsCancelled ends a matrix by Ctrl-C while one of its VMs runs, and holds
// that nothing of it is left.
func TestKernelTestsCancelled(t *testing.T) {
	needKVM(t)
	runtime, tmp := runtimeDirFor(t), t.TempDir()
	t.Setenv("TMPDIR", tmp)
	report := filepath.Join(t.TempDir(), "report.xml")
	g := startGuest(t, "test", "-v", "-j", "1", "-m", "256M", "--timeout", bootLimit, "--kernel", "default", "--kernel", "default", "--junit", report,
		"--", "sh", "-c", "echo under way; sleep 1000")
	if !g.until("| under way") {
		t.Fatalf("it does not begin:\n%s", g.out.String())
	}
	if able, has := jail.Able(), inspected(t, strings.TrimSpace(ok(t, "ps", "-q"))).Jail; len(able.Namespaces) > 0 && !strings.Contains(has, "seccomp, namespaces (mnt ipc pid)") {
		t.Errorf("its jail is %q", has)
	}
	g.cmd.Process.Signal(os.Interrupt)
	g.until("")
	if status := g.cmd.ProcessState.ExitCode(); status != 130 {
		t.Errorf("exit status %d", status)
	}
	for _, want := range []string{"cancelled (", "while it ran", "before it began", "vmm: interrupted"} {
		if !strings.Contains(g.out.String(), want) {
			t.Errorf("no %q in the output:\n%s", want, g.out.String())
		}
	}
	if b, err := os.ReadFile(report); err != nil || strings.Count(string(b), `<error message="cancelled: `) != 2 {
		t.Errorf("the report: %v\n%s", err, b)
	}
	for _, pattern := range []string{filepath.Join(tmp, "*"), filepath.Join(runtime, "*", "test-*"), report + "?*"} {
		if left, err := filepath.Glob(pattern); err != nil || len(left) > 0 {
			t.Errorf("left behind: %v, %v", left, err)
		}
	}
}

// TestBisect finds the commit that broke something, as git does it; one does not
// boot.
func TestBisect(t *testing.T) {
	needKVM(t)
	needTools(t, "git")
	runtimeDirFor(t)
	dir := t.TempDir()
	git := func(args ...string) string {
		return must(t, "git", append([]string{"-C", dir, "-c", "user.name=t", "-c", "user.email=t@example.org"}, args...)...)
	}
	git("init", "-q")
	for i, c := range []struct{ kernel, result string }{{"default", "0"}, {"default", "0"}, {"script", "0"}, {"default", "1"}, {"default", "1"}, {"default", "1"}} {
		os.WriteFile(filepath.Join(dir, "kernel"), []byte(c.kernel), 0o644)
		os.WriteFile(filepath.Join(dir, "result"), []byte(c.result), 0o644)
		os.WriteFile(filepath.Join(dir, "number"), []byte(fmt.Sprint(i)), 0o644)
		git("add", ".")
		git("commit", "-q", "-m", fmt.Sprint("commit ", i))
	}
	os.WriteFile(filepath.Join(dir, "script"), []byte("no kernel"), 0o644)
	git("bisect", "start", "HEAD", "HEAD~5")
	c := exec.Command("git", "-C", dir, "bisect", "run", "sh", "-c",
		vmmPath+" test -m 256M --kernel $(cat kernel) -- sh -c 'exit '$(cat result)")
	out, err := c.CombinedOutput()
	// Commit 3 broke it, or commit 2, which does not boot.
	if !strings.Contains(string(out), "There are only 'skip'ped commits left to test") {
		t.Errorf("git bisect: %v\n%s", err, out)
	}
	log := git("bisect", "log")
	for _, want := range []string{"# good: ", "] commit 1", "# skip: ", "] commit 2", "# bad: ", "] commit 3"} {
		if !strings.Contains(log, want) {
			t.Errorf("no %q in git's log:\n%s", want, log)
		}
	}
}

// TestGDB has gdb debug a running kernel with its symbols, as far as the host's CPU
// lets it.
func TestGDB(t *testing.T) {
	needKVM(t)
	needTools(t, "gdb")
	runtimeDirFor(t)
	host := hostDebugging(t)
	must(t, vmmPath, "run", "-d", "--name", "g", "-c", "2", "-m", "256M", "--timeout", bootLimit)
	defer vmm(t, "rm", "-f", "g")
	must(t, vmmPath, "exec", "g", "true")
	commands := `set pagination off
set confirm off
info threads
printf "banner %s\n", (char *)&linux_banner
backtrace 3
set $old = $rax
set $rax = 0x1234
printf "rax %#lx\n", $rax
set $rax = $old
printf "cr3 is set %d\n", $cr3 != 0
`
	wants := []string{"(CPU 0)", "(CPU 1)", "banner Linux version ", "#0  0x", "rax 0x1234", "cr3 is set 1", "detached"}
	if host.software {
		if host.hardware {
			commands += "hbreak do_sys_openat2\n"
		}
		commands += `break ksys_write
continue
printf "at %#lx\n", $rip
delete
tbreak ksys_write
continue
info symbol $rip
set $old = $rip
stepi
printf "stepped %d\n", $rip != $old
`
		wants = append(wants, "hit Breakpoint", "ksys_write in section .text", "stepped 1")
	}
	if host.watch {
		commands += `set $ticks = *(long *)&jiffies_64
watch *(long *)&jiffies_64
continue
printf "ticked %d\n", *(long *)&jiffies_64 != $ticks
info breakpoints
delete
awatch *(long *)&jiffies_64
continue
info breakpoints
delete
`
		wants = append(wants, "Old value = ", "ticked 1", "acc watchpoint")
	}
	script := filepath.Join(t.TempDir(), "commands")
	if err := os.WriteFile(script, []byte(commands+"detach\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	write := exec.Command("sh", "-c", fmt.Sprintf("sleep 2; while %s exec g sh -c 'echo x >/tmp/x'; do :; done", vmmPath))
	if err := write.Start(); err != nil {
		t.Fatal(err)
	}
	out, _ := vmm(t, "gdb", "g", "-batch", "-x", script)
	for _, want := range wants {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in what gdb says:\n%s", want, out)
		}
	}
	if n := strings.Count(out, "breakpoint already hit 1 time"); host.watch && n != 2 {
		t.Errorf("%d watchpoints were hit, want 2:\n%s", n, out)
	}
	t.Logf("a debugger has on this host: %+v", host)
	// The guest goes on as if nothing had been.
	if out, status := vmm(t, "exec", "g", "echo", "alive"); status != 0 || out != "alive\n" {
		t.Errorf("afterwards: status %d, %q", status, out)
	}
	vmm(t, "kill", "g")
	write.Wait()

	// From the first instruction, at an address.
	socket := filepath.Join(t.TempDir(), "gdb")
	g := startGuest(t, "run", "-m", "256M", "--timeout", bootLimit, "--gdb", "unix:"+socket+",wait", "--console", "none")
	if !g.until("waiting for gdb") {
		t.Fatalf("--gdb:\n%s", g.out.String())
	}
	got, err := exec.Command("gdb", "-q", "-batch", "-ex", "target remote "+socket, "-ex", "printf \"rsi %#lx\\n\", $rsi",
		"-ex", "hbreak *$rip", "-ex", "kill").CombinedOutput()
	if err != nil || !strings.Contains(string(got), "rsi 0x") {
		t.Errorf("gdb: %v\n%s", err, got)
	}
	g.until("")
}
