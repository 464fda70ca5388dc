package cli

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"vmm/vm/api"
	"vmm/vm/registry"
)

func rmCommand() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use: "rm VM...", Short: "Remove VMs that have ended from the list, with their logs and what they wrote to --root-size", Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return forEach(cmd, args, func(ctx context.Context, name string) error {
				vm, err := findVM(name)
				if errors.Is(err, registry.ErrNotFound) && removeVM(name) == nil { // of one in the foreground, a disk may be left
					return nil
				}
				if err != nil {
					return err
				}
				if vm.State != api.Exited {
					if !force {
						return fmt.Errorf("VM %q is %s: stop it before, or rm -f", vm.Name, vm.State)
					}
					if err := endVM(ctx, vm.Name, killVM); err != nil {
						return err
					}
				}
				return removeVM(vm.Name)
			})
		},
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "end those that run")
	return cmd
}
