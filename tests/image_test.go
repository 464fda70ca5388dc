package tests

import (
	"bytes"
	"context"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"vmm/storage/image"
	"vmm/vm"
)

// imageRoot makes a container image's file system in two segments.
func imageRoot(t *testing.T) []string {
	t.Helper()
	if _, err := exec.LookPath("mkfs.erofs"); err != nil {
		t.Skip("no mkfs.erofs: install erofs-utils")
	}
	dir := t.TempDir()
	root := filepath.Join(dir, "root")
	for _, d := range []string{"bin", "etc", "run/db", "tmp"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	must(t, "cp", busyboxPath(t), filepath.Join(root, "bin/busybox"))
	for name, content := range map[string]string{
		"etc/passwd": "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34::/srv:/bin/sh\n", "etc/group": "root:x:0:\nweb:x:34:\n",
		"run/db/state": "the image's\n", "tmp/kept": "",
	} {
		if err := os.WriteFile(filepath.Join(root, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"sh", "cat", "id", "env", "pwd", "touch"} {
		if err := os.Symlink("busybox", filepath.Join(root, "bin", name)); err != nil {
			t.Fatal(err)
		}
	}
	whole := filepath.Join(dir, "whole")
	must(t, "mkfs.erofs", whole, root)
	b, err := os.ReadFile(whole)
	if err != nil {
		t.Fatal(err)
	}
	cut := len(b) / 2 / vm.ImageBlock * vm.ImageBlock
	b = append(b, make([]byte, -len(b)&(vm.ImageBlock-1))...)
	segments := []string{filepath.Join(dir, "0"), filepath.Join(dir, "1")}
	for i, part := range [][]byte{b[:cut], b[cut:]} {
		if err := os.WriteFile(segments[i], part, 0o444); err != nil {
			t.Fatal(err)
		}
	}
	return segments
}

// imageVM starts a VM whose root is an image.
func imageVM(t *testing.T, root *vm.ImageRoot) *vm.VM {
	t.Helper()
	v, err := vm.New(vm.Config{Name: "imagetest", Root: &vm.Root{Image: root}, Nets: vm.Nets{vm.None{}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { v.Close() })
	if err := v.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	return v
}

// inImage runs a shell's command, and returns its output.
func inImage(ctx context.Context, t *testing.T, v *vm.VM, c vm.Cmd) (string, int) {
	t.Helper()
	var out bytes.Buffer
	c.Stdout, c.Stderr = &out, &out
	err := v.Exec(ctx, c)
	var exit *vm.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("%v: %v\n%s", c.Args, err, strings.Join(v.InitErrors(), "\n"))
	}
	if exit != nil {
		return out.String() + exit.Reason, exit.Status
	}
	return out.String(), 0
}

// TestImageRoot runs commands in a guest whose root is a container image.
func TestImageRoot(t *testing.T) {
	needKVM(t)
	segments := imageRoot(t)
	v := imageVM(t, &vm.ImageRoot{Name: "test", Segments: segments, ReadOnly: true,
		Tmpfs:    []vm.Tmpfs{{Guest: "/scratch", Options: "size=1m,mode=1777"}},
		Hosts:    []vm.HostName{{Name: "db", Address: netip.MustParseAddr("10.1.2.3")}},
		Defaults: vm.Defaults{Env: []string{"A=1", "PATH=/bin"}, User: "web", Dir: "/made/here"}})
	for _, c := range []struct {
		name   string
		cmd    vm.Cmd
		want   string
		status int
	}{
		{"defaults", vm.Cmd{Args: []string{"sh", "-c", "id -u; id -g; pwd; echo $A $HOME $PATH $HOSTNAME ${USER-none}"}},
			"33\n34\n/made/here\n1 /srv /bin imagetest none\n", 0},
		{"given", vm.Cmd{Args: []string{"sh", "-c", "id -u; id -g; pwd; echo $A $HOME"}, User: "77", Dir: "/etc", Env: []string{"A=2"}},
			"77\n0\n/etc\n2 /\n", 0},
		{"user and group", vm.Cmd{Args: []string{"sh", "-c", "id -u; id -g"}, User: "77:web"}, "77\n34\n", 0},
		{"the image's own", vm.Cmd{Args: []string{"sh", "-c", "cat /run/db/state && cat /tmp/kept /etc/hostname"}}, "the image's\nimagetest\n", 0},
		{"hosts", vm.Cmd{Args: []string{"sh", "-c", "while read a b; do case $b in db) true;; *) false;; esac && echo $a; done < /etc/hosts"}}, "10.1.2.3\n", 0},
		{"tmpfs", vm.Cmd{Args: []string{"touch", "/scratch/x"}}, "", 0},
		{"read-only", vm.Cmd{Args: []string{"sh", "-c", "echo > /x"}, User: "root"}, "sh: can't create /x: Read-only file system\n", 1},
		{"memory", vm.Cmd{Args: []string{"sh", "-c", "cat /sys/block/pmem0/queue/dax; busybox ls /sys/block | busybox grep -c vd"}}, "1\n0\n", 1},
		{"missing", vm.Cmd{Args: []string{"nothing"}}, "nothing: command not found in the guest (PATH=/bin)", 127},
		{"not executable", vm.Cmd{Args: []string{"/etc/passwd"}}, "/etc/passwd: permission denied", 126},
	} {
		t.Run(c.name, func(t *testing.T) {
			if out, status := inImage(t.Context(), t, v, c.cmd); out != c.want || status != c.status {
				t.Errorf("%q, status %d", out, status)
			}
		})
	}
	t.Run("attacked, saved and restored", func(t *testing.T) { testImageMemory(t, v, segments) })
}

// attackMemory has a guest's root write to the memory of its image
// through the cache of its driver, and past it.
const attackMemory = `busybox dd if=/dev/zero of=/dev/pmem0 bs=4096 count=4 2>/dev/null; busybox sync
busybox dd if=/dev/zero of=/dev/pmem0 bs=4096 seek=2 count=1 oflag=direct 2>/dev/null
echo survived`

// testImageMemory attacks the memory of an image, then saves and restores the VM.
func testImageMemory(t *testing.T, v *vm.VM, segments []string) {
	before := must(t, "sha256sum", segments...)
	if out, status := inImage(t.Context(), t, v, vm.Cmd{Args: []string{"sh", "-c", attackMemory}, User: "root"}); out != "survived\n" || status != 0 {
		t.Errorf("%q, status %d", out, status)
	}
	if after := must(t, "sha256sum", segments...); after != before {
		t.Errorf("the guest has changed its image:\n%s\n%s", before, after)
	}
	dir := filepath.Join(t.TempDir(), "snapshot")
	if _, err := v.Snapshot(t.Context(), dir, vm.SnapshotOptions{Stop: true}); err != nil {
		t.Fatal(err)
	}
	restored, err := vm.Restore(dir, vm.RestoreOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer restored.Close()
	if err := restored.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if out, status := inImage(t.Context(), t, restored, vm.Cmd{Args: []string{"sh", "-c", "cat /run/db/state; id -u"}}); out != "the image's\n33\n" || status != 0 {
		t.Errorf("restored: %q, status %d", out, status)
	}
	restored.Close()
	now := time.Now().Add(time.Hour)
	if err := os.Chtimes(segments[1], now, now); err != nil {
		t.Fatal(err)
	}
	again, err := vm.Restore(dir, vm.RestoreOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if err := again.Start(t.Context()); err == nil || !strings.Contains(err.Error(), "has changed since the snapshot") {
		t.Errorf("restored with another image: %v", err)
	}
}

// TestImageDisk holds that what a guest writes to its disk is there for the next one.
func TestImageDisk(t *testing.T) {
	needKVM(t)
	disk := filepath.Join(t.TempDir(), "disk")
	if err := vm.NewRootDisk(disk, 64<<20); err != nil {
		t.Fatal(err)
	}
	root := &vm.ImageRoot{Segments: imageRoot(t), Disk: &vm.Disk{Path: disk, Format: image.Raw}}
	for i, want := range []string{"0\n", "1\n"} {
		root.Device = []vm.ImageDevice{vm.ImageMemory, vm.ImageDisk}[i]
		v := imageVM(t, root)
		const count = `n=$(cat /n 2>/dev/null || echo 0); echo $n; echo $((n+1)) > /n`
		if out, status := inImage(t.Context(), t, v, vm.Cmd{Args: []string{"sh", "-c", count}}); out != want || status != 0 {
			t.Errorf("%q, status %d; want %q", out, status, want)
		}
		if err := v.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}
