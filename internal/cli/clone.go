package cli

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"vmm/internal/paths"
	"vmm/internal/temp"
	"vmm/machine"
	"vmm/vm"
	"vmm/vm/api"
)

func cloneCommand() *cobra.Command {
	var remove bool
	cmd := &cobra.Command{
		Use: "clone VM NEW...", Short: "Make running copies of a running VM", Args: cobra.MinimumNArgs(2),
		Long: "clone makes VMs in the background that go on from where a VM is now, which goes on too. They\n" +
			"share the memory that they do not write to. Each has a name, a machine ID, addresses and random\n" +
			"numbers of its own; what it writes to its disks is gone with it. No ports are published.",
		RunE: func(cmd *cobra.Command, args []string) error {
			for _, name := range args[1:] {
				if err := checkName("the name", name); err != nil {
					return err
				}
			}
			origin, err := findRunning(cmd.Context(), args[0])
			if err != nil {
				return failed(err)
			}
			now, err := ask(origin).Inspect(cmd.Context())
			if err != nil {
				return failed(err)
			}
			engine := machine.Engine(now.Engine) // whose CPU the clones have
			// The clones hold the files open, so the directory can go at once.
			parent, err := temp.Dir("vmm-clone-")
			if err != nil {
				return failed(err)
			}
			defer os.RemoveAll(parent)
			dir := filepath.Join(parent, "snapshot")
			result, err := askSnapshot(cmd.Context(), origin, api.SnapshotRequest{Dir: dir})
			var guest *paths.GuestError
			if errors.As(err, &guest) {
				err = fmt.Errorf("%w: set TMPDIR to a directory that no guest has", err)
			}
			if err != nil {
				return failed(err)
			}
			for from, to := range result.Disks {
				fmt.Fprintf(os.Stderr, "vmm: the clones have %s as it is; VM %q goes on in %s\n", from, origin.Name, to)
			}
			for _, name := range args[1:] {
				if err := restoreCopy(cmd.Context(), dir, name, remove, vm.JailFull, vm.RestoreOptions{Trust: true, Engine: engine}); err != nil {
					return failed(err)
				}
				fmt.Fprintln(cmd.OutOrStdout(), name)
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&remove, "rm", false, "remove the clones from the list when they have ended")
	return cmd
}
