package tests

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmm/internal/cgroup"
	"vmm/vm/api"
)

// limitFlags are limits that a small VM can live with.
func limitFlags(dir string) []string {
	return []string{"--cpu-limit", "0.5", "--memory-limit", "400M", "--pids-limit", "90", "--io-limit", dir + ":wbps=20M,riops=1000"}
}

// TestLimits holds the processes of VMs to the limits that they were given.
func TestLimits(t *testing.T) {
	needKVM(t)
	runtimeDirFor(t)
	dir := t.TempDir()
	flags := append([]string{"-d", "-m", "256M", "--net", "none"}, limitFlags(dir)...)
	if able, lacks := cgroup.Able(); lacks != nil {
		out, status := vmm(t, append([]string{"run"}, flags...)...)
		if status != 125 || !strings.Contains(out, "cannot be had: ") || strings.Count(out, "\n") != 1 {
			t.Errorf("limits that cannot be had: status %d, %q", status, out)
		}
		t.Skipf("this host has as limits: %s", able)
	}
	group := "" // of all in this test
	t.Run("values", func(t *testing.T) {
		ok(t, append([]string{"run", "--name", "bounded"}, flags...)...)
		defer gone(t, "bounded", "again")
		vm := limited(t, "bounded")
		group = filepath.Dir(vm.Cgroup)
		if n := number(t, vm.Cgroup, "cpu.stat", "nr_throttled"); n == 0 {
			t.Error("a boot has used no more than half a CPU's time")
		}
		// What is saved has its limits too.
		saved := filepath.Join(dir, "saved")
		ok(t, "snapshot", "bounded", saved)
		ok(t, "kill", "bounded")
		isGone(t, vm.Cgroup)
		ok(t, "restore", "-d", "--name", "again", saved)
		vm = limited(t, "again")
		// The kernel ends who has more than memory.max, and cannot give it back.
		if err := os.WriteFile(filepath.Join(vm.Cgroup, "memory.max"), []byte("1M"), 0); err != nil {
			t.Fatal(err)
		}
		untilExited(t, "again")
		if vm := inspected(t, "again"); !strings.Contains(vm.Detail, "more memory than its limit") {
			t.Errorf("it has ended: %q", vm.Detail)
		}
		isGone(t, vm.Cgroup)
	})
	t.Run("command", func(t *testing.T) {
		out, status := vmm(t, "run", "--pids-limit", "90", "-m", "256M", "--net", "none", "--", "echo", "hello")
		if left, err := os.ReadDir(group); status != 0 || out != "hello\n" || len(left) > 0 && left[0].IsDir() {
			t.Errorf("status %d, %q; left: %v, %v", status, out, left, err)
		}
	})
	t.Run("killed", func(t *testing.T) {
		ok(t, append([]string{"run", "--name", "nobody", "--jail-user", "nobody"}, flags...)...)
		defer gone(t, "nobody", "killed")
		left := limited(t, "nobody").Cgroup // which nobody may not remove
		ok(t, "kill", "nobody")
		ok(t, append([]string{"run", "--name", "killed", "--rm"}, flags...)...)
		isGone(t, left)
		vm := limited(t, "killed")
		if err := unix.Kill(vm.PID, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		untilExited(t, "killed")
		isGone(t, vm.Cgroup)
	})
	// A unit as systemd makes it, with processes in it.
	unit := filepath.Join(filepath.Dir(group), fmt.Sprintf("vmm-test-%d.scope", os.Getpid()))
	if err := os.Mkdir(unit, 0o755); err != nil {
		t.Fatal(err)
	}
	defer func() {
		for _, d := range []string{"vmm/others", "vmm", ""} {
			os.Remove(filepath.Join(unit, d))
		}
	}()
	join := fmt.Sprintf("echo $$ > %s/cgroup.procs", unit)
	t.Run("not delegated", func(t *testing.T) {
		out, err := exec.Command("sh", "-c", join+`; "$0" run --cpu-limit 1`, vmmPath).CombinedOutput()
		if err == nil || !strings.Contains(string(out), "systemd-run --scope") || strings.Count(string(out), "\n") != 1 {
			t.Errorf("%v, %q", err, out)
		}
	})
	t.Run("user", func(t *testing.T) {
		for _, f := range []string{"", "cgroup.procs", "cgroup.subtree_control", "cgroup.threads"} {
			if err := os.Chown(filepath.Join(unit, f), 65533, 65533); err != nil {
				t.Fatal(err)
			}
		}
		out, err := asUser(t, join, `set -e
"$1" run -d -m 256M --net none --name mine `+strings.Join(limitFlags(".")[:6], " ")+` > /dev/null
"$1" inspect mine | grep '"cgroup"'
cat /proc/self/cgroup
"$1" exec mine uname -s
"$1" kill mine > /dev/null
"$1" rm mine > /dev/null
`)
		at := "/" + filepath.Base(unit) + "/vmm/"
		if !strings.Contains(out, at+"mine-") || !strings.Contains(out, "0::"+at+"others\nLinux\n") || err != nil {
			t.Errorf("%v, %q", err, out)
		}
		if left, _ := filepath.Glob(filepath.Join(unit, "vmm/mine-*")); len(left) > 0 {
			t.Errorf("left: %v", left)
		}
	})
}

// limited holds a running VM's cgroup to limitFlags.
func limited(t *testing.T, name string) api.VM {
	t.Helper()
	vm := inspected(t, name)
	in, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", vm.PID))
	_, path, _ := strings.Cut(string(in), "0::")
	if at := strings.TrimSpace(path); err != nil || at == "" || !strings.HasSuffix(vm.Cgroup, at) || filepath.Base(at) != fmt.Sprintf("%s-%d", name, vm.PID) {
		t.Fatalf("%v: the process is in %q, and said to be in %q", err, in, vm.Cgroup)
	}
	if want := "cpu 0.5, memory 400M, pids 90, io "; !strings.HasPrefix(vm.Limits, want) {
		t.Errorf("limits %q, want %q", vm.Limits, want)
	}
	for file, want := range map[string]string{"cpu.max": "50000 100000\n", "memory.max": "419430400\n", "memory.swap.max": "0\n", "pids.max": "90\n",
		"io.max": " rbps=max wbps=20971520 riops=1000 wiops=max\n"} {
		if b, err := os.ReadFile(filepath.Join(vm.Cgroup, file)); !strings.HasSuffix(string(b), want) {
			t.Errorf("%s: %q, %v, want %q", file, b, err, want)
		}
	}
	return vm
}

// number is a value of a flat keyed file of a cgroup.
func number(t *testing.T, group, file, key string) (n int64) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(group, file))
	_, rest, ok := strings.Cut("\n"+string(b), "\n"+key+" ")
	if _, scan := fmt.Sscan(rest, &n); err != nil || !ok || scan != nil {
		t.Fatalf("%s of %s: %v, %q", key, file, err, b)
	}
	return n
}

// inspected is what vmm inspect says of a VM.
func inspected(t *testing.T, name string) api.VM {
	t.Helper()
	var vms []api.VM
	if err := json.Unmarshal([]byte(ok(t, "inspect", name)), &vms); err != nil || len(vms) != 1 {
		t.Fatal(vms, err)
	}
	return vms[0]
}

// untilExited waits for the end of a VM whose process is being killed.
func untilExited(t *testing.T, name string) {
	t.Helper()
	for range 1000 {
		if inspected(t, name).State == api.Exited {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatalf("%s goes on", name)
}

func isGone(t *testing.T, group string) {
	t.Helper()
	if _, err := os.Stat(group); err == nil || group == "" {
		t.Errorf("the cgroup %q is left", group)
	}
}
