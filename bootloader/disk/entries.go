package disk

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strconv"
	"strings"

	"vmm/bootloader/uki"
)

// Entry is something that a disk can boot.
type Entry struct {
	Title   string   `json:"title"`
	Menu    string   `json:"menu,omitempty"` // the titles of GRUB's submenus that it is in, with > between
	ID      string   `json:"id,omitempty"`   // with those of the submenus, and > between
	Source  string   `json:"source"`         // the file that says so
	Kernel  string   `json:"kernel"`
	Initrds []string `json:"initrds,omitempty"`
	Args    string   `json:"arguments"`
	// Unclear is what of the entry's configuration was not understood. Such an entry
	// may be another than the boot loader would start: it is never the default.
	Unclear []string `json:"notUnderstood,omitempty"`

	home      *fileSystem // where Source is, or the kernel
	all       []*fileSystem
	where     map[string]*fileSystem // where files are, if the configuration says so
	preferred bool                   // the configuration's default
	loader    loaderKey
	program   bool     // it starts a program of EFI's, which may be another than Linux
	profile   int      // of a unified kernel image
	addons    []string // of it
}

// ErrNoEntry is returned where a disk has nothing to boot.
var ErrNoEntry = errors.New("nothing to boot: no GRUB, Boot Loader Specification or extlinux entry with its kernel, no EFI/Linux/*.efi and no /boot/vmlinuz*")

var errEntries = fmt.Errorf("the disk has %d entries or more, of which no more are listed", maxEntries)

// Entries lists what the disk of size bytes can boot; the first is the default. more are
// file systems of it that somebody else reads.
func Entries(r io.ReaderAt, size int64, more ...Foreign) ([]*Entry, error) {
	parts := diskPartitions(r, size)
	all, err := fileSystems(r, parts)
	if err != nil && more == nil {
		return nil, err
	}
	for _, f := range more {
		all = append(all, f.mounted(parts))
	}
	return entriesOf(all, parts)
}

// entriesOf lists what file systems can boot.
func entriesOf(all []*fileSystem, parts []part) ([]*Entry, error) {
	out := grubEntries(all)
	for _, find := range []func([]*fileSystem) []*Entry{loaderEntries, each(extlinuxEntries), bareKernels} {
		if len(out) > 0 {
			break // the other ways are for disks without this one
		}
		out = find(all)
	}
	var bootable []*Entry
	for _, e := range out {
		e.all = all
		// Fallbacks and memory tests, whose kernels are not there, are left out.
		f, err := e.open(e.Kernel)
		if err != nil || e.program && !f.program(e.Kernel).linux {
			continue
		}
		for _, name := range e.Initrds {
			if _, err := e.open(name); err != nil && len(e.Unclear) == 0 {
				e.Unclear = append(e.Unclear, "there is no "+name)
			}
		}
		initrd := len(e.Initrds) > 0
		if isEFI(e.Kernel) || e.program {
			initrd = e.unified(f) || initrd
		}
		e.Args = rootArguments(e.Args, all, parts, initrd)
		bootable = append(bootable, e)
	}
	if len(bootable) == 0 {
		var found []string
		for _, f := range all {
			found = append(found, f.kind)
		}
		err := fmt.Errorf("%w (its file systems: %s)", ErrNoEntry, strings.Join(found, ", "))
		if why := cutOff(all, out); why != nil {
			err = fmt.Errorf("%w: %w", err, why)
		}
		return nil, err
	}
	if why := cutOff(all, out); why != nil { // the default may be among those that are missing
		for _, e := range bootable {
			e.Unclear = append(e.Unclear, why.Error())
		}
	}
	defaultFirst(bootable)
	return bootable, nil
}

// cutOff returns why there may be more entries than were found; nil if there are none.
func cutOff(all []*fileSystem, found []*Entry) error {
	if len(found) >= maxEntries {
		return errEntries
	}
	for _, f := range all {
		if f.meter != nil && f.meter.over {
			return errMeter
		}
	}
	return nil
}

// each looks in one file system after the other.
func each(find func(*fileSystem) []*Entry) func([]*fileSystem) []*Entry {
	return func(all []*fileSystem) (out []*Entry) {
		for _, f := range all {
			out = append(out, find(f)...)
		}
		return out
	}
}

// Find returns the entry that a name means: its number from 1, its title or identifier,
// as GRUB has them in submenus too, or a part of its title that no other has.
func Find(entries []*Entry, name string) (*Entry, error) {
	if n, err := strconv.Atoi(name); err == nil && n >= 1 && n <= len(entries) {
		return entries[n-1], nil
	}
	var found []*Entry
	for _, e := range entries {
		if e.named(name) {
			return e, nil
		}
		if strings.Contains(e.Title, name) || strings.Contains(e.Kernel, name) {
			found = append(found, e)
		}
	}
	if len(found) == 1 {
		return found[0], nil
	}
	var titles []string
	for i, e := range entries {
		titles = append(titles, fmt.Sprintf("%d: %s", i+1, e.Title))
	}
	return nil, fmt.Errorf("boot entry %q: %d match; there are %s", name, len(found), strings.Join(titles, ", "))
}

// open finds a file of the entry: in the file system that names it, where it
// may be the one below /boot, or in another.
func (e *Entry) open(name string) (*fileSystem, error) {
	for _, f := range append([]*fileSystem{e.where[name], e.home}, e.all...) {
		if f != nil && f.exists(name) {
			return f, nil
		}
	}
	return nil, fmt.Errorf("%s: %w", name, fs.ErrNotExist)
}

func (f *fileSystem) exists(name string) (ok bool) {
	var err error
	defer catch(name, &err)
	file, err := f.Open(clean(name))
	if err != nil {
		return false
	}
	st, err := file.Stat()
	file.Close()
	return err == nil && !st.IsDir()
}

// Load reads the entry's kernel and initial RAM disks.
func (e *Entry) Load() (kernel []byte, initrds [][]byte, err error) {
	left := int64(maxFile)
	var home *fileSystem
	for i, name := range append([]string{e.Kernel}, e.Initrds...) {
		f, err := e.open(name)
		if err != nil {
			return nil, nil, fmt.Errorf("boot entry %q: %w", e.Title, err)
		}
		if i == 0 && f.meter != nil {
			f.meter.left = maxLoad
		}
		b, err := f.read(name, left)
		left -= int64(len(b))
		if err != nil {
			return nil, nil, fmt.Errorf("boot entry %q: %w", e.Title, err)
		}
		if i == 0 {
			kernel, home = b, f
		} else {
			initrds = append(initrds, b)
		}
	}
	if profiles, err := uki.Parse(kernel); err == nil && e.profile < len(profiles) {
		p := profiles[e.profile]
		kernel, initrds = p.Linux, append(slices.Clone(p.Initrds), initrds...)
	}
	for _, name := range e.addons {
		b, err := home.read(name, left)
		left -= int64(len(b))
		if err != nil {
			return nil, nil, fmt.Errorf("boot entry %q: %w", e.Title, err)
		}
		if a, err := uki.ParseAddon(b); err == nil {
			initrds = append(initrds, a.Initrds...)
		}
	}
	return kernel, initrds, nil
}
