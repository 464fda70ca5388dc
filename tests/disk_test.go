package tests

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/u-root/u-root/pkg/cpio"
	"golang.org/x/sys/unix"

	guestimages "vmm/guest-images"
	"vmm/tests/hosttools"
)

// needTools skips where the host lacks programs that make test installs.
func needTools(t *testing.T, names ...string) {
	t.Helper()
	for _, n := range names {
		if _, err := exec.LookPath(n); err != nil {
			t.Skipf("no %s: make test installs it", n)
		}
	}
}

// must runs a command that must succeed.
func must(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// hostTools makes an initial RAM disk with programs of the host.
func hostTools(t *testing.T, names ...string) string {
	t.Helper()
	b, err := hosttools.Archive(names...)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "tools.cpio")
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// guest is a running vmm whose output is read line by line.
type guest struct {
	t     *testing.T
	lines chan string
	out   bytes.Buffer
	cmd   *exec.Cmd
}

func startGuest(t *testing.T, args ...string) *guest {
	t.Helper()
	return startCommand(t, vmmPath, args...)
}

// startCommand is startGuest by another command, which ends in running vmm.
func startCommand(t *testing.T, name string, args ...string) *guest {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Minute)
	t.Cleanup(cancel)
	g := &guest{t: t, cmd: exec.CommandContext(ctx, name, args...), lines: make(chan string, 1000)}
	r, w := io.Pipe()
	g.cmd.Stdout, g.cmd.Stderr = w, w
	if err := g.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(g.lines)
		for s := bufio.NewScanner(r); s.Scan(); {
			g.lines <- strings.ReplaceAll(s.Text(), "\r", "")
		}
	}()
	go func() { g.cmd.Wait(); w.Close() }()
	return g
}

// until reads the output to a line that has the text; "" reads all.
func (g *guest) until(text string) bool {
	for line := range g.lines {
		g.out.WriteString(line + "\n")
		if text != "" && strings.Contains(line, text) {
			return true
		}
	}
	return false
}

// allocated is how many bytes a file takes on the host.
func allocated(t *testing.T, path string) int64 {
	t.Helper()
	f := must(t, "stat", "-c", "%b %B", path)
	var blocks, size int64
	if _, err := fmt.Sscan(f, &blocks, &size); err != nil {
		t.Fatal(err)
	}
	return blocks * size
}

// TestDisks gives a guest eight disks of all kinds, by each transport, and lets
// it do with them what guests do.
func TestDisks(t *testing.T) {
	needKVM(t)
	needTools(t, "qemu-img", "qemu-io", "mke2fs", "e2fsck", "sfdisk")
	tools := hostTools(t, "sfdisk", "mke2fs", "e2fsck")
	for _, c := range []struct{ transport, kind, cpus string }{
		{"pci", "qcow2", "2"}, {"mmio", "raw", "1"}, {"mmio-cmdline", "qcow2", "1"},
	} {
		t.Run(c.transport, func(t *testing.T) {
			runtimeDirFor(t)
			dir, temp := t.TempDir(), t.TempDir()
			t.Setenv("TMPDIR", temp)
			at := func(name string) string { return filepath.Join(dir, name) }
			image := func(args ...string) { must(t, vmmPath, append([]string{"image"}, args...)...) }
			disks := []string{at("vda"), at("chain2") + ",ro", at("vdc"), at("vdd")}
			image("create", "-f", c.kind, "-s", "128M", at("vda"))
			image("create", "-f", c.kind, "-s", "64M", at("vdc"))
			image("create", "-f", c.kind, "-s", "16M", at("vdd"))
			image("create", "-s", "32M", at("chain0"))
			image("create", "--backing", "chain0", at("chain1"))
			image("create", "--backing", "chain1", at("chain2"))
			for i, fill := range []string{"97", "98", "99"} {
				must(t, "qemu-io", "-c", fmt.Sprintf("write -q -P %s %dk 64k", fill, 64*i), at(fmt.Sprint("chain", i)))
			}
			for i := 4; i < 8; i++ {
				name := at(fmt.Sprint("empty", i))
				image("create", "-s", "1M", name)
				disks = append(disks, name+",snapshot=on,iops=1000,cache=unsafe")
			}
			socket := at("echo.sock")
			args := []string{"run", "--kernel", "default", "--virtio", c.transport, "-c", c.cpus, "-m", "512M", "--timeout", bootLimit,
				"--port", "test.echo=unix:" + socket, "--initrd", tools,
				"--initrd", rcInitrd(t, checkScript("disks=8 resized=65536"))}
			for i, d := range disks {
				args = append(args, "--disk", fmt.Sprintf("%s,serial=serial-vd%c", d, 'a'+i))
			}
			g := startGuest(t, args...)
			if g.until("CHECK filesystem") {
				before := allocated(t, at("vda"))
				if g.until("RESIZE NOW"); allocated(t, at("vda")) > before-15<<20 {
					t.Errorf("vda takes %d bytes after the discard, %d before", allocated(t, at("vda")), before)
				}
				image("resize", at("vdd"), "+16M")
				echo(t, "unix", socket, "hello port", "HELLO PORT")
			}
			g.until("")
			reportChecks(t, g.out.String())
			if c.kind == "qcow2" {
				for _, name := range []string{"vda", "vdc", "vdd", "chain2", "chain0"} {
					must(t, "qemu-img", "check", at(name))
				}
			}
			if left, err := os.ReadDir(temp); len(left) > 0 || err != nil {
				t.Errorf("left behind: %v, %v", left, err)
			}
		})
	}
}

