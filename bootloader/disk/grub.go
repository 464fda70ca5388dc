package disk

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"

	"vmm/bootloader/grub"
)

// ErrUnclear is returned where a disk has entries, and none of them is wholly understood.
var ErrUnclear = errors.New("no boot entry is wholly understood")

// Default returns the entry that is booted where none was asked for: the first that is
// wholly understood, else an error that is ErrUnclear.
func Default(entries []*Entry) (*Entry, error) {
	for _, e := range entries {
		if len(e.Unclear) == 0 {
			return e, nil
		}
	}
	if len(entries) == 0 {
		return nil, ErrNoEntry
	}
	return nil, fmt.Errorf("%w, so one has to be asked for: 1: %s: %s", ErrUnclear, entries[0].Title, strings.Join(entries[0].Unclear, "; "))
}

// defaultFirst puts the entry that is booted where none was asked for before the others: the
// configuration's default if it is understood, else the first that is.
func defaultFirst(entries []*Entry) {
	understood := func(e *Entry) bool { return len(e.Unclear) == 0 }
	i := slices.IndexFunc(entries, func(e *Entry) bool { return e.preferred && understood(e) })
	if i < 0 {
		i = slices.IndexFunc(entries, understood)
	}
	if i < 0 { // none: the default is the one to be told of
		i = slices.IndexFunc(entries, func(e *Entry) bool { return e.preferred })
	}
	if i > 0 {
		e := entries[i]
		copy(entries[1:], entries[:i])
		entries[0] = e
	}
}

// named reports whether a name is the entry's title or identifier, as its boot loader has it, or where it is in GRUB's
// menus.
func (e *Entry) named(name string) bool {
	return name == e.Title || name != "" && (name == e.ID || name == e.loader.name()) || e.Menu != "" && name == e.Menu+">"+e.Title
}

var grubConfigs = []string{"boot/grub/grub.cfg", "grub/grub.cfg", "boot/grub2/grub.cfg", "grub2/grub.cfg"}

// Bounds of what is looked at: directories of an EFI system partition, and configurations
// that are run.
const (
	maxVendors = 32
	maxRuns    = 16
)

// grubEntries runs GRUB's configurations. Those that the firmware's GRUB begins with come
// first, for they lead to the one of several that counts; what one of them has led to is
// not run again.
func grubEntries(all []*fileSystem) (out []*Entry) {
	type config struct {
		f    *fileSystem
		name string
		efi  bool
	}
	var efi, configs []config
	for _, f := range all {
		vendors := f.list("EFI")
		for _, vendor := range vendors[:min(len(vendors), maxVendors)] {
			efi = append(efi, config{f, path.Join("EFI", vendor, "grub.cfg"), true})
		}
		for _, name := range grubConfigs {
			configs = append(configs, config{f, name, false})
		}
	}
	d := grubDisk(all)
	seen := map[grub.File]bool{}
	runs := 0
	for _, c := range append(efi, configs...) {
		if runs == maxRuns || len(out) >= maxEntries {
			break
		}
		if seen[grub.File{Device: c.f.device(), Path: "/" + c.name}] || !c.f.exists(c.name) {
			continue
		}
		runs++
		menu, err := d.run(c.f, c.name, c.efi)
		if err != nil {
			continue
		}
		for _, f := range menu.Files {
			seen[f] = true
		}
		var found []*Entry
		for _, g := range menu.Entries {
			e := d.entry(g)
			e.Source, e.preferred = c.name, g == menu.Default && len(out) == 0
			if e.home == nil {
				e.home = c.f
			}
			found = append(found, e)
		}
		out = append(out, found...)
	}
	return out
}

// device is the file system's name for GRUB, which subvolumes share.
func (f *fileSystem) device() string {
	disk := firstDisk
	switch {
	case f.array != (Array{}):
		disk = f.array.grubDisk()
	case f.volume != "":
		return "lvm/" + path.Base(f.volume)
	}
	if f.part.number == 0 {
		return disk
	}
	return disk + "," + strconv.Itoa(f.part.number)
}

// firstDisk is GRUB's name for the disk that is looked at; beside it there is what lies on it.
const firstDisk = "hd0"

// grubDisk is a disk as GRUB's scripts see it. It implements grub.Disk.
type grubDisk []*fileSystem

