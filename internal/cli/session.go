package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"os/user"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	guestimages "vmm/guest-images"
	"vmm/internal/visible"
	"vmm/kvm"
	"vmm/machine"
	"vmm/vm"
	"vmm/vm/registry"
	"vmm/vm/server"
	"vmm/vm/warm"
)

// session is one VM that a command runs: what it is made of, and what this process does
// with it. It is JSON for a process in the background.
type session struct {
	// One of these says where the VM comes from.
	Config  *vm.Config   `json:",omitempty"`
	Restore *restoreJob  `json:",omitempty"`
	Receive *receiveJob  `json:",omitempty"`
	Named   bool         // the VM has this name or none
	Sandbox bool         // it is there for Command
	Command []string     `json:",omitempty"`
	Exec    execSettings // how that runs
	// StopSignal is what Command gets when the VM is to stop, and StopSeconds how long it may take then; 0 is
	// SIGTERM, and what vmm stop says.
	StopSignal  unix.Signal `json:",omitempty"`
	StopSeconds *int        `json:",omitempty"`
	RootSize    int64       `json:",omitempty"` // room for what is written to an image's root, in bytes: on a disk, unless it is 0

	Terminal     bool // the console is this process's standard input and output
	ConsoleGiven bool // the user has said where the console leads
	Timeout      time.Duration
	GDB          string
	Capture      string
	Profile      string
	Result       string
	Jail         vm.JailLevel
	JailUser     *vm.JailUser `json:",omitempty"`
	NoPID        string       `json:",omitempty"` // why this process has begun in no namespace of processes
	Detach       bool
	Restart      *restartPolicy `json:",omitempty"` // nil is never
	Supervised   bool           // by a process that has begun this one, and holds the VM's name
	Remove       bool
	Verbose      bool
	Cold         bool // no warm start
	Warm         bool // a warm start although the user wants the console

	// Of the process that runs it.
	entry      *registry.Entry
	rootDisk   *rootDisk // nil if there is none
	group      *vm.Group // that has the VM's limits; nil if it has none
	background *background
	console    *hostConsole
	stdout     io.Writer // of the command
	stderr     io.Writer
	result     runResult
	waiting    *waiting       // for the guest and its command; nil where nobody is told
	warm       *warm.Snapshot // where the VM is saved before its command; nil if it is not
	saving     sync.WaitGroup
	began      time.Time
	builder    *guestimages.Builder
	built      func() // ends the builder's progress bar
	killed     atomic.Bool
	stopped    atomic.Bool // by somebody who has asked for it
	ready      bool        // whoever has started it need not be there any more
}

// start runs the session here or in the background.
func (s *session) start(ctx context.Context, out io.Writer) error {
	if s.Detach {
		name, err := s.detach(ctx)
		if err == nil {
			fmt.Fprintln(out, name)
		}
		return failed(err)
	}
	return s.run(ctx)
}

// run runs the VM in this process until it ends.
func (s *session) run(ctx context.Context) (err error) {
	defer func() { err = errors.Join(failed(err), s.leave(err)) }()
	s.began, s.stdout, s.stderr = time.Now(), os.Stdout, os.Stderr
	putOffCollection()
	s.waiting = newWaiting(os.Stderr)
	s.builder, s.built = setupBuilder()
	if s.Config != nil {
		name, err := s.claim(s.Config)
		if err != nil {
			return err
		}
		s.Config.Name = name
	}
	v, err := s.prepare(ctx)
	s.built()
	if err = errors.Join(err, s.rootDisk.opened(err)); err != nil {
		return err
	}
	defer v.Close()
	return s.live(ctx, v)
}

// openConsole opens what the console and the command's output go to: a VM in the
// background has logs, and of one that runs a command the console is seen only if it
// crashes.
func (s *session) openConsole() (err error) {
	s.console = noConsole()
	if s.Detach {
		if s.background, err = openBackground(s.entry); err != nil {
			return err
		}
		s.stdout, s.stderr = s.background.output, s.background.output
		if !s.ConsoleGiven {
			s.console = &hostConsole{Writer: s.background.console, restore: func() {}}
			return nil
		}
	}
	if s.Terminal {
		s.console, err = stdConsole()
	}
	return err
}

// options are what the VM has of this process.
func (s *session) options() []vm.Option {
	var keys io.Reader // nil, and no hostConsole that is
	if s.console.in != nil {
		keys = s.console
	}
	o := []vm.Option{
		vm.WithConsole(keys, s.console), vm.WithLog(s.log), vm.WithBuilder(s.builder), vm.WithCapture(s.Capture),
		vm.WithRuntimeDir(registry.User().Dir()), vm.WithGroup(s.group), vm.WithConfinement(s.confinement),
	}
	if s.Terminal && s.console.in != nil {
		serial := s.Config == nil || s.Config.ConsoleDevice != vm.VirtioConsole
		o = append(o, vm.WithInitArgs(terminalArgs(serial)...))
	}
	return o
}

