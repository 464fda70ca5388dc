package vm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"vmm/guest-images/agent"
	"vmm/guest-images/guestinit"
	"vmm/internal/tail"
)

// ErrNoAgent is the error where the guest is not to have an agent (Config.NoAgent).
var ErrNoAgent = errors.New("the VM has no agent")

// Cmd is a command for the guest.
type Cmd struct {
	Args []string // the program and its arguments; the program is looked for in the guest's PATH
	Dir  string   // the user's home if empty
	User string   // USER or UID, with :GROUP or :GID; root if empty
	Env  []string // NAME=VALUE, beside PATH, HOME, USER, LOGNAME and SHELL

	Stdin  io.Reader // nil is empty
	Stdout io.Writer // nil drops it, as Stderr does
	Stderr io.Writer

	// TTY gives the command a terminal: Stdout has all of its output then.
	TTY        bool
	Rows, Cols uint16              // of the terminal
	Resize     <-chan unix.Winsize // its sizes from then on
	Signals    <-chan os.Signal    // for the command
}

// ExitError is the error for a command that has ended with a status other than 0.
type ExitError struct {
	Status int    // as a shell has it: 128 and more after a signal, 126 and 127 if it could not start
	Reason string // why it could not start; else empty
}

// Error implements error.
func (e *ExitError) Error() string {
	if e.Reason != "" {
		return e.Reason
	}
	return fmt.Sprintf("exit status %d", e.Status)
}

// Exec runs a command in the guest and waits until it has ended. It waits for the
// guest's agent before. The error is an *ExitError if the command has failed, and
// ErrNoAgent if there never will be an agent; when ctx ends, the command is killed.
func (v *VM) Exec(ctx context.Context, c Cmd) error {
	if err := v.Ready(ctx); err != nil {
		return err
	}
	or := func(w io.Writer) io.Writer {
		if w == nil {
			return io.Discard
		}
		return w
	}
	exit, err := v.Agent().Exec(ctx,
		agent.Exec{Argv: c.Args, Env: c.Env, Dir: c.Dir, User: c.User, TTY: c.TTY, Rows: c.Rows, Cols: c.Cols},
		agent.Streams{In: c.Stdin, Out: or(c.Stdout), Err: or(c.Stderr), Resize: c.Resize, Signals: c.Signals})
	switch {
	case err != nil:
		return err
	case exit.Status != 0 || exit.Error != "":
		return &ExitError{exit.Status, exit.Error}
	}
	return nil
}

// CopyTo copies a file or directory of the host into the guest, CopyFrom one of the
// guest to the host. What is copied to a directory goes into it, or only what is in it if
// its name ends with "/."; else the directory above the destination must be there. The error
// is ErrNoAgent if there never will be an agent, or the guest's or the host's own.
func (v *VM) CopyTo(ctx context.Context, host, guest string) error {
	if err := v.Ready(ctx); err != nil {
		return err
	}
	return v.Agent().Put(ctx, host, guest, agent.PutOptions{})
}

// CopyFrom is the opposite of CopyTo. Of what the guest sends, only what was asked for is
// taken, as much as the host has room for (else an *agent.TooLargeError), and through no link.
func (v *VM) CopyFrom(ctx context.Context, guest, host string) error {
	if err := v.Ready(ctx); err != nil {
		return err
	}
	return v.Agent().Get(ctx, guest, host, agent.GetOptions{Guest: v.GuestWritable()})
}

// Change is a file of the guest's root that was added, changed or deleted.
type Change = agent.Change

// Changes calls each for what the guest has written to a root that is an image or a directory; it
// is an error of the guest's if its root is neither. A directory comes before what is in it.
func (v *VM) Changes(ctx context.Context, each func(Change) error) error {
	if err := v.Ready(ctx); err != nil {
		return err
	}
	return v.Agent().Changes(ctx, each)
}

// Layer writes what Changes finds as a layer of a container image, a tar archive that is not
// compressed. With pause the guest's processes stand still meanwhile. The archive is the guest's
// word, and no more to be trusted than it; so is Export's.
func (v *VM) Layer(ctx context.Context, w io.Writer, pause bool) error {
	if err := v.Ready(ctx); err != nil {
		return err
	}
	return v.Agent().GetLayer(ctx, w, pause)
}

// Export writes the guest's whole root as a tar archive, without what is mounted in it.
func (v *VM) Export(ctx context.Context, w io.Writer) error {
	if err := v.Ready(ctx); err != nil {
		return err
	}
	return v.Agent().GetRoot(ctx, w)
}

