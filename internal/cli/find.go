package cli

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"vmm/guest-images/agent"
	"vmm/vm/api"
	"vmm/vm/client"
	"vmm/vm/registry"
)

// findVM returns a VM by its name or the number of its process.
func findVM(name string) (api.VM, error) {
	vm, err := registry.User().Find(name)
	return vm, advise(err)
}

// findRunning is findVM for one that runs and can be asked: one that just begins, or begins again, is waited for.
func findRunning(ctx context.Context, name string) (api.VM, error) {
	vm, err := registry.User().FindRunning(name)
	if err == nil {
		err = waitListening(ctx, vm)
	}
	return vm, advise(err)
}

// beginTime is how long a VM may take until it can be asked. One whose kernel is built or fetched first takes longer.
const beginTime = 30 * time.Second

// waitListening returns when a VM that runs can be asked.
func waitListening(ctx context.Context, vm api.VM) error {
	limited, cancel := context.WithTimeout(ctx, beginTime)
	defer cancel()
	err := registry.User().WaitListening(limited, vm)
	if err != nil && ctx.Err() == nil {
		err = fmt.Errorf("VM %q is made still: try again when it runs", vm.Name)
	}
	return err
}

// ask speaks to a VM of another process.
func ask(vm api.VM) *client.Client { return client.New(registry.User().Socket(vm.Name)) }

// agentOf speaks to the agent of a VM of another process.
func agentOf(vm api.VM) *agent.Client {
	return &agent.Client{Dial: func(ctx context.Context) (net.Conn, error) {
		conn, err := ask(vm).DialAgent(ctx)
		return conn, advise(err)
	}}
}

// endTime is how long a VM may take to end after its guest has hung up on somebody.
const endTime = time.Second

// orEnded says of an error of the agent's that the VM has ended, if it has or is about to: what was asked for ends in
// as many ways as there are ends of a connection.
func orEnded(ctx context.Context, vm api.VM, err error) error {
	if err == nil || ctx.Err() != nil {
		return err
	}
	patience := time.Duration(0)
	if errors.Is(err, agent.ErrHungUp) || errors.Is(err, api.ErrFailed) || errors.As(err, new(*net.OpError)) {
		patience = endTime
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if registry.User().WaitEnded(ctx, vm) != nil {
		return err
	}
	return api.ErrNotRunning.With("VM %q has ended", vm.Name)
}

// advice is what to do about the errors of a VM, by their codes, in terms of the command
// line.
var advice = map[string]string{
	api.ErrNotParent.Code:        "save all, without --diff",
	api.ErrShrink.Code:           "say --shrink if that is meant",
	api.ErrNoGateway.Code:        "it is --net user that has one, and a switch with gateway=on",
	api.ErrNoAgent.Code:          "it was started with --no-agent",
	api.ErrMigrationUnknown.Code: "look whether it runs there; if it does, vmm kill it here, else vmm resume it",
	api.ErrAgentSilent.Code:      "a guest with a system of its own needs it installed (vmm agent --install there)",
}

// advise adds to an error of a VM's, or of the registry's, what to do about it.
func advise(err error) error {
	var taken *registry.TakenError
	var none *registry.NotFoundError
	var of *api.Error
	switch {
	case errors.As(err, &of) && advice[of.Code] != "":
		return fmt.Errorf("%w: %s", err, advice[of.Code])
	case errors.As(err, &taken) && taken.Ended:
		return fmt.Errorf("%w: vmm rm %s removes it", err, taken.Name)
	case errors.As(err, &taken):
		return fmt.Errorf("%w: give this one another --name", err)
	case errors.As(err, &none) && len(none.Names) == 0:
		return fmt.Errorf("%w: vmm run -d --name %s starts one", err, none.Name)
	}
	return err
}

// checkName says what is wrong with the name of a VM to be; what is where it was given.
func checkName(what, name string) error {
	if !registry.ValidName(name) {
		return &exitError{statusUsage, fmt.Errorf("%s %q: only letters, digits and dashes, at most 63", what, name)}
	}
	if registry.Reserved(name) {
		return &exitError{statusUsage, fmt.Errorf("%s %s: this name has a meaning of its own", what, name)}
	}
	return nil
}

// answer is what a VM has answered, or why not.
type answer[A any] struct {
	vm  api.VM
	got A
	err error
}

// silent reports whether a VM has not answered in time, as one that is stopped (Ctrl-Z).
func (a *answer[A]) silent() bool { return errors.Is(a.err, context.DeadlineExceeded) }

// noAnswer is what is told of a VM that is silent.
const noAnswer = "does not answer"

// askInTime is askAll for VMs that nobody has named: those that are silent do not hold up the
// others, and those that have just ended are left out.
func askInTime[A any](ctx context.Context, vms []api.VM, what func(*client.Client, context.Context) (A, error)) []answer[A] {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	return slices.DeleteFunc(askAll(ctx, vms, what), func(a answer[A]) bool { return errors.Is(a.err, api.ErrNotRunning) })
}

// askAll asks VMs at the same time. The answers are in their order.
func askAll[A any](ctx context.Context, vms []api.VM, what func(*client.Client, context.Context) (A, error)) []answer[A] {
	out := make([]answer[A], len(vms))
	var asking sync.WaitGroup
	for i, vm := range vms {
		asking.Go(func() {
			got, err := what(ask(vm), ctx)
			out[i] = answer[A]{vm, got, err}
		})
	}
	asking.Wait()
	return out
}
