package jail

import (
	"os"

	"github.com/landlock-lsm/go-landlock/landlock"
	ll "github.com/landlock-lsm/go-landlock/landlock/syscall"
)

// abi is the newest version of Landlock whose rights these rules speak of: later ones
// restrict unix and UDP sockets, which a VM connects by the guest's wish.
var abi = landlock.V7

// landlockABI is the version that the kernel has, 0 for none.
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

var rights = map[Access]landlock.AccessFSSet{Read: read, Write: write, Files: files, Unlink: unlink}

// restrictFiles leaves the process the paths of the rules, TCP if it has the internet,
// and only its own abstract sockets. Signals are left to seccomp: before Linux 6.15
// Landlock counts the threads of a process as strangers, and Go's runtime signals them.
func restrictFiles(r *Rules) error {
	var rules []landlock.Rule
	for _, p := range r.Paths {
		st, err := os.Stat(p.Path)
		if err != nil {
			continue // it is not there, or not for this user
		}
		allowed := rights[p.Access]
		if !st.IsDir() {
			allowed &= ofFile
		}
		rules = append(rules, landlock.PathAccess(allowed, p.Path).IgnoreIfMissing())
	}
	c := abi
	c.Scoped = ll.ScopeAbstractUnixSocket
	if r.Internet { // any port: no rights of the network are handled
		c.HandledAccessNet = 0
	}
	return c.BestEffort().Restrict(rules...)
}