// find returns the file systems on a device: hd0, hd0,2, hd0,gpt2, hd0,msdos2, lvm/group-volume,
// or an array or a partition of one. One of btrfs is there several times: GRUB sees the top of it
// or, as openSUSE has it, the default subvolume.
func (d grubDisk) find(name string) (found several) {
	name = strings.NewReplacer(",gpt", ",", ",msdos", ",").Replace(name)
	disk, number, _ := strings.Cut(name, ",")
	for _, f := range d {
		of := name
		if f.array != (Array{}) && f.array.named(disk, strings.TrimSuffix(f.volume, "p"+number)) {
			of = f.array.grubDisk() + name[len(disk):]
		}
		if f.device() == of {
			found = append(found, f)
		}
	}
	return found
}

// several file systems are seen as one, in which the first has precedence.
type several []*fileSystem

// Open implements fs.FS.
func (s several) Open(name string) (fs.File, error) {
	var first error
	for _, f := range s {
		file, err := f.Open(name)
		if err == nil {
			return file, nil
		}
		if first == nil {
			first = err
		}
	}
	return nil, first
}

// with returns the file system that has a file; the first if none has.
func (s several) with(name string) *fileSystem {
	for _, f := range s {
		if f.exists(name) {
			return f
		}
	}
	if len(s) == 0 {
		return nil
	}
	return s[0]
}

// Snippets implements grub.Disk.
func (d grubDisk) Snippets(device, dir string) (out []grub.Snippet) {
	for _, f := range d.find(device) {
		for _, e := range blsSnippets(f, dir) {
			out = append(out, grub.Snippet{Title: e.Title, ID: e.ID, Kernel: e.Kernel, Initrds: strings.Join(e.Initrds, " "), Options: e.Args})
		}
		if out != nil {
			break
		}
	}
	return out
}

// Device implements grub.Disk.
func (d grubDisk) Device(name string) fs.FS {
	if found := d.find(name); found != nil {
		return found
	}
	return nil
}

// Devices implements grub.Disk.
func (d grubDisk) Devices() (names []string) {
	for _, f := range d {
		if name := f.device(); !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names
}

// Search implements grub.Disk.
func (d grubDisk) Search(kind grub.SearchKind, value string) string {
	for _, f := range d {
		if kind == grub.ByUUID && f.uuid != "" && strings.EqualFold(f.uuid, value) || kind == grub.ByLabel && f.label != "" && f.label == value {
			return f.device()
		}
	}
	return ""
}

// grubKinds are GRUB's names of the file systems.
var grubKinds = map[string]string{"ext4": "ext2", "vfat": "fat", "squashfs": "squash4"}

// Probe implements grub.Disk.
func (d grubDisk) Probe(device string) grub.Identity {
	found := d.find(device)
	if found == nil {
		return grub.Identity{}
	}
	f := found[0]
	return grub.Identity{Kind: cmp.Or(grubKinds[f.kind], f.kind), UUID: f.uuid, Label: f.label, Partition: f.part.uuid}
}

// run runs a configuration.
func (d grubDisk) run(f *fileSystem, config string, efi bool) (menu *grub.Menu, err error) {
	defer catch(config, &err)
	return grub.Run(d, f.device(), config, efi)
}

// entry makes an entry of GRUB's.
func (d grubDisk) entry(g *grub.Entry) *Entry {
	e := &Entry{Title: g.Title, Menu: g.Menu, ID: g.ID, Kernel: g.Kernel.Path, Args: g.Args, Unclear: g.NotUnderstood,
		home: d.find(g.Kernel.Device).with(g.Kernel.Path), where: map[string]*fileSystem{}}
	for _, i := range g.Initrds {
		e.Initrds = append(e.Initrds, i.Path)
		e.where[i.Path] = d.find(i.Device).with(i.Path)
	}
	return e
}

// Where labels are: in the superblock of ext (Linux, Documentation/filesystems/ext4), and
// in the boot sector of FAT32, and of FAT12 and FAT16.
const (
	extLabelAt   = 1024 + 0x78
	extLabelSize = 16
	fat32LabelAt = 71
	fat16LabelAt = 43
	fatLabelSize = 11
	fat32KindAt  = 82
)

// label is the label of a file system that begins with head.
func label(kind string, head []byte) string {
	switch {
	case kind == "ext4":
		text, _, _ := strings.Cut(string(head[extLabelAt:][:extLabelSize]), "\x00")
		return text
	case kind == "vfat" && strings.HasPrefix(string(head[fat32KindAt:]), "FAT32"):
		return strings.TrimRight(string(head[fat32LabelAt:][:fatLabelSize]), " ")
	case kind == "vfat":
		return strings.TrimRight(string(head[fat16LabelAt:][:fatLabelSize]), " ")
	}
	return ""
}
