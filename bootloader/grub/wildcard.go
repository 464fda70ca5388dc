package grub

import (
	"io/fs"
	"path"
	"strings"
)

// The bounds of patterns.
const (
	maxMatched = 4096 // names that are compared of a directory, the first
	maxElement = 255  // bytes of a pattern between two slashes: no name is longer
)

// argument is one in the making: its text, and a pattern that has backslashes before
// what was quoted, so that only the other * and ? are wildcards.
type argument struct {
	text, pattern strings.Builder
	some, wild    bool
}

var quoteWildcards = strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`)

// add appends text.
func (a *argument) add(text string, quoted bool) {
	a.some = true
	a.text.WriteString(text)
	if quoted {
		text = quoteWildcards.Replace(text)
	} else {
		a.wild = a.wild || strings.ContainsAny(text, "*?")
		text = strings.ReplaceAll(text, `\`, `\\`)
	}
	a.pattern.WriteString(text)
}

// finish returns the words that the argument is: the names that it matches if it is a
// pattern of some, else its text. GRUB takes for a pattern what begins with /, a device,
// or * for those.
func (m *machine) finish(a *argument) ([]string, error) {
	text, pattern := a.text.String(), a.pattern.String()
	if !a.some {
		return nil, nil
	}
	if a.wild && strings.ContainsAny(text[:1], "/(*") {
		names, err := m.match(strings.Split(pattern, "/"))
		if err != nil || len(names) > 0 {
			return names, err
		}
	}
	return []string{text}, nil
}

// match returns the files that fit a pattern, whose elements were between slashes, in the
// order of their directories; or the devices, if there is only one.
func (m *machine) match(elements []string) (found []string, err error) {
	found = []string{""}
	wild := false // an element before was, so that what follows may not be there
	for i, e := range elements {
		var next []string
		for _, before := range found {
			switch {
			case !isWild(e):
				name := before + unquoteWildcards(e)
				if last := i == len(elements)-1; last && wild && m.stat(name) == nil {
					continue
				}
				next = append(next, name)
			case i == 0:
				next, err = m.matchNames(next, "", e, m.devices(e[0] == '('))
			default:
				var names []string
				if names, err = m.directory(before); err == nil {
					next, err = m.matchNames(next, before, e, names)
				}
			}
			if err != nil {
				return nil, err
			}
		}
		found, wild = next, wild || isWild(e)
		if i < len(elements)-1 {
			for n := range found {
				found[n] += "/"
			}
		}
	}
	return found, nil
}

// matchNames appends those names to out that fit an element, with what is before them.
func (m *machine) matchNames(out []string, before, element string, names []string) ([]string, error) {
	if len(element) > maxElement {
		return out, nil
	}
	// Package path knows character classes, which GRUB does not, and of a / that it is none of
	// a name's, which one is in the names of logical volumes.
	plain := strings.NewReplacer("/", "\x00")
	element = plain.Replace(strings.ReplaceAll(element, "[", `\[`))
	for _, name := range names {
		if !m.spend(perCommand + 4*len(element)) {
			return nil, errStopped
		}
		if ok, err := path.Match(element, plain.Replace(name)); !ok || err != nil {
			continue
		}
		if !m.spend(perCommand + len(before) + len(name)) {
			return nil, errStopped
		}
		out = append(out, before+name)
	}
	return out, nil
}

// devices are the names of devices in parentheses; partitions among them only if asked for.
func (m *machine) devices(partitions bool) (out []string) {
	for _, d := range m.disk.Devices() {
		if partitions || !strings.Contains(d, ",") {
			out = append(out, "("+d+")")
		}
	}
	return out
}

// directory lists names in a directory; none if there is no such directory.
func (m *machine) directory(name string) (out []string, err error) {
	f, fsys := m.resolve(name)
	if !m.spend(perLookup) {
		return nil, errStopped
	}
	if fsys == nil {
		return nil, nil
	}
	dir, err := fsys.Open(inside(f.Path))
	if err != nil {
		return nil, nil
	}
	defer dir.Close()
	if dir, ok := dir.(fs.ReadDirFile); ok {
		entries, _ := dir.ReadDir(maxMatched) // those before an error
		for _, e := range entries {
			out = append(out, e.Name())
		}
	}
	return out, nil
}

// isWild reports whether an element of a pattern has a wildcard.
func isWild(element string) bool {
	for i := 0; i < len(element); i++ {
		switch element[i] {
		case '\\':
			i++
		case '*', '?':
			return true
		}
	}
	return false
}

// unquoteWildcards takes the backslashes off an element.
func unquoteWildcards(element string) string {
	return strings.NewReplacer(`\\`, `\`, `\*`, `*`, `\?`, `?`).Replace(element)
}
