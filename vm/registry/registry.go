// Package registry keeps the VMs of a user: their names, directories and locks. There
// is no daemon: each VM's process holds the lock in the VM's directory as long as it
// lives, and whoever looks clears away what is left of one that was killed.
package registry

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"vmm/internal/cgroup"
	"vmm/internal/vmname"
	"vmm/vm/api"
)

// The files in a VM's directory.
const (
	lockFile    = "lock"         // held by the VM's process as long as it lives
	infoFile    = "vm.json"      // its api.VM
	socketFile  = "control.sock" // see vm/server
	consoleFile = "console.log"  // of VMs that run in the background
	outputFile  = "output.log"   // their command's output, and vmm's own messages
)

// OldLog ends the name of the file that a log was in before it began anew.
const OldLog = ".1"

// SwitchDir is the directory, beside those of the VMs, of the switches that they share.
const SwitchDir = "switch"

// What a name, or a VM of a name, is not.
var (
	ErrName       = errors.New("is no name for a VM")
	ErrTaken      = errors.New("is taken")
	ErrNotFound   = errors.New("no VM")
	ErrRunning    = errors.New("is running")
	ErrNotRunning = errors.New("is not running")
	// ErrForeign is that of a runtime directory that another user may have made.
	ErrForeign = errors.New("is another user's")
)

// TakenError is an ErrTaken that says by which kind of VM.
type TakenError struct {
	Name  string
	Ended bool // by one that has ended, and is listed still
}

// Error implements error.
func (e *TakenError) Error() string {
	if e.Ended {
		return fmt.Sprintf("there is a VM %q that has ended", e.Name)
	}
	return fmt.Sprintf("a VM %q is running already", e.Name)
}

// Is implements the interface of errors.Is.
func (e *TakenError) Is(target error) bool { return target == ErrTaken }

// NotFoundError is an ErrNotFound that says which VMs there are.
type NotFoundError struct {
	Name  string
	Names []string // of all that are listed
}

// Error implements error.
func (e *NotFoundError) Error() string {
	s := fmt.Sprintf("no VM %q", e.Name)
	if len(e.Names) > 0 {
		s += ": there are " + strings.Join(e.Names, ", ")
	}
	return s
}

// Is implements the interface of errors.Is.
func (e *NotFoundError) Is(target error) bool { return target == ErrNotFound }

// ValidName reports whether a name has the right form: letters, digits and dashes
// between them, 1 to 63.
func ValidName(name string) bool { return vmname.Valid(name) }

// Reserved reports whether a name is one that no VM can have, for what else is in the
// directory of VMs.
func Reserved(name string) bool { return name == SwitchDir }

// Registry is the VMs in one directory. All methods may be called at the same time,
// by any number of processes.
type Registry struct {
	dir string
	// private is a directory above dir, which must not be another user's; "" if dir is
	// where nobody else could have made it.
	private string
}

// User returns the registry of this process's user: below $XDG_RUNTIME_DIR, or in a
// directory of the user's below that for temporary files.
func User() *Registry {
	if dir := os.Getenv("XDG_RUNTIME_DIR"); dir != "" {
		return &Registry{dir: filepath.Join(dir, "vmm")}
	}
	private := filepath.Join(os.TempDir(), fmt.Sprintf("vmm-%d", os.Getuid()))
	return &Registry{dir: filepath.Join(private, "vmm"), private: private}
}

// Dir is the directory that the VMs' directories are in. Make makes it.
func (r *Registry) Dir() string { return r.dir }

// Make makes the directory. In a directory for all, another user may have made it
// before, who could then listen in: that is ErrForeign.
func (r *Registry) Make() error {
	if r.private != "" {
		if err := os.MkdirAll(r.private, 0o700); err != nil {
			return err
		}
	}
	if err := r.check(); err != nil {
		return err
	}
	return os.MkdirAll(r.dir, 0o700)
}

