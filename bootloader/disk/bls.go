package disk

import (
	"path"
	"slices"
	"strings"

	"vmm/bootloader/uki"
)

// loaderKey is what the entries of the Boot Loader Specification are ordered by.
type loaderKey struct {
	id        string // the file's name without what counts its tries, and without .conf
	sort      string // sort-key
	machine   string // machine-id
	version   string
	exhausted bool // all its tries are used up
}

// loaderEntries returns the entries of the Boot Loader Specification, of all file
// systems together, as systemd-boot orders them.
func loaderEntries(all []*fileSystem) (out []*Entry) {
	for _, f := range all {
		if out = append(out, blsEntries(f)...); len(out) >= maxEntries {
			break
		}
	}
	slices.SortStableFunc(out, func(a, b *Entry) int { return a.loader.compare(b.loader) })
	for _, f := range all {
		if want := loaderDefault(f); want != "" {
			prefer(out, want)
			break
		}
	}
	return out
}

// compare is negative where k comes first (UAPI Group, Boot Loader Specification,
// Sorting).
func (k loaderKey) compare(o loaderKey) int {
	switch {
	case k.exhausted != o.exhausted:
		return order(k.exhausted)
	case (k.sort == "") != (o.sort == ""):
		return order(k.sort == "")
	}
	if k.sort != "" {
		if c := strings.Compare(k.sort, o.sort); c != 0 {
			return c
		}
		if c := strings.Compare(k.machine, o.machine); c != 0 {
			return c
		}
	}
	if c := compareVersions(o.version, k.version); c != 0 {
		return c
	}
	return compareVersions(o.id, k.id)
}

// loaderDefault is the pattern of the default entry in systemd-boot's configuration.
// What it has saved is in the firmware, so there is none then.
func loaderDefault(f *fileSystem) (pattern string) {
	b, err := f.read("loader/loader.conf", maxConfig)
	if err != nil {
		return ""
	}
	for key, v := range settings(string(b)) {
		if key == "default" && !strings.HasPrefix(v, "@") {
			pattern = v
		}
	}
	return pattern
}

// prefer makes the first entry whose id fits the pattern the default.
func prefer(all []*Entry, pattern string) {
	pattern = strings.TrimSuffix(strings.ToLower(pattern), ".conf")
	for _, e := range all {
		if ok, err := path.Match(pattern, strings.ToLower(e.loader.id)); ok && err == nil {
			e.preferred = true
			return
		}
	}
}

// settings are the lines of a text that have a word and what follows it; comments have
// none.
func settings(text string) func(yield func(key, value string) bool) {
	return func(yield func(key, value string) bool) {
		for _, line := range strings.Split(text, "\n") {
			line = strings.TrimSpace(line)
			end := strings.IndexAny(line, " \t")
			if end < 0 || line[0] == '#' {
				continue
			}
			if !yield(line[:end], strings.TrimSpace(line[end:])) {
				return
			}
		}
	}
}

// blsEntries reads the entries of one file system: files in loader/entries, and unified
// kernel images in EFI/Linux.
func blsEntries(f *fileSystem) (out []*Entry) {
	for _, dir := range []string{"loader/entries", "boot/loader/entries"} {
		for _, e := range blsSnippets(f, dir) {
			e.Args = arguments(e.Args)
			e.Initrds = slices.DeleteFunc(e.Initrds, func(name string) bool { return strings.HasPrefix(name, "$") })
			out = append(out, e)
		}
	}
	for _, dir := range []string{"EFI/Linux", "boot/EFI/Linux", "boot/efi/EFI/Linux"} {
		for _, name := range f.list(dir) {
			if isEFI(name) {
				out = append(out, ukiEntries(f, path.Join(dir, name))...)
			}
		}
	}
	return out
}

// arguments drops the variables of a GRUB script, which nobody expands here.
func arguments(s string) string {
	return strings.Join(slices.DeleteFunc(strings.Fields(s), func(a string) bool { return strings.HasPrefix(a, "$") }), " ")
}

// isEFI reports whether a name is that of a unified kernel image, in any case, as a vfat has it.
func isEFI(name string) bool { return strings.EqualFold(path.Ext(name), ".efi") }

// blsSnippets reads the entries in a directory as they are written, with variables of GRUB's.
func blsSnippets(f *fileSystem, dir string) (out []*Entry) {
	for _, name := range f.list(dir) {
		if !strings.EqualFold(path.Ext(name), ".conf") { // a vfat has names in any case
			continue
		}
		if len(out) == maxEntries {
			break
		}
		id := strings.TrimSuffix(name, path.Ext(name))
		file := path.Join(dir, name)
		b, err := f.read(file, maxConfig)
		if err != nil {
			continue
		}
		e := parseBLS(string(b))
		if e.Kernel == "" {
			continue
		}
		e.Source, e.home, e.ID = file, f, id
		e.loader.id, e.loader.exhausted = cutTries(id)
		if e.Title == "" {
			e.Title = e.loader.id
		}
		out = append(out, e)
	}
	slices.SortStableFunc(out, func(a, b *Entry) int { return a.loader.compare(b.loader) })
	return out
}

// cutTries takes the counter of tries off an entry's name, such as the +3-1 for three
// left and one done. An entry without any left is not booted by itself.
func cutTries(id string) (string, bool) {
	base, counter, ok := cutLast(id, "+")
	left, done, _ := strings.Cut(counter, "-")
	if !ok || left == "" || strings.Trim(left+done, "0123456789") != "" {
		return id, false
	}
	return base, strings.Trim(left, "0") == ""
}

func cutLast(s, sep string) (before, after string, ok bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

// parseBLS reads one entry.
func parseBLS(text string) *Entry {
	e := &Entry{}
	var args []string
	for key, v := range settings(text) {
		switch key {
		case "title":
			e.Title = v
		case "version":
			e.loader.version = v
		case "sort-key":
			e.loader.sort = v
		case "machine-id":
			e.loader.machine = v
		case "linux", "efi", "uki":
			e.Kernel = v
		case "initrd":
			e.Initrds = append(e.Initrds, strings.Fields(v)...)
		case "options":
			args = append(args, v)
		}
	}
	e.Args = strings.Join(args, " ")
	return e
}

// ukiEntries makes entries of the profiles of a unified kernel image.
func ukiEntries(f *fileSystem, file string) (out []*Entry) {
	profiles := f.profiles(file)
	id, exhausted := cutTries(strings.TrimSuffix(path.Base(file), path.Ext(file)))
	for i, p := range profiles {
		e := &Entry{Title: p.OS, Source: file, Kernel: file, Args: p.Cmdline, home: f, profile: i,
			loader: loaderKey{id: id, version: p.Uname, exhausted: exhausted}}
		if e.Title == "" {
			e.Title = id
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
	var profiles []uki.Profile
	if b, err := f.read(name, maxFile); err == nil {
		profiles, _ = uki.Parse(b)
	}
	if f.cmdlines == nil {
		f.cmdlines = map[string]string{}
	}
	f.cmdlines[clean(name)] = ""
	if len(profiles) > 0 {
		f.cmdlines[clean(name)] = profiles[0].Cmdline
	}
	return profiles
}

// ukiArgs are the arguments that a unified kernel image brings itself. It is read only once,
// whoever asks.
func (f *fileSystem) ukiArgs(name string) string {
	if _, ok := f.cmdlines[clean(name)]; !ok {
		f.profiles(name)
	}
	return f.cmdlines[clean(name)]
}
