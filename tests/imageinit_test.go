package tests

import (
	"archive/tar"
	"compress/gzip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// inittab has busybox's init keep what it finds when it starts, and say a word at its end.
const inittab = `::sysinit:/bin/sh -c "/bin/busybox cp /etc/resolv.conf /at-start; echo begun"
::shutdown:/bin/sh -c "echo goodbye"
`

// TestImageInit runs images whose PID 1 is an init of their own, with the agent beside it.
func TestImageInit(t *testing.T) {
	needKVM(t)
	ownImages(t)
	base := baseLayer(t)
	init := imageLayer(t,
		layerFile{tar.Header{Name: "sbin/init", Typeflag: tar.TypeSymlink, Linkname: "/bin/busybox", Mode: 0o777}, ""},
		layerFile{tar.Header{Name: "sbin/poweroff", Typeflag: tar.TypeSymlink, Linkname: "/bin/busybox", Mode: 0o777}, ""},
		layerFile{tar.Header{Name: "etc/inittab", Typeflag: tar.TypeReg, Mode: 0o644}, inittab},
		layerFile{tar.Header{Name: "own", Typeflag: tar.TypeReg, Mode: 0o755}, "#!/bin/sh\necho PID $$ of $1; exec /bin/busybox poweroff -f\n"})
	config := v1.Config{Entrypoint: []string{"/sbin/init"}, User: "joe", Env: []string{"PATH=/bin", "container=docker", "GREETING=hi"}, StopSignal: "SIGRTMIN+3", WorkingDir: "/work"}
	loadImage(t, "init:1", containerImage(t, config, base, init))
	loadImage(t, "init:none", containerImage(t, v1.Config{Cmd: []string{"/bin/sh"}}, base))
	dir := t.TempDir()
	if out, status := vmm(t, "run", "-d", "--name", "whole", "--image", "init:1", "--systemd", "-e", "EXTRA=more", "--share", dir+":/shared", "--stop-timeout", "60"); status != 0 {
		t.Fatalf("run -d: status %d\n%s", status, out)
	}
	defer vmm(t, "rm", "-f", "whole")
	exec := func(vm, script, want string) {
		t.Helper()
		if out, status := vmm(t, "exec", "-u", "0", vm, "/bin/sh", "-c", script); status != 0 || out != want {
			t.Errorf("%s: status %d, %q, want %q", script, status, out, want)
		}
	}
	exec("whole", "cat /proc/1/comm; /bin/busybox tr '\\0' '\\n' </proc/1/environ | grep -E 'GREETING|EXTRA|container' | sort", "init\nEXTRA=more\nGREETING=hi\n")
	exec("whole", "hostname; grep -c nameserver /at-start; mount | grep -c ' /run type tmpfs'; grep -cE '^[0-9a-f]{32}$' /etc/machine-id; ls /run", "whole\n1\n1\n1\n")
	exec("whole", "echo from the guest >/shared/file; echo written >/new; ls -l /proc/1/exe >/dev/null && mount | grep -c ' / type overlay'", "1\n")
	if out, status := vmm(t, "exec", "whole", "/bin/sh", "-c", "id -u; pwd; echo $GREETING $EXTRA"); status != 0 || out != "1001\n/work\nhi more\n" {
		t.Errorf("exec: status %d, %q", status, out)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "file")); err != nil || string(b) != "from the guest\n" {
		t.Errorf("what was written to the host's directory: %q, %v", b, err)
	}
	if out, status := vmm(t, "cp", "whole:/new", dir+"/copied"); status != 0 {
		t.Errorf("cp: status %d\n%s", status, out)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "copied")); err != nil || string(b) != "written\n" {
		t.Errorf("what was copied: %q, %v", b, err)
	}
	if out, status := vmm(t, "diff", "whole"); status != 0 || out != "A /at-start\nA /new\nA /shared\nA /work\n" {
		t.Errorf("diff: status %d\n%s", status, out)
	}
	if out, status := vmm(t, "commit", "whole", "init:2"); status != 0 {
		t.Errorf("commit: status %d\n%s", status, out)
	}
	waitLog(t, "whole", "begun")
	t.Run("a copy", func(t *testing.T) {
		saved := filepath.Join(t.TempDir(), "saved")
		if out, status := vmm(t, "snapshot", "whole", saved); status != 0 {
			t.Fatalf("snapshot: status %d\n%s", status, out)
		}
		if out, status := vmm(t, "restore", "-d", "--name", "twin", saved); status != 0 {
			t.Fatalf("restore: status %d\n%s", status, out)
		}
		defer vmm(t, "rm", "-f", "twin")
		exec("twin", "cat /proc/1/comm; hostname; cat /new; /bin/busybox ps | grep -c 'udhcpc.*[h]ostname:twin'", "init\ntwin\nwritten\n1\n")
	})
	if out, status := vmm(t, "stop", "whole"); status != 0 {
		t.Errorf("stop: status %d\n%s", status, out)
	}
	if out, status := vmm(t, "logs", "whole"); status != 0 || !strings.Contains(out, "goodbye") {
		t.Errorf("it was not shut down in order: status %d\n%s", status, out)
	}
	if out, _ := vmm(t, "ps", "-a"); !regexp.MustCompile(`whole .*exited \(0\)`).MatchString(out) {
		t.Errorf("ps:\n%s", out)
	}
	t.Run("another init, and a root for reading", func(t *testing.T) {
		out, status := vmm(t, "run", "--image", "init:2", "--systemd", "--read-only", "--timeout", bootLimit, "--entrypoint", "/own", "--", "all")
		if status != 0 || !strings.Contains(out, "PID 1 of all") {
			t.Errorf("status %d\n%s", status, out)
		}
	})
	t.Run("none", func(t *testing.T) {
		out, status := vmm(t, "run", "--image", "init:none", "--systemd", "--timeout", bootLimit)
		if status != 125 || !strings.Contains(out, "there is neither /sbin/init nor /init in it") {
			t.Errorf("status %d\n%s", status, out)
		}
	})
	wantRefusals(t, []refusal{
		{"run --systemd", 2, "goes with --image"},
		{"run --image init:1 --systemd --no-agent", 2, "--no-agent"},
		{"run --image init:1 --systemd -u joe", 2, "are for a command"},
		{"run --image init:1 --systemd --stop-signal TERM", 2, "are for a command"},
	})
}

