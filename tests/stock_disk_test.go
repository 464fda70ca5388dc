package tests

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestStockDisk boots a Debian from its own disk: with its own stock kernel and
// initial RAM disk, by its own GRUB entry, to systemd's multi-user target. Its
// modules find the disk. Like TestStock it is slow where guest kernel mode is
// interpreted. The same files then boot with vmm's kernel as --rootfs, and from disks
// as installers lay them out.
func TestStockDisk(t *testing.T) {
	if os.Getenv("VMM_TEST_STOCK") == "" {
		t.Skip("make test-stock runs this")
	}
	needKVM(t)
	needTools(t, "debootstrap", "mke2fs", "sfdisk", "mkfs.xfs", "mkfs.btrfs", "vgcreate", "mdadm", "mkfs.vfat", "objcopy")
	images := debian(t)
	t.Run("layouts", func(t *testing.T) { layouts(t, images) })
	root, disk := installed(t, images, map[string]string{
		"etc/systemd/system/check.service": "[Service]\nType=oneshot\n" +
			"ExecStart=/bin/sh -c 'echo BOOTED $(findmnt -no SOURCE,FSTYPE /) $(grep -c ^virtio_blk /proc/modules) >/dev/ttyS0; systemctl --no-block poweroff'\n",
	})
	for _, c := range []struct{ name, want, flag, value string }{
		{"own kernel", "BOOTED /dev/vda1 ext4 1", "--disk", disk},
		{"rootfs", "BOOTED /dev/vda ext4", "--rootfs", root},
	} {
		t.Run(c.name, func(t *testing.T) {
			start := time.Now()
			out, status := vmm(t, "run", c.flag, c.value, "-m", "1G", "--timeout", "15m")
			t.Logf("took %v", time.Since(start))
			if status != 0 || !strings.Contains(out, c.want) {
				t.Errorf("status %d, no %q in the output:\n%s", status, c.want, out)
			}
		})
	}
	must(t, vmmPath, "image", "check", disk)
}

// installed puts this machine's Debian and some files on a disk with one partition, which boots by GRUB's configuration to check.service,
// one of the files. The same is in a directory.
func installed(t *testing.T, images string, files map[string]string) (root, disk string) {
	t.Helper()
	root = filepath.Join(t.TempDir(), "root")
	if err := os.Mkdir(root, 0o755); err != nil {
		t.Fatal(err)
	}
	must(t, "tar", "-C", root, "-xf", filepath.Join(images, "root.tar"))
	kernels, err := filepath.Glob(filepath.Join(root, "boot/vmlinuz-*"))
	if err != nil || len(kernels) == 0 {
		t.Fatalf("no kernel in %s/boot: %v", root, err)
	}
	version := strings.TrimPrefix(filepath.Base(kernels[0]), "vmlinuz-")
	const uuid = "11111111-2222-3333-4444-555555555555"
	files = maps.Clone(files)
	files["etc/fstab"] = "UUID=" + uuid + " / ext4 rw 0 1\n"
	files["boot/grub/grub.cfg"] = fmt.Sprintf("set default=\"0\"\nsearch --no-floppy --fs-uuid --set=root %s\nmenuentry 'Debian GNU/Linux' {\n"+
		"\tlinux\t/boot/vmlinuz-%s root=UUID=%s ro quiet\n\tinitrd\t/boot/initrd.img-%s\n}\n", uuid, version, uuid, version)
	for name, content := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		mode := os.FileMode(0o644)
		if strings.HasPrefix(content, "\x7fELF") {
			mode = 0o755
		}
		if err := os.WriteFile(path, []byte(content), mode); err != nil {
			t.Fatal(err)
		}
	}
	wants := filepath.Join(root, "etc/systemd/system/multi-user.target.wants")
	if err := os.MkdirAll(wants, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc/systemd/system/check.service", filepath.Join(wants, "check.service")); err != nil {
		t.Fatal(err)
	}
	raw := filepath.Join(t.TempDir(), "disk.raw")
	partitioned(t, raw, "2G", root, "2000M", "-U", uuid)
	disk = filepath.Join(t.TempDir(), "debian.qcow2")
	must(t, vmmPath, "image", "convert", raw, disk)
	os.Remove(raw)
	return root, disk
}
