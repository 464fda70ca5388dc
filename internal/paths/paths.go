// Package paths makes paths that mean the same from anywhere.
package paths

import (
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Abs makes a path absolute. It means what it does to the kernel: the current directory is
// the one that it is, whatever links a shell has come by, and ".." leads up from where a
// link leads. Other links stay, and what it names need not be there.
func Abs(path string) (string, error) {
	if !filepath.IsAbs(path) {
		wd, err := unix.Getwd()
		if err != nil {
			return "", err
		}
		path = wd + "/" + path
	}
	above := strings.LastIndex(path+"/", "/../")
	if above < 0 {
		return filepath.Clean(path), nil
	}
	up, err := filepath.EvalSymlinks(path[:above] + "/..")
	if err != nil { // no link has a say in it
		return filepath.Clean(path), nil
	}
	return filepath.Join(up, strings.TrimPrefix(path[above:], "/..")), nil
}

// Real makes a path absolute and free of symbolic links. What it names must be there.
func Real(path string) (string, error) {
	path, err := Abs(path)
	if err != nil {
		return "", err
	}
	return filepath.EvalSymlinks(path)
}

// Below reports whether a path is a directory, or below it, by their texts: both are
// absolute and clean.
func Below(path, dir string) bool {
	return path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}

// Names are paths, and those of them that lead through symbolic links without these too.
func Names(list []string) []string {
	out := slices.Clone(list)
	for _, path := range list {
		if unix.Access(path, unix.F_OK) != nil { // most are not there, which takes one call to know
			continue
		}
		if real, err := Real(path); err == nil && real != path {
			out = append(out, real)
		}
	}
	return out
}
