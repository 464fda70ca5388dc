package grub

import (
	"errors"
	"slices"
	"strconv"
	"strings"
)

// machine runs a script.
type machine struct {
	disk      Disk
	vars      *scope
	functions map[string]list
	args      []string // $1 and on
	status    bool     // $?, of the last command
	menu      *menu
	loaded    loaded
	notes     []string // what was not understood
	files     []File
	added     int  // lines of menus
	chosen    bool // an entry runs
	asked     int  // how many conditions the command is within
	work      int  // what is left of maxWork
	calls     int
}

// loaded is what linux and initrd have loaded.
type loaded struct {
	kernel  *File
	initrds []File
	args    string
}

// The ways out of a list of commands beside its end.
var (
	errBreak    = errors.New("break")
	errContinue = errors.New("continue")
	errReturn   = errors.New("return")
	errBoot     = errors.New("boot") // exit, boot and all that ends GRUB, or a menu that is shown
	errStopped  = errors.New("the configuration takes too many steps")
)

func isFlow(err error) bool {
	return slices.Contains([]error{errBreak, errContinue, errReturn, errBoot}, err)
}

// spend takes from what a script may do, and reports whether there was as much.
func (m *machine) spend(n int) bool {
	m.work -= n
	return m.work >= 0
}

// scope holds variables. Below it lie those of the menu that led here.
type scope struct {
	values   map[string]*string // nil: unset
	exported map[string]bool
	below    *scope
	menu     bool // a menu of its own, which gets only what was exported below
}

func newScope(below *scope, menu bool) *scope {
	return &scope{map[string]*string{}, map[string]bool{}, below, menu}
}

// lookup returns a variable's value, nil if it is not set.
func (s *scope) lookup(name string) *string {
	exported := false // only what is counts
	for ; s != nil; s = s.below {
		if v, ok := s.values[name]; ok && (!exported || s.exports(name)) {
			return v
		}
		exported = exported || s.menu
	}
	return nil
}

// exports reports whether menus within this one have a variable.
func (s *scope) exports(name string) bool {
	for ; s != nil; s = s.below {
		if s.exported[name] {
			return true
		}
	}
	return false
}

func (s *scope) get(name string) string {
	if v := s.lookup(name); v != nil {
		return *v
	}
	return ""
}

func (s *scope) set(name, value string) { s.values[name] = &value }

// variable returns what $name stands for, and whether it is set.
func (m *machine) variable(name string) (string, bool) {
	switch n, err := strconv.Atoi(name); {
	case err == nil:
		if n >= 1 && n <= len(m.args) {
			return m.args[n-1], true
		}
		return "", n == 0
	case name == "?":
		if m.status {
			return "0", true
		}
		return "1", true
	case name == "#":
		return strconv.Itoa(len(m.args)), true
	case name == "*" || name == "@":
		return strings.Join(m.args, " "), true
	}
	v := m.vars.lookup(name)
	if v == nil {
		return "", false
	}
	return *v, true
}

// expand makes a command's arguments of its words. What was in variables without quotes
// is split at spaces, and patterns become the files that they match; unset are the
// variables that had no value.
func (m *machine) expand(words []word) (out, unset []string, err error) {
	total := 0
	for _, w := range words {
		a := &argument{}
		end := func() {
			if err != nil {
				return
			}
			var made []string
			made, err = m.finish(a)
			out = append(out, made...)
			*a = argument{}
		}
		for _, p := range w {
			v := p.text
			if p.variable {
				var set bool
				if v, set = m.variable(p.text); !set {
					unset = append(unset, p.text)
				}
			}
			if total += len(v) + 1; total > maxWords || !m.spend(len(v)+1) {
				return nil, nil, errStopped
			}
			switch {
			case p.variable && p.quoted && p.text == "@":
				for i, arg := range m.args {
					if i > 0 {
						end()
					}
					a.add(arg, true)
				}
			case p.variable && !p.quoted:
				fields := strings.Fields(v)
				if strings.TrimLeft(v, " \t\n") != v {
					end()
				}
				for i, f := range fields {
					if i > 0 {
						end()
					}
					a.add(f, false)
				}
				if strings.TrimRight(v, " \t\n") != v {
					end()
				}
			default:
				a.add(v, p.quoted)
			}
		}
		if end(); err != nil {
			return nil, nil, err
		}
	}
	return out, unset, nil
}

