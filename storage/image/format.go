package image

import (
	"bytes"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"vmm/storage"
	"vmm/storage/qcow2"
)

// ForeignFormatError is the error for an image of a format that is none of Formats, and
// would be something else if it were taken for raw.
type ForeignFormatError struct {
	Path   string
	Format string // as qemu-img calls it
}

// Error implements error.
func (e *ForeignFormatError) Error() string {
	to := strings.TrimSuffix(e.Path, filepath.Ext(e.Path)) + ".qcow2"
	return fmt.Sprintf("%s is an image of the format %s: make one of it that can be read, with qemu-img convert -f %s -O qcow2 %s %s",
		e.Path, e.Format, e.Format, shellWord(e.Path), shellWord(to))
}

// shellWord is a text as one word of a shell's.
func shellWord(s string) string {
	const plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./+:@%,="
	if s != "" && s[0] != '-' && strings.Trim(s, plain) == "" {
		return s
	}
	if strings.HasPrefix(s, "-") {
		s = "./" + s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// foreign are formats by what is in their first bytes, or their last sector.
var foreign = []struct {
	format, magic string
	offset        int // from the start of the file, or with last of its last sector
	last          bool
}{
	{"vmdk", "KDMV", 0, false}, // sparse extent (VMware's Virtual Disk Format 1.1)
	{"vmdk", "COWD", 0, false}, // sparse extent of ESX
	{"vmdk", "# Disk DescriptorFile", 0, false},
	{"vdi", "\x7f\x10\xda\xbe", 0x40, false}, // VDIPREHEADER of VirtualBox
	{"vhdx", "vhdxfile", 0, false},           // MS-VHDX 2.2.1
	{"vpc", "conectix", 0, false},            // VHD, the footer's copy of a dynamic disk
	{"vpc", "conectix", 0, true},             // and the footer itself
	{"qed", "QED\x00", 0, false},             // docs/interop/qed_spec.txt of QEMU
	{"qcow", "QFI\xfb\x00\x00\x00\x01", 0, false},
	{"parallels", "WithoutFreeSpace", 0, false}, // docs/interop/parallels.txt of QEMU
	{"parallels", "WithouFreSpacExt", 0, false},
	{"dmg", "koly", 0, true},
}

// foreignFormats are those that are recognized and refused.
func foreignFormats() (list []string) {
	for _, f := range foreign {
		list = append(list, f.format)
	}
	return slices.Compact(list)
}

// foreignNames are endings of names that mean a format which is none of Formats.
var foreignNames = []string{".vmdk", ".vdi", ".vhd", ".vhdx", ".vpc", ".qed", ".dmg", ".hdd"}

// newFormat is the format of an image that is to be made: the given one, else what the name
// ends in.
func newFormat(path, given string) (string, error) {
	ending := strings.ToLower(filepath.Ext(path))
	switch {
	case given == Raw, given == Qcow2:
		return given, nil
	case given != "":
		return "", fmt.Errorf("%s: format %s: raw and qcow2 are what can be made", path, given)
	case slices.Contains(foreignNames, ending):
		return "", fmt.Errorf("%s: raw and qcow2 are what can be made, and the name ends in %s: make x.qcow2 and then qemu-img convert it, or say which of the two it is", path, ending)
	case ending == "."+Raw:
		return Raw, nil
	}
	return Qcow2, nil
}

// format checks a format, or finds out. The error may be a *ForeignFormatError.
func format(f *storage.File, given string) (string, error) {
	switch {
	case given == Raw, given == Qcow2:
		return given, nil
	case slices.Contains(foreignFormats(), given):
		return "", &ForeignFormatError{f.Name(), given}
	case given != "":
		return "", fmt.Errorf("%s: format %s: only raw and qcow2 are known", f.Name(), given)
	}
	var head, end [storage.SectorSize]byte
	if _, err := f.ReadAt(head[:], 0); err != nil {
		return "", err
	}
	if last := f.Size() - storage.SectorSize; last > 0 {
		if _, err := f.ReadAt(end[:], last); err != nil {
			return "", err
		}
	}
	for _, x := range foreign {
		in := head[:]
		if x.last {
			in = end[:]
		}
		if bytes.HasPrefix(in[x.offset:], []byte(x.magic)) {
			return "", &ForeignFormatError{f.Name(), x.format}
		}
	}
	if bytes.HasPrefix(head[:], []byte(qcow2.Magic)) {
		return Qcow2, nil
	}
	return Raw, nil
}
