package tests

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmm/tests/programs"
	"vmm/vm/api"
)

// What a process of vmm's may have beside its guest's memory, however hostile that is.
const (
	hostileMiB      = 256 // of the guest
	mostMiB         = 400 // resident
	mostDescriptors = 700
	mostThreads     = 100
	mostLines       = 1000    // of what the guest did wrong
	mostConsole     = 8 << 20 // bytes

	hostileDevices = 6   // entropy, and what run gives it
	enoughRounds   = 200 // to have reached all of them
	roundsPerVM    = 2500
)

// hostileNumber is a number from the environment.
func hostileNumber(t *testing.T, name string, usual int) int {
	t.Helper()
	s := os.Getenv(name)
	if s == "" {
		return usual
	}
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

// TestHostileGuest has a guest attack a real process of vmm's, and looks at that and at
// what is around it: it goes on or ends with a proper word, and the host has all that it had.
func TestHostileGuest(t *testing.T) {
	needKVM(t)
	runtime := runtimeDirFor(t)
	guest, err := programs.Build(t.TempDir(), programs.HostileGuest, "vmm/tests/hostileguest", programs.HostileGuestFlags...)
	if err != nil {
		t.Fatal(err)
	}
	// A neighbour of whose memory nothing may change.
	ok(t, "run", "-d", "--name", "bystander", "-m", "128M", "--net", "none")
	defer gone(t, "bystander")
	pattern := ok(t, "exec", "bystander", "sh", "-c", "dd if=/dev/urandom of=/dev/shm/pattern bs=1M count=4 2>/dev/null; sha256sum /dev/shm/pattern")
	for _, transport := range []string{"pci", "mmio"} {
		t.Run(transport, func(t *testing.T) {
			world := newWorld(t)
			before := world.look(t)
			done, want := 0, hostileNumber(t, "VMM_TEST_HOSTILE", max(50, int(300/slowness())))
			for seed := hostileNumber(t, "VMM_TEST_HOSTILE_SEED", 1); done < want && !t.Failed(); seed++ {
				a := &attack{t: t, world: world, runtime: runtime, seed: seed}
				done += a.run(guest, transport, min(want-done, roundsPerVM))
				for _, change := range changes(before, world.look(t)) {
					t.Error(change)
				}
				if t.Failed() {
					t.Logf("VMM_TEST_HOSTILE_SEED=%d may show it again; the VM said\n%s", seed, a.stderr.String())
				}
			}
			t.Logf("%d rounds", done)
		})
	}
	if now := ok(t, "exec", "bystander", "sha256sum", "/dev/shm/pattern"); now != pattern {
		t.Errorf("the neighbour's memory was %s, is %s", pattern, now)
	}
}

// world is a directory with what the guest is given, and with what it is not.
type world struct{ dir string }

func newWorld(t *testing.T) world {
	t.Helper()
	w := world{t.TempDir()}
	for name, text := range map[string]string{
		"share/a": strings.Repeat("a", 5000), "share/b": "b", "disk/disk.raw": strings.Repeat("\x00", 1<<20),
		"canary": "canary", "disk/canary": "canary", "beside/a": "a", "beside/deep/b": "b",
	} {
		path := filepath.Join(w.dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o640)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("../canary", filepath.Join(w.dir, "share/out")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // what the guest has taken the rights of can be removed
		filepath.WalkDir(w.dir, func(path string, e fs.DirEntry, err error) error {
			if err == nil && e.IsDir() {
				os.Chmod(path, 0o700)
			}
			return nil
		})
	})
	return w
}

func (w world) path(name string) string { return filepath.Join(w.dir, name) }

// look is what there is but for the guest's own, by path: its kind, rights, time, owner and
// contents.
func (w world) look(t *testing.T) map[string]string {
	t.Helper()
	out := map[string]string{}
	if err := filepath.WalkDir(w.dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		switch {
		case path == w.path("share"):
			return fs.SkipDir
		case strings.HasPrefix(path, w.path("disk/disk")): // and what a snapshot leaves it with
			return nil
		}
		i, err := e.Info()
		if err != nil {
			return err
		}
		var data []byte
		if i.Mode().IsRegular() {
			if data, err = os.ReadFile(path); err != nil {
				return err
			}
		}
		changed := i.ModTime()
		if path == w.path("disk") { // a snapshot leaves an overlay there
			changed = time.Time{}
		}
		out[path] = fmt.Sprintf("%v %v %x", i.Mode(), changed, sha256.Sum256(data))
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return out
}

// changes says what is not as it was.
func changes(before, after map[string]string) (out []string) {
	for path, was := range before {
		if now := after[path]; now != was {
			out = append(out, fmt.Sprintf("%s was %s, is %s", path, was, now))
		}
	}
	for path, now := range after {
		if _, there := before[path]; !there {
			out = append(out, fmt.Sprintf("%s is new: %s", path, now))
		}
	}
	return out
}

// attack is a VM whose guest attacks.
type attack struct {
	t       *testing.T
	world   world
	runtime string // where vmm keeps its VMs
	seed    int
	cmd     *exec.Cmd
	stderr  bytes.Buffer
	result  string // the file of --result
	most    usage
}

// run has a guest attack until it has done so many rounds, has ended its VM or does nothing
// any more. It returns how many rounds it has done.
func (a *attack) run(guest, transport string, rounds int) (done int) {
	t, out := a.t, a.t.TempDir()
	console := filepath.Join(out, "console")
	a.result = filepath.Join(out, "result")
	a.cmd = exec.Command(vmmPath, "run", "--name", hostileName, "--kernel", guest, "-c", "2", "-m", fmt.Sprintf("%dM", hostileMiB), "--virtio", transport,
		"--append", fmt.Sprint("hostile=", a.seed), "--disk", a.world.path("disk/disk.raw"), "--share", a.world.path("share")+":/share",
		"--net", "user,deny=0.0.0.0/0,deny=::/0", "--vsock", filepath.Join(out, "vsock"), "--port", "port=none", "--console", console,
		"--result", a.result)
	a.cmd.Stderr, a.cmd.SysProcAttr = &a.stderr, &unix.SysProcAttr{Setsid: true}
	if err := a.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		a.cmd.Wait()
		close(ended)
	}()
	var answers []string
	running, stuck := true, false
	for last := time.Now(); running && !stuck && done < rounds; {
		select {
		case <-ended:
			running = false
		case <-time.After(200 * time.Millisecond):
			a.measure()
		}
		n, said := roundsOn(t, console)
		if n > done {
			done, answers, last = n, said, time.Now()
		}
		// A guest may have stopped all of its CPUs.
		stuck = time.Since(last) > patience(t, 30*time.Second)
	}
	if running {
		a.command(ended)
		hang := time.AfterFunc(patience(t, time.Minute), func() {
			t.Error("vmm kill does not end it")
			a.cmd.Process.Signal(unix.SIGABRT) // with a word of where it is
		})
		<-ended
		hang.Stop()
	}
	if done >= enoughRounds && (len(answers) != hostileDevices || slices.Contains(answers, "0")) {
		t.Errorf("not all devices were reached; they have answered %v times", answers)
	}
	word := a.judge()
	t.Logf("seed %d: %d rounds, answers %v, at most %d MiB, %d descriptors, %d threads; status %d%s", a.seed, done, answers, a.most.mib, a.most.descriptors, a.most.threads,
		a.cmd.ProcessState.ExitCode(), word)
	return done
}

// The VM that attacks, and a copy of it.
const hostileName, restoredName = "hostile", "restored"

// roundLine is what the guest says: of each device, how often that has answered.
var roundLine = regexp.MustCompile(`round (\d+) of seed \d+, exceptions \d+, answers((?: \d+)+)\.`)

// roundsOn is how many rounds a console has, and the devices' answers.
func roundsOn(t *testing.T, console string) (n int, answers []string) {
	b, err := os.ReadFile(console)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	if len(b) > mostConsole {
		t.Fatalf("%d bytes on the console", len(b))
	}
	for _, m := range roundLine.FindAllSubmatch(b, -1) {
		n, _ = strconv.Atoi(string(m[1]))
		answers = strings.Fields(string(m[2]))
	}
	return n, answers
}

// command does to the VM what its user does, who must not be kept from it but by the guest's end.
func (a *attack) command(ended <-chan struct{}) {
	wrong := func(format string, args ...any) {
		a.t.Helper()
		select {
		case <-ended: // the guest goes on, and may find how to switch itself off
			a.t.Logf("it has ended meanwhile: "+format, args...)
		case <-time.After(patience(a.t, time.Second)):
			a.t.Errorf(format, args...)
		}
	}
	inspect := func() (vm api.VM) {
		var infos []api.VM
		if out, status := vmm(a.t, "inspect", hostileName); status != 0 || json.Unmarshal([]byte(out), &infos) != nil || len(infos) != 1 {
			wrong("inspect: status %d, %s", status, out)
			return vm
		}
		return infos[0]
	}
	if vm := inspect(); vm.State != api.Running || vm.PID != a.cmd.Process.Pid || vm.Jail == "" {
		wrong("inspect says %+v", vm)
	}
	if out, status := vmm(a.t, "ps"); status != 0 || !strings.Contains(out, hostileName) {
		wrong("ps: status %d, %s", status, out)
	}
	for _, c := range []struct {
		command string
		paused  bool
	}{{"pause", true}, {"resume", false}, {"pause", true}, {"resume", false}} {
		if out, status := vmm(a.t, c.command, hostileName); status != 0 {
			wrong("%s: status %d, %s", c.command, status, out)
		}
		if vm := inspect(); vm.Paused != c.paused {
			wrong("after %s: %+v", c.command, vm)
		}
	}
	saved := filepath.Join(a.t.TempDir(), "saved")
	if out, status := vmm(a.t, "snapshot", hostileName, saved); status == 0 {
		for _, args := range [][]string{{"restore", "-d", "--name", restoredName, saved}, {"rm", "-f", restoredName}} {
			if out, status := vmm(a.t, args...); status != 0 {
				a.t.Errorf("%s: status %d, %s", args[0], status, out)
			}
		}
	} else if !strings.Contains(out, "malformed virtqueue") { // what is in rings is part of a device's state
		wrong("snapshot: status %d, %s", status, out)
	}
	if out, status := vmm(a.t, "kill", hostileName); status != 0 {
		wrong("kill: status %d, %s", status, out)
	}
}

// mistake is a line about what the guest's driver did wrong, and proper a last word about a
// guest that may do to itself what it likes.
var (
	mistake = regexp.MustCompile(`^vmm: virtio device of type \d+: `)
	proper  = regexp.MustCompile(`^vmm: (the guest crashed: |vCPU \d: (KVM internal error|the CPU refused the guest's state|(this host's KVM|the software engine) cannot execute the guest's))`)
)

// judge looks at how the process has ended, and at what it has left. It returns its last word.
func (a *attack) judge() (word string) {
	lines := 0
	for line := range strings.Lines(a.stderr.String()) {
		lines++
		if mistake.MatchString(line) {
			continue
		}
		if word += ": " + strings.TrimSpace(line); !proper.MatchString(line) {
			a.t.Errorf("it said %q", line)
		}
	}
	if lines > mostLines {
		a.t.Errorf("it said %d lines", lines)
	}
	var result struct{ Status int }
	if b, err := os.ReadFile(a.result); err != nil || json.Unmarshal(b, &result) != nil || result.Status != a.cmd.ProcessState.ExitCode() {
		a.t.Errorf("the result is %s, %v; the status is %d", b, err, a.cmd.ProcessState.ExitCode())
	}
	if w := a.cmd.ProcessState.Sys().(syscall.WaitStatus); w.Signaled() {
		a.t.Errorf("it was ended by %v", w.Signal())
	}
	if _, err := os.Lstat(filepath.Join(a.runtime, "vmm", hostileName)); !errors.Is(err, fs.ErrNotExist) {
		a.t.Errorf("its directory: %v", err)
	}
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, path := range stats {
		b, _ := os.ReadFile(path)
		_, after, _ := strings.Cut(string(b), ") ")
		// State, parent, group, session (proc(5)).
		if f := strings.Fields(after); len(f) > 3 && f[3] == strconv.Itoa(a.cmd.Process.Pid) {
			a.t.Errorf("a process is left: %s", b)
		}
	}
	return word
}

// usage is what a process has of the host.
type usage struct{ mib, descriptors, threads int }

// measure notes the most that the process has had.
func (a *attack) measure() {
	proc := fmt.Sprintf("/proc/%d/", a.cmd.Process.Pid)
	count := func(name string) int {
		entries, _ := os.ReadDir(proc + name)
		return len(entries)
	}
	a.most.mib = max(a.most.mib, residentBeside(proc+"smaps", hostileMiB))
	a.most.descriptors = max(a.most.descriptors, count("fd"))
	a.most.threads = max(a.most.threads, count("task"))
	if m := a.most; m.mib > mostMiB || m.descriptors > mostDescriptors || m.threads > mostThreads {
		a.t.Errorf("it has too much of the host: %+v", m)
	}
}

// residentBeside is what is resident, in MiB, but for the mapping of the guest's size.
func residentBeside(smaps string, guest int) int {
	b, _ := os.ReadFile(smaps)
	total, size := 0, 0
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		n, _ := strconv.Atoi(f[1])
		switch f[0] {
		case "Size:":
			size = n
		case "Rss:":
			if size != guest<<10 {
				total += n
			}
		}
	}
	return total >> 10
}
