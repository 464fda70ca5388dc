package cli

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"runtime/debug"
	"strconv"
	"strings"

	"vmm/internal/jail"
	"vmm/vm"
	"vmm/vm/registry"
	"vmm/vm/server"
)

// heapLimit is where Go's collector begins to work harder, in bytes: a VM's process beside
// its guest has some MiB (docs/development.md).
const heapLimit = 512 << 20

// confine takes from this process what it does not need any more: all that it will open
// is open.
func (s *session) confine(v *vm.VM, local *server.Local) error {
	if s.Jail == vm.JailOff {
		return nil
	}
	if os.Getenv("GOMEMLIMIT") == "" {
		limit := int64(heapLimit)
		if c := v.Config(); c.Limits.Memory > 0 { // the other half is for what is no heap
			limit = min(limit, int64(c.Limits.Memory-c.Memory)/2)
		}
		debug.SetMemoryLimit(limit)
	}
	if err := errors.Join(jail.CloseInherited(), jail.Harden()); err != nil {
		return err
	}
	if u := s.JailUser; u != nil {
		if err := s.entry.Give(u.UID, u.GID); err != nil {
			return err
		}
	}
	c := s.confinement()
	if s.warm != nil {
		if dir, err := s.warm.Reserve(); err == nil {
			c.Write = append(c.Write, dir)
		} else { // then nothing is saved
			s.warm = nil
		}
	}
	status, err := v.Confine(c)
	if err != nil {
		return fmt.Errorf("the jail: %w (--jail off runs without one)", err)
	}
	status.LackPID(s.NoPID)
	local.Jail = status.String()
	probeJail()
	return nil
}

// narrow takes away what only the saving of a warm start has needed.
func (s *session) narrow(v *vm.VM) {
	if s.Jail == vm.JailOff {
		return
	}
	if err := v.Narrow(s.confinement()); err != nil {
		s.log(fmt.Errorf("the jail: %w", err))
	}
}

// confinement is what this process needs beside the VM.
func (s *session) confinement() vm.Confinement {
	c := vm.Confinement{Level: s.Jail, User: s.JailUser, Files: []string{s.entry.Path()}, Violation: s.violation}
	if s.JailUser == nil { // who could not remove it
		c.Unlink = []string{registry.User().Dir()}
	}
	return c
}

// violation ends the VM: a system call that its process has no use for was made by
// something else, or by a version of the libraries that the rules do not know.
func (s *session) violation(call string) {
	s.console.restore()
	s.log(fmt.Errorf("the VM was ended: its process made the system call %s, which the jail refuses. Its guest may have broken out of the devices; "+
		"if nothing speaks for that, please report it (SECURITY.md). --jail landlock runs the VM without this wall", call))
	os.Exit(statusFailed)
}

// jailUser is what --jail-user says: as docker's --user.
func (f *sessionFlags) jailUser() (*vm.JailUser, error) {
	if f.jailAs == "" {
		return nil, nil
	}
	if os.Getuid() != 0 || f.jail != string(vm.JailFull) {
		return nil, usage("--jail-user %s: only root can become another user, with --jail full", f.jailAs)
	}
	name, group, given := strings.Cut(f.jailAs, ":")
	u := &vm.JailUser{UID: number(name)}
	if known, err := user.Lookup(name); err == nil {
		u.UID, u.GID = number(known.Uid), number(known.Gid)
	} else if known, err := user.LookupId(name); err == nil {
		u.GID = number(known.Gid)
	} else {
		u.GID = u.UID
	}
	if given {
		u.GID = number(group)
		if known, err := user.LookupGroup(group); err == nil {
			u.GID = number(known.Gid)
		}
	}
	if u.UID <= 0 || u.GID <= 0 {
		return nil, usage("--jail-user %s: no such user or group, or root's", f.jailAs)
	}
	return u, nil
}

// number is a user's or group's; -1 if the text is none.
func number(text string) int {
	n, err := strconv.ParseUint(text, 10, 31)
	if err != nil {
		return -1
	}
	return int(n)
}
