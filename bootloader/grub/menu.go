package grub

import (
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"
)

// menu is what a configuration puts together, before anything of it is chosen.
type menu struct {
	items []*item
	vars  *scope // when it is shown
}

// item is a line of the menu.
type item struct {
	title, id string
	args      []string
	block     list
	submenu   bool
	snippet   *Snippet
	device    string // of the snippet
}

// add adds a line.
func (m *machine) add(i *item) error {
	if m.added++; m.added > maxEntries {
		return errStopped
	}
	i.title, i.id = i.title[:min(len(i.title), maxTitle)], i.id[:min(len(i.id), maxTitle)]
	m.menu.items = append(m.menu.items, i)
	return nil
}

// cmdMenuentry adds an entry or a submenu: menuentry TITLE [OPTION...] { ... }.
func (m *machine) cmdMenuentry(c *call) (bool, error) {
	i := &item{block: c.block, submenu: c.name == "submenu"}
	for n := 0; n < len(c.args); n++ {
		switch name, value, given := strings.Cut(c.args[n], "="); name {
		case "--class", "--users", "--hotkey", "--source", "--id":
			if !given && n+1 < len(c.args) {
				n++
				value = c.args[n]
			}
			if name == "--id" {
				i.id = value
			}
		case "--unrestricted":
		default:
			i.args = append(i.args, c.args[n])
		}
	}
	if len(i.args) == 0 || !c.has {
		m.note(c.name + " without a title or a block")
		return false, nil
	}
	i.title = oneLine(i.args[0])
	if i.id == "" {
		i.id = i.title
	}
	return true, m.add(i)
}

// oneLine makes a title of a text.
func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }

// cmdBLS adds the entries of the Boot Loader Specification, as Fedora's GRUB has it.
func (m *machine) cmdBLS(*call) (bool, error) {
	device := m.vars.get("boot")
	if m.disk.Device(device) == nil {
		device = m.vars.get("root")
	}
	dirs := []string{"/loader/entries", "/boot/loader/entries"}
	if dir := m.vars.get("blsdir"); dir != "" {
		dirs = []string{dir}
	}
	for _, dir := range dirs {
		if !m.spend(perLookup) {
			return false, errStopped
		}
		snippets := m.disk.Snippets(device, dir)
		for _, s := range snippets {
			id := strings.TrimSuffix(s.ID, ".conf")
			if slices.ContainsFunc(m.menu.items, func(i *item) bool { return i.snippet != nil && i.id == id }) {
				continue
			}
			title := oneLine(s.Title)
			if title == "" {
				title = id
			}
			if err := m.add(&item{title: title, id: id, snippet: &s, device: device}); err != nil {
				return false, err
			}
		}
		if len(snippets) > 0 {
			return true, nil
		}
	}
	return false, nil
}

// words expands the variables in a text of a snippet and splits it at spaces.
func (m *machine) words(text string) (out, unset []string, err error) {
	l := &lexer{s: text}
	var w word
	for l.at < len(l.s) {
		plain, _, _ := strings.Cut(l.s[l.at:], "$")
		l.at += len(plain)
		w = append(w, piece{text: plain})
		if l.at == len(l.s) {
			break
		}
		l.at++
		name, err := l.variable()
		if err != nil || name == "" {
			w = append(w, piece{text: "$"})
			continue
		}
		w = append(w, piece{text: name, variable: true})
	}
	for i := range w {
		w[i].quoted = true
	}
	texts, unset, err := m.expand([]word{w})
	return strings.Fields(strings.Join(texts, " ")), unset, err
}

// boot loads what a snippet says.
func (m *machine) boot(i *item) error {
	m.vars.set("root", i.device)
	kernel, unset, err := m.words(i.snippet.Kernel)
	if err != nil {
		return err
	}
	options, more, err := m.words(i.snippet.Options)
	if err != nil {
		return err
	}
	if len(kernel) == 0 {
		return nil
	}
	m.cmdLinux(&call{name: "linux", args: kernel[:1], unset: append(unset, more...)})
	m.loaded.args = strings.Join(options, " ")
	initrds, unset, err := m.words(i.snippet.Initrds)
	if err != nil {
		return err
	}
	m.cmdInitrd(&call{name: "initrd", args: initrds, unset: unset})
	return nil
}

// line is a line of the menu after it was tried: an entry, a submenu, or neither.
type line struct {
	item  *item
	entry *Entry
	inner []*line
}

