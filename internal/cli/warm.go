package cli

import (
	"context"
	"errors"
	"fmt"
	"os"

	"vmm/internal/visible"
	"vmm/vm"
	"vmm/vm/warm"
)

// fromWarm makes and prepares a VM that goes on from a snapshot of its kind. It is nil if
// there is none to be used; warm says then where one is to be made, if it is.
func (s *session) fromWarm(ctx context.Context) (*vm.VM, error) {
	if s.Config == nil || !s.Config.ForCommands() {
		return nil, nil
	}
	v, why, err := s.tryWarm(ctx)
	if v == nil && s.Verbose {
		fmt.Fprintf(os.Stderr, "vmm: a cold start: %s\n", visible.Text(why))
	}
	return v, err
}

// tryWarm is fromWarm, and says why it has no VM.
func (s *session) tryWarm(ctx context.Context) (v *vm.VM, why string, err error) {
	switch {
	case s.Cold:
		return nil, "--cold", nil
	case s.ConsoleGiven && !s.Warm:
		return nil, "who wants the console wants the boot's messages", nil
	case s.GDB != "":
		return nil, "who debugs the kernel wants its boot", nil
	case s.Profile != "":
		return nil, "a profile has the boot", nil
	}
	store, err := warm.Open()
	if err != nil { // then nothing is kept
		return nil, err.Error(), nil
	}
	at, err := store.Find(s.Config)
	if err != nil {
		return nil, err.Error(), nil
	}
	if why, ok := at.GivenUp(); ok {
		return nil, fmt.Sprintf("a snapshot of its kind could not be used: %s (vmm cache rm %s has it tried again)", why, at.Name), nil
	}
	v, err = at.New(*s.Config, s.options()...)
	if err != nil {
		s.warm = at
		if errors.Is(err, os.ErrNotExist) {
			return nil, "there is no snapshot of its kind yet", nil
		}
		return nil, err.Error(), nil
	}
	err = v.Prepare(ctx)
	var cold *vm.ColdError
	switch {
	case !errors.As(err, &cold):
		s.renew(at, v)
		return v, "", err
	case cold.Outdated || !at.GiveUp(cold.Err):
		s.warm = at
	}
	return nil, cold.Err.Error(), nil
}

// renew has a VM that has started warm saved in the place of its snapshot, where that is worth it.
func (s *session) renew(at *warm.Snapshot, v *vm.VM) {
	changed := v.Outdated()
	if changed == "" {
		return
	}
	what := "the guest mounts its root anew"
	if at.Outgrown(v) {
		s.warm, what = at, what+", and a new snapshot is made"
	}
	if s.Verbose {
		fmt.Fprintf(os.Stderr, "vmm: a warm start, after a change of %s: %s\n", visible.Text(changed), what)
	}
}

// orCold says what to do where a guest could not go on from a snapshot after all.
func orCold(err error) error {
	var cold *vm.ColdError
	if errors.As(err, &cold) {
		return fmt.Errorf("%w: vmm cache rm --all, or --cold", err)
	}
	return err
}
