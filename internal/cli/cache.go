package cli

import (
	"errors"
	"fmt"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"vmm/internal/bytesize"
	"vmm/vm"
	"vmm/vm/warm"
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
			all, err := warmSnapshots()
			if err != nil {
				return failed(err)
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 8, 3, ' ', 0)
			fmt.Fprintln(w, "NAME\tSIZE\tUSED\tCPUS\tMEMORY\tKERNEL")
			for _, s := range all {
				c, kernel := s.Config, "(not usable)"
				switch {
				case c == nil:
					c = &vm.Config{}
				case c.Boot.Kernel == "":
					kernel = "(default)"
				default:
					kernel = c.Boot.Kernel
				}
				fmt.Fprintf(w, "%s\t%s\t%v ago\t%d\t%s\t%s\n", s.Name, humanSize(s.Size), time.Since(s.Used).Round(time.Second),
					c.CPUs, humanSize(int64(c.Memory)), kernel)
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
			list, err := warmSnapshots()
			if err != nil {
				return failed(err)
			}
			for _, name := range args {
				if !slices.ContainsFunc(list, func(s warm.Snapshot) bool { return s.Name == name }) {
					return failed(fmt.Errorf("no snapshot %q in the cache: vmm cache ls lists them", name))
				}
			}
			for _, s := range list {
				if !all && !slices.Contains(args, s.Name) {
					continue
				}
				if err := s.Remove(); err != nil {
					return failed(err)
				}
				fmt.Fprintln(cmd.OutOrStdout(), s.Name)
			}
			return nil
		},
	}
	rm.Flags().BoolVar(&all, "all", false, "all of them")
	most := bytesize.Size(warm.DefaultLimit)
	pruning := &cobra.Command{
		Use: "prune", Short: "Remove those that were not used for longest", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			store, err := warm.Open()
			if err != nil {
				return failed(err)
			}
			removed, err := store.Prune(int64(most))
			for _, s := range removed {
				fmt.Fprintln(cmd.OutOrStdout(), s.Name)
			}
			return failed(err)
		},
	}
	pruning.Flags().Var(&most, "size", "keep at most `SIZE` on the disk")
	cmd.AddCommand(ls, rm, pruning)
	return cmd
}

// warmSnapshots are the snapshots of warm starts.
func warmSnapshots() ([]warm.Snapshot, error) {
	store, err := warm.Open()
	if err != nil {
		return nil, err
	}
	return store.List()
}