// run runs commands and returns the status of the last one.
func (m *machine) run(l list) (ok bool, err error) {
	ok = true
	for _, c := range l {
		if !m.spend(perCommand) {
			return false, errStopped
		}
		switch c := c.(type) {
		case simple:
			ok, err = m.simple(c)
		case *branch:
			ok, err = m.branch(c)
		case *forLoop:
			ok, err = m.forLoop(c)
		case *whileLoop:
			ok, err = m.whileLoop(c)
		case *function:
			m.functions[c.name] = c.body
			ok = true
		}
		m.status = ok
		if err != nil {
			return ok, err
		}
	}
	return ok, nil
}

// condition runs commands whose status decides something.
func (m *machine) condition(l list) (bool, error) {
	m.asked++
	defer func() { m.asked-- }()
	return m.run(l)
}

func (m *machine) branch(b *branch) (bool, error) {
	for i, c := range b.conditions {
		ok, err := m.condition(c)
		if err != nil {
			return false, err
		}
		if ok {
			return m.run(b.blocks[i])
		}
	}
	return m.run(b.otherwise)
}

// loop runs a loop's body once; done says that it was the last time.
func (m *machine) loop(body list) (ok, done bool, err error) {
	if !m.spend(perCommand) {
		return false, true, errStopped
	}
	switch ok, err = m.run(body); err {
	case errBreak:
		return true, true, nil
	case errContinue:
		return true, false, nil
	}
	return ok, err != nil, err
}

func (m *machine) forLoop(f *forLoop) (ok bool, err error) {
	values, _, err := m.expand(f.words)
	if err != nil {
		return false, err
	}
	ok = true
	for _, v := range values {
		m.vars.set(f.name, v)
		var done bool
		if ok, done, err = m.loop(f.body); done {
			return ok, err
		}
	}
	return ok, nil
}

func (m *machine) whileLoop(w *whileLoop) (ok bool, err error) {
	for {
		c, err := m.condition(w.condition)
		if err != nil || c == w.until {
			return ok, err
		}
		var done bool
		if ok, done, err = m.loop(w.body); done {
			return ok, err
		}
	}
}

// call runs a block with arguments.
func (m *machine) call(body list, args []string) (bool, error) {
	if m.calls >= maxCalls {
		return false, errStopped
	}
	m.calls++
	saved := m.args
	m.args = args
	defer func() { m.args = saved; m.calls-- }()
	ok, err := m.run(body)
	if err == errReturn {
		return m.status, nil
	}
	return ok, err
}

// simple runs a command, a function, or an assignment without set.
func (m *machine) simple(c simple) (bool, error) {
	words, unset, err := m.expand(c.words)
	if err != nil {
		return false, err
	}
	if len(words) == 0 {
		return true, nil
	}
	name, args := words[0], words[1:]
	if body, ok := m.functions[name]; ok {
		return m.call(body, args)
	}
	if f := builtin(name); f != nil {
		return f(m, &call{name: name, args: args, unset: unset, block: c.block, has: c.has})
	}
	if slices.Contains(harmless, name) {
		return true, nil
	}
	if v, value, ok := strings.Cut(name, "="); ok {
		return m.assign(v, value), nil
	}
	// Outside of conditions and entries GRUB says so, and goes on.
	if m.asked > 0 || m.chosen {
		m.note("unknown command " + name)
	}
	return false, nil
}

// assign sets a variable, as long as its name is one.
func (m *machine) assign(name, value string) bool {
	if name == "" || strings.ContainsAny(name, " \t\n") {
		return false
	}
	m.vars.set(name, value)
	return true
}
