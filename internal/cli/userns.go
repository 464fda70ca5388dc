package cli

import (
	"os"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"

	"vmm/vm"
)

// isolate has the process of a VM in the background begin in a user namespace, in which
// one who is not root has the rights that the jail's other namespaces take. It reports
// whether that is of use: files of others would be nobody's there, so a VM that shows the
// guest files of the host stays without; and of one that was saved that is not known yet.
func (s *session) isolate(c *exec.Cmd) bool {
	if s.Jail != vm.JailFull || os.Getuid() == 0 || s.Config == nil || s.Config.Commands() || len(s.Config.Shares) > 0 {
		return false
	}
	own := func(id int) []syscall.SysProcIDMap {
		return []syscall.SysProcIDMap{{ContainerID: id, HostID: id, Size: 1}}
	}
	a := c.SysProcAttr
	a.Cloneflags |= unix.CLONE_NEWUSER
	a.UidMappings, a.GidMappings = own(os.Getuid()), own(os.Getgid())
	a.AmbientCaps = []uintptr{unix.CAP_SYS_ADMIN, unix.CAP_SYS_CHROOT} // or execve would take them
	return true
}
