package cli

import (
	"errors"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"vmm/internal/visible"
	"vmm/storage/volume"
)

// volumeCommand is vmm volume.
func volumeCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "volume", Short: "Look after volumes: directories that outlast VMs",
		Long: "A volume is a directory with a name, which VMs have as vmm run -v NAME:GUEST says. It is made when\n" +
			"it is first used, and stays until it is removed.",
	}
	cmd.AddCommand(volumeCreate(), volumeList(), volumeInspect(), volumeRemove(), volumePrune())
	return cmd
}

// volumeView is a volume as docker's JSON has it.
type volumeView struct {
	Name       string
	Driver     string
	Mountpoint string
	CreatedAt  time.Time
	Labels     map[string]string
	Scope      string
	InUse      bool
}

func viewVolume(v *volume.Volume) (volumeView, error) {
	used, err := v.InUse()
	return volumeView{Name: v.Name, Driver: "local", Mountpoint: v.Data(), CreatedAt: v.Created, Labels: v.Labels, Scope: "local", InUse: used}, err
}

func volumeCreate() *cobra.Command {
	var labels []string
	cmd := &cobra.Command{
		Use: "create [flags] [NAME]", Short: "Make a volume, unless there is one of that name", Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			store, err := volume.Open()
			if err != nil {
				return failed(err)
			}
			set, err := readLabels(labels)
			if err != nil {
				return err
			}
			v, err := store.Create(strings.Join(args, ""), set)
			if errors.Is(err, volume.ErrName) {
				return &exitError{statusUsage, err}
			}
			if err == nil {
				fmt.Fprintln(cmd.OutOrStdout(), v.Name)
			}
			return failed(err)
		},
	}
	cmd.Flags().StringArrayVar(&labels, "label", nil, "a note about it: `KEY=VALUE`; several are possible")
	return cmd
}

func volumeList() *cobra.Command {
	var quiet, asJSON bool
	cmd := &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List volumes", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			store, err := volume.Open()
			if err != nil {
				return failed(err)
			}
			list, err := store.List()
			if err != nil {
				return failed(err)
			}
			views := []volumeView{}
			for _, v := range list {
				view, err := viewVolume(v)
				if err != nil {
					continue // it has just gone
				}
				views = append(views, view)
			}
			out := cmd.OutOrStdout()
			if asJSON {
				return failed(printJSON(out, views))
			}
			w := tabwriter.NewWriter(out, 0, 8, 3, ' ', 0)
			if !quiet {
				fmt.Fprintln(w, "NAME\tCREATED\tIN USE")
			}
			for _, v := range views {
				if quiet {
					fmt.Fprintln(w, v.Name)
					continue
				}
				fmt.Fprintf(w, "%s\t%s\t%s\n", v.Name, age(v.CreatedAt), map[bool]string{true: "yes", false: "no"}[v.InUse])
			}
			return w.Flush()
		},
	}
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "only their names")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func volumeInspect() *cobra.Command {
	return &cobra.Command{
		Use: "inspect NAME...", Short: "Print what is known of volumes, as JSON", Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			store, err := volume.Open()
			if err != nil {
				return failed(err)
			}
			views := []volumeView{}
			for _, name := range args {
				v, e := store.Get(name)
				if e == nil {
					var view volumeView
					view, e = viewVolume(v)
					views = append(views, view)
				}
				err = errors.Join(err, e)
			}
			if len(views) == 0 {
				return failed(err)
			}
			return failed(errors.Join(printJSON(cmd.OutOrStdout(), views), err))
		},
	}
}

func volumeRemove() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use: "rm NAME...", Aliases: []string{"remove"}, Short: "Remove volumes with what is in them, unless a VM uses them", Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			store, err := volume.Open()
			if err != nil {
				return failed(err)
			}
			for _, name := range args {
				e := store.Remove(name)
				switch {
				case e == nil:
					fmt.Fprintln(cmd.OutOrStdout(), name)
				case force && errors.Is(e, volume.ErrNotFound):
				default:
					err = errors.Join(err, e)
				}
			}
			return failed(err)
		},
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "one that is not there is no error")
	return cmd
}

func volumePrune() *cobra.Command {
	var all, force bool
	cmd := &cobra.Command{
		Use: "prune", Short: "Remove volumes without a name that no VM uses; with --all all that none uses", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if all && !force {
				return &exitError{statusUsage, errors.New("volume prune --all removes every volume that no VM uses, with what is in it: add --force")}
			}
			store, err := volume.Open()
			if err != nil {
				return failed(err)
			}
			names, err := store.Prune(cmd.Context(), all)
			for _, name := range names {
				fmt.Fprintln(cmd.OutOrStdout(), visible.Text(name))
			}
			return failed(err)
		},
	}
	cmd.Flags().BoolVarP(&all, "all", "a", false, "also those that have a name")
	cmd.Flags().BoolVarP(&force, "force", "f", false, "with --all: do it")
	return cmd
}
