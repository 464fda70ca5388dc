package tests

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestCloneInterrupted: Ctrl-C ends vmm clone while it saves the memory, of which nothing is left, and
// the VM goes on.
func TestCloneInterrupted(t *testing.T) {
	needKVM(t)
	runtimeDirFor(t)
	tmp := t.TempDir()
	t.Setenv("TMPDIR", tmp)
	ok(t, "run", "-d", "--name", "origin", "-m", "1G", "--net", "none")
	defer gone(t, "origin")
	ok(t, "exec", "origin", "sh", "-c", "dd if=/dev/urandom of=/tmp/much bs=1M count=300 2>/dev/null") // so that it takes a while
	saving := func() []string {
		left, err := filepath.Glob(filepath.Join(tmp, "vmm-clone-*"))
		if err != nil {
			t.Fatal(err)
		}
		return left
	}
	g := startGuest(t, "clone", "origin", "copy")
	for len(saving()) == 0 && unix.Kill(g.cmd.Process.Pid, 0) == nil {
		time.Sleep(time.Millisecond)
	}
	g.cmd.Process.Signal(unix.SIGINT)
	g.until("")
	g.cmd.Wait()
	if s := g.cmd.ProcessState.ExitCode(); s != 130 {
		t.Errorf("exit status %d:\n%s", s, g.out.String())
	}
	if left := saving(); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	if out := ok(t, "exec", "origin", "echo", "goes on"); !strings.Contains(out, "goes on") {
		t.Errorf("the origin says %q", out)
	}
	if out := ok(t, "ps", "-a"); strings.Contains(out, "copy") {
		t.Errorf("there is a copy:\n%s", out)
	}
	if entries, err := os.ReadDir(tmp); err != nil || len(entries) > 0 {
		t.Errorf("in %s there are %v, %v", tmp, entries, err)
	}
}
