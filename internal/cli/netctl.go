package cli

import (
	"context"
	"fmt"
	"strconv"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"vmm/network/gateway"
	"vmm/vm/api"
	"vmm/vm/client"
	"vmm/vm/registry"
)

// portCommand is vmm port: what is published of a running VM.
func portCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "port", Short: "Publish ports of a running VM"}
	change := func(use, short string, do func(*client.Client, context.Context, api.Port) (api.Port, error)) *cobra.Command {
		return &cobra.Command{
			Use: use + " VM " + gateway.PublicationForm + "...", Short: short, Args: cobra.MinimumNArgs(2),
			Example: "  vmm port " + use + " dev 8080:80",
			RunE: func(cmd *cobra.Command, args []string) error {
				var ports []api.Port
				for _, a := range args[1:] {
					list, err := gateway.ParsePublications(a)
					if err != nil {
						return &exitError{statusUsage, err}
					}
					for _, p := range list {
						ports = append(ports, api.Port(p))
					}
				}
				vm, err := findRunning(cmd.Context(), args[0])
				if err != nil {
					return failed(err)
				}
				for _, p := range ports {
					did, err := do(ask(vm), cmd.Context(), p)
					if err != nil {
						return failed(advise(err))
					}
					fmt.Fprintln(cmd.OutOrStdout(), did)
				}
				return nil
			},
		}
	}
	ls := &cobra.Command{
		Use: "ls [VM]", Short: "List published ports", Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			vms, err := registry.User().Running()
			if err != nil {
				return failed(err)
			}
			if len(args) == 1 {
				vm, err := findRunning(cmd.Context(), args[0])
				if err != nil {
					return failed(err)
				}
				vms = []api.VM{vm}
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 8, 3, ' ', 0)
			fmt.Fprintln(w, "VM\tHOST\tGUEST")
			for _, a := range askInTime(cmd.Context(), vms, (*client.Client).Ports) {
				if a.silent() {
					fmt.Fprintf(w, "%s\t%s\n", a.vm.Name, noAnswer)
				} else if a.err != nil {
					return failed(a.err)
				}
				for _, p := range a.got {
					proto := "tcp"
					if p.UDP {
						proto = "udp"
					}
					fmt.Fprintf(w, "%s\t%v\t%d/%s\n", a.vm.Name, p.Host, p.Guest, proto)
				}
			}
			return w.Flush()
		},
	}
	remove := func(c *client.Client, ctx context.Context, p api.Port) (api.Port, error) {
		return p, c.Unpublish(ctx, p)
	}
	cmd.AddCommand(change("add", "Publish ports", (*client.Client).Publish), change("rm", "Publish ports no longer", remove), ls)
	return cmd
}

// netCommand is vmm net: the network devices of a running VM.
func netCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "net", Short: "Look at a running VM's network devices, and plug their cables"}
	plug := func(use, short string, up bool) *cobra.Command {
		return &cobra.Command{
			Use: use + " VM [DEVICE-NUMBER]", Short: short, Args: cobra.RangeArgs(1, 2),
			RunE: func(cmd *cobra.Command, args []string) error {
				nic := 0
				if len(args) == 2 {
					n, err := strconv.Atoi(args[1])
					if err != nil {
						return &exitError{statusUsage, fmt.Errorf("%q is no device number", args[1])}
					}
					nic = n
				}
				vm, err := findRunning(cmd.Context(), args[0])
				if err != nil {
					return failed(err)
				}
				return failed(ask(vm).SetLink(cmd.Context(), nic, up))
			},
		}
	}
	ls := &cobra.Command{
		Use: "ls VM", Short: "List network devices with what went over them", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			vm, err := findRunning(cmd.Context(), args[0])
			if err != nil {
				return failed(err)
			}
			nics, err := ask(vm).NICs(cmd.Context())
			if err != nil {
				return failed(err)
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 8, 3, ' ', 0)
			fmt.Fprintln(w, "DEVICE\tMODE\tADDRESS\tLINK\tRECEIVED\tSENT\tDROPPED\tCONNECTIONS")
			for i, n := range nics {
				link := "down"
				if n.Up {
					link = "up"
				}
				fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%s\t%s\t%d\t%d tcp, %d udp\n", i, n.Mode, n.MAC, link,
					humanSize(int64(n.Received.Bytes)), humanSize(int64(n.Sent.Bytes)), n.Received.Dropped+n.Sent.Dropped, n.TCPConnections, n.UDPFlows)
			}
			return w.Flush()
		},
	}
	cmd.AddCommand(ls, plug("up", "Plug a cable in", true), plug("down", "Pull a cable out", false))
	return cmd
}
