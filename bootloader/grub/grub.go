// Package grub finds out what a configuration of GRUB 2 boots: it runs the script, as
// GRUB would, up to the menu, and then every entry of the menu, each as if it had been
// chosen, up to the point where the kernel would be started.
//
// Scripts come from disks of strangers. They reach only what a Disk has, can write
// nothing, and are bounded in all that they do: size, nesting, steps, entries. What
// a script does that is not understood is never dropped in silence: it is kept beside
// the entries that it could matter to.
//
// The language is that of the GRUB manual, chapter "Writing your own configuration
// files"; details are as GRUB 2.12 does them, and blscfg as Fedora's does.
package grub

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
)

// SearchKind says what the search command looks for.
type SearchKind int

// The kinds of search.
const (
	ByUUID  SearchKind = iota // a file system's UUID, as GRUB writes it: letters of either case
	ByLabel                   // a file system's label
)

// Disk is what a script can reach. Devices have GRUB's names without parentheses, such
// as "hd0" or "hd0,gpt2".
type Disk interface {
	// Device is the file system on a device, nil if there is none.
	Device(name string) fs.FS
	// Devices are the names of all devices with a file system.
	Devices() []string
	// Search returns the device whose file system is meant, "" if there is none.
	Search(kind SearchKind, value string) (device string)
	// Probe says what the file system on a device is; the zero value if there is none.
	Probe(device string) Identity
	// Snippets are the entries of the Boot Loader Specification in a directory, in the
	// order of the menu.
	Snippets(device, dir string) []Snippet
}

// Identity is what a file system is known by. What it does not have is empty.
type Identity struct {
	Kind      string // as GRUB's drivers are called: ext2, fat, squash4
	UUID      string
	Label     string
	Partition string // the UUID of its partition
}

// Snippet is an entry of the Boot Loader Specification for GRUB's blscfg. Its texts are
// as they are written: variables of GRUB are expanded here.
type Snippet struct {
	Title, ID string
	Kernel    string
	Initrds   string // names with spaces between
	Options   string
}

// File is one that an entry loads.
type File struct {
	Device string // "" if there is no such device
	Path   string
}

// Entry is an entry of the menu that starts a Linux kernel.
type Entry struct {
	Title string
	Menu  string // titles of the submenus that it is in, with > between
	ID    string // the identifiers from the outermost menu on, with > between

	Kernel  File
	Initrds []File
	Args    string // the kernel's arguments, without line ends

	// NotUnderstood is what makes it uncertain that GRUB would start just this.
	NotUnderstood []string
}

// Menu is what a configuration leads to.
type Menu struct {
	Entries []*Entry // also those of submenus, in the menu's order
	Default *Entry   // what GRUB starts without a key, nil if that is no Linux kernel
	Files   []File   // the scripts that were read
}

// ErrNoScript is returned where the configuration is not there or cannot be read.
var ErrNoScript = errors.New("no GRUB configuration")

// The bounds of a script.
const (
	maxScript  = 256 << 10 // bytes of a file
	maxWork    = 16 << 20  // bytes that are read and expanded in total
	perCommand = 64        // what a command takes of it beside its words
	perLookup  = 4 << 10   // and a look for a file
	perByte    = 16        // and a byte of a script, which is kept as up to 85
	maxWords   = 64 << 10  // bytes of a command's words
	maxNesting = 50        // blocks in blocks
	maxCalls   = 20        // functions, files and menus within each other
	maxEntries = 1000
	maxTitle   = 512 // bytes of a title, and of an identifier
	maxNotes   = 20
	maxNote    = 256 // bytes
)

