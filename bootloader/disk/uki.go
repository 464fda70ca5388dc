package disk

import (
	"fmt"
	"path"
	"strconv"
	"strings"

	"vmm/bootloader/uki"
)

// maxAddons bounds the addons of an image that are read.
const maxAddons = 32

// program is what is kept of a program of EFI's that was read.
type program struct {
	linux    bool // it is a kernel, alone or in an image
	profiles []profile
}

// profile is what is kept of a profile of a unified kernel image.
type profile struct {
	args   string
	initrd bool
}

// isEFI reports whether a name is that of a unified kernel image, in any case, as a vfat has it.
func isEFI(name string) bool { return strings.EqualFold(path.Ext(name), ".efi") }

// ukiEntries makes entries of the profiles of a unified kernel image. Their ids are
// systemd-boot's.
func ukiEntries(f *fileSystem, file string) (out []*Entry) {
	base, exhausted := cutTries(strings.TrimSuffix(path.Base(file), path.Ext(file)))
	for i, p := range f.profiles(file) {
		e := &Entry{Title: p.OS, Source: file, Kernel: file, home: f, profile: i,
			loader: loaderKey{id: base + ".efi", sort: p.Sort, version: p.Version, exhausted: exhausted}}
		if i > 0 {
			e.loader.suffix = "@" + strconv.Itoa(i)
		}
		if e.Title == "" {
			e.Title = base
		}
		if p.Title != "" {
			e.Title += " (" + p.Title + ")"
		}
		out = append(out, e)
	}
	return out
}

// profiles reads a unified kernel image; there are none if it is not one.
func (f *fileSystem) profiles(name string) []uki.Profile {
	b, err := f.read(name, maxFile)
	if err != nil {
		return nil
	}
	profiles, _ := uki.Parse(b)
	p := program{linux: len(profiles) > 0 || isLinux(b)}
	for _, u := range profiles {
		p.profiles = append(p.profiles, profile{u.Cmdline, len(u.Initrds) > 0})
	}
	if f.programs == nil {
		f.programs = map[string]program{}
	}
	f.programs[clean(name)] = p
	return profiles
}

// isLinux reports whether a program of EFI's is a Linux kernel that begins by itself (Linux,
// Documentation/arch/x86/boot.rst).
func isLinux(b []byte) bool {
	const at, magic = 0x202, "HdrS"
	return len(b) >= at+len(magic) && string(b[at:at+len(magic)]) == magic
}

// program is what a program of EFI's is. It is read only once, whoever asks.
func (f *fileSystem) program(name string) program {
	if _, ok := f.programs[clean(name)]; !ok {
		f.profiles(name)
	}
	return f.programs[clean(name)]
}

// unified takes what a unified kernel image on a file system brings itself, and its addons, if
// the entry's is one, and reports whether it brings an initial RAM disk.
func (e *Entry) unified(f *fileSystem) (initrd bool) {
	profiles := f.program(e.Kernel).profiles
	if len(profiles) == 0 {
		return false
	}
	if e.profile >= len(profiles) {
		e.Unclear = append(e.Unclear, fmt.Sprintf("%s has no profile %d", e.Kernel, e.profile))
		return true
	}
	p := profiles[e.profile]
	if e.Args == "" {
		e.Args = p.args
	}
	return e.addAddons(f) || p.initrd
}

// addAddons takes what lies beside a unified kernel image (systemd-stub(7), Companion Files):
// the addons for all images, and then its own. It reports whether they bring an initial RAM
// disk. Other files, which the stub makes one of, are not understood.
func (e *Entry) addAddons(f *fileSystem) (initrd bool) {
	file := clean(e.Kernel)
	base, _ := cutTries(strings.TrimSuffix(file, path.Ext(file)))
	dirs := []string{"loader/addons", file + ".extra.d"}
	if counted := base + path.Ext(file); counted != file {
		dirs = append(dirs, counted+".extra.d")
	}
	for _, dir := range dirs {
		for _, name := range f.list(dir) {
			whole := path.Join(dir, name)
			switch {
			case strings.HasSuffix(strings.ToLower(name), ".addon.efi") && len(e.addons) < maxAddons:
				b, err := f.read(whole, maxFile)
				a, bad := uki.ParseAddon(b)
				if err != nil || bad != nil {
					e.Unclear = append(e.Unclear, whole+" is no addon")
					continue
				}
				e.addons = append(e.addons, whole)
				e.Args = strings.TrimSpace(e.Args + " " + a.Cmdline)
				initrd = initrd || len(a.Initrds) > 0
			case dir != dirs[0]:
				e.Unclear = append(e.Unclear, whole)
			}
		}
	}
	return initrd
}
