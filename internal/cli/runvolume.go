package cli

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/pflag"

	"vmm/storage/volume"
	"vmm/vm"
	"vmm/vm/spec"
)

// volumeFlags are the flags of vmm run for volumes.
type volumeFlags struct{ volumes, mounts []string }

func (f *volumeFlags) add(fl *pflag.FlagSet) {
	fl.StringArrayVar(&f.volumes, "volume", nil, "a volume or a directory of the host in the guest: `NAME:GUEST[:ro]` or HOST:GUEST[:ro]; -v in short; several are possible (see vmm volume)")
	fl.StringArrayVar(&f.mounts, "mount", nil, "the same as docker writes it: `type=volume|bind|tmpfs,source=...,target=...[,readonly]`; several are possible")
}

// apply gives the VM what the flags say.
func (f *volumeFlags) apply(c *vm.Config) error {
	var list, mounts []spec.Volume
	if err := errors.Join(parse("volume", f.volumes, spec.ReadVolume, &list), parse("mount", f.mounts, spec.ReadMount, &mounts)); err != nil {
		return err
	}
	return addVolumes(c, append(list, mounts...))
}

// addVolumes gives a VM volumes, which are made if they are not there.
func addVolumes(c *vm.Config, list []spec.Volume) error {
	if err := checkVolumes(*c, list); err != nil {
		return err
	}
	for _, v := range list {
		switch v.Kind {
		case spec.TmpfsVolume:
			if c.Root == nil || c.Root.Image == nil {
				return usage("--mount type=tmpfs goes with --image")
			}
			c.Root.Image.Tmpfs = append(c.Root.Image.Tmpfs, v.Tmpfs())
		case spec.BindVolume:
			host, err := hostDirectory(v.Source, v.Make)
			if err != nil {
				return failed(err)
			}
			c.Shares = append(c.Shares, vm.Share{Host: host, Guest: v.Guest, ReadOnly: v.ReadOnly})
		default:
			store, err := volume.Open()
			if err != nil {
				return failed(err)
			}
			there, err := store.Create(v.Source, nil)
			if errors.Is(err, volume.ErrName) {
				return usage("%w; a directory of the host begins with / or .", err)
			}
			if err != nil {
				return failed(err)
			}
			c.Shares = append(c.Shares, vm.Share{Host: there.Data(), Guest: v.Guest, ReadOnly: v.ReadOnly, Fill: !v.NoCopy, Lock: there.LockFile()})
		}
	}
	return nil
}

// checkVolumes refuses places in the guest before anything is made for them.
func checkVolumes(c vm.Config, list []spec.Volume) error {
	if c.Check() != nil {
		return nil // whoever completes it says so
	}
	c.Shares = slices.Clone(c.Shares)
	for _, v := range list {
		if v.Kind == spec.TmpfsVolume {
			continue
		}
		c.Shares = append(c.Shares, vm.Share{Host: v.Source, Guest: v.Guest})
		var config *vm.ConfigError
		if err := c.Check(); errors.As(err, &config) {
			return usage("the volume at %s: %w", v.Guest, config.Err)
		}
	}
	return nil
}

// hostDirectory is a directory of the host, absolute, made if that is wanted.
func hostDirectory(path string, make bool) (string, error) {
	if rest, ok := strings.CutPrefix(path, "~"); ok && (rest == "" || rest[0] == '/') {
		home, err := os.UserHomeDir()
		if err != nil {
			return "", err
		}
		path = home + rest
	}
	path, err := filepath.Abs(path)
	if err == nil && make {
		if err = os.MkdirAll(path, 0o755); err != nil {
			err = fmt.Errorf("the directory of the host for a volume: %w", err)
		}
	}
	return path, err
}

// volumesInShort writes -v as --volume where a volume follows: alone, -v is --verbose. The flags end
// at -- and at the first argument that is none.
func volumesInShort(fl *pflag.FlagSet, args []string) []string {
	var out []string
	for i := 0; i < len(args); i++ {
		arg := args[i]
		if arg == "--" || !strings.HasPrefix(arg, "-") || arg == "-" {
			return append(out, args[i:]...)
		}
		if arg == "-v" && i+1 < len(args) && isVolume(args[i+1]) {
			arg = "--volume"
		}
		if rest, ok := strings.CutPrefix(arg, "-v"); ok && isVolume(rest) {
			arg = "--volume=" + rest
		}
		out = append(out, arg)
		if takesNext(fl, arg) && i+1 < len(args) {
			i++
			out = append(out, args[i])
		}
	}
	return out
}

// isVolume reports whether an argument can only be meant as a volume.
func isVolume(arg string) bool {
	return arg != "" && arg[0] != '-' && arg[0] != '=' && (strings.Contains(arg, ":/") || strings.HasPrefix(arg, "/"))
}

// takesNext reports whether a flag's value is the next argument.
func takesNext(fl *pflag.FlagSet, arg string) bool {
	if name, long := strings.CutPrefix(arg, "--"); long {
		f := fl.Lookup(name)
		return f != nil && f.NoOptDefVal == "" // with = it has no such name
	}
	letters := arg[1:]
	for i, letter := range letters {
		f := fl.ShorthandLookup(string(letter))
		if f == nil {
			return false
		}
		if f.NoOptDefVal == "" {
			return i == len(letters)-1
		}
	}
	return false
}