// Sync returns when what the guest has written is on its disks and shares.
func (v *VM) Sync(ctx context.Context) error {
	if err := v.Ready(ctx); err != nil {
		return err
	}
	return v.Agent().Sync(ctx)
}

// Ready returns when commands can be run in the guest: the agent has said hello, and
// knows what it is to mount.
func (v *VM) Ready(ctx context.Context) error {
	switch err := v.running(); {
	case err != nil:
		return err
	case v.cfg.NoAgent:
		return ErrNoAgent
	case !v.toldByFirst():
		return v.untilEnded(ctx, v.guest.waitOpen)
	}
	if err := v.WaitAgent(ctx); err != nil {
		return err
	}
	return v.setUp(ctx)
}

// WaitAgent returns when the guest's agent has said hello. A guest for commands does not
// know yet what it is to mount then: Ready tells it.
func (v *VM) WaitAgent(ctx context.Context) error {
	switch err := v.running(); {
	case err != nil:
		return err
	case v.cfg.NoAgent:
		return ErrNoAgent
	}
	return v.untilEnded(ctx, v.guest.wait)
}

// toldByFirst reports whether the one who runs the first command tells the guest what it does not know.
func (v *VM) toldByFirst() bool { return v.cfg.ForCommands() && !v.from.saved() }

// untilEnded waits, but not for a guest that has ended.
func (v *VM) untilEnded(ctx context.Context, wait func(context.Context) error) error {
	ctx, stop := v.within(ctx)
	defer stop()
	return wait(ctx)
}

// setUp tells the guest what it does not know, before anybody else uses its agent.
func (v *VM) setUp(ctx context.Context) error {
	v.setup.Lock()
	defer v.setup.Unlock()
	if v.isSetUp {
		return nil
	}
	if err := v.tell(ctx, v.news(v.shares.config.Mounts)); err != nil {
		return err
	}
	v.isSetUp = true
	v.guest.letIn()
	return nil
}

// tell tells the guest what news returns, after which it remembers nothing wrongly.
func (v *VM) tell(ctx context.Context, news *agent.Setup) error {
	if news == nil {
		return nil
	}
	if err := v.guest.client().Setup(ctx, news); err != nil {
		return err
	}
	if path := v.Outdated(); path != "" {
		return &ColdError{Outdated: true, Err: fmt.Errorf("the guest still remembers %s as it was", path)}
	}
	return nil
}

// news is what a guest for commands does not know: its mounts, and after a warm start
// the time, its name, new random numbers, and what has changed in its root. It is nil if there is nothing.
func (v *VM) news(mounts []guestinit.Mount) *agent.Setup {
	s := &agent.Setup{Now: time.Now()}
	if v.from != nil {
		s = freshSetup()
	}
	c := guestinit.Config{Mounts: mounts}
	if wrong := v.shares.root.remembersWrongly(); wrong.Path != "" {
		c.Root = v.shares.config.Root
	} else {
		c.Refresh = wrong.Dirs
	}
	if len(c.Mounts)+len(c.Refresh) > 0 || c.Root != nil {
		s.Config, _ = json.Marshal(&c)
	}
	switch r := v.from; {
	case r == nil && s.Config == nil:
		return nil
	case r != nil && r.vm.Config.GuestName() != v.cfg.GuestName():
		s.Hostname = v.cfg.GuestName()
	}
	return s
}

// untold is what a guest for commands is to be told before its first, as agent.Setup has it: nil if it was, or if
// there is nothing.
func (v *VM) untold() json.RawMessage {
	switch {
	case v.guest.alive():
		return nil
	case v.from.saved():
		return v.from.vm.Untold
	case !v.toldByFirst():
		return nil
	}
	if news := v.news(v.shares.config.Mounts); news != nil {
		return news.Config
	}
	return nil
}

// Agent speaks to the guest's agent, once Ready has returned.
func (v *VM) Agent() *agent.Client { return v.guest.client() }

// InitErrors are what the guest's init has said of why it could not do its work; of an image with an init of
// its own, before that has begun.
func (v *VM) InitErrors() []string {
	var out []string
	if !v.made() || v.cfg.HasImageInit() && v.guest.greeted() {
		return out
	}
	for _, line := range tail.Lines(v.console.last.String(), tail.Size) {
		if rest, ok := strings.CutPrefix(line, "init: "); ok {
			out = append(out, rest)
		}
	}
	return out
}

// LastLines returns the last n lines that the guest has said on its console, of the last
// 64 KiB, as they are: control characters are in them.
func (v *VM) LastLines(n int) string {
	if !v.made() {
		return ""
	}
	return strings.Join(tail.Lines(v.console.last.String(), n), "\n")
}
