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
