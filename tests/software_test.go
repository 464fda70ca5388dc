package tests

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	guestimages "vmm/guest-images"
)

// softwareScript is what a command does in a guest of the software engine: with the kernel,
// a disk, the network, a share and programs of the host, which are linked dynamically.
const softwareScript = `say() { echo "SAYS $1: $(eval "$2" 2>&1 | tr '\n' ' ')"; }
say cpus 'grep -c "^flags.* hypervisor" /proc/cpuinfo'
say disk 'dd if=/dev/vda bs=19 count=1 2>/dev/null'
say write 'seq 1 20000 | dd of=/dev/vda bs=1M seek=1 conv=fsync 2>/dev/null; echo 3 >/proc/sys/vm/drop_caches; dd if=/dev/vda bs=1M skip=1 count=1 2>/dev/null | head -n 20000 | md5sum'
say expect 'seq 1 20000 | md5sum'
say gateway '"$0" ping -c 1 10.0.2.2 | grep -c "1 packets received"'
say share 'cat file; echo guest >new'
say linked 'grep -c "libc\.so" /proc/self/maps'
say kernel 'uname -s'
exit 7
`

// TestSoftware runs guests without KVM: with --engine software, and where there is no
// /dev/kvm.
func TestSoftware(t *testing.T) {
	needTools(t, "unshare")
	runtimeDirFor(t)
	t.Run("asked for", func(t *testing.T) {
		dir := t.TempDir()
		const mark = "written by the host"
		disk := filepath.Join(dir, "disk.raw")
		data := make([]byte, 4<<20)
		copy(data, mark)
		for path, content := range map[string][]byte{disk: data, filepath.Join(dir, "file"): []byte("shared")} {
			if err := os.WriteFile(path, content, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		out, errs, status := inDir(t, dir, nil, "run", "--engine", "software", "-c", "2", "--disk", disk, "--rw", ".", "--timeout", bootLimit,
			"--", "sh", "-c", softwareScript, busyboxPath(t))
		if status != 7 || errs != "" {
			t.Errorf("status %d, %q", status, errs)
		}
		said := sayings(out)
		for name, want := range map[string]string{"cpus": "2", "disk": mark, "write": said["expect"], "gateway": "1", "share": "shared", "kernel": "Linux"} {
			if got, ok := said[name]; !ok || got != want {
				t.Errorf("%s: %q, want %q", name, got, want)
			}
		}
		if said["linked"] == "0" || said["linked"] == "" {
			t.Error("the guest's programs are not those of the host, which have a libc")
		}
		if b, err := os.ReadFile(filepath.Join(dir, "new")); err != nil || string(b) != "guest\n" {
			t.Errorf("what the guest has written to the share: %q, %v", b, err)
		}
		if t.Failed() {
			t.Log(out)
		}
	})
	hidden := withoutKVM(t)
	t.Run("without KVM", func(t *testing.T) {
		out, status := hidden("doctor", "--json")
		var d struct {
			OK     bool
			Engine string
		}
		if err := json.Unmarshal([]byte(out), &d); err != nil || status != 0 || !d.OK || d.Engine != "software" {
			t.Errorf("doctor: status %d, %v:\n%s", status, err, out)
		}
		if out, status := hidden("run", "--engine", "kvm", "--", "true"); status != 125 || !strings.Contains(out, "/dev/kvm: no such file") || strings.Count(out, "\n") != 1 {
			t.Errorf("with --engine kvm: status %d, %q", status, out)
		}
		if out, status := hidden("run", "-d", "--name", "soft", "--console", "none"); status != 0 || out != "vmm: this host has no KVM: the guest runs in software, which takes longer; vmm doctor says more\nsoft\n" {
			t.Fatalf("in the background: status %d, %q", status, out)
		}
		defer gone(t, "soft", "again")
		if v := inspected(t, "soft"); v.Engine != "software" || v.EngineReason != "this host has no KVM" {
			t.Errorf("inspect: engine %q, because %q", v.Engine, v.EngineReason)
		}
		ok(t, "exec", "soft", "sh", "-c", "echo kept >/tmp/kept")
		saved := filepath.Join(t.TempDir(), "saved")
		ok(t, "snapshot", "soft", saved)
		ok(t, "kill", "soft")
		ok(t, "restore", "-d", "--engine", "software", "--name", "again", saved)
		if out := ok(t, "exec", "again", "cat", "/tmp/kept"); out != "kept" {
			t.Errorf("after the restore: %q", out)
		}
		if v := inspected(t, "again"); v.Engine != "software" || v.EngineReason != "asked for" {
			t.Errorf("inspect of the restored VM: engine %q, because %q", v.Engine, v.EngineReason)
		}
		ok(t, "kill", "again")
	})
	t.Run("stock kernel", func(t *testing.T) {
		if os.Getenv("VMM_TEST_STOCK") == "" {
			t.Skip("make test-stock runs this")
		}
		kernel, err := (&guestimages.Builder{Log: os.Stderr}).StockKernel(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		out, status := hidden("run", "--kernel", kernel.Image, "--modules", kernel.Modules, "--timeout", "30m", "--", "uname", "-r")
		if status != 0 || out != kernel.Version()+"\n" {
			t.Errorf("status %d, %q", status, out)
		}
	})
}

// TestEngineRestores saves a VM whose CPU is a model's, and restores it with the other engine and back.
func TestEngineRestores(t *testing.T) {
	needKVM(t)
	runtimeDirFor(t)
	for _, order := range [][]string{{"software", "kvm", "software"}, {"kvm", "software", "kvm"}} {
		t.Run(order[0]+" first", func(t *testing.T) {
			if only := os.Getenv("VMM_TEST_FIRST_ENGINE"); only != "" && order[0] != only {
				t.Skip("VMM_TEST_FIRST_ENGINE is " + only)
			}
			ok(t, "run", "-d", "--name", "first", "--engine", order[0], "--cpu-model", "x86-64-v2", "-c", "2", "-m", "256M", "--net", "none")
			defer gone(t, "first", "second", "third")
			before := ok(t, "exec", "first", "sh", "-c", "echo kept >/tmp/kept; (while :; do date +%s >/tmp/alive; sleep 1; done) </dev/null >/dev/null 2>&1 & grep -c '^flags.* hypervisor' /proc/cpuinfo; uname -r")
			for i, name := range []string{"second", "third"} {
				saved := filepath.Join(t.TempDir(), "saved")
				from := []string{"first", "second"}[i]
				ok(t, "snapshot", from, saved)
				ok(t, "kill", from)
				out, status := runProgram(t, "", vmmPath, "restore", "-d", "--engine", order[i+1], "--name", name, saved)
				if status != 0 && order[i] == "kvm" && strings.Contains(out, "this host's CPU lacks") && doctorSays(t, "kernel mode", "interpreted") {
					t.Skipf("a KVM that interprets shows guests more of the CPU than it was told: %s", out)
				}
				if status != 0 {
					t.Fatalf("%s: status %d, %s", name, status, out)
				}
				if v := inspected(t, name); v.Engine != order[i+1] {
					t.Errorf("%s has the engine %q, not %q", name, v.Engine, order[i+1])
				}
				// The process in the background goes on, with its clock, and both CPUs execute.
				got := ok(t, "exec", name, "sh", "-c", `rm /tmp/alive; until [ -s /tmp/alive ]; do sleep 0.1; done
for cpu in 0 1; do taskset $((cpu + 1)) sh -c 'i=0; while [ $i -lt 1000 ]; do i=$((i + 1)); done' || echo "no CPU $cpu"; done
cat /tmp/kept; grep -c "^flags.* hypervisor" /proc/cpuinfo; uname -r; dmesg | grep -E "BUG|WARNING|soft lockup|Call Trace" || true`)
				if want := "kept\n" + before; got != want {
					t.Errorf("%s: %q, want %q", name, got, want)
				}
			}
		})
	}
}

// doctorSays reports whether a line of vmm doctor has a text.
func doctorSays(t *testing.T, line, text string) bool {
	t.Helper()
	for l := range strings.Lines(ok(t, "doctor")) {
		if strings.HasPrefix(l, line) && strings.Contains(l, text) {
			return true
		}
	}
	return false
}

// hideKVM runs a command in a mount namespace whose /dev has all that there is but kvm.
const hideKVM = `mount --rbind /dev "$0" && mount -t tmpfs none /dev &&
for f in "$0"/*; do [ "$f" = "$0/kvm" ] || ln -s "$f" /dev/ || exit; done && exec "$@"`

// withoutKVM returns what runs vmm where there is no /dev/kvm, and returns its output and
// exit status.
func withoutKVM(t *testing.T) func(args ...string) (string, int) {
	t.Helper()
	before := []string{"unshare", "--mount", "sh", "-c", hideKVM, t.TempDir()}
	if _, err := os.Stat("/dev/kvm"); err != nil {
		before = []string{"env"}
	} else if out, err := exec.Command(before[0], append(before[1:], "true")...).CombinedOutput(); err != nil {
		t.Skipf("a mount namespace without /dev/kvm cannot be had here: %v: %s", err, out)
	}
	return func(args ...string) (string, int) {
		t.Helper()
		return runProgram(t, "", before[0], append(append(before[1:len(before):len(before)], vmmPath), args...)...)
	}
}
