package disk

import (
	"encoding/binary"
	"io"
	"path"
	"slices"
	"strings"

	"vmm/guest-images/md"
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

// raidHead is how much of a superblock is looked at.
const raidHead = md.PlaceAt + 8

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
	for _, v := range md.Places(p.size) {
		var b [raidHead]byte
		if v.At < 0 || v.At > p.size-raidHead {
			continue
		}
		if _, err := r.ReadAt(b[:], p.start+v.At); err != nil || le.Uint32(b[:]) != md.Magic || le.Uint32(b[4:]) != v.Major {
			continue
		}
		if v.Major == 0 || le.Uint64(b[md.PlaceAt:]) == uint64(v.At/sector) {
			return p.start + v.At, true
		}
	}
	return 0, false
}
