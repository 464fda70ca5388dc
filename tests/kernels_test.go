package tests

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	guestimages "vmm/guest-images"
)

// TestDebianKernels boots Debian's stock cloud kernels, which have nearly all that a
// guest needs as modules: with --kernel and --modules, and as the default guest of a
// machine that has not built the slim kernel.
func TestDebianKernels(t *testing.T) {
	if os.Getenv("VMM_TEST_KERNELS") == "" {
		t.Skip("make test-kernels runs this")
	}
	needKVM(t)
	for _, suite := range guestimages.DebianSuites {
		t.Run(suite, func(t *testing.T) {
			builder := &guestimages.Builder{Log: os.Stderr}
			kernel, err := builder.DebianKernel(context.Background(), suite)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := builder.Busybox(context.Background()); err != nil {
				t.Fatal(err)
			}
			t.Logf("%s has %s", suite, kernel.Version())
			defaultGuestOf(t, &kernel)
			runtimeDirFor(t)
			t.Run("guest", func(t *testing.T) { kernelGuest(t) })
			t.Run("given", func(t *testing.T) { kernelGiven(t, &kernel) })
			t.Run("without apt-get", func(t *testing.T) { kernelWithoutApt(t, &kernel) })
			t.Run("command", func(t *testing.T) { kernelCommand(t, &kernel) })
			t.Run("background", func(t *testing.T) { kernelBackground(t) })
			t.Run("rootfs", func(t *testing.T) { kernelRootFS(t, &kernel) })
		})
	}
}

// defaultGuestOf gives the test a cache in which the kernel is that of this machine's
// Debian, and the slim one is not built.
func defaultGuestOf(t *testing.T, kernel *guestimages.Kernel) {
	t.Helper()
	stock, _ := guestimages.HasStockKernel()
	name := filepath.Base(filepath.Dir(stock))
	busybox := filepath.Dir(busyboxPath(t))
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	cache, err := guestimages.CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		t.Fatal(err)
	}
	for link, to := range map[string]string{name: filepath.Dir(kernel.Image), "busybox": busybox} {
		if err := os.Symlink(to, filepath.Join(cache, link)); err != nil {
			t.Fatal(err)
		}
	}
}