// check finds out whether what is in the directory can be trusted.
func (r *Registry) check() error {
	if r.private == "" {
		return nil
	}
	var st unix.Stat_t
	if err := unix.Lstat(r.private, &st); err != nil {
		return &fs.PathError{Op: "lstat", Path: r.private, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR || int(st.Uid) != os.Getuid() || st.Mode&0o022 != 0 {
		return fmt.Errorf("%s %w: set XDG_RUNTIME_DIR to a directory of yours", r.private, ErrForeign)
	}
	return nil
}

func (r *Registry) path(name string) string { return filepath.Join(r.dir, name) }

// Socket is the path of a VM's control socket.
func (r *Registry) Socket(name string) string { return filepath.Join(r.path(name), socketFile) }

// ConsoleLog is the path of what the console of a VM in the background has said.
func (r *Registry) ConsoleLog(name string) string { return filepath.Join(r.path(name), consoleFile) }

// OutputLog is the path of what the command of a VM in the background has said.
func (r *Registry) OutputLog(name string) string { return filepath.Join(r.path(name), outputFile) }

// List returns the VMs, by name: those that run or will again, and those of the background that have
// ended. What is left of others is cleared away.
func (r *Registry) List() ([]api.VM, error) {
	err := r.check()
	var entries []os.DirEntry
	if err == nil {
		entries, err = os.ReadDir(r.dir)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var out []api.VM
	for _, e := range entries {
		if vm, err := r.look(e.Name()); err == nil { // else it just begins or goes
			out = append(out, vm)
		}
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Name < out[j].Name })
	return out, nil
}

// Running returns those of List that run.
func (r *Registry) Running() ([]api.VM, error) {
	all, err := r.List()
	var out []api.VM
	for _, vm := range all {
		if vm.State == api.Running {
			out = append(out, vm)
		}
	}
	return out, err
}

// Look finds out what has become of the VM of a name; ErrNotFound if it is not listed.
func (r *Registry) Look(name string) (api.VM, error) {
	if err := r.check(); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return api.VM{}, err
	}
	if !ValidName(name) {
		return api.VM{}, &NotFoundError{Name: name}
	}
	return r.look(name)
}

func (r *Registry) look(name string) (api.VM, error) {
	path := r.path(name)
	notFound := func(err error) (api.VM, error) {
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
			err = &NotFoundError{Name: name}
		}
		return api.VM{}, err
	}
	vm, err := readInfo(path)
	if err != nil {
		os.Remove(path) // if it is empty: see Entry.Give
		if errors.As(err, new(*unreadableError)) {
			return r.lookUnreadable(name, err)
		}
		return notFound(err)
	}
	if vm.State == api.Exited {
		return vm, nil
	}
	lock, err := tryLock(path)
	switch {
	case errors.Is(err, errLocked):
		return vm, nil
	case errors.Is(err, ErrNoFile):
		return r.lookUnreadable(name, err)
	case err != nil:
		return notFound(err)
	}
	defer lock.Close()
	// It may have ended between the two, and said how.
	if vm, err = readInfo(path); err != nil {
		return notFound(err)
	}
	if vm.State == api.Exited {
		return vm, nil
	}
	// Its process is gone, and could not say anything any more.
	how := killed(vm)
	if !vm.Detached {
		os.RemoveAll(path)
		return api.VM{}, &NotFoundError{Name: name}
	}
	vm.State, vm.Detail, vm.Ended, vm.Cgroup, vm.CgroupKills = api.Exited, how, time.Now(), "", nil
	err = writeInfo(path, vm)
	os.Remove(r.Socket(name))
	return vm, err
}

// lookUnreadable is look for a VM of which nothing can be read but its name: one that is Broken, or has ended.
func (r *Registry) lookUnreadable(name string, why error) (api.VM, error) {
	vm := api.VM{Name: name, Detached: true, Detail: why.Error()}
	lock, err := tryLock(r.path(name))
	switch {
	case errors.Is(err, errLocked) || errors.Is(err, ErrNoFile):
		vm.State, vm.PID = api.Broken, r.holder(name)
		return vm, nil
	case err != nil:
		return vm, err
	}
	defer lock.Close()
	vm.State, vm.Ended = api.Exited, time.Now()
	return vm, nil
}

// killed says how the process of a VM may have ended that could not, and clears its cgroup away.
func killed(vm api.VM) string {
	how := "its process was killed"
	if vm.Cgroup == "" {
		return how
	}
	switch cgroup.Reap(vm.Cgroup, vm.CgroupKills) {
	case cgroup.Yes:
		how += " by the host, for it needed more memory than its limit"
	case cgroup.Perhaps:
		how += ", as it seems by the host, for it needed more memory than its limit"
	}
	return how
}

