package disk

import (
	"encoding/binary"
	"io"
	"path"
	"slices"
	"strings"
)

// Array is an array of Linux's software RAID, md.
type Array struct {
	UUID string // 32 hexadecimal digits, as mdadm has them without colons
	Name string // the array's own, without that of its host; it may be empty
}

// grubDisk is the array's name for GRUB.
func (a Array) grubDisk() string { return "mduuid/" + a.UUID }

// named reports whether GRUB calls the array so, whose device Linux has: mduuid/UUID, md/NAME,
// or md0 by its number.
func (a Array) named(name, device string) bool {
	return strings.EqualFold(name, a.grubDisk()) || a.Name != "" && name == "md/"+a.Name || name == path.Base(device)
}

// Where the superblock of a member is, and what is in it (md(4); <linux/raid/md_p.h>).
const (
	raidMagic   = 0xa92b4efc
	raidBlock90 = 64 << 10
	raidTail    = 8 << 10
	raidAlign   = 4 << 10
	raidPlaceAt = 144 // of version 1: its place on the member, in sectors
	raidHead    = raidPlaceAt + 8
)

// diskPartitions reads the partition table, and marks what is a member of an array: that is no
// file system by itself, although it may look like one. What looks like partitions of a disk
// that is a member is its array's.
func diskPartitions(r io.ReaderAt, size int64) []part {
	parts := partitions(r, size)
	var places []int64
	for i := range parts {
		if at, ok := raidSuperblock(r, parts[i]); ok {
			parts[i].member = true
			places = append(places, at)
		}
	}
	// One at the end of the last partition may also be at the end of the disk.
	if at, ok := raidSuperblock(r, part{size: size}); ok && !slices.Contains(places, at) {
		for i := range parts {
			parts[i].member = true
		}
	}
	return parts
}

// raidSuperblock finds where on the disk a partition has the superblock of an array.
func raidSuperblock(r io.ReaderAt, p part) (at int64, ok bool) {
	le := binary.LittleEndian
	for _, v := range []struct {
		major uint32
		at    int64
	}{
		{0, p.size/raidBlock90*raidBlock90 - raidBlock90},
		{1, (p.size - raidTail) / raidAlign * raidAlign},
		{1, 0},
		{1, raidAlign},
	} {
		var b [raidHead]byte
		if v.at < 0 || v.at > p.size-raidHead {
			continue
		}
		if _, err := r.ReadAt(b[:], p.start+v.at); err != nil || le.Uint32(b[:]) != raidMagic || le.Uint32(b[4:]) != v.major {
			continue
		}
		if v.major == 0 || le.Uint64(b[raidPlaceAt:]) == uint64(v.at/sector) {
			return p.start + v.at, true
		}
	}
	return 0, false
}