// Run runs a configuration that lies on a device. efi says whether GRUB is the one for
// EFI, which scripts can ask. The error is ErrNoScript, or the file's.
func Run(d Disk, device, config string, efi bool) (*Menu, error) {
	m := &machine{disk: d, functions: map[string]list{}, work: maxWork}
	m.vars = newScope(nil, false)
	platform := "pc"
	if efi {
		platform = "efi"
	}
	for name, v := range map[string]string{"root": device, "prefix": "(" + device + ")" + path.Dir(path.Join("/", config)),
		"grub_platform": platform, "grub_cpu": "x86_64", "cmdpath": "(" + device + ")" + path.Dir(path.Join("/", config))} {
		m.vars.set(name, v)
		m.vars.exported[name] = true
	}
	for _, name := range features {
		m.vars.set("feature_"+name, "y")
		m.vars.exported["feature_"+name] = true
	}
	m.menu = &menu{vars: m.vars}
	if err := m.runFile("("+device+")"+path.Join("/", config), true); err != nil && !isFlow(err) {
		if errors.Is(err, errStopped) {
			m.note(errStopped.Error())
		} else {
			return nil, err
		}
	}
	return m.result(), nil
}

// features are what GRUB 2.12 says it can do, by variables feature_NAME.
var features = []string{"200_final", "all_video_module", "chainloader_bpb", "default_font_path", "lba", "menuentry_id",
	"menuentry_options", "nativedisk_cmd", "ntldr", "platform_search_hint", "timeout_style"}

// runFile runs a script; main says that it is a configuration of its own and not a part of
// another.
func (m *machine) runFile(name string, main bool) error {
	if m.calls >= maxCalls {
		return fmt.Errorf("%w: %s within itself", errStopped, name)
	}
	b, file, err := m.read(name, maxScript)
	if err != nil {
		return err
	}
	m.files = append(m.files, file)
	if main {
		m.vars.set("config_file", "("+file.Device+")"+file.Path)
		m.vars.set("config_directory", "("+file.Device+")"+path.Dir(file.Path))
		m.vars.exported["config_file"], m.vars.exported["config_directory"] = true, true
	}
	script, err := m.parse(file.Path, string(b))
	if err != nil {
		return err
	}
	m.calls++
	defer func() { m.calls-- }()
	_, err = m.run(script)
	return err
}

// parse parses a script, and notes what is wrong with it.
func (m *machine) parse(name, text string) (list, error) {
	if !m.spend(perByte * len(text)) {
		return nil, errStopped
	}
	script, faults := parse(text)
	for _, f := range faults {
		m.note(fmt.Sprintf("%s: %v", name, f))
	}
	return script, nil
}

// resolve makes a device and a path of GRUB's name for a file.
func (m *machine) resolve(name string) (f File, fsys fs.FS) {
	device := m.vars.get("root")
	if rest, ok := strings.CutPrefix(name, "("); ok {
		device, name, _ = strings.Cut(rest, ")")
	}
	device = strings.TrimSuffix(strings.TrimPrefix(device, "("), ")")
	f.Path = path.Join("/", name)
	if fsys = m.disk.Device(device); fsys != nil {
		f.Device = device
	}
	return f, fsys
}

// stat looks for a file; nil if it is not there.
func (m *machine) stat(name string) fs.FileInfo {
	f, fsys := m.resolve(name)
	if fsys == nil || !m.spend(perLookup) {
		return nil
	}
	st, err := fs.Stat(fsys, inside(f.Path))
	if err != nil {
		return nil
	}
	return st
}

// inside is a path as package fs wants it.
func inside(p string) string {
	if p == "/" {
		return "."
	}
	return strings.TrimPrefix(p, "/")
}

// read reads a file of at most limit bytes.
func (m *machine) read(name string, limit int64) ([]byte, File, error) {
	f, fsys := m.resolve(name)
	if fsys == nil {
		return nil, f, fmt.Errorf("%w: %s", ErrNoScript, name)
	}
	st := m.stat(name)
	if st == nil || st.IsDir() || st.Size() > limit {
		return nil, f, fmt.Errorf("%w: %s", ErrNoScript, name)
	}
	b, err := fs.ReadFile(fsys, inside(f.Path))
	if err != nil {
		return nil, f, err
	}
	if !m.spend(len(b)) {
		return nil, f, errStopped
	}
	return b, f, nil
}

// note keeps what was not understood: of the entry that runs, or of all.
func (m *machine) note(text string) {
	text = oneLine(text[:min(len(text), maxNote)])
	if len(m.notes) < maxNotes && !slices.Contains(m.notes, text) {
		m.notes = append(m.notes, text)
	}
}
