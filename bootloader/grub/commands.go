package grub

import (
	"fmt"
	"slices"
	"strings"
)

// call is a command with its arguments.
type call struct {
	name  string
	args  []string
	unset []string // variables in the arguments that are not set
	block list
	has   bool // a block
}

// harmless are commands that change nothing of which kernel is started, and how.
var harmless = []string{"insmod", "rmmod", "echo", "loadfont", "terminal_input", "terminal_output", "terminal", "terminfo", "serial", "play", "clear", "sleep",
	"background_image", "background_color", "keymap", "cat", "ls", "lsmod", "help", "videoinfo", "videotest", "gettext", "date", "password", "password_pbkdf2", "authenticate",
	"fwsetup", "gptsync", "nativedisk", "pager", "hexdump", "true", ":", "xen_hypervisor", "xen_module", "multiboot", "multiboot2", "chainloader", "ntldr", "drivemap",
	"lsefi", "lspci", "lsacpi", "stall", "bli", "cpuid", "save_env", "increment", "decrement",
	// Functions of grub-mkconfig's, where a script uses them without having defined them.
	"load_video", "gfxmode", "savedefault", "recordfail", "initrdfail", "debug"}

// optional are variables in kernel arguments that distributions use without having set
// them: empty is what they mean.
var optional = []string{"vt_handoff", "extra_cmdline", "tuned_params", "tuned_initrd"}

// builtin returns what runs a command, nil if it is none that matters.
func builtin(name string) func(*machine, *call) (bool, error) {
	switch name {
	case "set":
		return (*machine).cmdSet
	case "unset":
		return (*machine).cmdUnset
	case "export":
		return (*machine).cmdExport
	case "[", "test":
		return (*machine).cmdTest
	case "false":
		return func(*machine, *call) (bool, error) { return false, nil }
	case "search", "search.fs_uuid", "search.fs_label", "search.file":
		return (*machine).cmdSearch
	case "probe":
		return (*machine).cmdProbe
	case "configfile", "normal":
		return (*machine).cmdConfigfile
	case "source", ".", "extract_entries_source":
		return (*machine).cmdSource
	case "load_env":
		return (*machine).cmdLoadEnv
	case "menuentry", "submenu":
		return (*machine).cmdMenuentry
	case "blscfg":
		return (*machine).cmdBLS
	case "linux", "linux16", "linuxefi":
		return (*machine).cmdLinux
	case "initrd", "initrd16", "initrdefi":
		return (*machine).cmdInitrd
	case "regexp":
		return (*machine).cmdRegexp
	case "eval":
		return (*machine).cmdEval
	case "hwmatch": // a list of graphics cards: none is there
		return func(m *machine, _ *call) (bool, error) { return m.assign("match", "0"), nil }
	case "shift":
		return func(m *machine, _ *call) (bool, error) {
			m.args = m.args[min(1, len(m.args)):]
			return true, nil
		}
	case "setparams":
		return func(m *machine, c *call) (bool, error) {
			m.args = c.args
			return true, nil
		}
	}
	if way, ok := map[string]error{"break": errBreak, "continue": errContinue, "return": errReturn, "exit": errBoot, "boot": errBoot, "halt": errBoot,
		"reboot": errBoot, "poweroff": errBoot}[name]; ok {
		return func(m *machine, c *call) (bool, error) {
			if len(c.args) > 0 {
				m.status = c.args[0] == "0"
			}
			return m.status, way
		}
	}
	return nil
}

func (m *machine) cmdSet(c *call) (bool, error) {
	if len(c.args) == 0 {
		return true, nil
	}
	name, value, ok := strings.Cut(c.args[0], "=")
	return ok && m.assign(name, value), nil
}

func (m *machine) cmdUnset(c *call) (bool, error) {
	for _, name := range c.args {
		m.vars.values[name] = nil
	}
	return true, nil
}

func (m *machine) cmdExport(c *call) (bool, error) {
	for _, a := range c.args {
		name, value, ok := strings.Cut(a, "=")
		if ok {
			m.assign(name, value)
		}
		m.vars.exported[name] = true
	}
	return true, nil
}

