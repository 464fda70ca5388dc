package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"strings"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"vmm/guest-images/agent"
	"vmm/internal/visible"
)

// execFlags say how a command runs in a guest: those of vmm run and vmm exec.
type execFlags struct {
	interactive bool
	tty         bool
	user        string
	cwd         string
	env         []string
}

func (e *execFlags) add(fl *pflag.FlagSet) {
	fl.BoolVarP(&e.interactive, "interactive", "i", false, "give the command standard input; without it the command has none, and nothing is read")
	fl.BoolVarP(&e.tty, "tty", "t", false, "give the command a terminal")
	fl.StringVarP(&e.user, "user", "u", "", "run the command as `USER[:GROUP]` of the guest; root if not given")
	fl.StringArrayVarP(&e.env, "env", "e", nil, "set an environment variable: `NAME=VALUE`, or NAME as it is here; several are possible")
	fl.StringVarP(&e.cwd, "cwd", "w", "", "run the command in `DIRECTORY` of the guest")
}

// execSettings say how a command runs in a guest.
type execSettings struct {
	TTY       bool     `json:",omitempty"`
	Input     bool     `json:",omitempty"` // it has this process's standard input
	User, Dir string   `json:",omitempty"`
	Env       []string `json:",omitempty"`

	// signals come from elsewhere, and go on to the command as this process's do; nil are none.
	signals <-chan os.Signal
}

// settings are what the flags mean.
func (e *execFlags) settings() execSettings {
	x := execSettings{TTY: e.tty, Input: e.interactive, User: e.user, Dir: e.cwd}
	if t := os.Getenv("TERM"); e.tty && t != "" {
		x.Env = append(x.Env, "TERM="+t)
	}
	for _, v := range e.env {
		name, _, given := strings.Cut(v, "=")
		if here, ok := os.LookupEnv(name); !given && ok {
			v = name + "=" + here
		} else if !given {
			continue
		}
		x.Env = append(x.Env, v)
	}
	return x
}

// request is what the agent is asked for.
func (e *execSettings) request(argv []string) agent.Exec {
	return agent.Exec{Argv: argv, Dir: e.Dir, User: e.User, TTY: e.TTY, Env: e.Env}
}

// check finds what is wrong with the flags.
func (e *execFlags) check() error {
	if e.tty && !term.IsTerminal(int(os.Stdin.Fd())) {
		return &exitError{statusUsage, errors.New("-t: standard input is not a terminal")}
	}
	return nil
}

// forwarded are the signals that go on to a command in the guest.
var forwarded = []os.Signal{unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2}

// maxSignals is how many signals a command may take before vmm ends in its place.
const maxSignals = 3

// runInGuest runs a command in a guest on this process's streams. wait returns when
// the agent can be used. The status is the command's, or that of a signal before
// there was one.
func runInGuest(ctx context.Context, wait func(context.Context) error, c *agent.Client, settings *execSettings, argv []string, out, errs io.Writer) (int, error) {
	x := settings.request(argv)
	takeSignals(ctx)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, forwarded...)
	defer signal.Stop(signals)
	passed := make(chan os.Signal, 8)
	running := make(chan struct{})
	go func() {
		for n := 1; ; n++ {
			var s os.Signal
			select {
			case s = <-signals:
			case s = <-settings.signals:
			case <-ctx.Done():
				return
			}
			select {
			case <-running:
				if n < maxSignals {
					passed <- s
					continue
				}
			default:
			}
			cancel(&exitError{128 + int(s.(unix.Signal)), nil})
		}
	}()
	streams := agent.Streams{In: commandInput(ctx, settings.Input, x.TTY, os.Stdin), Out: out, Err: errs, Signals: passed}
	if x.TTY {
		restore, resize, err := rawTTY(&x, settings.Input)
		if err != nil {
			return 0, err
		}
		defer restore()
		defer signal.Stop(resize.changes)
		streams.Resize = resize.sizes
		go resize.follow(ctx)
	}
	if err := wait(ctx); err != nil {
		return ended(ctx, err)
	}
	conn, err := c.Dial(ctx) // which may wait for the guest: a signal before that is not for the command
	if err != nil {
		return ended(ctx, err)
	}
	close(running)
	connected := agent.Client{Dial: func(context.Context) (net.Conn, error) { return conn, nil }, Before: c.Before}
	exit, err := connected.Exec(ctx, x, streams)
	if err != nil {
		return ended(ctx, err)
	}
	if !settings.Input {
		warnUnread(os.Stderr, os.Stdin)
	}
	if exit.Error != "" {
		fmt.Fprintf(errs, "vmm: %s\n", visible.Text(exit.Error))
	}
	return exit.Status, nil
}

// ended finds the status that a signal has asked for.
func ended(ctx context.Context, err error) (int, error) {
	var exit *exitError
	if errors.As(context.Cause(ctx), &exit) {
		return exit.status, exit.err
	}
	return 0, err
}

// terminalSize follows the size of this terminal.
type terminalSize struct {
	changes chan os.Signal
	sizes   chan unix.Winsize
}

// rawTTY makes the terminal raw for a command's terminal in the guest, which gets
// its size. Without input it stays as it is, and its keys are this process's signals.
func rawTTY(x *agent.Exec, input bool) (restore func(), size *terminalSize, err error) {
	fd := int(os.Stdin.Fd())
	restore = func() {}
	if input {
		state, err := term.MakeRaw(fd)
		if err != nil {
			return nil, nil, fmt.Errorf("the terminal cannot be made raw: %w", err)
		}
		restore = func() { term.Restore(fd, state) }
	}
	if cols, rows, err := term.GetSize(fd); err == nil {
		x.Cols, x.Rows = uint16(cols), uint16(rows)
	}
	size = &terminalSize{make(chan os.Signal, 1), make(chan unix.Winsize)}
	signal.Notify(size.changes, unix.SIGWINCH)
	return restore, size, nil
}

// follow sends the size whenever it changes.
func (s *terminalSize) follow(ctx context.Context) {
	for {
		select {
		case <-s.changes:
		case <-ctx.Done():
			return
		}
		cols, rows, err := term.GetSize(int(os.Stdin.Fd()))
		if err != nil {
			continue
		}
		select {
		case s.sizes <- unix.Winsize{Row: uint16(rows), Col: uint16(cols)}:
		case <-ctx.Done():
			return
		}
	}
}
