package cli

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"vmm/vm/registry"
)

func waitCommand() *cobra.Command {
	return &cobra.Command{
		Use: "wait VM...", Short: "Wait until VMs in the background have ended, and print their exit statuses", Args: cobra.MinimumNArgs(1),
		Long: "wait prints a line for each VM when it has ended, and will not be started again: its exit status, or ? if\n" +
			"that is not known.",
		RunE: func(cmd *cobra.Command, args []string) error {
			var errs []error
			for _, name := range args {
				status, err := waitVM(cmd.Context(), name)
				if err != nil {
					errs = append(errs, err)
					continue
				}
				fmt.Fprintln(cmd.OutOrStdout(), status)
			}
			return failed(errors.Join(errs...))
		},
	}
}

// waitVM returns the exit status of a VM, as text, when it has ended.
func waitVM(ctx context.Context, name string) (string, error) {
	vm, err := findVM(name)
	if err == nil {
		err = registry.User().WaitGone(ctx, vm)
	}
	if err != nil {
		return "", err
	}
	now, err := registry.User().Look(vm.Name)
	if err != nil || now.Status == nil || !registry.Over(vm, now) { // it is not listed any more, or another one is
		return "?", nil
	}
	return fmt.Sprint(*now.Status), nil
}
