package registry

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"vmm/internal/cgroup"
	"vmm/internal/hostpid"
	"vmm/vm/api"
)

// Entry is a VM's place in the registry, which its process holds until End or Remove.
// Its other methods may be called at any time.
type Entry struct {
	registry *Registry
	lock     *os.File
	vm       api.VM
	given    bool // to another user
}

// Claim takes a name for a VM that begins. It returns ErrName, or ErrTaken as a
// *TakenError, or ErrForeign. The state and the time of the start are set.
func (r *Registry) Claim(vm api.VM) (*Entry, error) {
	if !ValidName(vm.Name) || Reserved(vm.Name) {
		return nil, fmt.Errorf("%q %w", vm.Name, ErrName)
	}
	if err := r.Make(); err != nil {
		return nil, fmt.Errorf("the VM's directory: %w", err)
	}
	path := r.path(vm.Name)
	var lock *os.File
	for lock == nil {
		if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, fmt.Errorf("the VM's directory: %w", err)
		}
		var err error
		lock, err = tryLock(path)
		if errors.Is(err, errLocked) {
			return nil, &TakenError{Name: vm.Name}
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // else it was just removed
			return nil, fmt.Errorf("the VM's directory: %w", err)
		}
	}
	old, err := readInfo(path)
	if err == nil && old.Detached {
		lock.Close()
		return nil, &TakenError{Name: vm.Name, Ended: true}
	}
	if err == nil && old.Cgroup != "" { // of one that was killed, as the files are
		cgroup.Reap(old.Cgroup, old.CgroupKills)
	}
	for _, f := range []string{socketFile, consoleFile, outputFile, consoleFile + OldLog, outputFile + OldLog} {
		os.Remove(filepath.Join(path, f))
	}
	vm.State, vm.Started = api.Running, time.Now()
	if err := writeInfo(path, vm); err != nil {
		lock.Close()
		return nil, fmt.Errorf("the VM's directory: %w", err)
	}
	return &Entry{registry: r, lock: lock, vm: vm}, nil
}

// Adopt is Claim for a process that a supervisor has started, whose lock it has inherited: the VM
// of a name begins, or begins again.
func (r *Registry) Adopt(name string, lock *os.File) (*Entry, error) {
	vm, err := readInfo(r.path(name))
	if err != nil {
		return nil, fmt.Errorf("the VM's directory: %w", err)
	}
	vm.State, vm.PID, vm.Started = api.Running, hostpid.Self(), time.Now()
	vm.Status, vm.Detail, vm.Ended, vm.Cgroup, vm.CgroupKills = nil, "", time.Time{}, "", nil
	if err := writeInfo(r.path(name), vm); err != nil {
		return nil, fmt.Errorf("the VM's directory: %w", err)
	}
	return &Entry{registry: r, lock: lock, vm: vm}, nil
}

// Lock is what holds the name: it does so, too, in a process that inherits it.
func (e *Entry) Lock() *os.File { return e.lock }

// Leave closes an adopted entry: its supervisor says how the VM has ended.
func (e *Entry) Leave() error { return e.lock.Close() }

// Killed clears away what a process has left that had adopted the entry, and was killed; it says how that
// may have come.
func (e *Entry) Killed() string {
	vm, err := readInfo(e.Path())
	if err != nil {
		vm = e.vm
	}
	return killed(vm)
}

// Restarting notes that the VM has ended, with its exit status and why, and will be started again.
func (e *Entry) Restarting(status int, detail string) error {
	e.vm.Restarts++
	return e.note(api.Restarting, status, detail)
}

// note writes down that the VM has ended, and how.
func (e *Entry) note(state api.State, status int, detail string) error {
	vm := e.vm
	if now, err := readInfo(e.Path()); err == nil { // another process may have adopted the entry
		vm.Started = now.Started
	}
	vm.State, vm.Status, vm.Detail, vm.Ended = state, &status, detail, time.Now()
	vm.Cgroup, vm.CgroupKills = "", nil
	err := writeInfo(e.Path(), vm)
	os.Remove(e.Socket())
	return err
}

// ClaimSimilar is Claim, but puts a number behind a name that is taken.
func (r *Registry) ClaimSimilar(vm api.VM) (*Entry, error) {
	base := vm.Name
	for n := 2; ; n++ {
		e, err := r.Claim(vm)
		if !errors.Is(err, ErrTaken) {
			return e, err
		}
		vm.Name = base + "-" + strconv.Itoa(n)
	}
}

