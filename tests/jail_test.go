package tests

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"vmm/internal/jail"
	"vmm/tests/programs"
	"vmm/vm/api"
)

// TestJail looks at the process of a VM from outside, and tries its jail from inside.
func TestJail(t *testing.T) {
	needKVM(t)
	if able := jail.Able(); able.Missing != "" {
		t.Skipf("this host has only: %v", able)
	}
	runtimeDirFor(t)

	t.Run("outside", func(t *testing.T) {
		ok(t, "run", "-d", "--name", "jailed", "--net", "none")
		defer gone(t, "jailed")
		var infos []api.VM
		if err := json.Unmarshal([]byte(ok(t, "inspect", "jailed")), &infos); err != nil || len(infos) != 1 {
			t.Fatal(infos, err)
		}
		info := infos[0]
		if !strings.Contains(info.Jail, "Landlock") || !strings.Contains(info.Jail, "seccomp") {
			t.Errorf("vmm inspect says of the jail: %q", info.Jail)
		}
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", info.PID))
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"NoNewPrivs:\t1\n", "Seccomp:\t2\n"} {
			if !strings.Contains(string(status), want) {
				t.Errorf("no %q in\n%s", want, status)
			}
		}
		tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", info.PID))
		if err != nil {
			t.Fatal(err)
		}
		for _, task := range tasks {
			if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/status", info.PID, task.Name())); err == nil && !strings.Contains(string(b), "Seccomp:\t2\n") {
				t.Errorf("thread %s is not in the filter", task.Name())
			}
		}
	})

	probe, err := programs.Build(t.TempDir(), programs.Probe, "vmm/cmd/vmm", programs.ProbeFlags...)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for _, f := range []string{"ro/in", "rw/in", "secret", "root/etc/x"} {
		path := filepath.Join(dir, f)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte("text"), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	try := func(probes ...string) string {
		c := exec.Command(probe, "run", "--cold", "--net", "none", "--timeout", "1ns", "--root", filepath.Join(dir, "root"),
			"--share", filepath.Join(dir, "ro")+":/ro:ro", "--share", filepath.Join(dir, "rw")+":/rw", "--", "true")
		c.Env = append(os.Environ(), "VMM_JAIL_PROBE="+strings.Join(probes, ","))
		out, _ := c.CombinedOutput()
		return string(out)
	}
	t.Run("files", func(t *testing.T) {
		var probes []string
		want := map[string]bool{
			"read " + dir + "/ro/in": true, "read " + dir + "/rw/in": true, "write " + dir + "/rw/in": true, "create " + dir + "/rw/new": true,
			"write " + dir + "/ro/in": false, "create " + dir + "/ro/new": false, "read " + dir + "/secret": false, "write " + dir + "/secret": false,
			"create " + dir + "/new": false, "read /etc/passwd": false, "read /proc/1/environ": false, "write /dev/kvm": false,
		}
		for p := range want {
			probes = append(probes, p)
		}
		out := try(probes...)
		for p, can := range want {
			result := "<nil>"
			if !can {
				result = "permission denied"
			}
			if _, line, _ := strings.Cut(out, "probe: "+p+": "); !strings.Contains(strings.SplitN(line+"\n", "\n", 2)[0], result) {
				t.Errorf("%s: want %s in\n%s", p, result, out)
			}
		}
	})
	for name, number := range map[string]int{"execve": unix.SYS_EXECVE, "ptrace": unix.SYS_PTRACE, "mount": unix.SYS_MOUNT, "socket": unix.SYS_SOCKET} {
		t.Run(name, func(t *testing.T) {
			if out := try(fmt.Sprint("call ", number)); !strings.Contains(out, "made the system call "+name+",") || strings.Contains(out, "probe:") {
				t.Errorf("%s", out)
			}
		})
	}
}