// echo says something to the guest by a socket, and wants an answer.
func echo(t *testing.T, network, address, say, want string) {
	t.Helper()
	c, err := net.Dial(network, address)
	if err != nil {
		t.Error(err)
		return
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience(t, 2*time.Minute)))
	fmt.Fprint(c, say)
	b := make([]byte, len(want))
	if _, err := io.ReadFull(c, b); err != nil || string(b) != want {
		t.Errorf("%s answers %q, %v", address, b, err)
	}
}

// TestFullDisk has a guest fill the host's file system: once it gets an error,
// once it waits for room.
func TestFullDisk(t *testing.T) {
	needKVM(t)
	if os.Getuid() != 0 {
		t.Skip("mounting a small file system needs root")
	}
	small := t.TempDir()
	must(t, "mount", "-t", "tmpfs", "-o", "size=8m", "vmm-test", small)
	t.Cleanup(func() { exec.Command("umount", "-l", small).Run() })
	for _, c := range []struct {
		mode, want string
	}{{"report", "Input/output error"}, {"pause", "WROTE ALL"}} {
		t.Run(c.mode, func(t *testing.T) {
			disk, filler := filepath.Join(small, c.mode), filepath.Join(small, "filler")
			must(t, vmmPath, "image", "create", "-s", "64M", disk)
			if err := os.WriteFile(filler, make([]byte, 6<<20+800<<10), 0o644); err != nil {
				t.Fatal(err)
			}
			// The program, of more than 2 MiB, does not fit beside it.
			script := "if dd if=/test/guestcheck of=/dev/vda bs=64k count=48 oflag=direct conv=fsync; then sync; echo WROTE ALL; fi\n" +
				"md5sum </dev/vda | cut -c1-8; poweroff; sleep 100\n"
			g := startGuest(t, "run", "--kernel", "default", "--disk", disk, "--on-enospc", c.mode, "--timeout", bootLimit,
				"--initrd", rcInitrd(t, script))
			if c.mode == "pause" {
				if !g.until("waits until there is room") {
					t.Fatalf("the guest did not wait:\n%s", g.out.String())
				}
				os.Remove(filler)
			}
			g.until("")
			if !strings.Contains(g.out.String(), c.want) {
				t.Errorf("no %q in the output:\n%s", c.want, g.out.String())
			}
			os.Remove(filler)
			must(t, vmmPath, "image", "check", "--repair", disk)
			os.Remove(disk)
			untilEmpty(t, small)
		})
	}
}

