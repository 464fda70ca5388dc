package disk

import (
	"strings"
	"testing"
)

// TestForeign has a guest's file systems found by UUID, on a logical volume, and in a subvolume
// of btrfs, which GRUB's configuration names from the top.
func TestForeign(t *testing.T) {
	const script = `search --no-floppy --fs-uuid --set=root 11111111-2222-3333-4444-555555555555
menuentry Debian {
	linux DIR/boot/vmlinuz root=/dev/x
	initrd DIR/boot/initrd
}
`
	for name, c := range map[string]struct {
		dir  string
		more []Foreign
	}{
		"a logical volume": {"", []Foreign{{Partition: -1, Device: "/dev/mapper/group-root", Kind: "ext4"}}},
		"a subvolume":      {"/@", []Foreign{{Partition: 0, Kind: "btrfs", FS: mapFS{"etc/x": ""}}, {Partition: 0, Kind: "btrfs", Subvolume: "@"}}},
	} {
		root := &c.more[len(c.more)-1]
		root.FS = mapFS{"boot/grub/grub.cfg": strings.ReplaceAll(script, "DIR", c.dir), "boot/vmlinuz": "the kernel", "boot/initrd": "the disk"}
		for i := range c.more {
			c.more[i].UUID = "11111111-2222-3333-4444-555555555555"
		}
		all, err := Entries(strings.NewReader(""), 0, c.more...)
		if err != nil || len(all) != 1 {
			t.Errorf("%s: %d entries, %v", name, len(all), err)
			continue
		}
		kernel, initrds, err := all[0].Load()
		if err != nil || string(kernel) != "the kernel" || len(initrds) != 1 || len(all[0].Unclear) > 0 {
			t.Errorf("%s: %q, %d initrds, %q, %v", name, kernel, len(initrds), all[0].Unclear, err)
		}
	}
}
