// Package extlinux reads the configurations of extlinux, syslinux and isolinux, and those that
// U-Boot reads of the same language (Syslinux, doc/syslinux.txt and doc/menu.txt; U-Boot,
// doc/README.pxe).
//
// They come from anywhere: how much of one is read is bounded, and what an entry has that
// was not understood is said with it.
package extlinux

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"
)

// What is read at most of one configuration.
const (
	maxFiles   = 64      // with those that it includes
	maxBytes   = 1 << 20 // of all files
	maxEntries = 1024
)

// ErrTooLarge is the error for a configuration of more files, bytes or entries than one has.
var ErrTooLarge = errors.New("larger than a boot configuration is")

// Entry is a Linux kernel that can be chosen.
type Entry struct {
	Label   string // its name in the configuration
	Title   string // what the menu shows
	Menu    string // the titles of the submenus that it is in, with > between
	Kernel  string // an absolute path in the file system, as the initial RAM disks are
	Initrds []string
	Args    string
	// NotUnderstood is what of the entry was not: a boot loader may make another of it.
	NotUnderstood []string

	appended bool // Args are the entry's own
	other    bool // it boots something else than Linux
}

// Menu is what a configuration offers.
type Menu struct {
	Entries []*Entry // in their order
	Default *Entry   // what is booted if nobody chooses; nil without entries
}

// Parse reads a configuration of a file system. Relative names in it are of its directory.
// The error is the file system's, or ErrTooLarge.
func Parse(fsys fs.FS, config string) (*Menu, error) {
	config = rooted("/", config)
	p := &parser{fsys: fsys, dir: path.Dir(config), left: maxBytes}
	if err := p.include(config); err != nil {
		return nil, fmt.Errorf("%s: %w", config, err)
	}
	return p.menu(), nil
}

// parser is the state while the lines of a configuration are read.
type parser struct {
	fsys  fs.FS
	dir   string   // of the configuration, also for what that includes
	open  []string // the files that are being read
	files int      // that were read
	left  int      // bytes that still may be

	entries     []*Entry
	at          *Entry   // whose lines are read; nil before the first
	submenus    []string // their titles, the innermost last
	args        string   // of APPEND before the first entry
	byDefault   string
	onTimeout   string
	menuDefault *Entry
	help        bool // in a text that is for the reader
}

// include reads the lines of a file.
func (p *parser) include(name string) error {
	name = rooted(p.dir, name)
	if slices.Contains(p.open, name) {
		return nil // by itself: there is nothing new in it
	}
	if p.files++; p.files > maxFiles {
		return ErrTooLarge
	}
	f, err := p.fsys.Open(strings.TrimPrefix(name, "/"))
	if err != nil {
		return err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, int64(p.left)+1))
	if err != nil {
		return err
	}
	if p.left -= len(b); p.left < 0 {
		return ErrTooLarge
	}
	p.open = append(p.open, name)
	defer func() { p.open = p.open[:len(p.open)-1] }()
	for line := range strings.Lines(string(b)) {
		if err := p.line(strings.TrimSpace(line)); err != nil {
			return err
		}
	}
	return nil
}

// rooted is an absolute path, of a name in a directory.
func rooted(dir, name string) string {
	if path.IsAbs(name) {
		return path.Clean(name)
	}
	return path.Join("/", dir, name)
}

// cut splits a line into its first word, in lower case, and the rest.
func cut(line string) (word, rest string) {
	word, rest = first(line)
	return strings.ToLower(word), rest
}

// first splits a text into its first word and the rest.
func first(text string) (word, rest string) {
	i := strings.IndexAny(text, " \t")
	if i < 0 {
		return text, ""
	}
	return text[:i], strings.TrimSpace(text[i:])
}

// line reads a line. The error is for what would be too large.
func (p *parser) line(line string) error {
	word, value := cut(line)
	if p.help {
		p.help = word != "endtext"
		return nil
	}
	switch word {
	case "", "endtext":
	case "text":
		p.help = strings.EqualFold(value, "help")
	case "label":
		return p.label(value)
	case "menu":
		return p.menuLine(value)
	case "include":
		name, _, _ := strings.Cut(value, " ") // and a tag of a submenu
		return p.optional(name)
	case "default", "nerfdefault":
		p.byDefault = value
	case "ontimeout":
		p.onTimeout = value
	case "append":
		if p.at == nil {
			p.args = value
		} else if p.at.Args, p.at.appended = value, true; value == "-" {
			p.at.Args = ""
		}
	default:
		if p.at != nil && line[0] != '#' {
			p.entryLine(word, value)
		}
	}
	return nil
}

// optional includes a file that need not be there.
func (p *parser) optional(name string) error {
	err := p.include(name)
	if errors.Is(err, ErrTooLarge) {
		return err
	}
	return nil
}

// label begins an entry.
func (p *parser) label(name string) error {
	if len(p.entries) == maxEntries {
		return ErrTooLarge
	}
	p.at = &Entry{Label: name, Title: name, Menu: strings.Join(p.submenus, ">")}
	p.entries = append(p.entries, p.at)
	return nil
}

