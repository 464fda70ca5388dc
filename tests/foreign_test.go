package tests

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// foreignScript makes, in a guest with the host's programs, a disk with XFS, one with
// btrfs whose root is a subvolume, and one with a logical volume in a logical partition.
const foreignScript = `set -e
cd /made
mkdir /mnt/d
printf 'label: gpt\nstart=2048\n' | sfdisk -q /dev/vda
mkfs.xfs -q -L films /dev/vda1
mount /dev/vda1 /mnt/d
cp -r boot /mnt/d
umount /mnt/d
mkfs.btrfs -q /dev/vdb
mount /dev/vdb /mnt/d
btrfs subvolume create /mnt/d/@ >/dev/null
cp -r boot /mnt/d/@
umount /mnt/d
printf 'label: dos\nstart=2048,size=4096\ntype=5,start=8192\nstart=10240,type=8e\n' | sfdisk -q /dev/vdc
export DM_DISABLE_UDEV=1
pvcreate -qq /dev/vdc5 && vgcreate -qq the-group /dev/vdc5
lvcreate -qq -Zn -Wn -l 50%FREE -n other the-group && lvcreate -qq -Zn -Wn -l 100%FREE -n root the-group
mkfs.ext4 -q /dev/mapper/the--group-root
mount /dev/mapper/the--group-root /mnt/d
cp -r boot /mnt/d
umount /mnt/d
vgchange -qq -an the-group
sync
`

// TestForeignFileSystems boots disks by their own entries whose file systems only a
// guest can read.
func TestForeignFileSystems(t *testing.T) {
	needKVM(t)
	needTools(t, "sfdisk", "mkfs.xfs", "mkfs.btrfs", "vgcreate", "mke2fs", "mksquashfs")
	dir := bootable(t)
	if err := os.WriteFile(filepath.Join(dir, "make.sh"), []byte(foreignScript), 0o644); err != nil {
		t.Fatal(err)
	}
	args := []string{"run", "--timeout", bootLimit}
	disks := map[string]string{}
	for _, d := range []string{"xfs", "btrfs", "lvm"} {
		disks[d] = filepath.Join(t.TempDir(), d+".qcow2")
		ok(t, "image", "create", "-s", "400M", disks[d])
		args = append(args, "--disk", disks[d])
	}
	disks["squashfs"] = filepath.Join(t.TempDir(), "squashfs")
	// Not compressed: the guest's kernel takes minutes to unpack where it is interpreted.
	must(t, "mksquashfs", dir, disks["squashfs"], "-quiet", "-no-progress", "-noI", "-noD", "-noF", "-noX")
	ok(t, append(args, "-m", "512M", "--share", dir+":/made", "--", "sh", "/made/make.sh")...)
	for d, path := range disks {
		t.Run(d, func(t *testing.T) {
			if out := ok(t, "image", "boot-entries", path); !strings.Contains(out, "2  second") {
				t.Errorf("entries:\n%s", out)
			}
			out, status := vmm(t, "run", "--disk", path+",ro", "--boot-entry", "second", "--timeout", bootLimit)
			if !strings.Contains(out, "entry=second") {
				t.Errorf("status %d:\n%s", status, out)
			}
		})
	}
}