// Limit notes that the VM's process has limits, and in which cgroup: whoever finds the
// process killed removes that.
func (e *Entry) Limit(l *cgroup.Limits, group string) error {
	e.vm.Limits, e.vm.Cgroup = l.String(), group
	if l.Memory > 0 {
		kills := cgroup.Kills(group)
		e.vm.CgroupKills = &kills
	}
	return writeInfo(e.Path(), e.vm)
}

// VM returns the VM as it was claimed.
func (e *Entry) VM() api.VM { return e.vm }

// Name is the VM's name.
func (e *Entry) Name() string { return e.vm.Name }

// Socket is the path of the control socket, on which the VM shall listen.
func (e *Entry) Socket() string { return e.registry.Socket(e.vm.Name) }

// ConsoleLog is the path of the console's log, for a VM in the background.
func (e *Entry) ConsoleLog() string { return e.registry.ConsoleLog(e.vm.Name) }

// OutputLog is the path of the log of the command, for a VM in the background.
func (e *Entry) OutputLog() string { return e.registry.OutputLog(e.vm.Name) }

// Path is the VM's directory.
func (e *Entry) Path() string { return e.registry.path(e.vm.Name) }

// End lets the name go when the VM has ended. If it was detached it stays in the list,
// with its exit status, 0 to 255, and why it ended.
func (e *Entry) End(status int, detail string) error {
	if !e.vm.Detached {
		return e.Remove()
	}
	return errors.Join(e.note(api.Exited, status, detail), e.lock.Close())
}

// Remove lets the name go, and leaves nothing.
func (e *Entry) Remove() error {
	var err error
	if e.given {
		err = e.each(os.RemoveAll)
	} else {
		err = os.RemoveAll(e.Path())
	}
	return errors.Join(err, e.lock.Close())
}

// Give makes the VM's directory another user's, whom this process is about to become.
// Remove leaves it then, empty, for the next look at the registry to clear away.
func (e *Entry) Give(uid, gid int) error {
	e.given = true
	give := func(path string) error { return os.Lchown(path, uid, gid) }
	return errors.Join(e.each(give), give(e.Path()))
}

// each does something with the files in the VM's directory.
func (e *Entry) each(do func(path string) error) error {
	files, err := os.ReadDir(e.Path())
	for _, f := range files {
		err = errors.Join(err, do(filepath.Join(e.Path(), f.Name())))
	}
	return err
}

// errLocked is that of a directory whose VM runs.
var errLocked = errors.New("locked")

// tryLock locks a VM's directory; errLocked if its VM runs. The lock goes with the
// file, or the process.
func tryLock(path string) (*os.File, error) {
	name := filepath.Join(path, lockFile)
	f, err := Open(name, os.O_RDWR|os.O_CREATE)
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = errLocked
	}
	// Whoever clears away what was left may just have removed the directory.
	if err == nil && !isAt(f, name) {
		err = fs.ErrNotExist
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// isAt reports whether an open file is the one of a name.
func isAt(f *os.File, name string) bool {
	a, err := f.Stat()
	b, err2 := os.Lstat(name)
	return err == nil && err2 == nil && os.SameFile(a, b)
}

// Supervised reports whether the supervisor that a VM's directory names is who claimed the VM's name: it has the lock open. The
// process of the VM can write in the directory too, and must not have others signalled.
func (r *Registry) Supervised(vm api.VM) bool {
	lock, err := os.Lstat(filepath.Join(r.path(vm.Name), lockFile))
	return err == nil && vm.Supervisor > 0 && hasOpen(vm.Supervisor, lock)
}

// holder is the process that has a VM's lock open; 0 if there is none that this one can look at.
func (r *Registry) holder(name string) int {
	lock, err := os.Lstat(filepath.Join(r.path(name), lockFile))
	if err != nil {
		return 0
	}
	processes, err := filepath.Glob("/proc/[1-9]*")
	if err != nil {
		return 0
	}
	for _, p := range processes {
		if pid, err := strconv.Atoi(filepath.Base(p)); err == nil && hasOpen(pid, lock) {
			return pid
		}
	}
	return 0
}

// hasOpen reports whether a process has a file open.
func hasOpen(pid int, file os.FileInfo) bool {
	open := fmt.Sprintf("/proc/%d/fd", pid)
	fds, err := os.ReadDir(open)
	if err != nil {
		return false
	}
	return slices.ContainsFunc(fds, func(fd os.DirEntry) bool {
		st, err := os.Stat(filepath.Join(open, fd.Name()))
		return err == nil && os.SameFile(st, file)
	})
}
