package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"vmm/vm/api"
	"vmm/vm/client"
	"vmm/vm/registry"
)

// statsCommand is vmm stats.
func statsCommand() *cobra.Command {
	var once, asJSON bool
	cmd := &cobra.Command{
		Use: "stats [VM...]", Short: "Show what VMs use",
		RunE: func(cmd *cobra.Command, args []string) error {
			for _, name := range args {
				if _, err := findRunning(cmd.Context(), name); err != nil {
					return failed(err)
				}
			}
			before := map[string]float64{}
			at := time.Now()
			for first := true; ; first = false {
				now := time.Now()
				vms, err := statsOf(args)
				if err != nil {
					return failed(err)
				}
				if len(vms) == 0 && len(args) > 0 && !first {
					if once { // it has nothing to show
						_, err = findRunning(cmd.Context(), args[0])
					}
					return failed(err)
				}
				var table bytes.Buffer
				if err := statsTable(cmd.Context(), &table, vms, before, now.Sub(at), asJSON); err != nil {
					return failed(err)
				}
				at = now
				// The first look has no CPU use to tell yet.
				if !first && !once && !asJSON {
					fmt.Fprint(cmd.OutOrStdout(), "\x1b[H\x1b[2J")
				}
				if !first || asJSON {
					io.Copy(cmd.OutOrStdout(), &table)
				}
				if asJSON || !first && once {
					return nil
				}
				select {
				case <-time.After(time.Second):
				case <-cmd.Context().Done():
					return nil
				}
			}
		},
	}
	cmd.Flags().BoolVar(&once, "no-stream", false, "show them once")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print all of them as JSON, once")
	return cmd
}

// statsOf are the VMs of the names that still run, or all that run.
func statsOf(names []string) ([]api.VM, error) {
	if len(names) == 0 {
		return registry.User().Running()
	}
	var vms []api.VM
	for _, name := range names {
		vm, err := registry.User().FindRunning(name)
		if errors.Is(err, registry.ErrNotFound) || errors.Is(err, registry.ErrNotRunning) {
			continue
		}
		if err != nil {
			return nil, err
		}
		vms = append(vms, vm)
	}
	return vms, nil
}

// statsTable writes a line for each VM that has not just ended; before is the CPU time
// that each had used the last time.
func statsTable(ctx context.Context, out io.Writer, vms []api.VM, before map[string]float64, passed time.Duration, asJSON bool) error {
	w := tabwriter.NewWriter(out, 0, 8, 3, ' ', 0)
	if !asJSON {
		fmt.Fprintln(w, "VM\tCPU\tCPU TIME\tRESIDENT\tMEMORY\tDISK R/W\tNET R/S\tEXITS")
	}
	all := map[string]api.Stats{}
	for _, a := range askInTime(ctx, vms, (*client.Client).Stats) {
		if a.silent() {
			fmt.Fprintf(w, "%s\t%s\n", a.vm.Name, noAnswer)
			continue
		}
		if a.err != nil {
			return fmt.Errorf("%s: %w", a.vm.Name, a.err)
		}
		vm, s := a.vm, a.got
		all[vm.Name] = s
		var cpu float64
		for _, t := range s.CPUSeconds {
			cpu += t
		}
		var use float64
		if last, known := before[vm.Name]; known {
			use = (cpu - last) / passed.Seconds() * 100
		}
		before[vm.Name] = cpu
		fmt.Fprintf(w, "%s\t%.0f %%\t%v\t%s\t%s\t%s\t%s\t%s\n", vm.Name, max(use, 0), time.Duration(cpu*float64(time.Second)).Round(10*time.Millisecond),
			humanSize(int64(s.Resident)), humanSize(int64(vm.Memory)), inOut(s.Disks), inOut(s.NICs), topExits(s.Exits))
	}
	if asJSON {
		return printJSONLine(out, all)
	}
	return w.Flush()
}

func inOut(list []api.Transfer) string {
	var in, out uint64
	for _, s := range list {
		in, out = in+s.In, out+s.Out
	}
	return humanSize(int64(in)) + " / " + humanSize(int64(out))
}

// topExits names the most frequent reasons.
func topExits(exits map[string]uint64) string {
	names := slices.SortedFunc(maps.Keys(exits), func(a, b string) int { return int(int64(exits[b]) - int64(exits[a])) })
	var out []string
	for _, n := range names[:min(3, len(names))] {
		out = append(out, fmt.Sprintf("%s %d", n, exits[n]))
	}
	return strings.Join(out, ", ")
}
