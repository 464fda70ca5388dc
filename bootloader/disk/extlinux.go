package disk

import (
	"path"
	"slices"
	"strings"
)

var extlinuxConfigs = []string{"boot/extlinux/extlinux.conf", "extlinux/extlinux.conf", "extlinux.conf",
	"boot/syslinux/syslinux.cfg", "syslinux/syslinux.cfg", "syslinux.cfg"}

// extlinuxEntries reads the configuration of extlinux and its relatives.
func extlinuxEntries(f *fileSystem) (out []*Entry) {
	for _, config := range extlinuxConfigs {
		out = append(out, readExtlinux(f, config)...)
	}
	return out
}

// extlinux is a configuration as it is read (doc/syslinux.txt of SYSLINUX): directives,
// a line each, which are for the label above them.
type extlinux struct {
	f       *fileSystem
	source  string
	dir     string // which relative paths are in
	labels  []string
	entries []*Entry // of the labels
	first   string   // the default's label
	args    string   // for labels that have none
	files   int
}

// readExtlinux returns the entries of a configuration, the default first; none if the
// file is not there.
func readExtlinux(f *fileSystem, config string) []*Entry {
	x := &extlinux{f: f, source: config, dir: path.Dir(config)}
	x.include(config)
	for _, e := range x.entries {
		for _, a := range strings.Fields(e.Args) {
			if list, ok := strings.CutPrefix(a, "initrd="); ok && len(e.Initrds) == 0 {
				e.Initrds = x.paths(list)
			}
		}
	}
	if i := slices.Index(x.labels, x.first); i > 0 {
		first := x.entries[i]
		x.entries = slices.Insert(slices.Delete(x.entries, i, i+1), 0, first)
	}
	return slices.DeleteFunc(x.entries, func(e *Entry) bool { return e.Kernel == "" })
}

func (x *extlinux) include(file string) {
	if x.files++; x.files > maxIncludes {
		return
	}
	b, err := x.f.read(file)
	if err != nil {
		return
	}
	for line := range strings.Lines(string(b)) {
		words := strings.Fields(line)
		if len(words) > 1 {
			x.directive(strings.ToLower(words[0]), words[1:])
		}
	}
}

func (x *extlinux) directive(name string, args []string) {
	all := strings.Join(args, " ")
	switch name {
	case "include":
		x.include(absolute(x.dir, all))
		return
	case "default":
		x.first = all
		return
	case "label":
		x.labels = append(x.labels, all)
		x.entries = append(x.entries, &Entry{Title: all, Source: x.source, home: x.f})
		x.append(x.args)
		return
	case "append":
		if len(x.entries) == 0 {
			x.args = all
		} else {
			x.append(all)
		}
		return
	}
	if len(x.entries) == 0 {
		return
	}
	e := x.entries[len(x.entries)-1]
	switch name {
	case "menu":
		switch strings.ToLower(args[0]) {
		case "label":
			e.Title = strings.Join(args[1:], " ")
		case "default":
			x.first = x.labels[len(x.labels)-1]
		}
	case "kernel", "linux":
		e.Kernel = absolute(x.dir, all)
	case "initrd":
		e.Initrds = x.paths(all)
	}
}

// append gives the last label its arguments, in the place of those that it has.
func (x *extlinux) append(args string) {
	if args == "-" {
		args = ""
	}
	x.entries[len(x.entries)-1].Args = arguments(args)
}

// paths returns those of a list with commas.
func (x *extlinux) paths(list string) (out []string) {
	for _, name := range strings.Split(list, ",") {
		out = append(out, absolute(x.dir, name))
	}
	return out
}