// Find returns a VM by its name, or by the number of its process if it runs;
// ErrNotFound is a *NotFoundError.
func (r *Registry) Find(name string) (api.VM, error) {
	vm, err := r.Look(name)
	if err == nil || !errors.Is(err, ErrNotFound) {
		return vm, err
	}
	all, err := r.List()
	if err != nil {
		return api.VM{}, err
	}
	var names []string
	for _, vm := range all {
		if vm.State == api.Running && strconv.Itoa(vm.PID) == name {
			return vm, nil
		}
		names = append(names, vm.Name)
	}
	return api.VM{}, &NotFoundError{Name: name, Names: names}
}

// FindRunning is Find for a VM that runs; ErrNotRunning if it has ended, or is Broken.
func (r *Registry) FindRunning(name string) (api.VM, error) {
	vm, err := r.Find(name)
	switch {
	case err != nil:
	case vm.State == api.Broken:
		err = fmt.Errorf("VM %q %w as it should: %s", vm.Name, ErrNotRunning, vm.Detail)
	case vm.State != api.Running:
		err = fmt.Errorf("VM %q %w", vm.Name, ErrNotRunning)
	}
	return vm, err
}

// waitCheck is how often WaitEnded looks.
const waitCheck = 20 * time.Millisecond

// WaitEnded returns nil when a VM does not run any more, or runs anew, or the cause of ctx's end
// if that comes before.
func (r *Registry) WaitEnded(ctx context.Context, vm api.VM) error {
	return r.wait(ctx, vm.Name, func(now api.VM) bool {
		return now.State != api.Broken && (now.State != api.Running || !now.Started.Equal(vm.Started))
	})
}

// WaitListening returns nil when a VM that runs can be asked by its control socket, or does not run any more, or runs
// anew, or the cause of ctx's end if that comes before: a VM has its name before it is made.
func (r *Registry) WaitListening(ctx context.Context, vm api.VM) error {
	return r.wait(ctx, vm.Name, func(now api.VM) bool {
		_, err := os.Lstat(r.Socket(vm.Name))
		return !errors.Is(err, fs.ErrNotExist) || now.State != api.Running || !now.Started.Equal(vm.Started)
	})
}

// WaitGone is WaitEnded for a VM that is started again: it returns when that will not be any more.
func (r *Registry) WaitGone(ctx context.Context, vm api.VM) error {
	return r.wait(ctx, vm.Name, func(now api.VM) bool { return Over(vm, now) })
}

// Over reports whether a VM, as it was seen before, has ended for good, by what its name is now.
func Over(before, now api.VM) bool {
	switch {
	case now.State == api.Exited:
		return true
	case now.State == api.Broken:
		return false
	case before.Supervisor != 0:
		return now.Supervisor != before.Supervisor
	}
	return !now.Started.Equal(before.Started)
}

// wait returns when a VM is not listed any more, or ended says so.
func (r *Registry) wait(ctx context.Context, name string, ended func(now api.VM) bool) error {
	for {
		now, err := r.Look(name)
		if errors.Is(err, ErrNotFound) || err == nil && ended(now) {
			return nil
		}
		if err != nil {
			return err
		}
		select {
		case <-time.After(waitCheck):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// endTime is how long the process of a VM that has said that it has ended may take to go.
const endTime = 10 * time.Second

// Remove takes a VM that has ended from the list, with its logs. It returns ErrRunning
// or ErrNotFound for others.
func (r *Registry) Remove(name string) error {
	vm, err := r.Look(name)
	if err != nil {
		return err
	}
	lock, err := tryLock(r.path(name))
	for end := time.Now().Add(endTime); errors.Is(err, errLocked) && vm.State == api.Exited && time.Now().Before(end); {
		time.Sleep(waitCheck)
		lock, err = tryLock(r.path(name))
	}
	if errors.Is(err, errLocked) {
		return fmt.Errorf("VM %q %w", name, ErrRunning)
	}
	if err != nil {
		return err
	}
	defer lock.Close()
	return os.RemoveAll(r.path(name))
}
