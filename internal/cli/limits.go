package cli

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/pflag"

	"vmm/internal/bytesize"
	"vmm/internal/cgroup"
	"vmm/internal/paths"
	"vmm/machine"
	"vmm/vm"
	"vmm/vm/registry"
)

// limitFlags are what the VM's process may take of the host.
type limitFlags struct {
	cpus   float64
	memory bytesize.Size
	pids   int
	io     []string
}

func (f *limitFlags) add(fl *pflag.FlagSet) {
	fl.Float64Var(&f.cpus, "cpu-limit", 0, "how many `CPUS` of the host the VM's process may use, such as 1.5; see docs/jail.md")
	fl.Var(&f.memory, "memory-limit", "how much memory of the host the process may use: `SIZE`, of the guest's memory and at least 64M")
	fl.IntVar(&f.pids, "pids-limit", 0, "how many threads the process may have: `NUMBER`")
	fl.StringArrayVar(&f.io, "io-limit", nil, form("what the process may read and write on a device of the host, which PATH is or is on", cgroup.IOForm)+"; several are possible")
}

// fill sets the limits that were given, and reports whether any was.
func (f *limitFlags) fill(fl *pflag.FlagSet, l *vm.Limits) (given bool, err error) {
	for flag, set := range map[string]func(){
		"cpu-limit": func() { l.CPUs = f.cpus }, "memory-limit": func() { l.Memory = f.memory }, "pids-limit": func() { l.PIDs = f.pids },
	} {
		if fl.Changed(flag) {
			set()
			given = true
		}
	}
	return given || fl.Changed("io-limit"), read(fl, "io-limit", f.io, parseIOLimit, &l.IO)
}

// parseIOLimit reads a value of --io-limit. What is saved with the VM is found from anywhere.
func parseIOLimit(text string) (l vm.IOLimit, err error) {
	if l, err = cgroup.ParseIO(text); err == nil {
		l.Path, err = paths.Abs(l.Path)
	}
	return l, err
}

// limit puts this process into a cgroup of its own that has the limits of its VM.
func (s *session) limit(c *vm.Config) (err error) {
	if c.Limits.IsZero() {
		return nil
	}
	if s.group == nil {
		if s.group, err = c.NewGroup(); err != nil {
			return adviseLimits(inFlags(err))
		}
	}
	if s.entry != nil { // noted before it is made, so that somebody knows what to clear away
		if err := s.entry.Limit(c.Limits.String(), s.group.Path()); err != nil {
			return err
		}
	}
	// Which clears away groups too, and of those that were killed notes why before.
	if _, err := registry.User().List(); err != nil {
		return err
	}
	return s.group.Enter()
}

// limitReceived is limit for a VM that is not there yet: its memory is to count too.
func (s *session) limitReceived(l *vm.Limits) error {
	if l == nil {
		return nil
	}
	return s.limit(&vm.Config{Name: "receive", Memory: machine.MinMemory, Limits: *l})
}

// adviseLimits adds to the error for limits that cannot be had what to do about it.
func adviseLimits(err error) error {
	var cannot *vm.LimitsError
	if !errors.As(err, &cannot) || !cannot.Scope {
		return err
	}
	user := "--user "
	if os.Getuid() == 0 {
		user = ""
	}
	return fmt.Errorf("%w; systemd-run %s--scope -p Delegate=yes vmm ... starts vmm where they can, as far as root lets them (docs/jail.md)", err, user)
}
