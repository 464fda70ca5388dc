package disk

import (
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

var grubConfigs = []string{"boot/grub/grub.cfg", "grub/grub.cfg", "boot/grub2/grub.cfg", "grub2/grub.cfg"}

// grubEntries reads GRUB's configuration.
func grubEntries(f *fileSystem) (out []*Entry) {
	configs := slices.Clone(grubConfigs)
	for _, vendor := range f.list("EFI") {
		configs = append(configs, path.Join("EFI", vendor, "grub.cfg"))
	}
	for _, config := range configs {
		out = append(out, readGrub(f, config)...)
	}
	return out
}

// grubScript is a script of GRUB's as it is read: from its top on, as if all conditions
// were true, and without a value for any variable ("Writing full configuration files
// directly" in GRUB's manual).
type grubScript struct {
	f       *fileSystem
	source  string
	entries []*Entry
	names   map[*Entry][]string // by which the default may be named
	first   string              // the default

	blocks []grubBlock // that are open
	counts []int       // of the entries of each open menu
	files  int
}

// grubBlock is what stands before a brace.
type grubBlock struct {
	entry *Entry // of a menuentry
	menu  bool   // a submenu
}

// readGrub returns the entries of a configuration, the default first; none if the file
// is not there.
func readGrub(f *fileSystem, config string) []*Entry {
	s := &grubScript{f: f, source: config, names: map[*Entry][]string{}, counts: []int{0}}
	s.include(config)
	for i, e := range s.entries {
		if slices.Contains(s.names[e], s.first) {
			s.entries = slices.Insert(slices.Delete(s.entries, i, i+1), 0, e)
			break
		}
	}
	var out []*Entry
	for _, e := range s.entries {
		same := func(o *Entry) bool { return o.Title == e.Title && o.Kernel == e.Kernel }
		if e.Kernel != "" && !slices.ContainsFunc(out, same) {
			out = append(out, e)
		}
	}
	return out
}

func (s *grubScript) include(file string) {
	if s.files++; s.files > maxIncludes {
		return
	}
	b, err := s.f.read(file)
	if err != nil {
		return
	}
	for _, words := range grubCommands(string(b)) {
		s.command(words)
	}
}

// command does what matters of one command.
func (s *grubScript) command(words []string) {
	opens := words[len(words)-1] == "{"
	switch name, args := strings.ToLower(words[0]), words[1:]; {
	case name == "}":
		s.end()
	case name == "menuentry" && len(args) > 0:
		e := &Entry{Title: args[0], Source: s.source, home: s.f}
		s.entries = append(s.entries, e)
		s.names[e] = append(grubIDs(args), s.count(), args[0])
		if opens {
			s.blocks = append(s.blocks, grubBlock{entry: e})
		}
	case name == "submenu" && opens:
		s.count()
		s.blocks = append(s.blocks, grubBlock{menu: true})
		s.counts = append(s.counts, 0)
	case opens: // a function
		s.blocks = append(s.blocks, grubBlock{})
	case name == "set" && len(args) > 0:
		if v, ok := strings.CutPrefix(args[0], "default="); ok && !strings.HasPrefix(v, "$") {
			s.first = v
		}
	case (name == "configfile" || name == "source" || name == ".") && len(args) > 0:
		s.include(grubPath(args[0]))
	case slices.Contains([]string{"linux", "linux16", "linuxefi"}, name) && len(args) > 0:
		if e := s.entry(); e != nil {
			e.Kernel, e.Initrds, e.Args = grubPath(args[0]), nil, arguments(grubQuote(args[1:]))
		}
	case slices.Contains([]string{"initrd", "initrd16", "initrdefi"}, name):
		if e := s.entry(); e != nil {
			e.Initrds = nil
			for _, a := range args {
				if !strings.HasPrefix(a, "$") {
					e.Initrds = append(e.Initrds, grubPath(a))
				}
			}
		}
	}
}

// end closes a block.
func (s *grubScript) end() {
	if len(s.blocks) == 0 {
		return
	}
	if s.blocks[len(s.blocks)-1].menu {
		s.counts = s.counts[:len(s.counts)-1]
	}
	s.blocks = s.blocks[:len(s.blocks)-1]
}

// entry is the one whose commands are read, nil if none is.
func (s *grubScript) entry() *Entry {
	for _, b := range slices.Backward(s.blocks) {
		if b.entry != nil {
			return b.entry
		}
	}
	return nil
}

// count numbers an entry or a submenu: "2", or in a submenu "1>2".
func (s *grubScript) count() string {
	var number []string
	for i := range s.counts {
		n := s.counts[i]
		if i < len(s.counts)-1 {
			n-- // the submenu has been counted
		}
		number = append(number, strconv.Itoa(n))
	}
	s.counts[len(s.counts)-1]++
	return strings.Join(number, ">")
}

// grubIDs returns the ID of an entry, if it has one.
func grubIDs(args []string) []string {
	for i, a := range args[:len(args)-1] {
		if a == "--id" || a == "$menuentry_id_option" {
			return []string{args[i+1]}
		}
	}
	return nil
}

// grubPath makes a path one from the file system's root: which device it is on is not
// asked, since the file is looked for on all.
func grubPath(name string) string {
	if strings.HasPrefix(name, "(") {
		_, name, _ = strings.Cut(name, ")")
	}
	return absolute("", name)
}

// grubCommands takes a script apart into commands, and these into words.
func grubCommands(text string) (out [][]string) {
	var words []string
	var word []byte
	inWord := false
	endWord := func() {
		if inWord {
			words = append(words, string(word))
		}
		word, inWord = word[:0], false
	}
	endCommand := func() {
		endWord()
		if len(words) > 0 {
			out = append(out, words)
		}
		words = nil
	}
	quote := byte(0)
	for i := 0; i < len(text); i++ {
		c := text[i]
		switch {
		case c == '\\' && quote != '\'' && i+1 < len(text):
			// Hexadecimal escapes are the kernel's.
			if next := text[i+1]; next == 'x' || quote == '"' && !strings.ContainsRune("\"$\\", rune(next)) {
				word = append(word, c)
			} else {
				i++
				word = append(word, next)
			}
			inWord = true
		case quote != 0 && c == quote:
			quote = 0
		case quote != 0:
			word = append(word, c)
		case c == '"' || c == '\'':
			quote, inWord = c, true
		case c == '#' && !inWord:
			i += strings.IndexByte(text[i:]+"\n", '\n') - 1 // before the line's end
		case c == ';' || c == '\n':
			endCommand()
		case strings.IndexByte(" \t\r", c) >= 0:
			endWord()
		default:
			word, inWord = append(word, c), true
		}
	}
	endCommand()
	return out
}

var (
	grubHex     = regexp.MustCompile(`^\\x[0-9a-fA-F]{2}`)
	grubSpecial = strings.NewReplacer(`'`, `\'`, `"`, `\"`)
)

// grubQuote makes words a command line as GRUB does.
func grubQuote(words []string) string {
	out := make([]string, len(words))
	for i, w := range words {
		var b strings.Builder
		for n, c := range []byte(w) {
			if c == '\\' && !grubHex.MatchString(w[n:]) {
				b.WriteByte(c)
			}
			b.WriteByte(c)
		}
		out[i] = grubSpecial.Replace(b.String())
		if strings.Contains(w, " ") {
			out[i] = `"` + out[i] + `"`
		}
	}
	return strings.Join(out, " ")
}
