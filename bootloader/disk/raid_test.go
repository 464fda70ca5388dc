package disk

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"
	"testing"
)

// Where superblocks are, and what is in them.
const (
	raidMagic   = 0xa92b4efc
	raidBlock90 = 64 << 10
	raidTail    = 8 << 10
	raidAlign   = 4 << 10
	raidPlaceAt = 144
)

// TestMembers: what is a member of an array is told from what only looks like one, and is read by
// a guest.
func TestMembers(t *testing.T) {
	const size, start, end = 1 << 20, 64 << 10, 960 << 10 // of the disk, and of its partition
	le := binary.LittleEndian
	super := func(b []byte, at, base int, version uint32) {
		le.PutUint32(b[at:], raidMagic)
		le.PutUint32(b[at+4:], version)
		if version == 1 {
			le.PutUint64(b[at+raidPlaceAt:], uint64(at-base)/sector)
		}
	}
	table := func(b []byte) {
		copy(b[mbrMagicAt:], "\x55\xaa")
		b[mbrTable+4] = 0x83
		le.PutUint32(b[mbrTable+8:], start/sector)
		le.PutUint32(b[mbrTable+12:], (end-start)/sector)
	}
	for name, c := range map[string]struct {
		make   func(b []byte)
		parted bool
		want   string // partitions that are members
	}{
		"none":                        {func([]byte) {}, true, ""},
		"0.90":                        {func(b []byte) { super(b, end-raidBlock90, start, 0) }, true, "1 md"},
		"1.0":                         {func(b []byte) { super(b, end-raidTail, start, 1) }, true, "1 md"},
		"1.1":                         {func(b []byte) { super(b, start, start, 1) }, true, "1 md"},
		"1.2":                         {func(b []byte) { super(b, start+raidAlign, start, 1) }, true, "1 md"},
		"1.2, on the disk":            {func(b []byte) { super(b, raidAlign, 0, 1) }, false, "0 md"},
		"1.0, on a disk with a table": {func(b []byte) { super(b, size-raidTail, 0, 1) }, true, "1 md"},
		"1.2, of another place":       {func(b []byte) { super(b, start+raidAlign, 0, 1) }, true, ""},
		"1.2, in the array":           {func(b []byte) { super(b, start+2*raidAlign, start, 1) }, true, ""},
		"a logical volume on it":      {func(b []byte) { super(b, end-raidTail, start, 1); copy(b[start+512:], "LABELONE") }, true, "1 md"},
		"xfs beside it":               {func(b []byte) { copy(b[start:], "XFSB") }, true, "1 xfs"},
	} {
		b := make([]byte, size)
		if c.parted {
			table(b)
		}
		c.make(b)
		var got []string
		for _, u := range UnreadPartitions(bytes.NewReader(b), size) {
			got = append(got, fmt.Sprint(u.Partition, " ", u.Kind))
		}
		if strings.Join(got, ", ") != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
		_, err := Entries(bytes.NewReader(b), size)
		if member := strings.HasSuffix(c.want, "md"); err == nil || strings.Contains(err.Error(), "a member of an array") != member {
			t.Errorf("%s: %v", name, err)
		}
	}

	// A partition that ends where its disk does.
	b := make([]byte, size)
	table(b)
	le.PutUint32(b[mbrTable+12:], (size-start)/sector/2)
	second := b[mbrTable+mbrEntry:]
	second[4] = 0x83
	le.PutUint32(second[8:], size/2/sector)
	le.PutUint32(second[12:], size/2/sector)
	super(b, size-raidBlock90, size/2, 0)
	if got := UnreadPartitions(bytes.NewReader(b), size); len(got) != 1 || got[0] != (Unread{2, "md"}) {
		t.Errorf("at the end of partition and disk: %+v", got)
	}
}

// TestArray has an array's file system found by all of GRUB's names for it, and named as Linux
// does to a kernel that is on its own.
func TestArray(t *testing.T) {
	const uuid, array = "11111111-2222-3333-4444-555555555555", "00112233445566778899aabbccddeeff"
	for name, c := range map[string]struct {
		set       string // how the configuration finds the device
		device    string
		partition int
		missing   bool
	}{
		"UUID":                     {"search --fs-uuid --set=root --hint='mduuid/" + array + "' " + uuid, "/dev/md0", 0, false},
		"the array's UUID":         {"set root='mduuid/" + strings.ToUpper(array) + "'", "/dev/md127", 0, false},
		"the array's name":         {"set root=md/system", "/dev/md127", 0, false},
		"the array's number":       {"set root='(md0)'", "/dev/md0", 0, false},
		"a partition of the array": {"set root='mduuid/" + array + ",gpt2'", "/dev/md0p2", 2, false},
		"the same, by its number":  {"set root=md0,msdos2", "/dev/md0p2", 2, false},
		"another partition":        {"set root=md0,msdos1", "/dev/md0p2", 2, true},
		"another array":            {"set root=md/other", "/dev/md0", 0, true},
	} {
		f := Foreign{Device: c.device, Partition: c.partition, Kind: "ext4", UUID: uuid, Array: Array{array, "system"}, FS: mapFS{
			"boot/grub/grub.cfg": c.set + "\nmenuentry Debian {\n\tlinux /boot/vmlinuz root=UUID=" + uuid + "\n}\n", "boot/vmlinuz": "the kernel", "etc/fstab": ""}}
		other := Foreign{Device: "/dev/md5", Kind: "ext4", Array: Array{strings.Repeat("f", 32), ""}, FS: mapFS{"boot/vmlinuz": "another"}}
		all, err := Entries(strings.NewReader(""), 0, other, f)
		if err != nil || len(all) != 1 {
			t.Errorf("%s: %d entries, %v", name, len(all), err)
			continue
		}
		kernel, _, err := all[0].Load()
		if err != nil || string(kernel) != "the kernel" || len(all[0].Unclear) > 0 != c.missing || all[0].Args != "root="+c.device {
			t.Errorf("%s: %q, arguments %q, %q, %v", name, kernel, all[0].Args, all[0].Unclear, err)
		}
	}
}
