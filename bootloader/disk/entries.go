package disk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/u-root/u-root/pkg/boot"
	"github.com/u-root/u-root/pkg/boot/syslinux"
	"github.com/u-root/u-root/pkg/curl"

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
	profile   int // of a unified kernel image
}

// ErrNoEntry is returned where a disk has nothing to boot.
var ErrNoEntry = errors.New("nothing to boot: no GRUB, Boot Loader Specification or extlinux entry with its kernel, no EFI/Linux/*.efi and no /boot/vmlinuz-*")

// Entries lists what the disk of size bytes can boot; the first is the default. more are
// file systems of it that somebody else reads.
func Entries(r io.ReaderAt, size int64, more ...Foreign) ([]*Entry, error) {
	all, err := fileSystems(r, size)
	if err != nil && more == nil {
		return nil, err
	}
	parts := partitions(r, size)
	for _, f := range more {
		all = append(all, f.mounted(parts))
	}
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
		if f, err := e.open(e.Kernel); err == nil {
			if e.Args == "" && e.profile == 0 && strings.EqualFold(path.Ext(e.Kernel), ".efi") {
				e.Args = f.ukiArgs(e.Kernel)
			}
			if len(e.Initrds) == 0 && !strings.EqualFold(path.Ext(e.Kernel), ".efi") {
				e.Args = withoutInitrd(e.Args, all)
			}
			bootable = append(bootable, e)
		}
	}
	if len(bootable) == 0 {
		var found []string
		for _, f := range all {
			found = append(found, f.kind)
		}
		return nil, fmt.Errorf("%w (its file systems: %s)", ErrNoEntry, strings.Join(found, ", "))
	}
	defaultFirst(bootable)
	return bootable, nil
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
	for i, name := range append([]string{e.Kernel}, e.Initrds...) {
		f, err := e.open(name)
		if err != nil {
			return nil, nil, fmt.Errorf("boot entry %q: %w", e.Title, err)
		}
		b, err := f.read(name)
		if err != nil {
			return nil, nil, fmt.Errorf("boot entry %q: %w", e.Title, err)
		}
		if i == 0 {
			kernel = b
		} else {
			initrds = append(initrds, b)
		}
	}
	if profiles, err := uki.Parse(kernel); err == nil && e.profile < len(profiles) {
		p := profiles[e.profile]
		kernel, initrds = p.Linux, append(slices.Clone(p.Initrds), initrds...)
	}
	return kernel, initrds, nil
}

// scheme is the one under which u-root's parsers find the disk's files; they
// know no other, so that a configuration cannot name files of the host or the
// network.
const scheme = "disk"

// maxConfigs bounds the files of a configuration, which may include itself.
const maxConfigs = 64

// fetcher reads the files of one configuration.
type fetcher struct {
	from *fileSystem
	left int
}

// Fetch implements curl.FileScheme.
func (f *fetcher) Fetch(_ context.Context, u *url.URL) (io.ReaderAt, error) {
	if f.left--; f.left < 0 {
		return nil, fmt.Errorf("%s: the configuration has more than %d files", u.Path, maxConfigs)
	}
	b, err := f.from.read(u.Path)
	return bytes.NewReader(b), err
}

// FetchWithoutCache implements curl.FileScheme.
func (f *fetcher) FetchWithoutCache(_ context.Context, u *url.URL) (io.Reader, error) {
	b, err := f.from.read(u.Path)
	return bytes.NewReader(b), err
}

func (f *fileSystem) schemes() curl.Schemes { return curl.Schemes{scheme: &fetcher{f, maxConfigs}} }

// images makes entries of what u-root's parsers found.
func (f *fileSystem) images(source string, found []boot.OSImage) (out []*Entry) {
	for _, i := range found {
		l, ok := i.(*boot.LinuxImage)
		if !ok || l.Kernel == nil {
			continue
		}
		e := &Entry{Title: l.Name, Source: source, Args: arguments(l.Cmdline), home: f}
		if k, ok := l.Kernel.(curl.File); ok {
			e.Kernel = k.URL().Path
		}
		e.Initrds = initrds(l.Initrd)
		if !slices.ContainsFunc(out, func(o *Entry) bool { return o.Title == e.Title && o.Kernel == e.Kernel }) {
			out = append(out, e)
		}
	}
	return out
}

// initrds are the names of the files that u-root has found or joined to one. That is
// never read: it would be made, and left, in the directory for temporary files. Its
// text is the URLs of what it joins; a comma ends a name in such a configuration.
func initrds(r io.ReaderAt) (names []string) {
	s, ok := r.(fmt.Stringer)
	if !ok {
		return nil
	}
	for _, text := range strings.Split(s.String(), ",") {
		if u, err := url.Parse(text); err == nil {
			names = append(names, u.Path)
		}
	}
	return names
}

// arguments drops the variables of a GRUB script, which nobody expands here.
func arguments(s string) string {
	return strings.Join(slices.DeleteFunc(strings.Fields(s), func(a string) bool { return strings.HasPrefix(a, "$") }), " ")
}

// diskRoot is what paths in a configuration are relative to.
var diskRoot = &url.URL{Scheme: scheme, Path: "/"}

// parsed returns the entries that one of u-root's parsers finds in a file, none
// if the file is not there or not what it should be.
func (f *fileSystem) parsed(config string, parse func() ([]boot.OSImage, error)) []*Entry {
	if !f.exists(config) {
		return nil
	}
	var err error
	defer catch(config, &err)
	found, err := parse()
	if err != nil {
		return nil
	}
	return f.images(config, found)
}

var extlinuxConfigs = []string{"boot/extlinux/extlinux.conf", "extlinux/extlinux.conf", "extlinux.conf", "boot/extlinux.conf",
	"boot/syslinux/syslinux.cfg", "syslinux/syslinux.cfg", "syslinux.cfg", "boot/syslinux/extlinux.conf", "syslinux/extlinux.conf", "boot/syslinux.cfg"}

// extlinuxEntries reads the configuration of extlinux and its relatives.
func extlinuxEntries(f *fileSystem) (out []*Entry) {
	for _, config := range extlinuxConfigs {
		out = append(out, f.parsed(config, func() ([]boot.OSImage, error) {
			return syslinux.ParseConfigFile(context.Background(), f.schemes(), path.Base(config), diskRoot, path.Dir(config))
		})...)
	}
	return out
}