// menuLine reads what the menu's programs understand, and U-Boot in part.
func (p *parser) menuLine(line string) error {
	word, value := cut(line)
	switch word {
	case "begin":
		p.submenus = append(p.submenus, value)
		if len(p.submenus) > maxFiles {
			return ErrTooLarge
		}
	case "end":
		p.submenus = p.submenus[:max(0, len(p.submenus)-1)]
	case "title":
		if n := len(p.submenus); n > 0 {
			p.submenus[n-1] = shown(value)
		}
	case "label":
		if p.at != nil && value != "" {
			p.at.Title = shown(value)
		}
	case "default":
		if p.at != nil {
			p.menuDefault = p.at
		}
	case "include":
		name, _, _ := strings.Cut(value, " ")
		return p.optional(name)
	}
	return nil
}

// shown is a text without the mark before the letter that chooses it.
func shown(text string) string { return strings.Replace(text, "^", "", 1) }

// notLinux are the ends of names of what else KERNEL starts (doc/syslinux.txt, KERNEL).
var notLinux = []string{".0", ".bin", ".bs", ".bss", ".img", ".cbt", ".com", ".c32"}

// entryLine reads a line of the entry.
func (p *parser) entryLine(word, value string) {
	e := p.at
	switch word {
	case "kernel":
		e.other = slices.Contains(notLinux, strings.ToLower(path.Ext(value)))
		e.Kernel = p.file(word, value)
	case "linux":
		e.other, e.Kernel = false, p.file(word, value)
	case "initrd":
		e.Initrds = nil
		for _, name := range strings.Split(value, ",") {
			name, rest := first(strings.TrimSpace(name))
			e.Initrds = append(e.Initrds, p.file(word, name))
			if rest != "" { // which syslinux ignores, and U-Boot has in the name
				e.NotUnderstood = append(e.NotUnderstood, word+" "+rest)
			}
		}
	case "localboot", "com32", "config", "boot", "bss", "pxe", "fdimage", "comboot":
		e.other = true
	default:
		if !slices.Contains(harmless, word) {
			e.NotUnderstood = append(e.NotUnderstood, strings.TrimSpace(word+" "+value))
		}
	}
}

// harmless are the words that change nothing of what an entry boots: how the menu looks and
// is used, and device trees, which a PC does not have.
var harmless = []string{
	"allowoptions", "console", "display", "font", "implicit", "kbdmap", "nocomplete", "noescape", "nohalt", "onerror", "path", "prompt", "say",
	"sendcookies", "serial", "timeout", "totaltimeout", "ui", "f0", "f1", "f2", "f3", "f4", "f5", "f6", "f7", "f8", "f9", "f10", "f11", "f12",
	"ipappend", "sysappend",
	"fdt", "fdtdir", "fdtoverlays", "devicetree", "devicetreedir", "devicetree-overlay",
}

// file is the path of a file that an entry names.
func (p *parser) file(word, name string) string {
	if from, rest, ok := strings.Cut(name, "::"); ok { // a name of a server, none of this one
		if from != "" {
			p.at.NotUnderstood = append(p.at.NotUnderstood, word+" "+name)
		}
		return rooted("/", rest)
	}
	return rooted(p.dir, name)
}

// menu is what was read.
func (p *parser) menu() *Menu {
	m := &Menu{}
	for _, e := range p.entries {
		if e.other || e.Kernel == "" {
			continue
		}
		if !e.appended {
			e.Args = p.args
		}
		p.takeInitrds(e)
		m.Entries = append(m.Entries, e)
	}
	m.Default = p.choose(m.Entries)
	return m
}

// takeInitrds takes the initial RAM disks out of an entry's arguments: the last such argument
// counts, and INITRD is one behind all others.
func (p *parser) takeInitrds(e *Entry) {
	p.at = e
	var args, named []string
	for _, a := range strings.Fields(e.Args) {
		if list, ok := strings.CutPrefix(a, "initrd="); ok {
			named = strings.Split(list, ",")
		} else {
			args = append(args, a)
		}
	}
	e.Args = strings.Join(args, " ")
	if strings.Contains(e.Args, "${") { // which U-Boot replaces, and nobody else
		e.NotUnderstood = append(e.NotUnderstood, "a variable of U-Boot's in append")
	}
	if e.Initrds == nil {
		for _, name := range named {
			e.Initrds = append(e.Initrds, p.file("append initrd", name))
		}
	}
}

// choose returns the entry that is booted if nobody chooses.
func (p *parser) choose(entries []*Entry) *Entry {
	for _, name := range []string{p.onTimeout, p.byDefault} {
		label, args := cut(name)
		for _, e := range entries {
			switch {
			case strings.EqualFold(e.Label, name):
				return e
			case args != "" && strings.EqualFold(e.Label, label): // which only then are its own
				e.NotUnderstood = append(e.NotUnderstood, "default "+name)
				return e
			}
		}
	}
	if slices.Contains(entries, p.menuDefault) {
		return p.menuDefault
	}
	if len(entries) == 0 {
		return nil
	}
	return entries[0]
}
