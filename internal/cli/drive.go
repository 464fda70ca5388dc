package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"sort"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"vmm/guest-images/agent"
	"vmm/machine"
)

// spareForCPUs gives Go's scheduler a place more for each virtual CPU: one that
// is in KVM_RUN keeps its place for up to milliseconds, and the devices'
// goroutines would wait for it.
func spareForCPUs(n int) { runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) + n) }

// drive runs the machine, with a job in the guest, or with its console and the
// signals that end it; and with the timeout.
func (f *runFlags) drive(ctx context.Context, m *machine.Machine, con *hostConsole, input func([]byte) error,
	job func(context.Context) (int, error)) (machine.Result, int, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := func(status int, err error) { cancel(&exitError{status, err}) }
	if f.timeout > 0 {
		t := time.AfterFunc(f.timeout, func() { stop(statusTimeout, fmt.Errorf("the guest did not end within %v", f.timeout)) })
		defer t.Stop()
	}
	if job != nil {
		done := make(chan struct{})
		defer func() {
			cancel(nil)
			<-done // it has the terminal
		}()
		go func() {
			defer close(done)
			stop(job(ctx))
		}()
	} else {
		defer f.interact(ctx, m, con, input, stop)()
	}
	result, err := m.Run(ctx)
	var exit *exitError
	if errors.As(context.Cause(ctx), &exit) && result.End == machine.EndStopped {
		if exit.err != nil {
			con.restore()
			fmt.Fprintln(os.Stderr, "\nvmm:", exit.err)
		}
		return result, exit.status, err
	}
	if job != nil && result.End != machine.EndCrash && result.End != machine.EndDebugExit {
		return result, statusFailed, err
	}
	return result, statusOK, err
}

// interact connects the console, and ends the VM by a signal. The returned
// function ends that.
func (f *runFlags) interact(ctx context.Context, m *machine.Machine, con *hostConsole, input func([]byte) error, stop func(int, error)) func() {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	go func() {
		select {
		case s := <-signals:
			stop(128+int(s.(unix.Signal)), nil)
		case <-ctx.Done():
		}
	}()
	go con.copyInput(input, consoleActions{
		quit:  func() { stop(statusOK, nil) },
		power: m.PressPowerButton,
		help:  func() { io.WriteString(con, consoleHelp) },
	})
	return func() { signal.Stop(signals) }
}

// shellCommand is the command of -it without one: the user's shell, as far as the
// guest has it.
func (f *runFlags) shellCommand() []string {
	if shell := os.Getenv("SHELL"); f.rootDir == "/" && shell != "" {
		return []string{shell}
	}
	return []string{"/bin/sh"}
}

// runJob runs the command in the guest and saves what that has written.
func (f *runFlags) runJob(ctx context.Context, p *parts, saver *saver) (int, error) {
	argv := f.command
	if len(argv) == 0 {
		argv = f.shellCommand()
	}
	client := p.guest.client()
	ready := func(ctx context.Context) error {
		err := p.guest.wait(ctx)
		if p.result.Started = err == nil; err == nil && f.warm != nil && f.restored == nil {
			f.warm.exercise(ctx, p)
			frozen := make(chan struct{})
			p.saving.Go(func() { f.warm.save(saver, sync.OnceFunc(func() { close(frozen) })) })
			<-frozen
		}
		if err == nil {
			err = f.prepare(ctx, client, p)
		}
		return err
	}
	status, err := runInGuest(ctx, ready, client, f.execFlags.request(argv), p.stdout, p.stderr)
	if err != nil {
		select { // the guest may be about to end, which says more
		case <-ctx.Done():
		case <-time.After(lastWords):
		}
		return statusFailed, err
	}
	p.result.Exited = true
	if len(f.disks)+len(f.rw)+len(f.shares) > 0 {
		if err := p.guest.client().Sync(ctx); err != nil && ctx.Err() == nil {
			return statusFailed, fmt.Errorf("saving what the guest has written: %w", err)
		}
	}
	if status >= statusCrash && status <= statusFailed {
		fmt.Fprintf(p.stderr, "vmm: status %d is the command's own\n", status)
	}
	return status, nil
}

// prepare tells the guest what it does not know, before anybody else uses its agent:
// together with the command where nobody else is likely to, which is faster.
func (f *runFlags) prepare(ctx context.Context, client *agent.Client, p *parts) error {
	defer p.guest.letIn()
	setup := f.warmSetup(p)
	if setup == nil || !f.detach && len(p.shares.config.Mounts) == 0 {
		client.Before = setup
		return nil
	}
	return client.Setup(ctx, setup)
}

// lastWords is how long a guest may take to end when its agent has hung up.
const lastWords = 3 * time.Second

// consoleLines is how much of the console is shown when a guest fails whose console
// is not seen.
const consoleLines = 40

// outcome is what the guest's end means for the exit status.
func (f *runFlags) outcome(r machine.Result, status int, p *parts) error {
	switch {
	case r.End == machine.EndCrash:
		if f.console == "none" {
			fmt.Fprintln(os.Stderr, p.output.lines(consoleLines))
		}
		return &exitError{statusCrash, fmt.Errorf("the guest crashed: %s", r.Detail)}
	case r.End == machine.EndDebugExit:
		status = r.Status
	case r.End != machine.EndStopped && f.sandbox():
		if why := p.output.said("init: "); why != nil {
			return &exitError{statusFailed, fmt.Errorf("the guest could not run the command: %s", strings.Join(why, "; "))}
		}
		return &exitError{statusFailed, errors.New("the guest shut down before the command had ended")}
	}
	if status == statusOK {
		return nil
	}
	return &exitError{status, nil}
}

func writeProfile(path string, m *machine.Machine) error {
	out, err := os.Create(path)
	if err != nil {
		return fmt.Errorf("--profile: %w", err)
	}
	return errors.Join(m.WriteProfile(out), out.Close())
}

// report prints what -v asks for.
func report(w io.Writer, m *machine.Machine, setup, ran time.Duration) {
	mode := "hardware"
	if m.Interpreted() {
		mode = "interpreted"
	}
	fmt.Fprintf(w, "\nvmm: set up in %v, ran for %v, guest kernel mode: %s\n",
		setup.Round(time.Microsecond), ran.Round(time.Millisecond), mode)
	exits := m.Exits()
	names := make([]string, 0, len(exits))
	for n := range exits {
		names = append(names, n)
	}
	sort.Slice(names, func(i, j int) bool { return exits[names[i]] > exits[names[j]] })
	for _, n := range names {
		fmt.Fprintf(w, "vmm: %10d exits: %s\n", exits[n], n)
	}
}
