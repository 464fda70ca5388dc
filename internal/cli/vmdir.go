package cli

import (
	"context"
	"encoding/json"
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
)

// The files in a VM's directory.
const (
	lockFile    = "lock"         // held by the VM's process as long as it lives
	infoFile    = "vm.json"      // its vmInfo
	controlFile = "control.sock" // see control
	consoleFile = "console.log"  // of VMs that run in the background
	outputFile  = "output.log"   // their command's output, and vmm's own messages
)

// reserved are names in the directory of VMs that are none.
var reserved = []string{"switch"}

// defaultName is the name of a VM that is not given one; if it is taken, a number
// follows.
const defaultName = "vmm"

// States of a VM.
const (
	stateRunning = "running"
	stateExited  = "exited"
)

// vmInfo says which VM it is. It is in the VM's directory, where those that have
// ended are found too, and is what vmm inspect prints.
type vmInfo struct {
	Name     string    `json:"name"`
	PID      int       `json:"pid"`
	State    string    `json:"state"`
	Status   *int      `json:"status,omitempty"` // the exit status of one that has ended, if it is known
	Detail   string    `json:"detail,omitempty"` // why it ended
	Started  time.Time `json:"started"`
	Ended    time.Time `json:"ended,omitzero"`
	Command  []string  `json:"command,omitempty"`
	CPUs     int       `json:"cpus"`
	Memory   uint64    `json:"memory"` // bytes
	Kernel   string    `json:"kernel,omitempty"`
	Disks    []string  `json:"disks,omitempty"`
	Shares   []string  `json:"shares,omitempty"`
	Nets     []string  `json:"nets,omitempty"`
	Detached bool      `json:"detached,omitempty"` // it stays in the list when it has ended
	Agent    bool      `json:"agent"`
	Paused   bool      `json:"paused,omitempty"` // it answers
}

// vmDir is a VM's directory, which its process holds.
type vmDir struct {
	path string
	lock *os.File
	info vmInfo
}

func vmPath(name string) string { return filepath.Join(runtimeDir(), name) }

// tryLock locks a VM's directory; false if its VM is running.
func tryLock(dir string) (*os.File, bool, error) {
	f, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, false, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = nil
		}
		return nil, false, err
	}
	return f, true, nil
}

// claimName makes the directory of a VM that begins.
func claimName(info vmInfo, given bool) (*vmDir, error) {
	if err := makeRuntimeDir(); err != nil {
		return nil, err
	}
	base := info.Name
	for n := 1; ; n++ {
		if n > 1 {
			info.Name = base + "-" + strconv.Itoa(n)
		}
		d, err := claim(info)
		var taken takenError
		if err == nil || given || !errors.As(err, &taken) {
			return d, err
		}
	}
}

// takenError says why a name cannot be had.
type takenError string

// Error implements error.
func (e takenError) Error() string { return string(e) }

// claim makes the directory of a name, unless it is another VM's.
func claim(info vmInfo) (*vmDir, error) {
	path := vmPath(info.Name)
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("the VM's directory: %w", err)
	}
	lock, free, err := tryLock(path)
	if err != nil {
		return nil, fmt.Errorf("the VM's directory: %w", err)
	}
	if !free {
		return nil, takenError(fmt.Sprintf("a VM %q is running already: give this one another --name", info.Name))
	}
	// Whoever clears away what was left may just have removed the directory.
	if !isLockOf(path, lock) {
		lock.Close()
		return claim(info)
	}
	d := &vmDir{path, lock, info}
	if old, err := readInfo(path); err == nil && old.Detached {
		lock.Close()
		return nil, takenError(fmt.Sprintf("there is a VM %q that has ended: vmm rm %s removes it", info.Name, info.Name))
	}
	for _, f := range []string{controlFile, consoleFile, outputFile, consoleFile + oldLog, outputFile + oldLog} {
		os.Remove(filepath.Join(path, f)) // of one that was killed
	}
	if err := d.save(); err != nil {
		lock.Close()
		return nil, err
	}
	return d, nil
}

