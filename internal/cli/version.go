package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"vmm/internal/version"
)

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print vmm's version",
		Args:  cobra.NoArgs,
		Run: func(cmd *cobra.Command, _ []string) {
			fmt.Fprintln(cmd.OutOrStdout(), "vmm", version.String())
		},
	}
}