// withoutUdev are the files of a Debian that a container image of systemd lacks: those of udev, which its modules and its
// kernel are of no use without.
var withoutUdev = []string{"boot", "usr/lib/modules", "usr/bin/udevadm", "usr/lib/systemd/systemd-udevd", "usr/lib/systemd/system/udev.service", "usr/lib/systemd/system/systemd-udev*",
	"usr/lib/systemd/system/*.wants/systemd-udev*"}

// TestStockSystemd has systemd as PID 1 of a guest, from an image as people make them for containers. Where guest kernel mode
// is interpreted it takes minutes, so make test-stock runs it.
func TestStockSystemd(t *testing.T) {
	if os.Getenv("VMM_TEST_STOCK") == "" {
		t.Skip("make test-stock runs this")
	}
	needKVM(t)
	needTools(t, "debootstrap", "tar")
	runtimeDirFor(t)
	archive := filepath.Join(debian(t), "root.tar")
	layer := filepath.Join(t.TempDir(), "layer.tar")
	filter := []string{"--wildcards"}
	for _, pattern := range withoutUdev {
		filter = append(filter, "--exclude=./"+pattern)
	}
	root := filepath.Join(t.TempDir(), "root")
	if err := os.Mkdir(root, 0o755); err != nil {
		t.Fatal(err)
	}
	must(t, "tar", append([]string{"-C", root, "-xf", archive}, filter...)...)
	must(t, "tar", "-C", root, "-cf", layer, ".")
	ownCache(t)
	t.Setenv("XDG_DATA_HOME", t.TempDir())
	files, err := tarball.LayerFromFile(layer, tarball.WithCompressionLevel(gzip.BestSpeed))
	if err != nil {
		t.Fatal(err)
	}
	loadImage(t, "systemd:1", containerImage(t, v1.Config{Cmd: []string{"/sbin/init"}, Env: []string{"container=docker"}, StopSignal: "SIGRTMIN+3"}, files))
	if out, status := vmm(t, "run", "-d", "--name", "box", "--image", "systemd:1", "--systemd", "--stop-timeout", "300"); status != 0 {
		t.Fatalf("run -d: status %d\n%s", status, out)
	}
	defer vmm(t, "rm", "-f", "box")
	for _, c := range []struct{ script, want string }{
		{"until test -S /run/systemd/private; do sleep 1; done; systemctl is-system-running --wait; cat /proc/1/comm; systemd-detect-virt -c; systemctl is-active console-getty multi-user.target", "running\nsystemd\nnone\nactive\nactive\n"},
		{"systemctl --failed --plain --no-legend; hostname", "box\n"},
		{"systemctl show -P ControlGroup init.scope; grep -z -c ^@vmm-agent /proc/$(cat /sys/fs/cgroup/init.scope/cgroup.procs | sed -n 2p)/cmdline", "/init.scope\n1\n"},
	} {
		if out, status := vmm(t, "exec", "box", "/bin/sh", "-c", c.script); status != 0 || out != c.want {
			t.Errorf("%s: status %d, %q, want %q", c.script, status, out, c.want)
		}
	}
	if out, status := vmm(t, "diff", "box"); status != 0 || strings.Contains(out, "machine-id") || !strings.Contains(out, "/var/lib/systemd/random-seed") {
		t.Errorf("diff: status %d\n%s", status, out)
	}
	if out, status := vmm(t, "commit", "box", "systemd:2"); status != 0 {
		t.Errorf("commit: status %d\n%s", status, out)
	}
	if out, status := vmm(t, "stop", "box"); status != 0 {
		t.Errorf("stop: status %d\n%s", status, out)
	}
	if out, _ := vmm(t, "ps", "-a"); !regexp.MustCompile(`box .*exited \(0\)`).MatchString(out) {
		t.Errorf("ps:\n%s", out)
	}
}