// isLockOf reports whether a lock is that of the directory that is there now.
func isLockOf(path string, lock *os.File) bool {
	own, err := lock.Stat()
	if err != nil {
		return false
	}
	now, err := os.Stat(filepath.Join(path, lockFile))
	return err == nil && os.SameFile(own, now)
}

func readInfo(path string) (info vmInfo, err error) {
	b, err := os.ReadFile(filepath.Join(path, infoFile))
	if err != nil {
		return info, err
	}
	return info, json.Unmarshal(b, &info)
}

// save writes the info, in the place of the old one at once.
func (d *vmDir) save() error {
	b, err := json.Marshal(d.info)
	if err != nil {
		return err
	}
	tmp := filepath.Join(d.path, infoFile+".new")
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, filepath.Join(d.path, infoFile))
}

func (d *vmDir) file(name string) string { return filepath.Join(d.path, name) }

// close is the VM's end. One in the background stays in the list, unless that is
// not wanted.
func (d *vmDir) close(err error, remove bool) {
	defer d.lock.Close()
	if !d.info.Detached || remove {
		os.RemoveAll(d.path)
		return
	}
	status, detail := statusOf(err)
	d.info.Detail = detail
	d.info.State, d.info.Status, d.info.Ended = stateExited, &status, time.Now()
	d.save()
	os.Remove(d.file(controlFile))
}

// listVMs are the user's VMs, by name. What is left of those that were killed is
// cleared away; those of the background stay, as ended.
func listVMs() ([]vmInfo, error) {
	entries, err := os.ReadDir(runtimeDir())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var out []vmInfo
	for _, e := range entries {
		if info, ok := lookVM(e.Name()); ok {
			out = append(out, info)
		}
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Name < out[j].Name })
	return out, nil
}

// lookVM finds out what has become of a VM.
func lookVM(name string) (vmInfo, bool) {
	path := vmPath(name)
	info, err := readInfo(path)
	if err != nil {
		return info, false // one that just begins or goes
	}
	if info.State != stateRunning {
		return info, true
	}
	lock, free, err := tryLock(path)
	if err != nil || !free {
		return info, err == nil
	}
	defer lock.Close()
	// What was read is from before the lock: in between its process could say how it
	// ends, and another of the same name begin.
	if info, err = readInfo(path); err != nil || info.State != stateRunning || !isLockOf(path, lock) {
		return info, err == nil
	}
	// Its process is gone, and could not say anything any more.
	if !info.Detached {
		os.RemoveAll(path)
		return info, false
	}
	info.State, info.Detail, info.Ended = stateExited, "its process was killed", time.Now()
	(&vmDir{path, lock, info}).save()
	os.Remove(filepath.Join(path, controlFile))
	return info, true
}

// runningVMs are those of listVMs that run.
func runningVMs() []vmInfo {
	all, _ := listVMs()
	var out []vmInfo
	for _, vm := range all {
		if vm.State == stateRunning {
			out = append(out, vm)
		}
	}
	return out
}

// findVM returns a VM by its name or the number of its process.
func findVM(name string) (vmInfo, error) {
	if validName.MatchString(name) {
		if info, ok := lookVM(name); ok {
			return info, nil
		}
	}
	all, err := listVMs()
	if err != nil {
		return vmInfo{}, err
	}
	var names []string
	for _, vm := range all {
		if vm.State == stateRunning && strconv.Itoa(vm.PID) == name {
			return vm, nil
		}
		names = append(names, vm.Name)
	}
	there := "vmm run -d --name " + name + " starts one"
	if len(names) > 0 {
		there = "there are " + strings.Join(names, ", ")
	}
	return vmInfo{}, fmt.Errorf("no VM %q: %s", name, there)
}

// findRunning is findVM for one that runs.
func findRunning(name string) (vmInfo, error) {
	vm, err := findVM(name)
	if err == nil && vm.State != stateRunning {
		err = fmt.Errorf("VM %q is not running", vm.Name)
	}
	return vm, err
}

// waitEnded returns when a VM's process has ended; false if ctx ended before.
func waitEnded(ctx context.Context, name string) bool {
	for {
		info, ok := lookVM(name)
		if !ok || info.State != stateRunning {
			return true
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return false
		}
	}
}
