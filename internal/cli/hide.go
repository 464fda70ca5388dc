package cli

import (
	"errors"
	"os"
	"slices"

	"vmm/internal/paths"
	"vmm/vm"
	"vmm/vm/credentials"
)

// hideCredentials keeps from the guest what the user's and the host's secrets are in, but
// for what is to be exposed; and what is to be hidden beside that.
func hideCredentials(c *vm.Config, hide, expose []string) error {
	var exposed []string
	for _, p := range expose {
		abs, err := paths.Abs(p)
		if err != nil {
			return failed(err)
		}
		exposed = append(exposed, abs)
	}
	exposed = paths.Names(exposed)
	for _, p := range hide {
		abs, err := paths.Abs(p)
		if err != nil {
			return failed(err)
		}
		c.Hide = append(c.Hide, abs)
	}
	for _, p := range credentials.Paths() {
		hide, err := conceals(p, exposed)
		if err != nil {
			return err
		}
		if hide {
			c.Hide = append(c.Hide, p)
		}
	}
	slices.Sort(c.Hide)
	c.Hide = slices.Compact(c.Hide)
	return nil
}

// conceals reports whether a path of credentials stays hidden beside what is exposed. It is a wrong use to
// expose a part of one.
func conceals(p string, exposed []string) (bool, error) {
	if len(exposed) == 0 {
		return true, nil
	}
	names := paths.Names([]string{p})
	for _, name := range names {
		if slices.ContainsFunc(exposed, func(e string) bool { return paths.Below(name, e) }) {
			return false, nil
		}
	}
	for _, name := range names {
		for _, e := range exposed {
			if paths.Below(e, name) {
				return false, usage("--expose %s: all of %s is hidden: expose that", e, p)
			}
		}
	}
	return true, nil
}

// systemDirs are what a command needs of the host's root whatever it is.
var systemDirs = []string{"bin", "sbin", "lib", "lib32", "lib64", "libx32", "usr", "etc", "opt", "nix", "gnu"}

// distrust leaves the command the system's directories and the current one, and no
// network.
func (f *runFlags) distrust(c *vm.Config) error {
	switch {
	case c.Root != nil:
		return usage("--untrusted is for a command with this host's root; with --root there is nothing else of it: add --net none")
	case len(c.Nets) > 0 || len(c.Publish) > 0:
		return usage("--untrusted goes without --net and --publish: the command has no network")
	case f.expose != nil:
		return usage("--untrusted exposes nothing: --share HOST:GUEST:ro shares a directory")
	}
	c.Nets = vm.Nets{vm.None{}}
	cwd, err := paths.Real(".")
	if err == nil && slices.Contains(append(slices.Clone(c.Hide), "/"), cwd) {
		err = errors.New("the current directory is one that is hidden: go to the one of your work")
	}
	if err != nil {
		return failed(err)
	}
	entries, err := os.ReadDir("/")
	if err != nil {
		return failed(err)
	}
	for _, e := range entries {
		if path := "/" + e.Name(); !slices.Contains(systemDirs, e.Name()) && !slices.Contains(hidden, path) {
			c.Hide = append(c.Hide, path)
		}
	}
	return nil
}
