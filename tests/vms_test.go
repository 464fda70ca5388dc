package tests

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmm/guest-images/agent"
)

// testEarlyCommand copies a VM for a command before it has been told what it is to mount.
func testEarlyCommand(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "shared"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	must(t, vmmPath, "run", "-d", "--cold", "--name", "job", "-m", "256M", "--timeout", bootLimit, "--share", dir+":/mnt", "--", "sleep", "1000")
	defer vmm(t, "rm", "-f", "job", "job-2")
	must(t, vmmPath, "clone", "job", "job-2")
	if out := must(t, vmmPath, "exec", "job-2", "ls", "/mnt"); out != "shared\n" {
		t.Errorf("the copy has in the place of the share: %q", out)
	}
}

// testEarly copies a VM that has just begun to boot: the copies boot on, one is another than the original, and one
// shuts down when it is asked to before it can hear that.
func testEarly(t *testing.T, origin string) {
	must(t, vmmPath, "clone", origin, "early", "brief")
	defer vmm(t, "rm", "-f", "early", "brief")
	must(t, vmmPath, "stop", "-t", "60", "brief")
	if status := must(t, vmmPath, "wait", "brief"); status != "0\n" {
		t.Errorf("a VM that was stopped while it booted has ended with status %s", status)
	}
	if out := must(t, vmmPath, "exec", "early", "uname", "-n"); out != "early\n" {
		t.Errorf("the copy of a VM that booted still is called %q", out)
	}

	// What is under way when a VM ends says that, and not how its connection has ended.
	c := exec.Command(vmmPath, "exec", "early", "sh", "-c", "echo begun; sleep 1000")
	var errs bytes.Buffer
	c.Stderr = &errs
	said, err := c.StdoutPipe()
	if err == nil {
		err = c.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(said, make([]byte, len("begun\n"))); err != nil {
		t.Errorf("exec has not begun: %v, %s", err, errs.String())
	}
	must(t, vmmPath, "kill", "early")
	if c.Wait(); c.ProcessState.ExitCode() != 125 || errs.String() != "vmm: VM \"early\" has ended\n" {
		t.Errorf("a command in a VM that was killed: %v, %q", c.ProcessState, errs.String())
	}
}

// TestVMs keeps a VM in the background and uses all that there is for it.
func TestVMs(t *testing.T) {
	needKVM(t)
	needTools(t, "curl")
	runtime := runtimeDirFor(t)
	dir := t.TempDir()
	if out := must(t, vmmPath, "run", "-d", "--name", "dev", "-m", "256M", "--timeout", bootLimit, "--vsock", filepath.Join(dir, "vs")); out != "dev\n" {
		t.Fatalf("run -d prints %q", out)
	}
	defer vmm(t, "rm", "-f", "dev")
	has := func(want string, args ...string) string {
		t.Helper()
		out, status := vmm(t, args...)
		if status != 0 || !strings.Contains(out, want) {
			t.Errorf("vmm %s: status %d, no %q in:\n%s", strings.Join(args, " "), status, want, out)
		}
		return out
	}
	testEarly(t, "dev")
	testEarlyCommand(t)
	has("default via", "exec", "dev", "ip", "route") // it waits until the guest is up, and its network
	has("dev", "exec", "dev", "uname", "-n")
	if out := has("dev ", "ps"); !strings.Contains(out, "up ") || !strings.Contains(out, "256 MiB") {
		t.Errorf("ps: %s", out)
	}

	// Twenty commands at once.
	var all sync.WaitGroup
	for i := range 20 {
		all.Go(func() {
			out, status := vmmInput(t, fmt.Sprint("input ", i), "exec", "-i", "dev", "sh", "-c", fmt.Sprintf("cat; echo; exit %d", i+1))
			if status != i+1 || out != fmt.Sprintf("input %d\n", i) {
				t.Errorf("exec %d: status %d, %q", i, status, out)
			}
		})
	}
	all.Wait()

	// Copies.
	os.MkdirAll(filepath.Join(dir, "tree", "sub"), 0o755)
	data := make([]byte, 3<<20)
	rand.NewChaCha8([32]byte{2}).Read(data)
	os.WriteFile(filepath.Join(dir, "tree", "sub", "data"), data, 0o640)
	os.Symlink("sub/data", filepath.Join(dir, "tree", "link"))
	has("", "cp", filepath.Join(dir, "tree"), "dev:/tmp")
	has("sub/data", "exec", "dev", "readlink", "/tmp/tree/link")
	has("", "cp", "dev:/tmp/tree", filepath.Join(dir, "back"))
	if out := must(t, "diff", "-r", filepath.Join(dir, "tree"), filepath.Join(dir, "back")); out != "" {
		t.Error(out)
	}

	has("", "cp", "dev:tmp/tree/.", filepath.Join(dir, "content"))
	if out := must(t, "diff", "-r", filepath.Join(dir, "tree"), filepath.Join(dir, "content")); out != "" {
		t.Error(out)
	}
	archive, errs, _ := inDir(t, dir, nil, "cp", "dev:/tmp/tree", "-")
	if _, more, status := inDir(t, dir, []byte(archive), "cp", "-", "dev:/run"); status != 0 {
		t.Errorf("an archive of %d bytes: status %d, %s%s", len(archive), status, errs, more)
	}
	has("sub/data", "exec", "dev", "readlink", "/run/tree/link")
	has("version", "cp", "-L", "dev:/proc/self/../version", "/dev/stdout")

	// vsock, both ways, by unix sockets.
	l, err := net.Listen("unix", filepath.Join(dir, "vs_77"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		if c, err := l.Accept(); err == nil {
			io.Copy(c, c)
			c.Close()
		}
	}()
	has("", "cp", guestCheck, "dev:/tmp/guestcheck")
	reportChecks(t, has("CHECK vsock ok", "exec", "dev", "/tmp/guestcheck", "vsock=77"))
	direct := agent.Client{Dial: func(context.Context) (net.Conn, error) {
		c, err := net.Dial("unix", filepath.Join(dir, "vs"))
		if err != nil {
			return nil, err
		}
		fmt.Fprintf(c, "CONNECT %d\n", agent.Port)
		for b := []byte{0}; b[0] != '\n'; { // "OK PORT", and no byte more
			if _, err := c.Read(b); err != nil {
				return nil, err
			}
		}
		return c, nil
	}}
	var said bytes.Buffer
	if x, err := direct.Exec(context.Background(), agent.Exec{Argv: []string{"echo", "direct"}}, agent.Streams{Out: &said, Err: &said}); err != nil || x.Status != 0 || said.String() != "direct\n" {
		t.Errorf("by the vsock's socket: %+v, %v, %q", x, err, said.String())
	}

	// The console, by the log and by a terminal.
	p := openTerminal(t)
	c := p.start("attach", "dev")
	time.Sleep(300 * time.Millisecond)
	p.send("echo on the con''sole\r")
	p.expect("on the console")
	p.send("\x01h")
	p.expect("Ctrl-a d")
	p.send("\x01d")
	if err := c.Wait(); err != nil {
		t.Errorf("attach: %v", err)
	}
	has("on the console", "logs", "dev")

	// An editor in the guest, driven by keys.
	v := p.start("exec", "-it", "dev", "vi", "/tmp/edited")
	p.expect("edited")
	p.send("ihello from vi\x1b")
	time.Sleep(time.Second) // or the escape begins the name of a key
	p.send(":wq\r")
	if err := v.Wait(); err != nil {
		t.Errorf("vi: %v", err)
	}
	has("hello from vi", "exec", "dev", "cat", "/tmp/edited")

	// What others read.
	var stats map[string]struct {
		CPUSeconds []float64 `json:"cpuSeconds"`
		Resident   uint64    `json:"resident"`
	}
	if err := json.Unmarshal([]byte(has("dev", "stats", "--json")), &stats); err != nil || len(stats["dev"].CPUSeconds) != 1 ||
		stats["dev"].CPUSeconds[0] <= 0 || stats["dev"].Resident < 1<<20 {
		t.Errorf("stats %+v, %v", stats, err)
	}
	has("DISK R/W", "stats", "--no-stream")
	var info []map[string]any
	if err := json.Unmarshal([]byte(has("running", "inspect", "dev")), &info); err != nil || len(info) != 1 || info[0]["agent"] != true {
		t.Errorf("inspect %v, %v", info, err)
	}
	socket := filepath.Join(runtime, "vmm", "dev", "control.sock")
	if st, err := os.Stat(socket); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("the control socket: %v, %v", st, err)
	}
	metrics := must(t, "curl", "-s", "--unix-socket", socket, "http://vmm/v1/metrics")
	for _, want := range []string{`vmm_vcpu_seconds_total{cpu="0",vm="dev"}`, `vmm_resident_bytes{vm="dev"}`, `vmm_network_bytes_total{device="eth0",direction="sent",vm="dev"}`} {
		if !strings.Contains(metrics, want) {
			t.Errorf("no %s in the metrics", want)
		}
	}

	wantRefusals(t, []refusal{
		{"run --name dev", 125, "is running already"},
		{"exec nobody true", 125, "there are dev"},
		{"rm dev", 125, "stop it before"},
		{"cp dev:/nowhere /tmp", 125, "nowhere"},
		{"cp /etc/passwd dev:/typo/x", 125, "there is no directory /typo"},
		{"cp /etc/passwd dev:/tmp/typo/", 125, "there is no directory /tmp/typo/"},
		{"exec dev /nowhere", 127, "/nowhere"},
		{"exec --user nobody-here dev true", 126, "no user"},
	})

	has("dev", "stop", "dev")
	has("exited (0)", "ps", "-a")
	has("on the console", "logs", "dev")
	wantRefusals(t, []refusal{{"exec dev true", 125, "not running"}, {"run --name dev", 125, "vmm rm dev"}})
	has("dev", "rm", "dev")
	if left, _ := os.ReadDir(filepath.Join(runtime, "vmm")); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

// TestAgent has the agent in a guest with a system of its own.
func TestAgent(t *testing.T) {
	needKVM(t)
	runtimeDirFor(t)
	root := smallRoot(t)
	for _, d := range []string{"sbin", "proc", "dev", "tmp"} {
		os.MkdirAll(filepath.Join(root, d), 0o755)
	}
	must(t, "cp", vmmPath, filepath.Join(root, "bin", "vmm"))
	init := "#!/bin/sh\n/bin/busybox mount -t proc proc /proc\n/bin/vmm agent &\nwhile :; do /bin/busybox sleep 1; done\n"
	if err := os.WriteFile(filepath.Join(root, "sbin", "init"), []byte(init), 0o755); err != nil {
		t.Fatal(err)
	}
	must(t, vmmPath, "run", "-d", "--name", "own", "--rootfs", root, "--timeout", bootLimit)
	defer vmm(t, "rm", "-f", "own")
	if out, status := vmm(t, "exec", "own", "sh", "-c", "read x < /proc/1/cmdline; echo $x; exit 4"); status != 4 || !strings.HasPrefix(out, "/bin/sh") {
		t.Errorf("exec: status %d, %q", status, out)
	}
	if out, status := vmm(t, "stop", "own"); status != 0 {
		t.Errorf("stop: %s", out)
	}
	if out, _ := vmm(t, "ps", "-a"); !strings.Contains(out, "exited (0)") {
		t.Errorf("ps -a: %s", out)
	}
}

// TestKilled: nothing is left of a VM whose process was killed.
func TestKilled(t *testing.T) {
	needKVM(t)
	runtime := runtimeDirFor(t)
	must(t, vmmPath, "run", "-d", "--name", "k", "--timeout", bootLimit, "--", "sh", "-c", "echo begun; sleep 1000")
	g := startGuest(t, "logs", "-f", "k")
	if !g.until("begun") {
		t.Fatalf("logs -f:\n%s", g.out.String())
	}
	var info []struct {
		PID int `json:"pid"`
	}
	out, _ := vmm(t, "inspect", "k")
	if err := json.Unmarshal([]byte(out), &info); err != nil {
		t.Fatal(err)
	}
	unix.Kill(info[0].PID, unix.SIGKILL)
	g.until("") // it ends with the VM
	if out, _ := vmm(t, "ps", "-a"); !strings.Contains(out, "exited (killed)") {
		t.Errorf("ps -a: %s", out)
	}
	if children, _ := exec.Command("pgrep", "-f", "run -d --name k ").Output(); len(children) > 0 {
		t.Errorf("processes are left: %s", children)
	}
	if out, status := vmm(t, "rm", "k"); status != 0 {
		t.Errorf("rm: %s", out)
	}
	// One that is stopped has the status that its command has made of it.
	must(t, vmmPath, "run", "-d", "--name", "k", "--timeout", bootLimit, "--", "sh", "-c", "trap 'echo ending; exit 9' TERM; echo begun; while :; do sleep 0.1; done")
	if g = startGuest(t, "logs", "-f", "k"); !g.until("begun") {
		t.Fatalf("logs -f:\n%s", g.out.String())
	}
	if out, status := vmm(t, "stop", "-t", "60", "k"); status != 0 {
		t.Errorf("stop: %s", out)
	}
	if g.until(""); !strings.Contains(g.out.String(), "ending") {
		t.Errorf("logs -f:\n%s", g.out.String())
	}
	if out, _ := vmm(t, "ps", "-a"); !strings.Contains(out, "exited (9)") {
		t.Errorf("ps -a: %s", out)
	}
	vmm(t, "rm", "k")
	must(t, vmmPath, "run", "-d", "--name", "k", "--timeout", bootLimit, "--", "sleep", "1000")
	if out, status := vmm(t, "kill", "k"); status != 0 {
		t.Errorf("kill: %s", out)
	}
	if out, _ := vmm(t, "ps", "-a"); !strings.Contains(out, "exited (137)") {
		t.Errorf("ps -a: %s", out)
	}
	vmm(t, "rm", "k")
	// In the foreground there is nothing to list either.
	f := startGuest(t, "run", "--name", "f", "--timeout", bootLimit, "--", "sh", "-c", "echo begun; sleep 1000")
	if !f.until("begun") {
		t.Fatalf("run:\n%s", f.out.String())
	}
	f.cmd.Process.Kill()
	f.until("")
	if out, _ := vmm(t, "ps", "-aq"); out != "" {
		t.Errorf("ps: %s", out)
	}
	if left, _ := os.ReadDir(filepath.Join(runtime, "vmm")); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}
