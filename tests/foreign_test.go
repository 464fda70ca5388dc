package tests

import (
	"encoding/binary"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// foreignScript makes, in a guest with the host's programs, a disk with XFS, one with
// btrfs whose root is a subvolume, one with a logical volume in a logical partition, and arrays
// over several disks: a mirror whose members look like file systems, one that has gone on without a
// member, a logical volume on stripes, and a partition on one with parity, which has a bitmap, as mdadm
// gives it to large ones.
const foreignScript = `set -e
cd /made
mkdir /mnt/d
# filled DEVICE [DIRECTORY]
filled() {
	mount "$1" /mnt/d
	cp -r boot "/mnt/d/$2"
	umount /mnt/d
}
printf 'label: gpt\nstart=2048\n' | sfdisk -q /dev/vda
mkfs.xfs -q -L films /dev/vda1
filled /dev/vda1
mkfs.btrfs -q /dev/vdb
mount /dev/vdb /mnt/d
btrfs subvolume create /mnt/d/@ >/dev/null
umount /mnt/d
filled /dev/vdb @
printf 'label: dos\nstart=2048,size=4096\ntype=5,start=8192\nstart=10240,type=8e\n' | sfdisk -q /dev/vdc
export DM_DISABLE_UDEV=1
pvcreate -qq /dev/vdc5 && vgcreate -qq the-group /dev/vdc5
lvcreate -qq -Zn -Wn -l 50%FREE -n other the-group && lvcreate -qq -Zn -Wn -l 100%FREE -n root the-group
mkfs.ext4 -q /dev/mapper/the--group-root
filled /dev/mapper/the--group-root
vgchange -qq -an the-group

export MDADM_NO_UDEV=1
created() { mdadm -q --create --run --assume-clean "$@"; }
for d in /dev/vdd /dev/vde; do
	printf 'label: gpt\nstart=2048\n' | sfdisk -q $d
done
created /dev/md0 --metadata=1.0 --level=1 --raid-devices=2 /dev/vdd1 /dev/vde1
mkfs.ext4 -q /dev/md0
filled /dev/md0
mdadm -q --create --run /dev/md1 --level=0 --raid-devices=2 /dev/vdf /dev/vdg
pvcreate -qq /dev/md1 && vgcreate -qq on-array /dev/md1
lvcreate -qq -Zn -Wn -l 100%FREE -n root on-array
mkfs.ext4 -q /dev/mapper/on--array-root
filled /dev/mapper/on--array-root
vgchange -qq -an on-array
created /dev/md2 --level=5 --bitmap=internal --raid-devices=3 /dev/vdh /dev/vdi /dev/vdj
printf 'label: gpt\nstart=2048\n' | sfdisk -q /dev/md2
mkfs.ext4 -q /dev/md2p1
filled /dev/md2p1
created /dev/md3 --metadata=1.0 --level=1 --raid-devices=2 /dev/vdk /dev/vdl
mkfs.ext4 -q /dev/md3
filled /dev/md3
mount /dev/md3 /mnt/d
sed -i s/second/stale/ /mnt/d/boot/grub/grub.cfg
sync
mdadm -q /dev/md3 --fail /dev/vdl
sed -i s/stale/second/ /mnt/d/boot/grub/grub.cfg
umount /mnt/d
mdadm -q --stop /dev/md0 /dev/md1 /dev/md2 /dev/md3
sync
`

// TestForeignFileSystems boots disks by their own entries whose file systems only a
// guest can read.
func TestForeignFileSystems(t *testing.T) {
	needKVM(t)
	needTools(t, "sfdisk", "mkfs.xfs", "mkfs.btrfs", "vgcreate", "mdadm", "mke2fs", "mksquashfs")
	dir := bootable(t)
	if err := os.WriteFile(filepath.Join(dir, "make.sh"), []byte(foreignScript), 0o644); err != nil {
		t.Fatal(err)
	}
	args := []string{"run", "--timeout", bootLimit}
	at := t.TempDir()
	disk := func(name string) string { return filepath.Join(at, name) }
	for _, d := range []string{"xfs", "btrfs", "lvm", "mirror1", "mirror2", "stripe1", "stripe2", "parity1", "parity2", "parity3", "newer", "stale"} {
		ok(t, "image", "create", "-s", "400M", disk(d))
		args = append(args, "--disk", disk(d))
	}
	// Not compressed: the guest's kernel takes minutes to unpack where it is interpreted.
	must(t, "mksquashfs", dir, disk("squashfs"), "-quiet", "-no-progress", "-noI", "-noD", "-noF", "-noX")
	ok(t, append(args, "-m", "512M", "--share", dir+":/made", "--", "sh", "/made/make.sh")...)
	for name, disks := range map[string][]string{
		"xfs": {"xfs"}, "btrfs": {"btrfs"}, "lvm": {"lvm"}, "squashfs": {"squashfs"},
		"a mirror": {"mirror1", "mirror2"}, "half of a mirror": {"mirror2"},
		"a volume on stripes": {"stripe2", "stripe1"}, "a partition on parity": {"parity1", "parity2", "parity3"}, "parity without a disk": {"parity3", "parity1"},
		"a stale half first": {"stale", "newer"},
	} {
		t.Run(name, func(t *testing.T) {
			list, run := []string{"image", "boot-entries"}, []string{"run", "--boot-entry", "second", "--timeout", bootLimit}
			for _, d := range disks {
				list, run = append(list, disk(d)), append(run, "--disk", disk(d)+",ro")
			}
			if out := ok(t, list...); !strings.Contains(out, "2  second") {
				t.Errorf("entries:\n%s", out)
			}
			out, status := vmm(t, run...)
			if !strings.Contains(out, "entry=second") {
				t.Errorf("status %d:\n%s", status, out)
			}
		})
	}
	out, status := vmm(t, "image", "boot-entries", disk("stripe1"))
	if status == 0 || !strings.Contains(out, "a member of an array") {
		t.Errorf("half of the stripes: status %d:\n%s", status, out)
	}
	t.Run("hostile parity", func(t *testing.T) {
		list := []string{"image", "boot-entries", "--format", "raw"}
		for _, d := range []string{"parity1", "parity2", "parity3"} {
			raw := disk(d) + ".raw"
			ok(t, "image", "convert", disk(d), raw)
			breakArray(t, raw)
			list = append(list, raw)
		}
		if out, status := vmm(t, list...); status == 0 || !strings.Contains(out, "a guest that reads the disk has ended") || strings.Count(out, "\n") != 2 {
			t.Errorf("status %d:\n%s", status, out)
		}
	})
}

// breakArray gives a member of an array with parity, whose superblock is of version 1.2, one at
// which Linux 6.1 stops (a BUG_ON of raid5_run): it is being reshaped, to another layout, and
// has come nowhere.
func breakArray(t *testing.T, file string) {
	t.Helper()
	const at, features, reshapePosition, newLayout, checksum, roles, roleCount = 4096, 8, 104, 116, 216, 256, 220
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 4096)
	if _, err := f.ReadAt(b, at); err != nil {
		t.Fatal(err)
	}
	le := binary.LittleEndian
	le.PutUint32(b[features:], 4)
	le.PutUint64(b[reshapePosition:], math.MaxUint64)
	le.PutUint32(b[newLayout:], 0)
	le.PutUint32(b[checksum:], 0)
	var sum uint64
	for i := 0; i < roles+2*int(le.Uint32(b[roleCount:])); i += 4 {
		sum += uint64(le.Uint32(b[i:]))
	}
	le.PutUint32(b[checksum:], uint32(sum)+uint32(sum>>32))
	if _, err := f.WriteAt(b, at); err != nil {
		t.Fatal(err)
	}
}
