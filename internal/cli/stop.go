package cli

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"vmm/vm/api"
	"vmm/vm/registry"
)

// forEach does something with each of the VMs that are named, and goes on after
// errors.
func forEach(cmd *cobra.Command, names []string, do func(ctx context.Context, name string) error) error {
	var errs []error
	for _, name := range names {
		if err := do(cmd.Context(), name); err != nil {
			errs = append(errs, err)
			continue
		}
		fmt.Fprintln(cmd.OutOrStdout(), name)
	}
	return failed(errors.Join(errs...))
}

// killTime is how long a VM's process may take to end when it is told to.
const killTime = 30 * time.Second

// killVM ends a VM at once.
func killVM(ctx context.Context, vm api.VM) error {
	err := ask(vm).Kill(ctx)
	ctx, cancel := context.WithTimeout(ctx, killTime)
	defer cancel()
	switch waited := registry.User().WaitEnded(ctx, vm); {
	case waited == nil:
	case vm.PID == 0:
		return errors.Join(fmt.Errorf("VM %q does not end, and its process is not known", vm.Name), err)
	default:
		return errors.Join(fmt.Errorf("VM %q does not end: kill -9 %d", vm.Name, vm.PID), err)
	}
	return nil
}

func killCommand() *cobra.Command {
	return &cobra.Command{
		Use: "kill VM...", Short: "End VMs at once, as pulling the plug does", Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return forEach(cmd, args, func(ctx context.Context, name string) error { return endVM(ctx, name, killVM) })
		},
	}
}

// stopTime is how long a guest may take to shut down where nobody says otherwise.
const stopTime = 10 * time.Second

// ownTimeout leaves it to the VM how long it may take.
const ownTimeout = time.Duration(-1)

// stopVM shuts a VM down, and ends it if that takes longer than timeout; if that is ownTimeout,
// than the VM was said to take, or stopTime.
func stopVM(ctx context.Context, name string, timeout time.Duration) error {
	return endVM(ctx, name, func(ctx context.Context, vm api.VM) error {
		if timeout == ownTimeout {
			timeout = stopTime
			if vm.StopSeconds != nil {
				timeout = time.Duration(*vm.StopSeconds) * time.Second
			}
		}
		if err := ask(vm).Stop(ctx); err != nil && !errors.Is(err, api.ErrNotRunning) {
			return err
		}
		wait, cancel := context.WithTimeout(ctx, timeout)
		defer cancel()
		if registry.User().WaitEnded(wait, vm) == nil {
			return nil
		}
		return killVM(ctx, vm)
	})
}

func stopCommand() *cobra.Command {
	var seconds int
	cmd := &cobra.Command{
		Use: "stop VM...", Short: "Shut VMs down", Args: cobra.MinimumNArgs(1),
		Long: "stop asks the guest to shut down, by its agent or by the power button, or sends the command that it\n" +
			"is there for its signal to stop, and ends the VM if it has not ended in time.",
		RunE: func(cmd *cobra.Command, args []string) error {
			timeout := ownTimeout
			if cmd.Flags().Changed("time") {
				timeout = time.Duration(max(seconds, 0)) * time.Second
			}
			return forEach(cmd, args, func(ctx context.Context, name string) error { return stopVM(ctx, name, timeout) })
		},
	}
	cmd.Flags().IntVarP(&seconds, "time", "t", 0, "`SECONDS` until the VM is ended; 10, or what vmm run --stop-timeout has said, if not given")
	return cmd
}