func (m *machine) cmdTest(c *call) (bool, error) {
	args := c.args
	if c.name == "[" {
		if len(args) == 0 || args[len(args)-1] != "]" {
			return false, nil
		}
		args = args[:len(args)-1]
	}
	return m.test(args), nil
}

// cmdSearch looks for a file system, and puts its device into a variable.
func (m *machine) cmdSearch(c *call) (bool, error) {
	kind := strings.TrimPrefix(strings.TrimPrefix(c.name, "search"), ".")
	variable, names := "root", []string(nil)
	bare := false // --set without a name, which may come as the next argument
	for i := 0; i < len(c.args); i++ {
		a := c.args[i]
		switch name, value, given := strings.Cut(a, "="); {
		case a == "-u" || a == "--fs-uuid":
			kind = "fs_uuid"
		case a == "-l" || a == "--label" || a == "--fs-label":
			kind = "fs_label"
		case a == "-f" || a == "--file":
			kind = "file"
		case a == "-s" || name == "--set":
			if given {
				variable = value
			}
			bare = !given && i+1 < len(c.args)
			continue
		case strings.HasPrefix(a, "--hint") && !given || a == "-h":
			i++
		case strings.HasPrefix(a, "-"): // --no-floppy and hints
		case bare && (len(names) > 0 || positional(c.args[i+1:])):
			variable = a
		default:
			names = append(names, a)
		}
		bare = false
	}
	if strings.HasPrefix(c.name, "search.") && len(names) > 1 { // search.fs_uuid UUID VARIABLE HINT...
		names, variable = names[:1], names[1]
	}
	if len(names) != 1 || variable == "" {
		return false, nil
	}
	device := ""
	switch kind {
	case "fs_uuid":
		device = m.disk.Search(ByUUID, names[0])
	case "fs_label":
		device = m.disk.Search(ByLabel, names[0])
	case "file":
		for _, d := range m.disk.Devices() {
			if m.stat("("+d+")"+names[0]) != nil {
				device = d
				break
			}
		}
	}
	if !m.spend(perLookup) {
		return false, errStopped
	}
	return device != "" && m.assign(variable, device), nil
}

// cmdProbe puts what a device has into a variable: probe --set=VARIABLE --fs-uuid DEVICE.
func (m *machine) cmdProbe(c *call) (bool, error) {
	var variable, kind, device string
	for i := 0; i < len(c.args); i++ {
		switch name, value, given := strings.Cut(c.args[i], "="); {
		case name == "-s" || name == "--set":
			if !given && i+1 < len(c.args) {
				i++
				value = c.args[i]
			}
			variable = value
		case strings.HasPrefix(name, "-"):
			kind = name
		default:
			device = strings.Trim(c.args[i], "()")
		}
	}
	if !m.spend(perLookup) {
		return false, errStopped
	}
	of := m.disk.Probe(device)
	value, known := map[string]string{"-u": of.UUID, "--fs-uuid": of.UUID, "-l": of.Label, "--label": of.Label,
		"-f": of.Kind, "--fs": of.Kind, "--part-uuid": of.Partition}[kind]
	if !known {
		m.note("probe " + kind)
	}
	if value == "" || variable == "" {
		return value != "", nil
	}
	return m.assign(variable, value), nil
}

// positional reports whether there is an argument that is no option.
func positional(args []string) bool {
	return slices.ContainsFunc(args, func(a string) bool { return !strings.HasPrefix(a, "-") })
}

// cmdConfigfile runs another configuration: its menu takes the place of this one.
func (m *machine) cmdConfigfile(c *call) (bool, error) {
	name := m.vars.get("prefix") + "/grub.cfg" // normal's
	if len(c.args) > 0 {
		name = c.args[0]
	}
	outer, vars := m.menu, m.vars
	m.vars = newScope(vars, true)
	m.menu = &menu{vars: m.vars}
	err := m.runFile(name, true)
	if err != nil && !isFlow(err) || len(m.menu.items) == 0 && m.loaded.kernel == nil {
		m.menu, m.vars = outer, vars
		return false, m.fileError(err)
	}
	return true, errBoot
}

// fileError keeps what ends all: that a script's file is not there only fails its command.
func (m *machine) fileError(err error) error {
	if m.work < 0 || m.calls >= maxCalls {
		return errStopped
	}
	return nil
}

