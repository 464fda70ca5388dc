// Package jail takes from this process, for good, what it does not need any more.
//
// It is the second wall around a guest: the first is that no byte of a guest's is
// believed. Whoever gets past that has a process that opens only the files named here
// (Landlock, docs/jail.md), and makes only the system calls that a running VM makes
// (seccomp). Neither needs a privilege, and no process can take them off again. One that has
// privileges gives them up for namespaces, in which the other files are not even there.
package jail

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"vmm/internal/hostpid"
)

// Level is how much is taken.
type Level string

// The levels.
const (
	Off      Level = "off"
	Landlock Level = "landlock" // files and TCP ports
	Full     Level = "full"     // system calls too
)

// Levels are all levels.
var Levels = []Level{Off, Landlock, Full}

// Access is what may be done with a file, or with a directory and all below it.
type Access int

// The kinds of Access.
const (
	Read   Access = iota
	Write         // and read, and whatever else changes a tree
	Files         // and read, and make and remove files and sockets, but nothing that leads elsewhere: who is outside opens them by name
	Unlink        // only list and remove what is below a directory
)

// Path is a file or directory that stays open to the process. One that is not there
// when the jail is made stays closed.
type Path struct {
	Path   string
	Access Access
	Others bool // also files of other users, as far as the process may
	Held   bool // it leads to an open descriptor, and names need not lead there any more
}

// Rules say what the process needs still.
type Rules struct {
	Paths []Path
	// Internet allows sockets of IPv4 and IPv6. What may be reached with them is not
	// the jail's to say: a gateway has its own policy.
	Internet bool
	// Connect allows to make unix sockets, and so to connect to any of the user's that has a
	// name here: neither Landlock nor seccomp tells one from another.
	Connect bool
	// User is who the process becomes; nil for who it is. It needs Full and namespaces:
	// the paths would not be there for that user without them.
	User *User
	// Begun is what Begin has begun, and is Enforce's from then on. Where it is for other rules, or nil, it is
	// begun anew.
	Begun *Begun
}

// ErrUser is that of a User where the process cannot become one.
var ErrUser = errors.New("that needs root, the whole jail, and namespaces of its own")

// Status tells what holds.
type Status struct {
	Level Level `json:"level"` // what was asked for
	// Landlock is its ABI version; 0 if the kernel has none.
	Landlock int  `json:"landlock"`
	Seccomp  bool `json:"seccomp"`
	// Namespaces are the process's own, by their names in /proc/PID/ns. Only a process with
	// privileges, be it in a user namespace, has any; pid only one that has begun in it.
	Namespaces []string `json:"namespaces,omitempty"`
	// Missing says in words what this host cannot do.
	Missing string `json:"missing,omitempty"`
}

// String is one line for people.
func (s Status) String() string {
	var have []string
	if s.Landlock > 0 {
		have = append(have, fmt.Sprintf("Landlock (ABI %d)", s.Landlock))
	}
	if s.Seccomp {
		have = append(have, "seccomp")
	}
	if len(s.Namespaces) > 0 {
		have = append(have, fmt.Sprintf("namespaces (%s)", strings.Join(s.Namespaces, " ")))
	}
	text := strings.Join(have, ", ")
	if text == "" {
		text = "none"
	}
	if s.Missing != "" {
		text += "; " + s.Missing
	}
	return text
}

// Harden is for a process that is about to run a guest: nobody without privileges reads
// its memory through ptrace or /proc, and a crash leaves no core. Where a user who is not
// root runs it, it cannot open its own /proc/self/pagemap and mem after that (proc(5)).
func Harden() error {
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return fmt.Errorf("no core files: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("not dumpable: %w", err)
	}
	return nil
}

// CloseInherited closes the descriptors that this process was started with, but for its
// standard streams: those without FD_CLOEXEC, which Go gives to all that it opens.
func CloseInherited() error {
	dir, err := os.Open("/proc/self/fd")
	if err != nil {
		return err
	}
	names, err := dir.Readdirnames(-1)
	dir.Close()
	for _, name := range names {
		fd, _ := strconv.Atoi(name)
		if flags, bad := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); fd > 2 && bad == nil && flags&unix.FD_CLOEXEC == 0 {
			unix.Close(fd)
		}
	}
	return err
}

