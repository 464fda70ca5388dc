package cli

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
)

// cacheCommand is vmm cache.
func cacheCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "cache", Short: "Look after the snapshots of warm starts",
		Long: "The first vmm run of a command makes a snapshot of its VM as it was just before, from which\n" +
			"the next one of its kind goes on: with the same kernel, memory, CPUs, networks, root and number of\n" +
			"shared directories, by the same vmm. They are made anew when they are needed.",
	}
	ls := &cobra.Command{
		Use: "ls", Short: "List them", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			all, err := listWarm()
			if err != nil {
				return failed(err)
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 8, 3, ' ', 0)
			fmt.Fprintln(w, "NAME\tSIZE\tUSED\tCPUS\tMEMORY\tKERNEL")
			for _, s := range all {
				kernel := s.vm.Kernel
				switch {
				case !s.valid:
					kernel = "(not usable)"
				case kernel == "":
					kernel = "(default)"
				}
				fmt.Fprintf(w, "%s\t%s\t%v ago\t%d\t%s\t%s\n", s.name, humanSize(s.size), time.Since(s.used).Round(time.Second),
					s.vm.CPUs, humanSize(int64(s.vm.Memory)), kernel)
			}
			return w.Flush()
		},
	}
	var all bool
	rm := &cobra.Command{
		Use: "rm NAME...", Short: "Remove some, or --all",
		RunE: func(cmd *cobra.Command, args []string) error {
			if all == (len(args) > 0) {
				return &exitError{statusUsage, errors.New("cache rm: names, or --all")}
			}
			list, err := listWarm()
			if err != nil {
				return failed(err)
			}
			for _, name := range args {
				if !slices.ContainsFunc(list, func(s warmSnapshot) bool { return s.name == name }) {
					return failed(fmt.Errorf("no snapshot %q in the cache: vmm cache ls lists them", name))
				}
			}
			for _, s := range list {
				if !all && !slices.Contains(args, s.name) {
					continue
				}
				if err := os.RemoveAll(s.dir); err != nil {
					return failed(err)
				}
				fmt.Fprintln(cmd.OutOrStdout(), s.name)
			}
			return nil
		},
	}
	rm.Flags().BoolVar(&all, "all", false, "all of them")
	most := byteSize(maxWarm)
	pruning := &cobra.Command{
		Use: "prune", Short: "Remove those that were not used for longest", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			list, err := listWarm()
			if err != nil {
				return failed(err)
			}
			removed, err := prune(list, int64(most))
			for _, s := range removed {
				fmt.Fprintln(cmd.OutOrStdout(), s.name)
			}
			return failed(err)
		},
	}
	pruning.Flags().Var(&most, "size", "keep at most `SIZE` on the disk")
	cmd.AddCommand(ls, rm, pruning)
	return cmd
}
