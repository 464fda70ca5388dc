package cli

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"vmm/internal/cgroup"
	"vmm/internal/hostpid"
	"vmm/internal/jail"
	"vmm/vm"
)

// A process can make some namespaces for its jail. Two kinds it has to begin in: that of processes,
// and that of users, without which only root makes the others (docs/jail.md).

// isolation is how a process in the background begins.
type isolation struct {
	flags uintptr // of clone(2): its namespaces
	noPID string  // why there is none of processes among them
}

// isolations are the ways to begin, the best first. The last is one that every host allows.
func (s *session) isolations() []isolation {
	switch {
	case s.Jail != vm.JailFull || s.Restart != nil && !s.Supervised: // a supervisor has no guest
		return []isolation{{}}
	case os.Getuid() != 0 && !s.canOwnUsers():
		return []isolation{{}}
	}
	return ways(s.noPID())
}

// ways are those of a process that may be in namespaces, but in one of processes only if noPID is empty.
func ways(noPID string) (list []isolation) {
	if !jail.CanEnter {
		return []isolation{{}}
	}
	if !hostpid.Tells() {
		noPID = "/proc is not of this one"
	}
	users := uintptr(0)
	if os.Getuid() != 0 {
		users = unix.CLONE_NEWUSER
	}
	if noPID == "" {
		list = append(list, isolation{flags: users | unix.CLONE_NEWPID})
	}
	list = append(list, isolation{users, noPID})
	if users != 0 {
		list = append(list, isolation{}) // then it has none at all, and its jail says why
	}
	return list
}

// startBest has start start a process in the best way that the host allows.
func startBest(list []isolation, start func(isolation) error) error {
	var err error
	for _, how := range list {
		if err != nil && how.noPID == "" {
			how.noPID = plain(err)
		}
		if err = start(how); err == nil {
			break
		}
	}
	return err
}

// plain is the system's word in an error.
func plain(err error) string {
	var errno unix.Errno
	if errors.As(err, &errno) {
		return errno.Error()
	}
	return err.Error()
}

// canOwnUsers reports whether a user namespace is of use to the process of a VM in the
// background: in it, one who is not root has the rights that the jail's other namespaces
// take. Files of others would be nobody's there, so a VM that shows the guest files of the
// host stays without; and of one that another process sends that is not known yet.
func (s *session) canOwnUsers() bool {
	switch {
	case s.Config != nil:
		return !s.Config.HasHostFiles()
	case s.Restore != nil:
		dirs, err := vm.SavedShares(s.Restore.Dir)
		return err == nil && len(dirs) == 0
	}
	return false
}

// noPID is why the session's process must not be in a namespace of processes; "" if it may. Others that have to
// be moved for the VM's limits are moved before, for their numbers are not known there.
func (s *session) noPID() string {
	limits := s.limits()
	if limits == nil {
		if cgroup.Crowded() {
			return "other processes may have to be moved for limits"
		}
		return ""
	}
	if err := cgroup.Divide(*limits); err != nil {
		return err.Error()
	}
	return ""
}

// limits are those of the VM; nil if they are not known yet.
func (s *session) limits() *vm.Limits {
	switch {
	case s.Config != nil:
		return &s.Config.Limits
	case s.Receive != nil:
		return s.Receive.Options.Limits
	case s.Restore.Options.Limits != nil:
		return s.Restore.Options.Limits
	}
	c, err := vm.SavedConfig(s.Restore.Dir)
	if err != nil { // as the VM's process will say
		return nil
	}
	return &c.Limits
}

// attributes are those of a process in the background that begins so.
func (how isolation) attributes() *unix.SysProcAttr {
	a := &unix.SysProcAttr{Setsid: true, Cloneflags: how.flags}
	if how.flags&unix.CLONE_NEWUSER != 0 {
		own := func(id int) []syscall.SysProcIDMap {
			return []syscall.SysProcIDMap{{ContainerID: id, HostID: id, Size: 1}}
		}
		a.UidMappings, a.GidMappings = own(os.Getuid()), own(os.Getgid())
		a.AmbientCaps = []uintptr{unix.CAP_SYS_ADMIN, unix.CAP_SYS_CHROOT} // or execve would take them
	}
	return a
}

// jailName is the command that tells what the jail of its own process would be. It is for
// isolatedJail, not for people.
const jailName = "_jail"

func ableCommand() *cobra.Command {
	return &cobra.Command{
		Use: jailName + " [WHY]", Hidden: true, Args: cobra.MaximumNArgs(1),
		Run: func(cmd *cobra.Command, args []string) {
			s := jail.Able()
			s.LackPID(strings.Join(args, ""))
			fmt.Fprintln(cmd.OutOrStdout(), s)
		},
	}
}

// isolatedJail is the jail of a process in the background: only such a one
// can tell, for a host may allow the namespace and not what it is needed for.
func isolatedJail() string {
	var out []byte
	err := startBest(ways(""), func(how isolation) (err error) {
		c := exec.Command(self, jailName, how.noPID)
		c.SysProcAttr = how.attributes()
		out, err = c.Output()
		return err
	})
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(string(out))
}
