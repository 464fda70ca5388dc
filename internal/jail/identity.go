package jail

import (
	"fmt"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// User is who the process becomes, with no further groups.
type User struct{ UID, GID int }

// become makes all threads another user's, which takes every capability too.
func (u *User) become() error {
	if err := syscall.Setgroups(nil); err != nil {
		return fmt.Errorf("setgroups: %w", err)
	}
	if err := syscall.Setresgid(u.GID, u.GID, u.GID); err != nil {
		return fmt.Errorf("group %d: %w", u.GID, err)
	}
	if err := syscall.Setresuid(u.UID, u.UID, u.UID); err != nil {
		return fmt.Errorf("user %d: %w", u.UID, err)
	}
	return nil
}

// Capabilities by what needs them (capabilities(7)).
const (
	searchOthers = 1 << unix.CAP_DAC_READ_SEARCH
	removeOthers = 1<<unix.CAP_DAC_OVERRIDE | searchOthers
	// changeOthers are all that a writable share takes whose files belong to several users.
	// No devices are made in one, but for the mark of an overlay, which needs no right.
	changeOthers = removeOthers | 1<<unix.CAP_CHOWN | 1<<unix.CAP_FOWNER | 1<<unix.CAP_FSETID | 1<<unix.CAP_SETFCAP
	lowPorts     = 1 << unix.CAP_NET_BIND_SERVICE
)

// capabilities are those that the rules need of what a privileged process has.
func (r *Rules) capabilities() (keep uint64) {
	if r.Internet {
		keep |= lowPorts
	}
	uid := os.Geteuid()
	for _, p := range r.Paths {
		var st unix.Stat_t
		if err := unix.Stat(p.Path, &st); err != nil || int(st.Uid) == uid && !p.Others {
			continue
		}
		keep |= map[Access]uint64{Read: searchOthers, Write: changeOthers, Files: changeOthers, Unlink: removeOthers}[p.Access]
	}
	return keep
}

// held are the capabilities that this thread can use.
func held() uint64 {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return 0
	}
	return uint64(data[0].Effective) | uint64(data[1].Effective)<<32
}

// keepOnly takes all other capabilities from all threads. Without execve the bounding
// set is of no use to anybody.
func keepOnly(keep uint64) error {
	keep &= held()
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	data := [2]unix.CapUserData{
		{Effective: uint32(keep), Permitted: uint32(keep)},
		{Effective: uint32(keep >> 32), Permitted: uint32(keep >> 32)},
	}
	_, _, errno := syscall.AllThreadsSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&data[0])), 0)
	if errno != 0 {
		return fmt.Errorf("giving up capabilities: %w", errno)
	}
	return nil
}