func (m *machine) cmdSource(c *call) (bool, error) {
	if len(c.args) != 1 {
		return false, nil
	}
	err := m.runFile(c.args[0], false)
	if isFlow(err) {
		return m.status, err
	}
	if err != nil {
		return false, m.fileError(err)
	}
	return m.status, nil
}

func (m *machine) cmdEval(c *call) (bool, error) {
	script, err := m.parse("eval", strings.Join(c.args, " "))
	if err != nil {
		return false, err
	}
	return m.call(script, m.args)
}

// missing notes variables that are not set, and are to be.
func (m *machine) missing(command string, unset []string) {
	for _, name := range unset {
		if !slices.Contains(optional, name) {
			m.note(fmt.Sprintf("%s: the variable %s is not set", command, name))
		}
	}
}

// file finds a file that is to be loaded, and notes if it is not where it should be.
func (m *machine) file(command, name string) (File, bool) {
	f, fsys := m.resolve(name)
	switch {
	case fsys == nil:
		m.note(fmt.Sprintf("%s: %s: there is no such device", command, name))
	case m.stat("("+f.Device+")"+f.Path) == nil:
		m.note(fmt.Sprintf("%s: there is no %s on (%s)", command, f.Path, f.Device))
	default:
		return f, true
	}
	return f, false
}

func (m *machine) cmdLinux(c *call) (bool, error) {
	if len(c.args) == 0 {
		return false, nil
	}
	m.missing(c.name, c.unset)
	f, ok := m.file(c.name, c.args[0])
	m.loaded = loaded{kernel: &f, args: commandLine(c.args[1:])}
	return ok, nil
}

// cmdInitrd loads what becomes the initial RAM disk: all of its files, one behind the other.
func (m *machine) cmdInitrd(c *call) (bool, error) {
	m.missing(c.name, c.unset)
	m.loaded.initrds = nil
	all := true
	for _, name := range c.args {
		if strings.HasPrefix(name, "newc:") {
			m.note(fmt.Sprintf("%s: %s: a file that GRUB packs into an archive", c.name, name))
			continue
		}
		f, ok := m.file(c.name, name)
		m.loaded.initrds = append(m.loaded.initrds, f)
		all = all && ok
	}
	return all, nil
}

// commandLine joins arguments as GRUB hands them to a kernel: those with spaces are quoted.
func commandLine(args []string) string {
	escape := strings.NewReplacer(`\`, `\\`, `'`, `\'`, `"`, `\"`)
	// A kernel takes any white space for a space; a terminal does not.
	plain := func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}
	var out []string
	for _, a := range args {
		a = escape.Replace(strings.Map(plain, a))
		if strings.Contains(a, " ") {
			a = `"` + a + `"`
		}
		out = append(out, a)
	}
	return strings.Join(out, " ")
}

// cmdRegexp compares, and puts what groups match into variables: --set=[NUMBER:]VARIABLE.
func (m *machine) cmdRegexp(c *call) (bool, error) {
	var sets, names []string
	for i := 0; i < len(c.args); i++ {
		a := c.args[i]
		if v, ok := strings.CutPrefix(a, "--set="); ok {
			sets = append(sets, v)
		} else if (a == "--set" || a == "-s") && i+1 < len(c.args) {
			i++
			sets = append(sets, c.args[i])
		} else {
			names = append(names, a)
		}
	}
	if len(names) != 2 || len(names[1]) > maxPattern {
		m.note("regexp: " + strings.Join(names, " "))
		return false, nil
	}
	re, size, err := pattern(names[0])
	if err != nil {
		m.note("regexp: " + names[0])
		return false, nil
	}
	if !m.spend(size * (perCommand + len(names[1])) * (1 + re.NumSubexp())) {
		return false, errStopped
	}
	found := re.FindStringSubmatch(names[1])
	for _, s := range sets {
		number, name, ok := strings.Cut(s, ":")
		if !ok {
			number, name = "1", s
		}
		for i, text := range found {
			if fmt.Sprint(i) == number {
				m.assign(name, text)
			}
		}
	}
	return found != nil, nil
}
