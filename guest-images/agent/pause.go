package agent

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"
)

// ErrNotAlone is the error where the agent cannot stop all others: it would stop what it depends on.
var ErrNotAlone = errors.New("the agent is a service of the guest's, and cannot stop all its processes")

// stopOthers stops all processes but this one and the guest's init, until the function that it returns is
// called. What had been stopped before stays so.
func stopOthers() (goOn func()) {
	before := map[int]bool{}
	for _, pid := range processes() {
		before[pid] = isStopped(pid)
	}
	unix.Kill(-1, unix.SIGSTOP)
	return func() {
		// A child goes on before its parent, which does not come to know that it stood.
		for _, pid := range slices.Backward(processes()) {
			if !before[pid] {
				unix.Kill(pid, unix.SIGCONT)
			}
		}
	}
}

// processes are all but init, in the order of their numbers.
func processes() (out []int) {
	list, _ := os.ReadDir("/proc")
	for _, e := range list {
		if pid, err := strconv.Atoi(e.Name()); err == nil && pid > 1 {
			out = append(out, pid)
		}
	}
	slices.Sort(out)
	return out
}

// isStopped reports whether a process stands still by a signal (proc_pid_stat(5)).
func isStopped(pid int) bool {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	end := bytes.LastIndexByte(b, ')') // of the name, which can have anything
	return end >= 0 && bytes.HasPrefix(b[end+1:], []byte(" T"))
}
