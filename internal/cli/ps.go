package cli

import (
	"context"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"vmm/internal/visible"
	"vmm/vm/api"
	"vmm/vm/client"
	"vmm/vm/registry"
)

// psCommand is vmm ps.
func psCommand() *cobra.Command {
	var all, quiet, asJSON bool
	var filters []string
	cmd := &cobra.Command{
		Use: "ps", Short: "List VMs", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			filter, err := readLabelFilter(filters)
			if err != nil {
				return err
			}
			vms, err := registry.User().List()
			if err != nil {
				return failed(err)
			}
			if !quiet {
				askState(cmd.Context(), vms)
			}
			out := cmd.OutOrStdout()
			w := tabwriter.NewWriter(out, 0, 8, 3, ' ', 0)
			if !quiet {
				fmt.Fprintln(w, "NAME\tPID\tSTATUS\tCPUS\tMEMORY\tCOMMAND")
			}
			shown := []api.VM{}
			for _, vm := range vms {
				if vm.State == api.Exited && !all || !filter.lets(vm.Labels) {
					continue
				}
				shown = append(shown, vm)
				if quiet {
					fmt.Fprintln(w, vm.Name)
					continue
				}
				fmt.Fprintf(w, "%s\t%d\t%s\t%d\t%s\t%s\n", vm.Name, vm.PID, statusText(&vm), vm.CPUs, humanSize(int64(vm.Memory)), whatText(&vm))
			}
			if asJSON {
				return printJSONLine(out, shown)
			}
			return w.Flush()
		},
	}
	cmd.Flags().BoolVarP(&all, "all", "a", false, "also those that have ended")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "only names")
	cmd.Flags().StringArrayVarP(&filters, "filter", "f", nil, "only those with `label=KEY[=VALUE]`; several are possible")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print them as JSON")
	return cmd
}

// askTime is how long a VM may take to say how it does.
const askTime = 2 * time.Second

// askState has those that run say how they do. Of one that does not, the state is what
// is known of it without.
func askState(ctx context.Context, vms []api.VM) {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	var at []int // of those in vms
	var running []api.VM
	for i, vm := range vms {
		if vm.State == api.Running {
			at, running = append(at, i), append(running, vm)
		}
	}
	for i, a := range askAll(ctx, running, (*client.Client).Inspect) {
		if a.err == nil {
			a.got.Name = vms[at[i]].Name // whoever answers
			vms[at[i]] = a.got
		}
	}
}

// statusText is the VM's state as people read it.
func statusText(vm *api.VM) string {
	if vm.State == api.Running {
		up := "up " + time.Since(vm.Started).Round(time.Second).String()
		if vm.Paused {
			return "paused (" + up + ")"
		}
		if vm.Health != nil {
			up += " (" + visible.Line(vm.Health.Status) + ")"
		}
		return up
	}
	if vm.State == api.Broken {
		return "broken"
	}
	how := "killed"
	if vm.Status != nil {
		how = fmt.Sprint(*vm.Status)
	}
	return fmt.Sprintf("%s (%s) %v ago", visible.Line(string(vm.State)), how, time.Since(vm.Ended).Round(time.Second))
}

// whatText is the command, or what boots.
func whatText(vm *api.VM) string {
	switch {
	case vm.State == api.Broken:
		return visible.Line(vm.Detail)
	case len(vm.Command) == 0:
		return "(" + visible.Line(vm.Kernel) + ")"
	}
	const most = 40
	if s := visible.Line(strings.Join(vm.Command, " ")); len(s) <= most {
		return s
	} else {
		return s[:most-1] + "…"
	}
}
