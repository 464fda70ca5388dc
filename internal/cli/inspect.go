package cli

import (
	"errors"

	"github.com/spf13/cobra"

	"vmm/vm/api"
	"vmm/vm/client"
)

func inspectCommand() *cobra.Command {
	return &cobra.Command{
		Use: "inspect VM...", Short: "Print all about VMs, as JSON", Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var out []api.VM
			for _, name := range args {
				vm, err := findVM(name)
				if err != nil {
					return failed(err)
				}
				if vm.State == api.Running {
					now, err := ask(vm).Inspect(cmd.Context())
					switch {
					case err == nil:
						vm = now
					case !justEnds(err): // else it just begins or ends: what is known without it
						return failed(err)
					}
				}
				out = append(out, vm)
			}
			return printJSON(cmd.OutOrStdout(), out)
		},
	}
}

// justEnds reports whether an error is that of a VM that ends while it is asked, or has just ended.
func justEnds(err error) bool {
	return errors.Is(err, client.ErrGone) || errors.Is(err, api.ErrConflict)
}