// kernelGuest takes a long look into the default guest with two CPUs, a disk, a
// network, a share and a port, which then reboots.
func kernelGuest(t *testing.T) {
	servers := startServers(t)
	dir, own := t.TempDir(), t.TempDir() // what the guest may write, and what it may not
	const mark = "written by the host"
	disk, port := filepath.Join(own, "disk.raw"), filepath.Join(own, "port")
	data := make([]byte, 16<<20)
	copy(data, mark)
	for path, content := range map[string][]byte{disk: data, filepath.Join(dir, "file"): []byte("shared"), port: nil} {
		if err := os.WriteFile(path, content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	script := fmt.Sprintf(`/test/guestcheck cpus=2 mib=512 now=%d
say() { echo "SAYS $1: $(eval "$2" 2>&1 | tr '\n' ' ')"; }
say disk 'dd if=/dev/vda bs=19 count=1 2>/dev/null'
say write 'seq 1 200000 | dd of=/dev/vda bs=1M seek=1 conv=fsync 2>/dev/null; echo 3 >/proc/sys/vm/drop_caches; dd if=/dev/vda bs=1M skip=1 count=2 2>/dev/null | head -n 200000 | md5sum'
say expect 'seq 1 200000 | md5sum'
say share 'cat /mnt/shared/file; echo guest >/mnt/shared/new'
say random 'cat /sys/class/misc/hw_random/rng_current; dd if=/dev/hwrng bs=16 count=1 2>/dev/null | wc -c'
for i in 1 2 3 4 5 6 7 8 9 10; do [ -s /etc/resolv.conf ] && break; sleep 1; done
say gateway 'ping -c 1 10.0.2.2 | grep -c "1 packets received"'
say fetch 'wget -q -O - http://host.vmm.internal:%s/small'
say port 'echo from the guest >/dev/virtio-ports/test'
say modules 'ls /lib/modules'
say button 'grep -c "Power Button" /proc/bus/input/devices'
reboot
sleep 100
`, time.Now().Unix(), servers.http)
	out, status := vmm(t, "run", "-c", "2", "-m", "512M", "--disk", disk, "--net", "user,allow=host:"+servers.http,
		"--share", dir+":/mnt/shared", "--port", "test="+port, "--initrd", rcInitrd(t, script), "--timeout", "20m")
	if status != 0 {
		t.Errorf("exit status %d", status)
	}
	reportChecks(t, out)
	said := sayings(out)
	for name, want := range map[string]string{"disk": mark, "write": said["expect"], "share": "shared", "random": "virtio_rng.0 16",
		"gateway": "1", "fetch": "small", "port": "", "button": "1"} {
		if got, ok := said[name]; !ok || got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	b, err := os.ReadFile(filepath.Join(dir, "new"))
	if err != nil || string(b) != "guest\n" {
		t.Errorf("what the guest has written to the share: %q, %v", b, err)
	}
	if b, err := os.ReadFile(port); err != nil || string(b) != "from the guest\n" {
		t.Errorf("what the guest has written to the port: %q, %v", b, err)
	}
	if b, err := os.ReadFile(disk); err != nil || !bytes.HasPrefix(b[1<<20:], []byte("1\n2\n3\n")) {
		t.Errorf("the guest's data is not on the disk: %v", err)
	}
	if t.Failed() {
		t.Log(out)
	}
}

// kernelGiven has a command and a shell on a kernel that is given with its modules.
func kernelGiven(t *testing.T, kernel *guestimages.Kernel) {
	out, status := vmm(t, "run", "--kernel", kernel.Image, "--modules", kernel.Modules, "--timeout", bootLimit, "--", "uname", "-r")
	if status != 0 || out != kernel.Version()+"\n" {
		t.Errorf("status %d, %q", status, out)
	}
	if out, status := vmm(t, "run", "--kernel", kernel.Image, "--timeout", bootLimit, "--", "true"); status != 125 || !strings.Contains(out, "this kernel") || !strings.Contains(out, "(CONFIG_") {
		t.Errorf("without modules: status %d, %q", status, out)
	}
}

// kernelWithoutApt has a shell on a machine that has no apt-get, and of Debian's
// packages nothing in the cache.
func kernelWithoutApt(t *testing.T, kernel *guestimages.Kernel) {
	bin := t.TempDir()
	if err := os.Symlink(busyboxPath(t), filepath.Join(bin, "busybox")); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin)
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	out, status := vmmInput(t, "uname -r\ncd /lib/modules/$(uname -r) && echo has $(ls modules.dep)\nmodprobe dummy && ip -o link show dummy0\nexit\n",
		"run", "--kernel", kernel.Image, "--modules", kernel.Modules, "--timeout", bootLimit)
	for _, want := range []string{"\n" + kernel.Version() + "\n", "has modules.dep", "dummy0: <BROADCAST"} {
		if status != 0 || !strings.Contains(out, want) {
			t.Errorf("status %d, no %q in the output:\n%s", status, want, out)
		}
	}
	if out, status := vmm(t, "run"); status != 125 || !strings.Contains(out, "--kernel /") || !strings.Contains(out, "--modules /") || strings.Count(out, "\n") != 1 {
		t.Errorf("without a kernel: status %d, %q", status, out)
	}
}

// kernelCommand runs commands in the default guest, with directories of the host. The
// second one goes on from a snapshot.
func kernelCommand(t *testing.T, kernel *guestimages.Kernel) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "in"), []byte("of the host\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, n := range []string{"first", "second"} {
		out, errs, status := inDir(t, dir, nil, "run", "-c", "2", "--rw", ".", "--timeout", "10m", "--", "sh", "-c",
			"uname -r; nproc; cat in; echo "+n+" > out; modinfo -n dummy; exit 3")
		if want := kernel.Version() + "\n2\nof the host\n/lib/modules/" + kernel.Version() + "/"; status != 3 || !strings.HasPrefix(out, want) || errs != "" {
			t.Errorf("%s: status %d, %q, %q, want %q", n, status, out, errs, want)
		}
		if b, err := os.ReadFile(filepath.Join(dir, "out")); err != nil || string(b) != n+"\n" {
			t.Errorf("%s: the host has %q, %v", n, b, err)
		}
	}
	if out, status := vmm(t, "cache", "ls"); status != 0 || strings.Count(out, "kernel-debian-") != 1 {
		t.Errorf("vmm cache: status %d, %q", status, out)
	}
}

// kernelBackground has a VM in the background, on a virtio console.
func kernelBackground(t *testing.T) {
	must(t, vmmPath, "run", "-d", "--name", "stays", "--console-device", "virtio", "--timeout", bootLimit)
	defer vmm(t, "rm", "-f", "stays")
	if out, status := vmm(t, "exec", "stays", "cat", "/sys/class/tty/console/active"); status != 0 || !strings.Contains(out, "hvc0") {
		t.Errorf("exec: status %d, %q", status, out)
	}
	if out, status := vmm(t, "stop", "-t", "60", "stays"); status != 0 {
		t.Errorf("stop: status %d, %q", status, out)
	}
	if out, status := vmm(t, "logs", "--console", "stays"); status != 0 || !strings.Contains(out, "built-in shell") {
		t.Errorf("the console: status %d, %q", status, out)
	}
}

// kernelRootFS boots a system from a directory, whose init has PID 1.
func kernelRootFS(t *testing.T, kernel *guestimages.Kernel) {
	root := smallRoot(t)
	if err := os.Mkdir(filepath.Join(root, "sbin"), 0o755); err != nil {
		t.Fatal(err)
	}
	script := "#!/bin/sh\necho init is $$ on $(busybox uname -r)\nbusybox grep ' / ' /proc/mounts\necho new >/written && cat /written\n" +
		"ls /lib/modules/*/modules.dep\nbusybox poweroff -f\n"
	if err := os.WriteFile(filepath.Join(root, "sbin/init"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	out, status := vmm(t, "run", "--rootfs", root, "--timeout", bootLimit)
	for _, want := range []string{"init is 1 on " + kernel.Version(), "/dev/vda / ext4 rw", "\nnew\n", "/lib/modules/" + kernel.Version() + "/modules.dep"} {
		if status != 0 || !strings.Contains(out, want) {
			t.Errorf("status %d, no %q in the output:\n%s", status, want, out)
		}
	}
}
