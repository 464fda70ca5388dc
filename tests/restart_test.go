package tests

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmm/vm/api"
)

// lookUntil looks at a VM until it is as the caller wants it.
func lookUntil(t *testing.T, name string, is func(api.VM) bool) api.VM {
	t.Helper()
	for range 1200 {
		if vm := inspected(t, name); is(vm) {
			return vm
		}
		time.Sleep(50 * time.Millisecond)
	}
	vm := inspected(t, name)
	t.Fatalf("%s stays as it is: %+v", name, vm)
	return vm
}

// TestRestart: VMs in the background are started again after their end, as their policy says, until
// somebody ends them.
func TestRestart(t *testing.T) {
	needKVM(t)
	runtimeDirFor(t)
	ownCache(t)
	start := func(name, policy string, script string) {
		t.Helper()
		if out, status := vmm(t, "run", "-d", "--name", name, "--restart", policy, "--", "/bin/sh", "-c", script); status != 0 || out != name+"\n" {
			t.Fatalf("run -d %s: status %d\n%s", name, status, out)
		}
		t.Cleanup(func() { vmm(t, "rm", "-f", name) })
	}
	exited := func(vm api.VM) bool { return vm.State == api.Exited }

	start("fails", "on-failure:2", "echo begins; exit 3")
	if out, status := vmm(t, "logs", "-f", "fails"); status != 0 || out != strings.Repeat("begins\n", 3) {
		t.Errorf("logs -f: status %d\n%s", status, out)
	}
	if vm := inspected(t, "fails"); !exited(vm) || vm.Restarts != 2 || vm.Status == nil || *vm.Status != 3 {
		t.Errorf("it has failed three times: %+v", vm)
	}

	start("lives", "always", "echo begins; exec sleep 100000")
	waitLog(t, "lives", "begins\n")
	first := inspected(t, "lives")
	if err := unix.Kill(first.PID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	lookUntil(t, "lives", func(vm api.VM) bool { return vm.State == api.Running && vm.Restarts == 1 && vm.PID != first.PID })
	if out, status := vmm(t, "exec", "lives", "echo", "answers"); status != 0 || out != "answers\n" { // which may have just begun
		t.Errorf("exec in the second run: status %d\n%s", status, out)
	}
	waitLog(t, "lives", "begins\nbegins\n")
	waited := make(chan string)
	go func() {
		out, status := vmm(t, "wait", "fails", "lives")
		waited <- fmt.Sprintf("%d: %s", status, out)
	}()
	if out, status := vmm(t, "stop", "-t", "1", "lives"); status != 0 {
		t.Errorf("stop: status %d\n%s", status, out)
	}
	if got, want := <-waited, "0: 3\n143\n"; got != want {
		t.Errorf("wait: %q, want %q", got, want)
	}
	if vm := inspected(t, "lives"); !exited(vm) || vm.Restarts != 1 {
		t.Errorf("it was stopped: %+v", vm)
	}
	processGone(t, first.Supervisor)

	// Whose supervisor was killed goes on, and says itself how it ends.
	start("alone", "always", "while [ ! -e /tmp/end ]; do sleep 0.1; done; exit 5")
	alone := inspected(t, "alone")
	if err := unix.Kill(alone.Supervisor, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if out, status := vmm(t, "exec", "alone", "true"); status != 0 {
		t.Errorf("exec beside no supervisor: status %d\n%s", status, out)
	}
	vmm(t, "exec", "alone", "touch", "/tmp/end") // it may have ended before it says how that went
	if vm := lookUntil(t, "alone", exited); vm.Status == nil || *vm.Status != 5 {
		t.Errorf("it has ended without a supervisor: %+v", vm)
	}

	// Between two runs it can be stopped and removed.
	start("ends", "unless-stopped", "true")
	between := lookUntil(t, "ends", func(vm api.VM) bool { return vm.State == api.Restarting })
	if out, status := vmm(t, "ps"); status != 0 || !strings.Contains(out, "ends") {
		t.Errorf("ps: status %d\n%s", status, out)
	}
	if out, status := vmm(t, "stop", "ends"); status != 0 {
		t.Errorf("stop: status %d\n%s", status, out)
	}
	if vm := inspected(t, "ends"); !exited(vm) {
		t.Errorf("it was stopped between two runs: %+v", vm)
	}
	processGone(t, between.Supervisor)
	wantRefusals(t, []refusal{
		{"run --restart always -- true", 2, "goes with -d"},
		{"run -d --rm --restart always -- true", 2, "or removed"},
		{"run -d --restart sometimes -- true", 2, "on-failure"},
		{"run -d --restart always --kernel /dev/null", 125, "/dev/null"}, // the first start tells
	})
	if list, _ := vmm(t, "ps", "-aq"); strings.Count(list, "\n") != 4 {
		t.Errorf("one that could not be started is listed:\n%s", list)
	}
}

// processGone holds that a process has ended.
func processGone(t *testing.T, pid int) {
	t.Helper()
	name, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	for n := 0; err == nil && !strings.Contains(string(name), ") Z ") && n < 100; n++ {
		time.Sleep(50 * time.Millisecond)
		name, err = os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	}
	if err == nil && !strings.Contains(string(name), ") Z ") {
		t.Errorf("process %d is there still", pid)
	}
}