// log tells what a user should know while the VM runs.
func (s *session) log(err error) {
	out := io.Writer(os.Stderr)
	if s.console != nil {
		out = s.console.messages()
	}
	s.waiting.clear()
	fmt.Fprintf(out, "vmm: %s\n", visible.Text(withHint(err).Error()))
}

// prepare makes the VM, from a snapshot of its kind if there is one, and prepares it.
func (s *session) prepare(ctx context.Context) (*vm.VM, error) {
	v, err := s.fromWarm(ctx)
	if v != nil {
		return v, inFlags(err)
	}
	if v, err = s.make(ctx); err == nil {
		err = v.Prepare(ctx)
	}
	return v, inFlags(err)
}

// make makes a VM that boots, or goes on from what the user says. A Config that cannot be
// is a wrong use, for all of it that was not saved is what the user has said.
func (s *session) make(ctx context.Context) (v *vm.VM, err error) {
	switch {
	case s.Restore != nil:
		v, err = s.Restore.open(s)
	case s.Receive != nil:
		v, err = s.Receive.open(ctx, s)
	default:
		v, err = vm.New(*s.Config, s.options()...)
	}
	var config *vm.ConfigError
	if errors.As(err, &config) {
		err = &exitError{statusUsage, inFlags(err)}
	}
	return v, err
}

// tells reports whether what is good to know is told: a command's standard error is its
// own, where it goes to a file.
func (s *session) tells() bool { return !s.Sandbox || term.IsTerminal(int(os.Stderr.Fd())) }

// live runs a VM that is prepared.
func (s *session) live(ctx context.Context, v *vm.VM) (err error) {
	if v.StockKernel() && s.tells() {
		s.log(errors.New("this is Debian's own kernel; vmm setup builds one, in some minutes, that boots faster"))
	}
	if v.Engine() == machine.SoftwareEngine && v.Config().Engine == machine.AutoEngine && s.tells() {
		if _, err := machine.KVMEngine.Choose(""); errors.Is(err, kvm.ErrAbsent) {
			s.log(errors.New("this host has no KVM: the guest runs in software, which takes longer; vmm doctor says more"))
		}
	}
	files, err := s.openOutputs(v)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, files.close()) }()
	debugger, err := listenGDB(s.GDB)
	if err != nil {
		return err
	}
	defer debugger.close()
	local := &server.Local{VM: v, Entry: s.entry.VM, Ending: s.ending,
		NoConsole: s.background == nil || s.ConsoleGiven}
	if s.Sandbox {
		local.End = s.acceptStops()
	}
	control := server.New(local)
	defer control.Close()
	if err := control.Listen(s.entry.Socket()); err != nil {
		return err
	}
	if err := s.confine(v, local); err != nil {
		return err
	}
	control.Serve()
	debugger.serve(v, local.Kill, s.console.messages())
	if s.Profile != "" {
		v.StartProfile()
	}
	set := time.Now()
	result, status, err := s.drive(ctx, v)
	s.console.restore()
	s.saving.Wait()
	if err != nil {
		err = failed(err)
		return errors.Join(err, s.result.save(files.result, endFailed, err))
	}
	if to := v.MovedTo(); to != "" {
		s.log(fmt.Errorf("the VM has moved to %s", to))
		s.Remove = true
		return nil
	}
	if s.killed.Load() && result.End == vm.EndStopped {
		status = 128 + int(unix.SIGKILL)
	}
	if err := writeProfile(files.profile, v); err != nil {
		return err
	}
	if s.Verbose {
		report(os.Stderr, v, set.Sub(s.began), time.Since(set))
	}
	err = s.outcome(v, result, status)
	if bad := s.result.save(files.result, result.End.String(), err); bad != nil {
		return errors.Join(bad, err)
	}
	return err
}

// ending is told that somebody ends the VM.
func (s *session) ending(atOnce bool) {
	s.stopped.Store(true)
	if atOnce {
		s.killed.Store(true)
	}
}

// acceptStops has the command get its signal when the returned function is called.
func (s *session) acceptStops() (stop func() error) {
	signals := make(chan os.Signal, maxSignals)
	s.Exec.signals = signals
	return func() error {
		select {
		case signals <- cmp.Or(s.StopSignal, unix.SIGTERM):
		default: // it has had enough of them
		}
		return nil
	}
}