// Enforce makes the jail, on all threads. violation is called, from a goroutine of its
// own, with the name of a system call that was made all the same; the thread that made
// it stands still, and violation has to end the process. What the kernel cannot do is
// left out and told by the Status. It is called once; Narrow can follow.
func Enforce(level Level, r Rules, violation func(call string)) (Status, error) {
	begun := r.Begun
	if begun != nil && !begun.fits(level, &r) {
		begun.Close()
		begun = nil
	}
	if r.User != nil && (level != Full || !privileged()) {
		return Status{Level: Off}, fmt.Errorf("another user for the VM's process: %w", ErrUser)
	}
	if level == Off {
		return Status{Level: Off}, nil
	}
	if begun == nil {
		begun = Begin(level, r.Internet)
	}
	m := begun.finish(&r)
	s := m.status
	if level == Full {
		s.note(&m.own)
	}
	switch {
	case m.err != nil:
		return s, m.err
	case r.User != nil && m.own.err != nil:
		return s, fmt.Errorf("another user for the VM's process: %w: %s", ErrUser, s.Missing)
	}
	defer m.own.close()
	if len(m.own.list) > 0 {
		if err := m.own.enter(); err != nil {
			return s, fmt.Errorf("namespaces: %w", err)
		}
	}
	if level == Full {
		if err := r.become(m.keep); err != nil {
			return s, err
		}
	}
	return s, m.restrict(violation)
}

// restrict takes files and system calls from all threads. The filter of the latter gives no_new_privs to all in passing, and so
// comes first where there are namespaces. Elsewhere Go's scheduler would begin its first thread for locked ones just then, and Landlock's round would
// wait for that: milliseconds, on a busy host.
func (m *made) restrict(violation func(call string)) (err error) {
	var listener *os.File
	filterFirst := m.status.Seccomp && len(m.own.list) > 0
	if filterFirst {
		listener, err = filterCalls(m.program)
	} else if err = noNewPrivs(); err != nil {
		err = fmt.Errorf("no_new_privs: %w", err)
	}
	if err != nil {
		return err
	}
	if err := restrictFiles(m.ruleset, m.status.Landlock); err != nil {
		return fmt.Errorf("restricting files: %w", err)
	}
	if m.status.Seccomp && !filterFirst {
		if listener, err = filterCalls(m.program); err != nil {
			return err
		}
	}
	if listener != nil { // a thread may begin for it too
		go listen(listener, violation)
	}
	return nil
}

// families are those of the sockets that the process may still make.
func (r *Rules) families() (list []uint32) {
	if r.Internet {
		list = append(list, unix.AF_INET, unix.AF_INET6, unix.AF_NETLINK) // netlink: the host's addresses
	}
	if r.Connect {
		list = append(list, unix.AF_UNIX)
	}
	return list
}

// note notes namespaces, or why there are none.
func (s *Status) note(own *spaces) {
	for _, n := range own.list {
		s.Namespaces = append(s.Namespaces, n.name)
	}
	other := ""
	if hostpid.Own() {
		s.Namespaces, other = append(s.Namespaces, "pid"), "other "
	}
	if own.err != nil {
		s.miss(fmt.Sprintf("no %snamespaces (%v)", other, own.err))
	}
}

// LackPID notes why the process has not begun in a namespace of processes, which is worth a word
// where it has others.
func (s *Status) LackPID(why string) {
	if why != "" && len(s.Namespaces) > 0 {
		s.miss(fmt.Sprintf("no pid namespace (%s)", why))
	}
}

// CanEnter is false in a program that cannot take its threads into namespaces, for it is linked with a C library.
// To begin in some is of no use to it.
const CanEnter = !cgo

// privileged reports whether the process can make namespaces and take all of its threads
// there (setns(2)).
func privileged() bool {
	const needed = 1<<unix.CAP_SYS_ADMIN | 1<<unix.CAP_SYS_CHROOT
	return !cgo && held()&needed == needed
}

// errUnprivileged is why a process that is not privileged makes no namespaces.
func errUnprivileged() error {
	if cgo {
		return errors.New("a program that is linked with a C library cannot take its threads there")
	}
	return errors.New("this process has neither root's rights nor a user namespace of its own")
}

// become leaves the process some rights, or those of another user.
func (r *Rules) become(keep uint64) error {
	switch {
	case r.User != nil:
		return r.User.become()
	case !cgo && held() != 0:
		return keepOnly(keep)
	}
	return nil
}

// Narrow leaves of the paths that are open still only those of the rules. In a program
// that is linked with a C library it does nothing: that reaches its threads by a system
// call that Enforce has taken.
func Narrow(r Rules) error {
	if cgo {
		return nil
	}
	abi := landlockABI()
	ruleset, err := newRuleset(&r, abi)
	if err != nil {
		return err
	}
	return restrictFiles(ruleset, abi)
}

// Able tells what Enforce can do on this host, for a process with the rights of this one.
func Able() Status {
	m := Begin(Full, false).finish(&Rules{Paths: []Path{{Path: "/proc/self"}}})
	defer m.close()
	s := m.status
	s.note(&m.own)
	return s
}

func able() Status {
	s := Status{Level: Full, Landlock: landlockABI(), Seccomp: canFilter()}
	if s.Landlock == 0 {
		s.miss("this kernel has no Landlock (Linux 5.13)")
	}
	if !s.Seccomp {
		s.miss("this kernel has no seccomp filter with a listener (Linux 5.7)")
	}
	return s
}

func (s *Status) miss(what string) {
	if s.Missing != "" {
		s.Missing += ", and "
	}
	s.Missing += what
}
