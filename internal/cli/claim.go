package cli

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"

	"vmm/internal/hostpid"
	"vmm/vm"
	"vmm/vm/api"
	"vmm/vm/registry"
)

// leave gives up the VM's name.
func (s *session) leave(why error) error {
	if s.console != nil {
		s.console.restore()
	}
	if s.background != nil {
		s.background.close()
	}
	left := s.group.Leave()
	status, detail := statusOf(failed(why))
	switch {
	case s.entry == nil:
		return left
	case s.Supervised && s.tellSupervisor(detail) == nil:
		return errors.Join(left, s.entry.Leave())
	case s.Remove || !s.ready:
		return errors.Join(left, s.entry.Remove())
	}
	return errors.Join(left, s.entry.End(status, detail))
}

// claim takes the VM's name, or a similar one that is free, and opens what its messages
// go to.
func (s *session) claim(c *vm.Config) (name string, err error) {
	if err := s.take(c); err != nil {
		return "", err
	}
	if err := errors.Join(s.limit(c), s.takeRootDisk(c)); err != nil {
		return "", err
	}
	return c.Name, s.openConsole()
}

// initStopSeconds is how long an image's init may take to shut down, unless the user says otherwise: as long as systemd
// gives a service of its (systemd-system.conf(5), DefaultTimeoutStopSec).
const initStopSeconds = 90

// take takes the VM's name, or a similar one that is free, unless a supervisor has it for this process.
func (s *session) take(c *vm.Config) (err error) {
	if s.Supervised {
		unix.CloseOnExec(lockFD)
		s.entry, err = registry.User().Adopt(c.Name, os.NewFile(lockFD, "lock"))
		return err
	}
	take := registry.User().ClaimSimilar
	if s.Named {
		take = registry.User().Claim
		if s.RootSize > 0 {
			take = claimAgain
		}
	}
	info := api.VM{Name: c.Name, PID: hostpid.Self(), Command: s.Command, Detached: s.Detach, Labels: c.Labels, StopSeconds: s.StopSeconds,
		CPUs: max(c.CPUs, 1), Memory: uint64(c.Memory), Kernel: c.Boot.Kernel}
	if info.Kernel == "" {
		info.Kernel = vm.DefaultKernel
	}
	if c.Root != nil && c.Root.Image != nil {
		info.Image, info.ImageDigest = c.Root.Image.Name, c.Root.Image.Digest
	}
	for _, d := range c.Disks {
		info.Disks = append(info.Disks, d.Path)
	}
	for _, m := range c.Shares {
		info.Shares = append(info.Shares, m.Host+":"+m.Guest)
	}
	for _, n := range c.Nets {
		info.Nets = append(info.Nets, n.Mode())
	}
	if s.StopSeconds == nil && c.HasImageInit() {
		info.StopSeconds = new(initStopSeconds)
	}
	if s.Restart != nil {
		info.Restart, info.Supervisor = s.Restart.Text, hostpid.Self()
	}
	if s.entry, err = take(info); err != nil {
		return advise(err)
	}
	c.Name = s.entry.Name()
	return nil
}