// drive runs the VM, with its command or with its console and the signals that end it;
// and with the timeout.
func (s *session) drive(ctx context.Context, v *vm.VM) (vm.Result, int, error) {
	takeSignals(ctx)
	if ctx.Err() != nil { // a signal came while the VM was prepared
		return vm.Result{}, statusFailed, context.Cause(ctx)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := func(status int, err error) { cancel(&exitError{status, err}) }
	if s.Timeout > 0 {
		t := time.AfterFunc(s.Timeout, func() { stop(statusTimeout, fmt.Errorf("the guest did not end within %v", s.Timeout)) })
		defer t.Stop()
	}
	s.console.actions = consoleActions{quit: func() { stop(statusOK, nil) }, power: v.PressPowerButton,
		help: func() { io.WriteString(s.console, consoleHelp) }}
	signals := make(chan os.Signal, 1)
	if !s.Sandbox {
		signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
		defer signal.Stop(signals)
	}
	if s.Terminal && v.Config().ConsoleDevice == vm.VirtioConsole {
		go followSize(ctx, v)
	}
	if err := v.Start(ctx); err != nil {
		return vm.Result{}, statusFailed, err
	}
	if s.background != nil {
		err := s.background.ready(s.entry.Name())
		if !s.Supervised { // who hears of its end, too
			unix.Close(readyFD)
		}
		if err != nil {
			return vm.Result{}, statusFailed, err
		}
	}
	s.ready = true
	if s.Sandbox {
		if s.background == nil && !s.Terminal { // which shows the boot
			s.waiting.begin("waiting for the guest to boot", s.Exec.TTY)
			defer s.waiting.end()
		}
		done := make(chan struct{})
		defer func() {
			cancel(nil)
			<-done // it has the terminal
		}()
		go func() {
			defer close(done)
			stop(s.job(ctx, v))
		}()
	}
	select {
	case <-v.Done():
	case sig := <-signals:
		stop(128+int(sig.(unix.Signal)), nil)
	case <-ctx.Done():
	}
	if ctx.Err() != nil {
		v.Kill()
	}
	result, err := v.Wait(context.WithoutCancel(ctx))
	var exit *exitError
	if errors.As(context.Cause(ctx), &exit) && result.End == vm.EndStopped {
		if exit.err != nil {
			s.console.restore()
			s.waiting.end()
			if s.Terminal { // where the guest's last line may have no end
				fmt.Fprintln(os.Stderr)
			}
			fmt.Fprintln(os.Stderr, "vmm:", visible.Text(exit.err.Error()))
		}
		return result, exit.status, err
	}
	if result.End == vm.EndStopped { // from outside, as for a snapshot
		s.stopped.Store(true)
	}
	if s.Sandbox && result.End != vm.EndCrash && result.End != vm.EndDebugExit {
		return result, statusFailed, err
	}
	return result, statusOK, err
}

// job runs the command in the guest and saves what that has written.
func (s *session) job(ctx context.Context, v *vm.VM) (int, error) {
	ready := func(ctx context.Context) error {
		err := v.WaitAgent(ctx)
		if s.result.Started = err == nil; err != nil {
			return err
		}
		if s.warm != nil {
			goesOn := make(chan struct{})
			s.saving.Go(func() {
				s.warm.Save(context.WithoutCancel(ctx), v, sync.OnceFunc(func() { close(goesOn) }))
				s.narrow(v)
			})
			<-goesOn
		}
		err = orCold(v.Ready(ctx))
		s.waiting.next(firstOutput)
		return err
	}
	status, err := runInGuest(ctx, ready, v.Agent(), &s.Exec, s.Command, s.waiting.before(s.stdout), s.waiting.before(s.stderr))
	if err != nil {
		select { // the guest may be about to end, which says more
		case <-ctx.Done():
		case <-time.After(hangUpTime):
		}
		return statusFailed, err
	}
	s.result.Exited = true
	if c := v.Config(); c.Persistent() {
		if err := v.Sync(ctx); err != nil && ctx.Err() == nil {
			return statusFailed, fmt.Errorf("saving what the guest has written: %w", err)
		}
	}
	if status >= statusCrash && status <= statusFailed {
		fmt.Fprintf(s.stderr, "vmm: status %d is the command's own\n", status)
	}
	return status, nil
}

// hangUpTime is how long a guest may take to end when its agent has hung up.
const hangUpTime = 3 * time.Second

// guestOwner is who the user of vmm is in the guest: the one who runs the command, as
// USER[:GROUP].
func guestOwner(spec string) (o vm.Owner) {
	name, group, _ := strings.Cut(spec, ":")
	if name == "" {
		return o
	}
	id := func(s string) uint32 {
		n, _ := strconv.ParseUint(s, 10, 32)
		return uint32(n)
	}
	o = vm.Owner{UID: id(name), GID: id(name)}
	if u, err := user.Lookup(name); err == nil { // the guest's users are the host's, or nobody knows
		o = vm.Owner{UID: id(u.Uid), GID: id(u.Gid)}
	}
	if group != "" {
		o.GID = id(group)
		if g, err := user.LookupGroup(group); err == nil {
			o.GID = id(g.Gid)
		}
	}
	return o
}

// followSize tells the guest the terminal's size whenever it changes, until ctx ends.
func followSize(ctx context.Context, v *vm.VM) {
	changes := make(chan os.Signal, 1)
	signal.Notify(changes, unix.SIGWINCH)
	defer signal.Stop(changes)
	for {
		if cols, rows, err := term.GetSize(int(os.Stdout.Fd())); err == nil {
			v.ResizeConsole(cols, rows)
		}
		select {
		case <-changes:
		case <-ctx.Done():
			return
		}
	}
}
