// Package credentials knows where people and hosts keep what a guest is not to see: keys,
// passwords, tokens, profiles of browsers, histories.
package credentials

import (
	"bufio"
	_ "embed"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"vmm/internal/paths"
)

//go:embed credentials.txt
var list string

// Paths are the paths on this host, absolute, for vm.Config.Hide: of the user of this
// process, and of all users if that is root; where this process's environment says that they are
// elsewhere, those too. They need not be there.
func Paths() []string {
	list := homes(os.Getuid(), os.Getenv("HOME"), "/etc/passwd")
	if os.Getuid() == 0 { // users whom another directory than the file has
		more, _ := filepath.Glob("/home/*")
		list = append(list, more...)
	}
	for _, home := range list {
		if real, err := filepath.EvalSymlinks(home); err == nil { // what is not there yet has only names
			list = append(list, real)
		}
	}
	return expand(list, os.Getenv)
}

// bases are the directories of a home that can be elsewhere, by the variable that says where (XDG
// Base Directory Specification).
var bases = map[string]string{"~/.config/": "XDG_CONFIG_HOME", "~/.local/share/": "XDG_DATA_HOME", "~/.local/state/": "XDG_STATE_HOME", "~/.cache/": "XDG_CACHE_HOME"}

// expand expands the list, for some homes and an environment.
func expand(homes []string, env func(string) string) []string {
	var out []string
	add := func(path string) { // which is clean
		if strings.Contains(path, "*") {
			found, _ := filepath.Glob(path) // of a pattern that is right
			out = append(out, found...)
		} else {
			out = append(out, path)
		}
	}
	for line := range strings.Lines(list) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		if variable, ok := strings.CutPrefix(line, "$"); ok {
			name, rest, _ := strings.Cut(variable, "/")
			for _, path := range filepath.SplitList(env(name)) {
				path = filepath.Join(path, rest)
				all := slices.ContainsFunc(homes, func(home string) bool { return paths.Below(home, path) })
				if filepath.IsAbs(path) && !all {
					out = append(out, path)
				}
			}
			continue
		}
		rest, ok := strings.CutPrefix(line, "~/")
		if !ok {
			add(line)
			continue
		}
		for _, home := range homes {
			add(filepath.Join(home, rest))
		}
		for base, name := range bases {
			if rest, ok := strings.CutPrefix(line, base); ok && filepath.IsAbs(env(name)) {
				add(filepath.Join(env(name), rest))
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// homes are the home directories: the process's, and by the file of users the user's or,
// for root, all that there are.
func homes(uid int, own, users string) []string {
	var out []string
	add := func(home string) {
		if filepath.IsAbs(home) && filepath.Clean(home) != "/" && !slices.Contains(out, home) {
			out = append(out, filepath.Clean(home))
		}
	}
	add(own)
	f, err := os.Open(users)
	if err != nil {
		return out
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		field := strings.Split(s.Text(), ":")
		if len(field) != 7 {
			continue
		}
		n, err := strconv.Atoi(field[2])
		person := n == 0 || n >= 1000 && n < 65534 // login.defs; 65534 is nobody
		if err == nil && (n == uid || uid == 0 && person) {
			add(field[5])
		}
	}
	return out
}