// untilEmpty waits until a file system has all its room again: Landlock gives the
// files that its rules name back to the kernel some time after the process has ended.
func untilEmpty(t *testing.T, dir string) {
	t.Helper()
	for end := time.Now().Add(patience(t, 30*time.Second)); ; time.Sleep(10 * time.Millisecond) {
		var st unix.Statfs_t
		if err := unix.Statfs(dir, &st); err != nil {
			t.Fatal(err)
		}
		if st.Bfree == st.Blocks {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%d of %d blocks of %s are still in use", st.Blocks-st.Bfree, st.Blocks, dir)
		}
	}
}

// TestRootFS boots a directory, and a tar archive of it, as the root disk.
func TestRootFS(t *testing.T) {
	needKVM(t)
	check, err := os.ReadFile(guestCheck)
	if err != nil {
		t.Fatal(err)
	}
	builder := &guestimages.Builder{Log: os.Stderr}
	busybox, err := builder.Busybox(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	script := "#!/bin/busybox sh\nB=/bin/busybox\n$B mount -t proc proc /proc\n$B grep ' / ' /proc/mounts\n$B df -m / | $B tail -1\n" +
		"echo new >/written && $B cat /written\n$B ls -ln /etc/owned\n$B poweroff -f\n"
	for name, f := range map[string]struct {
		data []byte
		mode os.FileMode
	}{"bin/busybox": {busybox, 0o755}, "sbin/init": {[]byte(script), 0o755}, "etc/owned": {[]byte("x"), 0o640}, "big": {check, 0o644}, "proc/.keep": {nil, 0o644}, "dev/.keep": {nil, 0o644}} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, f.data, f.mode); err != nil {
			t.Fatal(err)
		}
	}
	tarball := filepath.Join(t.TempDir(), "root.tar.gz")
	must(t, "tar", "-C", dir, "-czf", tarball, ".")
	for _, source := range []string{dir, tarball} {
		out, status := vmm(t, "run", "--rootfs", source, "--timeout", bootLimit)
		for _, want := range []string{"/dev/root / ext4 rw", "new\n", "-rw-r-----"} {
			if !strings.Contains(out, want) {
				t.Errorf("%s: no %q in the output, status %d:\n%s", source, want, status, out)
			}
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "written")); err == nil {
		t.Error("the guest wrote to the host's directory")
	}
}

// partitioned makes a disk with one partition, which holds a directory's files
// in ext4; more are options of mke2fs.
func partitioned(t *testing.T, disk, size, dir, partition string, more ...string) {
	t.Helper()
	must(t, "truncate", "-s", size, disk)
	table := exec.Command("sfdisk", "-q", disk)
	table.Stdin = strings.NewReader("label: gpt\nstart=2048,type=linux\n")
	if out, err := table.CombinedOutput(); err != nil {
		t.Fatalf("sfdisk: %v\n%s", err, out)
	}
	must(t, "mke2fs", append(append([]string{"-q", "-t", "ext4", "-d", dir, "-E", "offset=1048576"}, more...), disk, partition)...)
}

