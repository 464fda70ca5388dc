package cli

import (
	"errors"

	"github.com/spf13/cobra"

	"vmm/vm/api"
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
					case !errors.Is(err, api.ErrNotRunning): // else it just begins or ends: what is known without it
						return failed(err)
					}
				}
				out = append(out, vm)
			}
			return printJSON(cmd.OutOrStdout(), out)
		},
	}
}
