package cli

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"vmm/vm/api"
	"vmm/vm/registry"
)

// A VM that is to be started again after its end has a process beside its own that does so, for that gives up
// what is needed for it (docs/jail.md). It holds the VM's name.

// lockFD is the lock of the VM's name, in a process that a supervisor has started: it is held as
// long as one of the two lives.
const lockFD = 4

// ending is what the process of a VM says to its supervisor in the end, on readyFD.
type ending struct {
	Stays  bool // nobody shall start the VM again
	Gone   bool // nor list it: it goes on elsewhere
	Detail string
}

// maxEnding bounds the text of an ending, in bytes: a guest may have had its hands in it.
const maxEnding = 64 << 10

// superviseVM starts the session's VM, and starts it again as its policy says, until that ends it or a signal does.
func (s *session) superviseVM(ctx context.Context) (err error) {
	takeSignals(ctx)
	ctx, cancel := signal.NotifyContext(ctx, unix.SIGTERM, unix.SIGINT, unix.SIGHUP)
	defer cancel()
	if err := s.take(s.Config); err != nil {
		return failed(err)
	}
	defer func() {
		if err != nil {
			err = failed(errors.Join(err, s.entry.Remove()))
		}
	}()
	s.Supervised = true
	pause := time.Duration(0)
	for restarts := 0; ; restarts++ {
		began := time.Now()
		status, end, err := s.superviseRun(ctx, restarts == 0)
		if err != nil {
			return err
		}
		if end.Gone {
			return s.entry.Remove()
		}
		if end.Stays || ctx.Err() != nil || !s.Restart.applies(status, restarts) {
			return s.entry.End(status, end.Detail)
		}
		if err := s.entry.Restarting(status, end.Detail); err != nil {
			return err
		}
		pause = restartPause(pause, time.Since(began))
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return s.entry.End(status, end.Detail)
		}
	}
}

// superviseRun runs the VM once, and returns its exit status and what its process has said. The
// error is that of a first run that did not come to be, which has told why on standard error.
func (s *session) superviseRun(ctx context.Context, first bool) (status int, end ending, err error) {
	r, w, err := os.Pipe()
	if err != nil {
		return 0, end, err
	}
	defer r.Close()
	c, err := s.startBackground(ctx, w, s.entry.Lock())
	w.Close()
	if err != nil {
		if first {
			return 0, end, err
		}
		return statusFailed, ending{Detail: err.Error()}, nil
	}
	said := bufio.NewReader(io.LimitReader(r, maxEnding))
	defer endWith(ctx, c, said)()
	word, _ := said.ReadString('\n')
	if strings.HasPrefix(word, readyWord+" ") {
		if first {
			if err := s.letGo(); err != nil {
				return 0, end, err
			}
			first = false
		}
		json.NewDecoder(said).Decode(&end) // else it was killed
	} else if json.Unmarshal([]byte(word), &end) != nil {
		end = ending{}
	}
	c.Wait() // its status is looked at
	how := c.ProcessState.Sys().(syscall.WaitStatus)
	status = how.ExitStatus()
	if how.Signaled() {
		status = 128 + int(how.Signal())
		end.Detail = s.entry.Killed()
	}
	if first {
		return 0, end, &exitError{status, nil}
	}
	return status, end, nil
}

// letGo lets the one go who started this process: what it and further runs of the VM say is in the log from now on.
func (s *session) letGo() error {
	b, err := openBackground(s.entry)
	if err != nil {
		return err
	}
	defer b.close()
	debug.FreeOSMemory() // it has little to do from now on
	return errors.Join(b.ready(s.entry.Name()), unix.Close(readyFD))
}

// tellSupervisor says how the VM has ended. The error is that there is nobody any more.
func (s *session) tellSupervisor(why string) error {
	b, err := json.Marshal(ending{Stays: s.stopped.Load(), Gone: s.Remove, Detail: why})
	if err == nil {
		_, err = unix.Write(readyFD, append(b, '\n'))
	}
	return err
}

// giveUp has the supervisor of a VM that is between two runs not begin the next.
func giveUp(ctx context.Context, vm api.VM) error {
	if !registry.User().Supervised(vm) {
		return fmt.Errorf("VM %q is not started again by the process %d, as its directory says: who starts it has to be ended by hand", vm.Name, vm.Supervisor)
	}
	if err := unix.Kill(vm.Supervisor, unix.SIGTERM); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("the process %d that starts VM %q again: %w", vm.Supervisor, vm.Name, err)
	}
	ctx, cancel := context.WithTimeout(ctx, killTime)
	defer cancel()
	return registry.User().WaitGone(ctx, vm)
}

// endVM ends a VM that runs by what end does, also one that is about to run again.
func endVM(ctx context.Context, name string, end func(context.Context, api.VM) error) error {
	vm, err := findVM(name)
	if err == nil && vm.State == api.Exited {
		_, err = findRunning(ctx, name) // which says so
	}
	for began := vm; err == nil; {
		if vm.State == api.Restarting {
			return giveUp(ctx, vm)
		}
		if vm.State == api.Running {
			waitListening(ctx, vm) // an error is end's matter
		}
		if err = end(ctx, vm); err != nil || began.Supervisor == 0 {
			return err
		}
		// It may have ended by itself before it was asked to.
		vm, err = registry.User().Look(name)
		if errors.Is(err, registry.ErrNotFound) || err == nil && registry.Over(began, vm) {
			return nil
		}
	}
	return err
}
