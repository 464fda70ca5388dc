package cli

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/pflag"

	"vmm/internal/cgroup"
	"vmm/internal/paths"
	"vmm/kerneltest"
	"vmm/machine"
	"vmm/vm"
	"vmm/vm/registry"
)

// limitFlags are what the VM's process may take of the host.
type limitFlags kerneltest.Limits

func (f *limitFlags) add(fl *pflag.FlagSet) {
	fl.Float64Var(&f.CPULimit, "cpu-limit", 0, "how many `CPUS` of the host the VM's process may use, such as 1.5; see docs/jail.md")
	fl.Var(&f.MemoryLimit, "memory-limit", "how much memory of the host the process may use: `SIZE`, of the guest's memory and at least 64M")
	fl.IntVar(&f.PIDsLimit, "pids-limit", 0, "how many threads the process may have: `NUMBER`")
	fl.StringArrayVar(&f.IOLimits, "io-limit", nil, form("what the process may read and write on a device of the host, which PATH is or is on", cgroup.IOForm)+"; several are possible")
}

// fill sets the limits that were given, and reports whether any was.
func (f *limitFlags) fill(fl *pflag.FlagSet, l *vm.Limits) (given bool, err error) {
	for flag, set := range map[string]func(){
		"cpu-limit": func() { l.CPUs = f.CPULimit }, "memory-limit": func() { l.Memory = f.MemoryLimit }, "pids-limit": func() { l.PIDs = f.PIDsLimit },
	} {
		if fl.Changed(flag) {
			set()
			given = true
		}
	}
	return given || fl.Changed("io-limit"), read(fl, "io-limit", f.IOLimits, parseIOLimit, &l.IO)
}

// testLimits are the limits of each VM of a matrix.
func testLimits(l *kerneltest.Limits) (vm.Limits, error) {
	out := vm.Limits{CPUs: l.CPULimit, Memory: l.MemoryLimit, PIDs: l.PIDsLimit}
	return out, parse("io-limit", l.IOLimits, parseIOLimit, &out.IO)
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
		if err := s.entry.Limit(&c.Limits, s.group.Path()); err != nil {
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
	if !errors.As(err, &cannot) {
		return err
	}
	if advice := limitsAdvice(cannot.Remedy); advice != "" {
		return fmt.Errorf("%w; %s (docs/jail.md)", err, advice)
	}
	return err
}

// limitsAdvice is what to do about limits that cannot be had; "" if there is nothing.
func limitsAdvice(r cgroup.Remedy) string {
	user := "--user "
	if os.Getuid() == 0 {
		user = ""
	}
	start := fmt.Sprintf("systemd-run %s--scope -p Delegate=yes vmm ... starts vmm where limits can be had", user)
	switch r {
	case cgroup.Scope:
		return start
	case cgroup.Manager:
		return "log in, or have root do loginctl enable-linger, for a systemd of your own, and " + start
	case cgroup.Grant:
		return "root has systemd give users more by Delegate=cpu memory pids io for user@.service"
	}
	return ""
}
