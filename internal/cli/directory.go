package cli

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"vmm/internal/paths"
	"vmm/vm"
)

// hidden are the directories in which the guest has file systems of its own, so
// that what the root has there is not seen.
var hidden = []string{"/tmp", "/run", "/dev", "/proc", "/sys"}

// completeDirectory says where a command starts in a guest with the host's root: in the
// current directory, or in one given from there. Its name is the shell's where the guest
// has the same links.
func (s *session) completeDirectory() error {
	dir := s.Exec.Dir
	if !filepath.IsAbs(dir) {
		wd, err := os.Getwd()
		if err != nil {
			return failed(fmt.Errorf("the current directory: %w", notThere(err)))
		}
		if dir = wd; s.Exec.Dir != "" {
			dir += "/" + s.Exec.Dir
		}
	}
	real, links, err := paths.Walk(dir, true)
	switch {
	case err != nil && s.Exec.Dir == "":
		return failed(err)
	case err != nil: // the guest may have it
		s.Exec.Dir = dir
		return nil
	}
	other := slices.ContainsFunc(links, func(link string) bool { return guestHas(s.Config, link) })
	if s.Exec.Dir = dir; other || strings.Contains(dir, "..") {
		s.Exec.Dir = real
	}
	if st, err := os.Stat(real); err == nil && st.IsDir() { // else the guest says what is wrong
		shareDirectory(s.Config, real)
	}
	return nil
}

// notThere is what is wrong with a path, whose name is told already.
func notThere(err error) error {
	var path *os.PathError
	if errors.As(err, &path) {
		return path.Err
	}
	return err
}

// guestHas reports whether what the guest with the host's root has at a path is not what
// the host has there, but a file system of its own, nothing, or a share.
func guestHas(c *vm.Config, path string) bool {
	within := func(dir string) bool { return paths.Below(path, dir) }
	return slices.ContainsFunc(hidden, within) || slices.ContainsFunc(c.Hide, within) ||
		slices.ContainsFunc(c.Shares, func(s vm.Share) bool { return within(s.Guest) })
}

// shareDirectory lets a guest with the host's root see a directory, whose path is free of
// symbolic links, also where its own file systems hide it. What it writes goes to its memory.
func shareDirectory(c *vm.Config, dir string) {
	within := func(top string) bool { return paths.Below(dir, top) }
	if !guestHas(c, dir) || slices.ContainsFunc(c.Shares, func(s vm.Share) bool { return within(s.Guest) }) ||
		within("/proc") || within("/sys") || dir == "/dev" {
		return
	}
	c.Shares = append(c.Shares, vm.Share{Host: dir, Guest: dir, Overlay: true})
}
