package cli

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"vmm/internal/visible"
	"vmm/storage/oci"
	"vmm/vm"
	"vmm/vm/api"
)

func commitCommand() *cobra.Command {
	var author, message string
	var changes []string
	var pause bool
	cmd := &cobra.Command{
		Use: "commit VM [IMAGE]", Short: "Make a container image of what a VM has changed in its own", Args: cobra.RangeArgs(1, 2),
		Long: "commit makes an image of the one that a running VM was started with (vmm run --image) and a layer of what\n" +
			"was written to its root since: see vmm diff. Without a name the image is known by its ID, which is printed.\n" +
			"What is mounted, such as volumes, is not in it.",
		Example: "  vmm commit dev team/app:2\n  vmm commit -m 'with curl' -c 'CMD [\"curl\", \"--version\"]' -c 'ENV A=1' dev",
		RunE: func(cmd *cobra.Command, args []string) error {
			c := oci.Commit{Author: author, Message: message}
			if len(args) == 2 {
				c.Name = args[1]
				if _, err := oci.ParseName(c.Name); err != nil {
					return usage("commit: %v", err)
				}
			}
			for _, text := range changes {
				change, err := oci.ParseChange(text)
				if err != nil {
					return usage("--change %v", err)
				}
				c.Changes = append(c.Changes, change)
			}
			running, err := findRunning(cmd.Context(), args[0])
			if err != nil {
				return failed(err)
			}
			store, err := openStore()
			if err != nil {
				return failed(err)
			}
			c.CreatedBy = strings.Join(running.Command, " ") // as docker has it
			base, err := imageOf(store, running)
			if err != nil {
				return failed(err)
			}
			made, err := store.Commit(cmd.Context(), base, c, func(w io.Writer) error {
				return orEnded(cmd.Context(), running, agentOf(running).GetLayer(cmd.Context(), w, pause))
			})
			if err != nil {
				return failed(fmt.Errorf("commit: %w", err))
			}
			fmt.Fprintln(cmd.OutOrStdout(), made.ID())
			return nil
		},
	}
	fl := cmd.Flags()
	fl.StringVarP(&author, "author", "a", "", "`AUTHOR` of the image, such as 'Ann <ann@example.org>'")
	fl.StringVarP(&message, "message", "m", "", "`MESSAGE` for the image's history")
	fl.StringArrayVarP(&changes, "change", "c", nil, "an `INSTRUCTION` as in a Dockerfile: CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, STOPSIGNAL, USER, VOLUME or WORKDIR; several are possible")
	fl.BoolVarP(&pause, "pause", "p", true, "stop the guest's processes meanwhile")
	return cmd
}

// imageOf finds the image that a VM has as its root.
func imageOf(store *oci.Store, of api.VM) (*oci.Image, error) {
	if of.Image == "" {
		return nil, fmt.Errorf("the root of %s is no container image (vmm run --image): there is nothing to put a layer on", of.Name)
	}
	i, err := store.Get(of.ImageDigest)
	if errors.Is(err, oci.ErrNotFound) {
		return nil, fmt.Errorf("the image of %s, %s, is not here any more: pull or load %s again", of.Name, visible.Text(of.Image), of.ImageDigest)
	}
	return i, err
}

func diffCommand() *cobra.Command {
	return &cobra.Command{
		Use: "diff VM", Short: "List what a VM has changed in its root", Args: cobra.ExactArgs(1),
		Long: "diff lists what was added to (A), changed in (C) and deleted from (D) the container image, or directory,\n" +
			"that a running VM has as its root. What is mounted in it, such as volumes, is not looked at.",
		RunE: func(cmd *cobra.Command, args []string) error {
			running, err := findRunning(cmd.Context(), args[0])
			if err != nil {
				return failed(err)
			}
			out := bufio.NewWriter(cmd.OutOrStdout())
			err = agentOf(running).Changes(cmd.Context(), func(c vm.Change) error {
				_, err := fmt.Fprintf(out, "%c %s\n", c.Kind, visible.Line(c.Path))
				return err
			})
			return failed(errors.Join(orEnded(cmd.Context(), running, err), out.Flush()))
		},
	}
}

func exportCommand() *cobra.Command {
	var to string
	cmd := &cobra.Command{
		Use: "export [-o FILE] VM", Short: "Write a VM's root to a tar archive", Args: cobra.ExactArgs(1),
		Long:    "export writes the whole root of a running VM as a tar archive, without what is mounted in it.",
		Example: "  vmm export dev | tar t\n  vmm export -o dev.tar dev",
		RunE: func(cmd *cobra.Command, args []string) error {
			running, err := findRunning(cmd.Context(), args[0])
			if err != nil {
				return failed(err)
			}
			now, err := ask(running).Inspect(cmd.Context())
			if err != nil {
				return failed(advise(err))
			}
			return writeArchive("export", to, now.GuestWritable, func(w io.Writer) error {
				return orEnded(cmd.Context(), running, agentOf(running).GetRoot(cmd.Context(), w))
			})
		},
	}
	cmd.Flags().StringVarP(&to, "output", "o", stdStream, "`FILE`, - for standard output")
	return cmd
}
