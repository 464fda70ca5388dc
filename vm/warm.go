package vm

import (
	"context"
	"io"
	"time"

	"vmm/guest-images/agent"
	"vmm/machine/snapshot"
)

// A warm start: a VM for commands goes on from a snapshot of one of its kind that was
// just about to run its first. Package warm keeps such snapshots.

// ColdError is the error for a snapshot that no VM can go on from on this host: it has
// to boot.
type ColdError struct {
	Err error
	// Outdated is that the guest uses what has changed since: a new snapshot would do.
	Outdated bool
}

// Error implements error.
func (e *ColdError) Error() string { return "the warm start does not fit: " + e.Err.Error() }

// Unwrap returns what is wrong.
func (e *ColdError) Unwrap() error { return e.Err }

// NewWarm is New for a VM that does not boot, but goes on from a snapshot that SaveWarm
// has made of another one of its kind. Prepare returns a *ColdError if that cannot be.
func NewWarm(cfg Config, dir string, list ...Option) (*VM, error) {
	return newWarm(cfg, dir, newOptions(list))
}

func newWarm(cfg Config, dir string, opts *options) (_ *VM, err error) {
	defer opts.abandon(&err)
	v, err := newVM(cfg, opts)
	if err != nil {
		return nil, err
	}
	v.opening = v.cfg.Engine.Begin(opts.notes)
	if v.from, err = openSnapshot(dir, snapshot.Options{Cache: true}); err != nil {
		v.opening.Close()
		return nil, err
	}
	v.from.warm = true
	return v, nil
}

// exercises is how often a guest is exercised: some things are kept only when they are
// used again. exerciseTime bounds all of them.
const (
	exercises    = 2
	exerciseTime = 2 * time.Second
)

// idleTime bounds how long the guest's kernel may take to close what the exercise had open:
// a guest with open files cannot mount its root anew when that has changed.
const idleTime = time.Second

// Outdated returns what has changed in the root of a VM of NewWarm, which is prepared: its
// guest mounts that anew before its first command, as that of every further one would until
// SaveWarm has saved this one. It is a path below the root, and empty if nothing has.
func (v *VM) Outdated() string {
	if !v.made() {
		return ""
	}
	return v.shares.root.remembersWrongly().Path
}

// SaveWarm saves the VM, whose agent has said hello and has run nothing yet, for the warm
// start of others. What its guest remembers wrongly is mended before. It calls goesOn as soon as the guest can go on, and returns when the
// snapshot is written.
func (v *VM) SaveWarm(ctx context.Context, dir string, goesOn func()) error {
	if err := v.tell(ctx, v.news(nil)); err != nil {
		return err
	}
	v.exercise(ctx)
	for end := time.Now().Add(idleTime); !v.shares.root.idle() && time.Now().Before(end) && ctx.Err() == nil; {
		time.Sleep(idleTime / 200)
	}
	_, err := v.Snapshot(ctx, dir, SnapshotOptions{Replace: true, GoesOn: goesOn})
	return err
}

// exercise has the guest run a command that does nothing: what every command needs is
// in the guest's memory then.
func (v *VM) exercise(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, exerciseTime) // whatever it is that is called so there
	defer cancel()
	client := v.guest.client()
	client.Before = &agent.Setup{Now: time.Now(), Entropy: make([]byte, 1)}
	for range exercises {
		client.Exec(ctx, agent.Exec{Argv: []string{"true"}}, agent.Streams{Out: io.Discard, Err: io.Discard}) // a root may have none
	}
}
