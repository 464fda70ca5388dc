package tests

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"vmm/internal/jail"
	"vmm/tests/programs"
)

// TestJail looks at the process of a VM from outside, and tries its jail from inside.
func TestJail(t *testing.T) {
	needKVM(t)
	able := jail.Able()
	if able.Landlock == 0 || !able.Seccomp {
		t.Skipf("this host has only: %v", able)
	}
	runtimeDirFor(t)
	namespaces := false

	t.Run("outside", func(t *testing.T) {
		ok(t, "run", "-d", "--name", "jailed", "--net", "none")
		defer gone(t, "jailed")
		info := inspected(t, "jailed")
		if !strings.Contains(info.Jail, "Landlock") || !strings.Contains(info.Jail, "seccomp") {
			t.Errorf("vmm inspect says of the jail: %q", info.Jail)
		}
		namespaces = strings.Contains(info.Jail, "namespaces (mnt ipc net pid)")
		if privileged := os.Getuid() == 0; namespaces != privileged {
			t.Errorf("vmm inspect says of the jail: %q", info.Jail)
		}
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", info.PID))
		if err != nil {
			t.Fatal(err)
		}
		wants := []string{"NoNewPrivs:\t1\n", "Seccomp:\t2\n"}
		if namespaces { // its number there is 1
			wants = append(wants, fmt.Sprintf("NSpid:\t%d\t1\n", info.PID))
		}
		for _, want := range wants {
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
	for _, f := range []string{"ro/in", "rw/in", "secret", "root/etc/x", "disks/other"} {
		path := filepath.Join(dir, f)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte("text"), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	disk := filepath.Join(dir, "disks/disk")
	must(t, vmmPath, "image", "create", "-f", "raw", "-s", "1M", disk)
	try := func(probes ...string) string {
		c := exec.Command(probe, "run", "--cold", "--net", "none", "--timeout", "1ns", "--disk", disk, "--root", filepath.Join(dir, "root"),
			"--share", filepath.Join(dir, "ro")+":/ro:ro", "--share", filepath.Join(dir, "rw")+":/rw", "--", "true")
		c.Env = append(os.Environ(), "VMM_JAIL_PROBE="+strings.Join(probes, ","))
		out, _ := c.CombinedOutput()
		return string(out)
	}
	t.Run("files", func(t *testing.T) {
		const can, denied, gone, fixed = "<nil>", "permission denied", "no such file", "read-only file system"
		want := map[string]string{ // what root's process has no name for is not there
			"read /proc/self/statm": can, "read " + dir + "/secret": gone, "write " + dir + "/secret": gone, "create " + dir + "/new": gone,
			"read /etc/passwd": gone, "read /proc/1/environ": gone, "write /dev/kvm": gone, "read " + dir + "/rw/in": gone, "create /new": fixed,
			"create " + dir + "/disks/new": gone, "write " + dir + "/disks/other": gone, "write " + disk: gone,
		}
		if !namespaces {
			want = map[string]string{
				"read " + dir + "/ro/in": can, "read " + dir + "/rw/in": can, "write " + dir + "/rw/in": can, "create " + dir + "/rw/new": can,
				"write " + dir + "/ro/in": denied, "create " + dir + "/ro/new": denied, "read " + dir + "/secret": denied, "write " + dir + "/secret": denied,
				"create " + dir + "/new": denied, "read /etc/passwd": denied, "read /proc/1/environ": denied, "write /dev/kvm": denied,
				"create " + dir + "/disks/new": denied, "write " + dir + "/disks/other": denied, "write " + disk: denied,
			}
		}
		out := try(slices.Collect(maps.Keys(want))...)
		for p, result := range want {
			if _, line, _ := strings.Cut(out, "probe: "+p+": "); !strings.Contains(strings.SplitN(line+"\n", "\n", 2)[0], result) {
				t.Errorf("%s: want %s in\n%s", p, result, out)
			}
		}
	})
	t.Run("background", func(t *testing.T) {
		if !namespaces {
			t.Skip("no process namespace without root, or namespaces")
		}
		here := os.Getpid()
		c := exec.Command(probe, "run", "-d", "--name", "inside", "--net", "none")
		c.Env = append(os.Environ(), fmt.Sprintf("VMM_JAIL_PROBE=read /proc/self/statm,read /proc/%d/stat,signal 1,signal %d", here, here))
		out, err := c.CombinedOutput()
		for _, want := range []string{"probe: read /proc/self/statm: <nil>\n", fmt.Sprintf("stat: open /proc/%d/stat: no such file", here), "probe: signal 1: <nil>\n", "made the system call kill,"} {
			if err == nil || !strings.Contains(string(out), want) {
				t.Errorf("no %q, %v, in\n%s", want, err, out)
			}
		}
	})
	t.Run("user", func(t *testing.T) {
		if !namespaces {
			t.Skip("another user needs root, and namespaces")
		}
		const id = 54321
		if err := errors.Join(os.Chown(disk, id, id), os.Chown(filepath.Join(dir, "rw"), id, id), os.Chmod(filepath.Join(dir, "ro/in"), 0o600)); err != nil {
			t.Fatal(err)
		}
		ok(t, "run", "-d", "--name", "somebody", "--jail-user", fmt.Sprint(id), "--disk", disk, "--share", filepath.Join(dir, "ro")+":/ro:ro", "--share", filepath.Join(dir, "rw")+":/rw")
		defer gone(t, "somebody")
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", inspected(t, "somebody").PID))
		if want := "Uid:\t54321\t54321\t54321\t54321\n"; err != nil || !strings.Contains(string(status), want) || !strings.Contains(string(status), "CapPrm:\t0000000000000000\n") {
			t.Errorf("%s, %v", status, err)
		}
		out := ok(t, "exec", "somebody", "sh", "-c", "cat /ro/in; echo there > /rw/written; head -c 512 /dev/zero > /dev/vda && sync && echo written")
		if !strings.Contains(out, "/ro/in': Permission denied") || !strings.HasSuffix(out, "written") {
			t.Errorf("the guest said %q", out)
		}
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join(dir, "rw/written"), &st); err != nil || st.Uid != id {
			t.Errorf("a file of the guest's is user %d's, %v", st.Uid, err)
		}
		ok(t, "snapshot", "--disk-copy", "somebody", filepath.Join(dir, "saved"))
		ok(t, "snapshot", "somebody", filepath.Join(dir, "pinned")) // though that user cannot write beside the disk
		ok(t, "exec", "somebody", "sh", "-c", "echo more > /dev/vda && sync")
		if err := unix.Stat(disk+"-1.qcow2", &st); err != nil || st.Uid != id {
			t.Errorf("the overlay is user %d's, %v", st.Uid, err)
		}
		ok(t, "stop", "somebody")
		if out := ok(t, "ps", "-a"); !strings.Contains(out, "exited (0)") {
			t.Errorf("vmm ps: %s", out)
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
