package cli

import (
	"encoding/json"

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
				if err == nil && vm.State == api.Running {
					vm, err = ask(vm).Inspect(cmd.Context())
				}
				if err != nil {
					return failed(err)
				}
				out = append(out, vm)
			}
			e := json.NewEncoder(cmd.OutOrStdout())
			e.SetIndent("", "  ")
			return e.Encode(out)
		},
	}
}
