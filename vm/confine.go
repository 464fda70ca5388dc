package vm

import (
	"errors"
	"os"
	"path/filepath"
	"slices"

	"vmm/internal/jail"
)

// JailLevel is how much Confine takes from the process.
type JailLevel = jail.Level

// The values of JailLevel.
const (
	JailOff      = jail.Off
	JailLandlock = jail.Landlock // only files
	JailFull     = jail.Full     // and system calls
)

// JailLevels are all of them.
var JailLevels = jail.Levels

// JailStatus tells what Confine has done. Its String is for people.
type JailStatus = jail.Status

// JailUser is who the process becomes in a jail.
type JailUser = jail.User

// Confinement says how Confine confines the process.
type Confinement struct {
	Level JailLevel
	// What the program itself needs still, beside what the VM does: directories with all
	// below them, or files. Files are directories in which it makes files and sockets, but no links, directories
	// or pipes; Unlink are those in which it only removes.
	Read, Write, Files, Unlink []string
	// User is who the process becomes, which needs JailFull and a host that allows
	// namespaces. Only root can. Nil is who it is.
	User *JailUser
	// Violation is called with the name of a system call that was made all the same, which
	// only a fault of vmm's or an attacker does. It has to end the process.
	Violation func(call string)
}

// hostFiles are what any VM may read while it runs: its own numbers, and the time zone.
var hostFiles = []string{"/proc/self", "/proc/meminfo", "/proc/sys/kernel/random/boot_id", "/proc/sys/net/core/somaxconn",
	"/etc/localtime", "/usr/share/zoneinfo"}

// resolverFiles are where the gateway finds the resolvers, also when they change: the
// file is replaced then, so that its directory must be open. /etc is not where root runs
// the VM, who could read too much there.
func resolverFiles() []string {
	list := []string{"/etc/resolv.conf", "/run/systemd/resolve", "/run/NetworkManager", "/run/resolvconf"}
	if os.Getuid() != 0 {
		list = append(list, "/etc")
	}
	return list
}

// ErrConfined is that of methods that need what Confine has taken.
var ErrConfined = errors.New("the VM's process is in a jail, which does not let it do that")

// Confine takes from this whole process, for good, what the VM does not need any more: it
// is for a program that runs one VM, between Prepare and Start. What would open other
// files later fails then, with ErrConfined or the system's error: Snapshot to a directory,
// Clone, and Migrate without a connection. It is a second wall, behind which a
// guest is that got past the first.
func (v *VM) Confine(c Confinement) (JailStatus, error) {
	if !v.made() {
		return JailStatus{Level: JailOff}, ErrNotRunning
	}
	r := v.rules(&c)
	r.Begun = v.begun.Swap(nil)
	if c.Level != JailOff {
		v.confined.Store(true)
		v.offline.Store(!r.Internet)
	}
	return jail.Enforce(c.Level, r, c.Violation)
}

// beginConfining begins what Confine is for, if that will follow.
func (v *VM) beginConfining() {
	if v.opts.confine != nil {
		v.begun.Store(jail.Begin(v.opts.confine().Level, v.cfg.Nets.internet()))
	}
}

// goOnConfining goes on with it, once it is known what the VM needs.
func (v *VM) goOnConfining() {
	if begun := v.begun.Load(); begun != nil {
		c := v.opts.confine()
		begun.Root(v.rules(&c))
	}
}

// Narrow follows a Confine: of what that has left, only what c names and what the VM needs
// stays.
func (v *VM) Narrow(c Confinement) error {
	return jail.Narrow(v.rules(&c))
}

// rules are what the VM and the program need.
func (v *VM) rules(c *Confinement) jail.Rules {
	r := v.needs()
	r.User = c.User
	for _, list := range []struct {
		access jail.Access
		paths  []string
	}{{jail.Read, c.Read}, {jail.Write, c.Write}, {jail.Files, c.Files}, {jail.Unlink, c.Unlink}} {
		for _, p := range list.paths {
			r.Paths = append(r.Paths, jail.Path{Path: p, Access: list.access})
		}
	}
	return r
}

// needs are what the VM uses of the host while it runs. Disks are not among it: their files
// stay open (see vmDisk.release).
func (v *VM) needs() jail.Rules {
	var r jail.Rules
	add := func(path string, access jail.Access) {
		if path != "" {
			r.Paths = append(r.Paths, jail.Path{Path: path, Access: access})
		}
	}
	unlink := func(socket string) { // at its end
		if socket != "" {
			add(filepath.Dir(socket), jail.Unlink)
		}
	}
	for _, f := range hostFiles {
		add(f, jail.Read)
	}
	for i, s := range v.shares.saved {
		access := jail.Write
		if s.Options.ReadOnly {
			access = jail.Read
		}
		r.Paths = append(r.Paths, jail.Path{Path: v.shares.held[i].Path(), Access: access, Others: true, Held: true})
	}
	for _, n := range v.nets.nics {
		switch cfg := n.cfg.(type) {
		case Switch:
			add(filepath.Join(v.opts.runtime, "switch", cfg.Name), jail.Write)
			unlink(cfg.Listen)
		case Stream:
			r.Connect = r.Connect || !cfg.Server // again, when the other side is gone
			unlink(cfg.Path)
		case Datagram:
			unlink(cfg.Local)
			add(filepath.Dir(cfg.Remote), jail.Read) // which need not be there yet
		}
	}
	r.Internet = v.cfg.Nets.internet()
	r.Connect = r.Connect || v.cfg.Vsock != "" // by the guest's wish
	for _, socket := range append(v.sockets(), v.cfg.Vsock) {
		unlink(socket)
	}
	if r.Internet {
		for _, f := range resolverFiles() {
			add(f, jail.Read)
		}
	}
	add(v.symbols, jail.Read)
	if g := v.opts.group; g != nil {
		add(g.Dir(), jail.Unlink)
	}
	return r
}

// internet reports whether one of the networks has a gateway, whose connections are this process's.
func (n Nets) internet() bool {
	return slices.ContainsFunc(n, func(n Net) bool {
		switch n := n.(type) {
		case User:
			return true
		case Switch:
			return n.Gateway != nil
		}
		return false
	})
}

// sockets are those of the console and the ports.
func (v *VM) sockets() []string {
	out := []string{v.cfg.Console.Socket}
	for _, p := range v.cfg.Ports {
		out = append(out, p.To.Socket)
	}
	return out
}
