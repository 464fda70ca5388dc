package jail

import (
	"errors"
	"fmt"
	"os"
	"slices"

	ll "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"golang.org/x/sys/unix"
)

// landlockABI is the version of Landlock that the kernel has, 0 for none.
func landlockABI() int {
	v, err := ll.LandlockGetABIVersion()
	if err != nil {
		return 0
	}
	return v
}

// Rights by Access (landlock(7)). A right that the kernel does not know is left out.
const (
	read   = ll.AccessFSReadFile | ll.AccessFSReadDir
	files  = read | ofFile | unlink | ll.AccessFSMakeReg | ll.AccessFSMakeSock
	write  = files | ll.AccessFSRefer | ll.AccessFSMakeChar | ll.AccessFSMakeDir | ll.AccessFSMakeFifo | ll.AccessFSMakeSym
	unlink = ll.AccessFSRemoveFile | ll.AccessFSRemoveDir | ll.AccessFSReadDir // to find what there is
	// ofFile are the rights that a file can have, and not only a directory.
	ofFile = ll.AccessFSReadFile | ll.AccessFSWriteFile | ll.AccessFSTruncate | ll.AccessFSIoctlDev
)

var rights = map[Access]uint64{Read: read, Write: write, Files: files, Unlink: unlink}

// Versions of Landlock, by what they can first ("Previous limitations" of Documentation/userspace-api/landlock.rst).
const (
	abiRefer    = 2
	abiTruncate = 3
	abiTCP      = 4
	abiIoctl    = 5
	abiScopes   = 6
	abiTSync    = 8
)

// handled is what a version can take of what these rules speak of. Rights of later versions
// restrict unix and UDP sockets, which a VM connects by the guest's wish. Signals are left to seccomp: before Linux 6.15
// Landlock counts the threads of a process as strangers, and Go's runtime signals them.
func handled(abi int, internet bool) (a ll.RulesetAttr) {
	a.HandledAccessFS = ll.AccessFSExecute | ll.AccessFSMakeBlock | write
	for _, right := range []struct {
		since int
		fs    uint64
	}{{abiRefer, ll.AccessFSRefer}, {abiTruncate, ll.AccessFSTruncate}, {abiIoctl, ll.AccessFSIoctlDev}} {
		if abi < right.since {
			a.HandledAccessFS &^= right.fs
		}
	}
	if abi >= abiTCP && !internet { // else any port
		a.HandledAccessNet = ll.AccessNetBindTCP | ll.AccessNetConnectTCP
	}
	if abi >= abiScopes {
		a.Scoped = ll.ScopeAbstractUnixSocket
	}
	return a
}

// noRuleset is the descriptor of none.
const noRuleset = -1

// newRuleset is the descriptor of what leaves a process the paths of the rules, TCP if it has the internet, and only
// its own abstract sockets. It is not in force yet. The first version lets nobody rename from one directory to another:
// where the rules want that, there is none.
func newRuleset(r *Rules, abi int) (fd int, err error) {
	if abi == 0 || abi < abiRefer && slices.ContainsFunc(r.Paths, func(p Path) bool { return p.Access == Write }) {
		return noRuleset, nil
	}
	attr := handled(abi, r.Internet)
	if fd, err = ll.LandlockCreateRuleset(&attr, 0); err != nil {
		return noRuleset, fmt.Errorf("a ruleset of Landlock: %w", err)
	}
	list := r.Paths
	if cgo { // where package psx lists the threads after a call, to see that all have made it
		list = append(slices.Clip(list), Path{Path: "/proc/self/task", Access: Unlink})
	}
	for _, p := range list {
		if err := allow(fd, &p, attr.HandledAccessFS); err != nil {
			unix.Close(fd)
			return noRuleset, fmt.Errorf("leaving %s: %w", p.Path, err)
		}
	}
	return fd, nil
}

// allow adds a path to a ruleset.
func allow(ruleset int, p *Path, handled uint64) error {
	fd, err := unix.Open(p.Path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil // it is not there, or not for this user
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return &os.PathError{Op: "fstat", Path: p.Path, Err: err}
	}
	allowed := rights[p.Access] & handled
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		allowed &= ofFile
	}
	if allowed == 0 {
		return nil
	}
	return ll.LandlockAddPathBeneathRule(ruleset, &ll.PathBeneathAttr{AllowedAccess: allowed, ParentFd: fd}, 0)
}

// noNewPrivs has all threads gain no rights by execve, without which nobody is restricted by Landlock
// who has no rights. The filter of system calls takes it to all by itself.
func noNewPrivs() error { return ll.AllThreadsPrctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }

// restrictFiles puts a ruleset in force, on all threads, and closes it. They have noNewPrivs.
func restrictFiles(ruleset, abi int) (err error) {
	if ruleset == noRuleset {
		return nil
	}
	if abi >= abiTSync {
		err = ll.LandlockRestrictSelf(ruleset, ll.FlagRestrictSelfTSync)
	} else {
		err = ll.AllThreadsLandlockRestrictSelf(ruleset, 0)
	}
	return errors.Join(err, unix.Close(ruleset))
}
