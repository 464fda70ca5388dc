package cli

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"vmm/internal/jail"
	"vmm/vm"
)

// canIsolate reports whether a user namespace is of use to the process of a VM in the
// background: in it, one who is not root has the rights that the jail's other namespaces
// take. Files of others would be nobody's there, so a VM that shows the guest files of the
// host stays without; and of one that was saved that is not known yet. A supervisor has no guest.
func (s *session) canIsolate() bool {
	return (s.Restart == nil || s.Supervised) && s.Jail == vm.JailFull && os.Getuid() != 0 && s.Config != nil && !s.Config.ForCommands() && len(s.Config.Shares) == 0
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

// jailName is the command that tells what the jail of its own process would be. It is for
// isolatedJail, not for people.
const jailName = "_jail"

func ableCommand() *cobra.Command {
	return &cobra.Command{
		Use: jailName, Hidden: true, Args: cobra.NoArgs,
		Run: func(cmd *cobra.Command, _ []string) { fmt.Fprintln(cmd.OutOrStdout(), jail.Able()) },
	}
}

// isolatedJail is the jail of a process that begins in a user namespace: only such a one
// can tell, for a host may allow the namespace and not what it is needed for.
func isolatedJail() string {
	c := exec.Command(self, jailName)
	c.SysProcAttr = isolated()
	out, err := c.Output()
	if err != nil {
		return fmt.Sprintf("the same, for this host allows no user namespaces (%v)", err)
	}
	return strings.TrimSpace(string(out))
}
