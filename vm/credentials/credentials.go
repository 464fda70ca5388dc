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
)

//go:embed credentials.txt
var list string

// Paths are the paths on this host, absolute, for vm.Config.Hide: of the user of this
// process, and of all users if that is root. They need not be there.
func Paths() []string { return paths(homes(os.Getuid(), os.Getenv("HOME"), "/etc/passwd")) }

func paths(homes []string) []string {
	var out []string
	for line := range strings.Lines(list) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		all := []string{line}
		if rest, ok := strings.CutPrefix(line, "~/"); ok {
			all = nil
			for _, home := range homes {
				all = append(all, filepath.Join(home, rest))
			}
		}
		for _, path := range all {
			if strings.Contains(filepath.Base(path), "*") {
				found, _ := filepath.Glob(path) // of a pattern that is right
				out = append(out, found...)
			} else {
				out = append(out, path)
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
