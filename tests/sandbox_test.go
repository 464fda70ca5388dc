package tests

import (
	"bytes"
	"crypto/sha256"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// runtimeDirFor gives a test's VMs a directory of their own, whose path is short
// enough for sockets.
func runtimeDirFor(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "vmm-r-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	t.Setenv("XDG_RUNTIME_DIR", dir)
	return dir
}

// inDir runs vmm in a directory with standard input, and keeps its outputs apart.
func inDir(t *testing.T, dir string, input []byte, args ...string) (out, errs string, status int) {
	t.Helper()
	c := exec.Command(vmmPath, args...)
	var o, e bytes.Buffer
	c.Dir, c.Stdin, c.Stdout, c.Stderr = dir, bytes.NewReader(input), &o, &e
	kill := time.AfterFunc(10*time.Minute, func() { c.Process.Kill() })
	defer kill.Stop()
	c.Run()
	return o.String(), e.String(), c.ProcessState.ExitCode()
}

// smallRoot makes a root for guests with no more than the test's own program.
func smallRoot(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	must(t, "cp", guestCheck, filepath.Join(dir, "bin", "guestcheck"))
	busybox := busyboxPath(t)
	for _, name := range []string{"busybox", "sh", "rm", "ls", "cat", "true"} {
		must(t, "cp", busybox, filepath.Join(dir, "bin", name))
	}
	return dir
}

// busyboxPath is the static busybox of the cache.
func busyboxPath(t *testing.T) string {
	t.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(cache, "vmm", "busybox", "busybox")
}

// TestRunCommand runs commands in guests with the host's root, or another.
func TestRunCommand(t *testing.T) {
	needKVM(t)
	needTools(t, "gcc", "make", "mke2fs")
	limit := lapse(t, 8*time.Second).String()
	runtime := runtimeDirFor(t)
	dir := t.TempDir()
	project := filepath.Join(dir, "project")
	os.Mkdir(project, 0o755)
	os.WriteFile(filepath.Join(project, "main.c"), []byte("#include <stdio.h>\nint main(void) { puts(\"built in the guest\"); return 7; }\n"), 0o644)
	os.WriteFile(filepath.Join(project, "Makefile"), []byte("main: main.c\n\t$(CC) -o $@ $<\n"), 0o644)
	root := smallRoot(t)
	tar, image := filepath.Join(dir, "root.tgz"), filepath.Join(dir, "root.img")
	must(t, "tar", "czf", tar, "-C", root, ".")
	must(t, "mke2fs", "-q", "-t", "ext4", "-d", root, image, "64M")
	sum := must(t, "sha256sum", image)
	before := must(t, "find", root, "-ls")

	for _, c := range []struct {
		name   string
		args   string
		script string
		in     string
		out    string
		errs   string
		status int
	}{
		{name: "directory and user", script: "pwd; id -u; uname -n", out: project + "\n0\nvmm\n"},
		{name: "device links", script: "cat /dev/stdin >/dev/stdout; cat /dev/fd/3 3</dev/null; echo error >/dev/stderr", in: "input", out: "input", errs: "error\n"},
		{name: "outputs of a user", args: "--user nobody --cwd /", script: "echo output >/dev/stdout; echo error >/dev/stderr", out: "output\n", errs: "error\n"},
		{name: "status", script: "exit 42", status: 42},
		{name: "own 124", script: "exit 124", status: 124, errs: "status 124 is the command's own"},
		{name: "signal", script: "kill -9 $$", status: 137},
		{name: "streams", script: "cat; echo error >&2", in: "input", out: "input", errs: "error\n"},
		{name: "environment", args: "--env A=1 --env HOME=/x --user nobody --cwd /usr", script: "echo $A $HOME $(id -un) $(pwd)", out: "1 /x nobody /usr\n"},
		{name: "build, not kept", script: "make -s && ./main", out: "built in the guest\n", status: 7},
		{name: "build, kept", args: "--rw .", script: "make -s && ./main", out: "built in the guest\n", status: 7},
		{name: "no such directory", args: "--cwd /nowhere", script: "true", status: 127, errs: "/nowhere"},
		{name: "network", script: "read x < /etc/resolv.conf; echo $x; ip -o addr show eth0 | grep -c 'inet '", out: "nameserver 10.0.2.3\n1\n"},
		{name: "panic", script: "echo c > /proc/sysrq-trigger", status: 123, errs: "Kernel panic - not syncing: sysrq triggered crash"},
		{name: "shuts down", script: "echo o > /proc/sysrq-trigger; sleep 100", status: 125, errs: "shut down before the command had ended"},
		{name: "timeout", args: "--timeout " + limit, script: "sleep 1000", status: 124, errs: "did not end within " + limit},
		{name: "other root destroyed", args: "--root " + root, script: "rm -rf /* 2>/dev/null; echo /bin/*; echo $((1+1)) left", out: "/bin/*\n2 left\n"},
		{name: "tar root", args: "--root " + tar, script: "echo /bin/guest*; echo x > /bin/new && cat /bin/new", out: "/bin/guestcheck\nx\n"},
		{name: "image root", args: "--root " + image, script: "echo /bin/guest*; echo x > /bin/new && cat /bin/new", out: "/bin/guestcheck\nx\n"},
		{name: "no PCI", args: "--append pci=off", script: "true", status: 125, errs: "CONFIG_VIRTIO_PCI"},
	} {
		t.Run(c.name, func(t *testing.T) {
			args := append([]string{"run", "-i", "--timeout", bootLimit}, strings.Fields(c.args)...)
			out, errs, status := inDir(t, project, []byte(c.in), append(args, "--", "sh", "-c", c.script)...)
			if c.name == "network" { // the first line may name the domain
				out = strings.Replace(out, "search vmm.internal", "nameserver 10.0.2.3", 1)
			}
			if out != c.out || status != c.status || !strings.Contains(errs, c.errs) {
				t.Errorf("status %d, want %d; out %q, want %q; err %q", status, c.status, out, c.out, errs)
			}
			_, err := os.Stat(filepath.Join(project, "main"))
			if kept := err == nil; kept != (c.name == "build, kept") {
				t.Errorf("the host has what was built: %v", kept)
			}
			os.Remove(filepath.Join(project, "main"))
		})
	}
	if after := must(t, "sha256sum", image); after != sum {
		t.Error("the image was changed")
	}
	if after := must(t, "find", root, "-ls"); after != before {
		t.Errorf("the root was changed:\n%s\nbefore:\n%s", after, before)
	}
	if left, _ := os.ReadDir(filepath.Join(runtime, "vmm")); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

// TestMounts: directories of the host in one another, in any order, and a current directory
// that a link leads to, and none is hidden by another.
func TestMounts(t *testing.T) {
	needKVM(t)
	runtimeDirFor(t)
	dir, err := os.MkdirTemp("/var/tmp", "vmm-t-") // which the guest sees, other than /tmp
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	hidden := t.TempDir()
	for _, d := range []string{"work/out", "top", "in", "deep", "run"} {
		os.MkdirAll(filepath.Join(hidden, d), 0o755)
	}
	os.WriteFile(filepath.Join(hidden, "work/f"), []byte("mine\n"), 0o644)
	os.Symlink("/y", filepath.Join(hidden, "top/link"))
	os.Symlink(filepath.Join(hidden, "work"), filepath.Join(dir, "link"))
	share := func(name, at string) []string { return []string{"--share", filepath.Join(hidden, name) + ":" + at} }
	args := append([]string{"run", "--timeout", bootLimit, "--rw", "out"},
		slices.Concat(share("deep", "/x/in/deep"), share("in", "/x/in"), share("top", "/x"), share("run", "/run"))...)
	out, errs, status := inDir(t, filepath.Join(dir, "link"), nil, append(args, "--", "sh", "-c",
		"cat f; pwd; echo lost > f; for d in out /x/in/deep /x/in /x /run; do echo $d > $d/kept; done")...)
	if out != "mine\n"+filepath.Join(dir, "link")+"\n" || status != 0 {
		t.Errorf("status %d, %q, %s", status, out, errs)
	}
	for d, want := range map[string]string{"work/out": "out", "deep": "/x/in/deep", "in": "/x/in", "top": "/x", "run": "/run"} {
		if b, _ := os.ReadFile(filepath.Join(hidden, d, "kept")); string(b) != want+"\n" {
			t.Errorf("%s has %q", d, b)
		}
	}
	if b, _ := os.ReadFile(filepath.Join(hidden, "work/f")); string(b) != "mine\n" {
		t.Errorf("the current directory was written to: %q", b)
	}
	if left, _ := os.ReadDir(filepath.Join(hidden, "run")); len(left) != 1 {
		t.Errorf("the guest's own files came to the host: %v", left)
	}
	// What the links in the guest make one place is found there.
	args = append([]string{"run", "--timeout", bootLimit}, slices.Concat(share("top", "/x"), share("in", "/x/link"), share("deep", "/y"))...)
	if out, errs, status := inDir(t, hidden, nil, append(args, "--", "true")...); status != 125 || !strings.Contains(errs, "are one place in the guest") {
		t.Errorf("two directories in one place: status %d, %s%s", status, out, errs)
	}
}

// TestBadCommands wants one line and a status for what cannot be.
func TestBadCommands(t *testing.T) {
	needKVM(t)
	runtimeDirFor(t)
	bad := filepath.Join(t.TempDir(), "bad")
	os.WriteFile(bad, []byte("memory = \"lots\"\n"), 0o644)
	wantRefusals(t, []refusal{
		{"run --share x -- true", 2, "HOST:GUEST[:ro]"},
		{"run --share /etc:etc -- true", 2, "an absolute path"},
		{"run --share /nowhere:/x -- true", 125, "/nowhere"},
		{"run --rw /nowhere -- true", 125, "/nowhere"},
		{"run --rw / -- true", 2, "name the directories"},
		{"run --share /usr:/x --share /etc:/x/ -- true", 2, "both to be /x"},
		{"run --root /usr --cwd etc -- true", 2, "absolute path"},
		{"run --root /nowhere -- true", 125, "/nowhere"},
		{"run --modules /etc -- true", 125, "no modules.dep"},
		{"run --vsock /nowhere/socket -- true", 125, "/nowhere/socket"},
		{"run --gdb 99999999 -- true", 125, "invalid port"},
		{"run --no-agent -- true", 2, "needs the agent"},
		{"run --env A=1", 2, "are for a command"},
		{"run -t -- true", 2, "not a terminal"},
		{"run -d -t -- true", 2, "no terminal"},
		{"run -d --share /nowhere:/x", 125, "/nowhere"},
		{"run --config " + bad + " -- true", 2, "memory"},
		{"run --config /nowhere -- true", 2, "/nowhere"},
		{"stop nobody", 125, "no VM"},
		{"gdb nobody", 125, "no VM"},
		{"cp a b", 2, "VM:PATH"},
	})
	if out, _ := vmm(t, "ps", "-a", "-q"); out != "" {
		t.Errorf("left behind: %s", out)
	}
}

// TestRunBinary sends 100 MiB of any bytes through a command in the guest.
func TestRunBinary(t *testing.T) {
	needKVM(t)
	runtimeDirFor(t)
	data := make([]byte, 100<<20)
	rng := rand.NewChaCha8([32]byte{1})
	rng.Read(data)
	out, errs, status := inDir(t, "/", data, "run", "-i", "--timeout", bootLimit, "-m", "256M", "--", "cat")
	if status != 0 || sha256.Sum256([]byte(out)) != sha256.Sum256(data) {
		t.Errorf("status %d, %d bytes came back of %d; %s", status, len(out), len(data), errs)
	}
}

// TestRunSignals: a signal goes on to the command; before there is one, it ends the VM.
func TestRunSignals(t *testing.T) {
	needKVM(t)
	runtime := runtimeDirFor(t)
	g := startGuest(t, "run", "--timeout", bootLimit, "--", "sh", "-c", "trap 'exit 33' TERM; echo trapped; while :; do sleep 0.1; done")
	if !g.until("trapped") {
		t.Fatalf("the guest:\n%s", g.out.String())
	}
	g.cmd.Process.Signal(unix.SIGTERM)
	g.until("")
	g.cmd.Wait()
	if s := g.cmd.ProcessState.ExitCode(); s != 33 {
		t.Errorf("exit status %d", s)
	}
	g = startGuest(t, "run", "--cold", "--name", "early", "--timeout", bootLimit, "--", "true")
	for range 600 { // the guest begins when there is the socket, and takes seconds
		if _, err := os.Stat(filepath.Join(runtime, "vmm", "early", "control.sock")); err == nil {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	time.Sleep(300 * time.Millisecond)
	g.cmd.Process.Signal(unix.SIGINT)
	g.until("")
	g.cmd.Wait()
	if s := g.cmd.ProcessState.ExitCode(); s != 130 {
		t.Errorf("before the command: exit status %d", s)
	}
}

// TestRunShell uses a shell on a terminal, as a person does.
func TestRunShell(t *testing.T) {
	needKVM(t)
	runtimeDirFor(t)
	p := openTerminal(t)
	before := p.settings()
	c := p.start("run", "-it", "--timeout", bootLimit, "--", "/bin/sh")
	p.expect("# ")
	p.send("echo size $(stty size) on $TERM\r")
	p.expect("size 33 77 on vt100")
	p.resize(44, 99)
	unix.Kill(c.Process.Pid, unix.SIGWINCH) // in front there is only vmm
	p.send("until [ \"$(stty size)\" = '44 99' ]; do sleep 0.2; done; echo gr''own\r")
	p.expect("grown")
	p.send("sleep 1000\r")
	p.expect("sleep 1000")
	time.Sleep(300 * time.Millisecond)
	p.send("\x03")
	p.send("exit 5\r")
	c.Wait()
	if s := c.ProcessState.ExitCode(); s != 5 {
		t.Errorf("exit status %d", s)
	}
	if p.settings() != before {
		t.Error("the terminal is not as it was")
	}
}

// TestShares has a guest do to shared directories what programs do, while the host
// looks on.
func TestShares(t *testing.T) {
	needKVM(t)
	needTools(t, "fio")
	runtimeDirFor(t)
	dir := t.TempDir()
	must(t, "cp", guestCheck, filepath.Join(dir, "guestcheck"))
	os.Symlink("/etc/passwd", filepath.Join(dir, "outside"))
	must(t, vmmPath, "run", "-d", "--name", "s", "-c", "2", "--timeout", bootLimit,
		"--share", dir+":/mnt/rw", "--share", dir+":/mnt/ro:ro", "--", "sleep", "1000")
	defer vmm(t, "rm", "-f", "s")
	root := ""
	if os.Getuid() == 0 {
		root = "root=1"
	}
	out, _ := vmm(t, "exec", "s", "/mnt/rw/guestcheck", "share=/mnt/rw", root)
	reportChecks(t, out)

	guest := func(script, want string) {
		t.Helper()
		if out, _ := vmm(t, "exec", "s", "sh", "-c", script); strings.TrimSpace(out) != want {
			t.Errorf("%s: %q, want %q", script, out, want)
		}
	}
	host := func(name, content string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	// What one side closes, the other opens as it is.
	host("shared", "first")
	guest("cat /mnt/rw/shared", "first")
	host("shared", "second, and longer")
	guest("cat /mnt/rw/shared; cat /mnt/ro/shared", "second, and longersecond, and longer")
	guest("echo by the guest > /mnt/rw/shared; cat /mnt/ro/shared", "by the guest")
	if b, _ := os.ReadFile(filepath.Join(dir, "shared")); string(b) != "by the guest\n" {
		t.Errorf("the host reads %q", b)
	}
	guest("echo x 2>&1 > /mnt/ro/shared || echo refused", "sh: 1: cannot create /mnt/ro/shared: Read-only file system\nrefused")
	// A link leads where it leads in the guest.
	guest("echo guest-only:x:0:0::/:/bin/sh >> /etc/passwd; grep -c guest-only /mnt/rw/outside", "1")
	if b, _ := os.ReadFile("/etc/passwd"); strings.Contains(string(b), "guest-only") {
		t.Error("the host's /etc/passwd was changed")
	}
	out, status := vmm(t, "exec", "s", "fio", "--name=verify", "--directory=/mnt/rw", "--rw=randwrite", "--bs=4k-64k", "--size=8M",
		"--verify=crc32c", "--do_verify=1", "--ioengine=psync", "--fallocate=none", "--thread", "--minimal")
	if status != 0 {
		t.Errorf("fio: status %d\n%s", status, out)
	}
	guest("mount -t tmpfs none /mnt/rw && echo over", "over")
}