// try runs every line of a menu as if it had been chosen. above are the submenus that it
// is in.
func (m *machine) try(shown *menu, above []*item) (out []*line) {
	if m.calls >= maxCalls {
		m.note("too many menus within each other")
		return nil
	}
	m.calls++
	defer func() { m.calls-- }()
	for _, i := range shown.items {
		if !m.spend(perCommand * (1 + len(m.functions))) {
			m.note(errStopped.Error())
		}
		saved := *m
		m.functions = maps.Clone(m.functions)
		m.vars = newScope(shown.vars, i.submenu)
		m.menu = &menu{vars: m.vars}
		m.loaded, m.notes, m.chosen = loaded{}, slices.Clone(m.notes), !i.submenu
		path := append(slices.Clone(above), i)
		m.vars.set("chosen", names(path, func(i *item) string { return i.id }))
		m.vars.exported["chosen"] = true
		out = append(out, m.choose(i, path))
		work, added, files := m.work, m.added, m.files
		*m = saved
		m.work, m.added, m.files = work, added, files
	}
	return out
}

// choose runs a line of the menu.
func (m *machine) choose(i *item, path []*item) *line {
	var err error
	rest := m.work - min(m.work, maxWork/16) // for the other lines
	m.work -= rest
	if i.snippet != nil {
		err = m.boot(i)
	} else {
		_, err = m.call(i.block, i.args)
	}
	m.work = max(0, m.work) + rest
	if err != nil && !isFlow(err) {
		m.note(err.Error())
	}
	l := &line{item: i}
	if m.loaded.kernel != nil {
		l.entry = m.entry(path)
	} else if len(m.menu.items) > 0 {
		m.chosen = false
		l.inner = m.try(m.menu, path)
	}
	return l
}

// entry is what is loaded now.
func (m *machine) entry(path []*item) *Entry {
	last := len(path) - 1
	return &Entry{Title: path[last].title, Menu: names(path[:last], func(i *item) string { return i.title }), ID: names(path, func(i *item) string { return i.id }),
		Kernel: *m.loaded.kernel, Initrds: m.loaded.initrds, Args: m.loaded.args, NotUnderstood: slices.Clone(m.notes)}
}

// names joins names of lines as the variable default has them.
func names(path []*item, name func(*item) string) string {
	var out []string
	for _, i := range path {
		out = append(out, strings.ReplaceAll(name(i), ">", ">>"))
	}
	return strings.Join(out, ">")
}

// result tries all of the menu.
func (m *machine) result() *Menu {
	out := &Menu{}
	if len(m.menu.items) == 0 && m.loaded.kernel != nil { // a script without a menu
		title := path.Base(m.loaded.kernel.Path)
		e := m.entry([]*item{{title: title, id: title}})
		out.Entries, out.Default = []*Entry{e}, e
	}
	m.work = maxWork // whatever the script has taken
	lines := m.try(m.menu, nil)
	out.Files = m.files
	var flatten func([]*line)
	flatten = func(lines []*line) {
		for _, l := range lines {
			if l.entry != nil {
				out.Entries = append(out.Entries, l.entry)
			}
			flatten(l.inner)
		}
	}
	flatten(lines)
	if len(lines) > 0 {
		out.Default = pick(lines, m.menu.vars.get("default"))
	}
	return out
}

// pick returns the entry that a value of default means: a number from 0, a title or an
// identifier; of a submenu, more behind >. What is not there means the first.
func pick(lines []*line, name string) *Entry {
	if len(lines) == 0 {
		return nil
	}
	head, rest := cutName(name)
	found := 0
	if n, err := strconv.Atoi(head); err == nil {
		if n >= 0 && n < len(lines) {
			found = n
		}
	} else {
		found = max(0, slices.IndexFunc(lines, func(l *line) bool { return head != "" && (l.item.title == head || l.item.id == head) }))
	}
	if l := lines[found]; l.inner == nil {
		return l.entry
	}
	return pick(lines[found].inner, rest)
}

// cutName cuts a name behind its first part; >> is a > of the name.
func cutName(name string) (head, rest string) {
	for i := 0; i < len(name); i++ {
		if name[i] != '>' {
			continue
		}
		if i+1 < len(name) && name[i+1] == '>' {
			i++
			continue
		}
		return strings.ReplaceAll(name[:i], ">>", ">"), name[i+1:]
	}
	return strings.ReplaceAll(name, ">>", ">"), ""
}
