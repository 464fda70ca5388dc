package vm

import (
	"errors"
	"fmt"

	"vmm/internal/cgroup"
)

// Limits are what the whole process of a VM may take of its host, in a Group: CPUs (1.5 is
// one and a half), Memory in bytes, the guest's included, PIDs (threads), and IO by block
// device. What is 0 is not bounded.
type Limits = cgroup.Limits

// IOLimit bounds what goes to and from a block device of the host, which Path is or lies
// on: ReadBPS and WriteBPS bytes, ReadIOPS and WriteIOPS requests a second. What is 0 is
// not bounded.
type IOLimit = cgroup.IO

// Group is a control group (version 2) of the host's that this process is alone in, from
// its Enter to its Leave.
type Group = cgroup.Group

// LimitsError is that of limits which this process cannot have on this host.
type LimitsError = cgroup.UnavailableError

// ErrNoGroup is that of a VM with limits in a process that has none.
var ErrNoGroup = errors.New("the VM has limits, and its process is in no group that has them")

// What a VM's process needs beside its guest, at the least.
const (
	processMemory  = 64 << 20 // bytes
	processThreads = 32       // beside one for each CPU
)

// NewGroup finds a place for a group with the Config's Limits. Nothing is made yet: the
// program enters it before anything of the VM is made, hands it to the VM by WithGroup,
// and leaves it at the end. It moves the whole process, so it is for a program that runs
// one VM. The error is a *ConfigError, a *LimitsError, or of a path of the limits.
func (c *Config) NewGroup() (*Group, error) {
	full := c.WithDefaults()
	if err := full.check(); err != nil {
		return nil, err
	}
	g, err := cgroup.New(full.Name, full.Limits)
	if err != nil {
		return nil, fmt.Errorf("limits: %w", err)
	}
	return g, nil
}

// checkLimits finds limits that the VM could not live with.
func (c *Config) checkLimits() error {
	l := &c.Limits
	if field, err := l.Check(); err != nil {
		return of("Limits."+field, err)
	}
	if least := c.Memory + processMemory; l.Memory > 0 && l.Memory < least {
		return wrong("Limits.Memory", "%v: at least %v, the guest's %v and %v for the process, or the host would kill the VM",
			l.Memory, least, c.Memory, Size(processMemory))
	}
	if least := c.CPUs + processThreads; l.PIDs > 0 && l.PIDs < least {
		return wrong("Limits.PIDs", "%d: at least %d, or the VM's process could not go on", l.PIDs, least)
	}
	return nil
}
