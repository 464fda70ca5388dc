package disk

import (
	"errors"
	"io"
	"io/fs"
	"slices"
	"strings"
)

// Foreign is a file system of a disk that somebody else reads: a guest, whose kernel has
// the drivers.
type Foreign struct {
	FS        fs.FS
	Partition int    // its number; 0 on a disk or array without partitions, -1 of a logical volume
	Device    string // where Linux has it, of a logical volume or an array: /dev/mapper/..., /dev/md0
	Array     Array  // on which it is, by itself or in a partition; zero on none
	Kind      string // as mount has it
	UUID      string
	Label     string
	Subvolume string // of btrfs, whose root it is
}

// mounted is the file system among the others of a disk with these partitions.
func (f *Foreign) mounted(parts []part) *fileSystem {
	m := &fileSystem{FS: f.FS, kind: f.Kind, uuid: f.UUID, label: f.Label, volume: f.Device, array: f.Array, subvolume: f.Subvolume}
	if f.Subvolume != "" {
		m.FS = subvolume{f.FS, f.Subvolume + "/"}
	}
	if f.Array != (Array{}) {
		m.part.number = f.Partition
	}
	if i := slices.IndexFunc(parts, func(p part) bool { return p.number == f.Partition }); i >= 0 && f.Device == "" {
		m.part = parts[i]
	}
	return m
}

// subvolume is a subvolume of btrfs, whose files are also below its name, as at the top: so
// GRUB's configurations name them.
type subvolume struct {
	fs.FS
	below string
}

// Open implements fs.FS.
func (s subvolume) Open(name string) (fs.File, error) {
	f, err := s.FS.Open(name)
	if inside, ok := strings.CutPrefix(name, s.below); ok && errors.Is(err, fs.ErrNotExist) {
		return s.FS.Open(inside)
	}
	return f, err
}

// mark is what stands at a place of a partition that has something of a kind.
type mark struct {
	kind  string
	at    int64
	bytes string
}

// foreignMarks tell the file systems that this package does not read, and volumes in
// which there may be some.
var foreignMarks = []mark{
	{"xfs", 0, "XFSB"},
	{"btrfs", 0x10040, "_BHRfS_M"},
	{"f2fs", 1024, "\x10\x20\xf5\xf2"},
	{"iso9660", 0x8001, "CD001"},
	{"squashfs", 0, "hsqs"},
	{"LVM", 0, "LABELONE"}, {"LVM", 512, "LABELONE"}, {"LVM", 1024, "LABELONE"}, {"LVM", 1536, "LABELONE"},
}

// closedMarks tell what nobody reads here, of the marks that are at a fixed place.
var closedMarks = []mark{
	{"encrypted by LUKS", 0, "LUKS\xba\xbe"}, {"encrypted by BitLocker", 3, "-FVE-FS-"},
	{"ntfs", 3, "NTFS    "}, {"exfat", 3, "EXFAT   "}, {"swap", 4086, "SWAPSPACE2"}, {"apfs", 32, "NXSB"},
	{"bcachefs", 4096 + 24, "\xc6\x85\x73\xf6\x66\xce\x90\xa9\xd9\x6a\x60\xcf\x80\x3d\xf7\xef"},
}

// foreignKind is what a partition has that this package does not read and a guest does; "" if
// nothing is known of it.
func foreignKind(r io.ReaderAt, p part) string {
	if kind := marked(foreignMarks, r, p); kind != "" {
		return kind
	}
	if _, err := openExt(io.NewSectionReader(r, p.start, p.size), p.size); errors.Is(err, errExtFeatures) {
		return "ext4"
	}
	return ""
}

// marked is the kind that the first of some marks tells.
func marked(marks []mark, r io.ReaderAt, p part) string {
	for _, m := range marks {
		b := make([]byte, len(m.bytes))
		if m.at+int64(len(b)) > p.size {
			continue
		}
		if _, err := r.ReadAt(b, p.start+m.at); err == nil && string(b) == m.bytes {
			return m.kind
		}
	}
	return ""
}

// Unread is a partition whose file system this package does not read.
type Unread struct {
	Partition int // 0 for a disk without partitions
	Kind      string
}

// UnreadPartitions returns those that a guest may be able to read.
func UnreadPartitions(r io.ReaderAt, size int64) (out []Unread) {
	for _, p := range diskPartitions(r, size) {
		kind := foreignKind(r, p)
		if p.member {
			kind = "md"
		}
		if kind != "" {
			out = append(out, Unread{p.number, kind})
		}
	}
	return out
}
