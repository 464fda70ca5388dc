package cli

import (
	"context"
	"os"

	"github.com/spf13/cobra"
)

// execCommand is vmm exec.
func execCommand() *cobra.Command {
	var f execFlags
	cmd := &cobra.Command{
		Use: "exec [flags] VM COMMAND [ARGUMENT...]", Short: "Run a command in a running VM", Args: cobra.MinimumNArgs(2),
		Long: "exec runs a command in the guest, with this process's standard output and error, with -i its\n" +
			"standard input too, and ends with its exit status. The guest needs vmm's agent, as vmm's own guests have it.",
		Example: "  vmm exec dev uname -a\n  vmm exec -it dev sh",
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := f.check(); err != nil {
				return err
			}
			vm, err := findRunning(cmd.Context(), args[0])
			if err != nil {
				return failed(err)
			}
			ready := func(context.Context) error { return nil }
			x := f.settings()
			w := newWaiting(os.Stderr)
			if x.TTY {
				w.begin(firstOutput, true)
				defer w.end()
			}
			command := args[1:]
			if len(command) > 1 && command[0] == "--" { // as vmm run has it
				command = command[1:]
			}
			status, err := runInGuest(cmd.Context(), ready, agentOf(vm), &x, command, w.before(os.Stdout), w.before(os.Stderr))
			if err != nil {
				return failed(orEnded(cmd.Context(), vm, err))
			}
			if status != statusOK {
				return &exitError{status, nil}
			}
			return nil
		},
	}
	cmd.Flags().SetInterspersed(false)
	f.add(cmd.Flags())
	return cmd
}
