package cli

import (
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"vmm/vm"
)

// canIsolate reports whether a user namespace is of use to the process of a VM in the
// background: in it, one who is not root has the rights that the jail's other namespaces
// take. Files of others would be nobody's there, so a VM that shows the guest files of the
// host stays without; and of one that was saved that is not known yet.
func (s *session) canIsolate() bool {
	return s.Jail == vm.JailFull && os.Getuid() != 0 && s.Config != nil && !s.Config.Commands() && len(s.Config.Shares) == 0
}

// isolated are the attributes of a process in the background that begins in a user
// namespace.
func isolated() *unix.SysProcAttr {
	own := func(id int) []syscall.SysProcIDMap {
		return []syscall.SysProcIDMap{{ContainerID: id, HostID: id, Size: 1}}
	}
	return &unix.SysProcAttr{
		Setsid: true, Cloneflags: unix.CLONE_NEWUSER, UidMappings: own(os.Getuid()), GidMappings: own(os.Getgid()),
		AmbientCaps: []uintptr{unix.CAP_SYS_ADMIN, unix.CAP_SYS_CHROOT}, // or execve would take them
	}
}