// bootable makes a directory with the /boot of a disk whose entries, first and second,
// show the kernel's arguments.
func bootable(t *testing.T) (dir string) {
	t.Helper()
	builder := &guestimages.Builder{Log: os.Stderr}
	slim, err := builder.SlimKernel(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	dir = t.TempDir()
	initrd, err := os.ReadFile(rcInitrd(t, "cat /proc/cmdline\npoweroff\nsleep 100\n"))
	if err != nil {
		t.Fatal(err)
	}
	base, err := builder.Busybox(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	// An init of its own: the entry's initial RAM disk is all there is.
	own, err := guestimages.Archive(cpio.StaticFile("bin/busybox", string(base), 0o755), cpio.Directory("proc", 0o755),
		cpio.StaticFile("init", "#!/bin/busybox sh\n/bin/busybox mount -t proc proc /proc\n/bin/busybox cat /proc/cmdline\n/bin/busybox poweroff -f\n", 0o755),
		cpio.CharDev("dev/console", 0o600, 5, 1))
	if err != nil {
		t.Fatal(err)
	}
	must(t, "mkdir", "-p", filepath.Join(dir, "boot/grub"))
	must(t, "cp", slim.Image, filepath.Join(dir, "boot/vmlinuz-slim"))
	for name, b := range map[string][]byte{"boot/initrd": append(own, initrd...), "boot/grub/grub.cfg": []byte(
		"menuentry 'first' {\nlinux /boot/vmlinuz-slim quiet entry=first\ninitrd /boot/initrd\n}\n" +
			"menuentry 'second' {\nlinux /boot/vmlinuz-slim quiet entry=second\ninitrd /boot/initrd\n}\n")} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	must(t, "gzip", "-f", filepath.Join(dir, "boot/initrd"))
	must(t, "mv", filepath.Join(dir, "boot/initrd.gz"), filepath.Join(dir, "boot/initrd"))
	return dir
}

// TestBootDisk boots the slim kernel from a disk by a boot entry of the disk.
func TestBootDisk(t *testing.T) {
	needKVM(t)
	needTools(t, "mke2fs", "sfdisk")
	dir := bootable(t)
	raw := filepath.Join(t.TempDir(), "disk.raw")
	partitioned(t, raw, "100M", dir, "96M")
	disk := raw + ".qcow2"
	must(t, vmmPath, "image", "convert", raw, disk)
	for entry, want := range map[string]string{"": "entry=first", "second": "entry=second", "2": "entry=second"} {
		args := []string{"run", "--disk", disk + ",ro", "--timeout", bootLimit}
		if entry != "" {
			args = append(args, "--boot-entry", entry)
		}
		if out, status := vmm(t, args...); !strings.Contains(out, want) {
			t.Errorf("entry %q: no %q in the output, status %d:\n%s", entry, want, status, out)
		}
	}
	if out, status := vmm(t, "run", "--disk", disk+",ro", "--boot-entry", "third"); status != 125 || !strings.Contains(out, "1: first, 2: second") {
		t.Errorf("an entry that is not there: status %d:\n%s", status, out)
	}
}

// TestDiskErrors wants one line that says what to do.
func TestDiskErrors(t *testing.T) {
	dir := t.TempDir()
	cut := filepath.Join(dir, "cut.qcow2")
	must(t, vmmPath, "image", "create", "-s", "1G", cut)
	if err := os.Truncate(cut, 100000); err != nil {
		t.Fatal(err)
	}
	wantRefusals(t, []refusal{
		{"run --disk " + cut, 125, "cut off"},
		{"run --disk /nowhere", 125, "/nowhere: no such file"},
		{"run --disk " + dir, 125, "is a directory"},
		{"run --disk x,color=blue", 2, "color=blue"},
		{"run --disk x,cache=some", 2, "writeback"},
		{"run --on-enospc ignore", 2, "report or pause"},
		{"run --rootfs /nowhere", 125, "/nowhere"},
		{"image create x", 2, "how large"},
		{"image info /dev/null", 125, "neither a file"},
	})
}

// TestMountFAT: the default guest's kernel has the code page that a FAT is in.
func TestMountFAT(t *testing.T) {
	needKVM(t)
	needTools(t, "mkfs.vfat")
	disk := filepath.Join(t.TempDir(), "fat")
	must(t, "truncate", "-s", "16M", disk)
	must(t, "mkfs.vfat", disk)
	const script = "mount -t vfat /dev/vda /mnt && echo kept >/mnt/file && umount /mnt && mount -t vfat /dev/vda /mnt && cat /mnt/file"
	if out := ok(t, "run", "--disk", disk+",format=raw", "--timeout", bootLimit, "--", "sh", "-c", script); out != "kept" {
		t.Errorf("got %q", out)
	}
}
