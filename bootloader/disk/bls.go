package disk

import (
	"path"
	"slices"
	"strconv"
	"strings"
)

// loaderKey is what the entries of the Boot Loader Specification are ordered by.
type loaderKey struct {
	id        string // the file's name without what counts its tries
	suffix    string // of a profile's id, which stay in their order
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

// name is what systemd-boot calls the entry.
func (k loaderKey) name() string { return k.id + k.suffix }

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

// prefer makes the first entry whose id fits the pattern the default. It is one of
// fnmatch(3); old configurations have it without .conf.
func prefer(all []*Entry, pattern string) {
	pattern = strings.ReplaceAll(strings.ToLower(pattern), "[!", "[^")
	for _, e := range all {
		id := strings.ToLower(e.loader.name())
		for _, name := range []string{id, strings.TrimSuffix(id, ".conf")} {
			if ok, err := path.Match(pattern, name); ok && err == nil {
				e.preferred = true
				return
			}
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
		base, exhausted := cutTries(id)
		e.loader.id, e.loader.exhausted = base+".conf", exhausted
		if e.Title == "" {
			e.Title = base
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
		case "architecture": // as EFI calls them; one for another is not shown
			if !strings.EqualFold(v, "x64") {
				return &Entry{}
			}
		case "title":
			e.Title = v
		case "version":
			e.loader.version = v
		case "sort-key":
			e.loader.sort = v
		case "machine-id":
			e.loader.machine = v
		case "linux", "efi", "uki":
			e.Kernel, e.program = slashes(v), key == "efi"
		case "profile":
			if n, err := strconv.Atoi(v); err == nil && n >= 0 {
				e.profile = n
			}
		case "initrd":
			e.Initrds = append(e.Initrds, strings.Fields(slashes(v))...)
		case "options":
			args = append(args, v)
		}
	}
	e.Args = strings.Join(args, " ")
	return e
}

// slashes makes a path of one in EFI's style, which systemd-boot takes too.
func slashes(p string) string { return strings.ReplaceAll(p, `\`, "/") }
