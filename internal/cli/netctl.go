package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"vmm/network/gateway"
	vnet "vmm/virtio/net"
	"vmm/vm/api"
	"vmm/vm/registry"
)

// portCommand is vmm port: what is published of a running VM.
func portCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "port", Short: "Publish ports of a running VM"}
	change := func(use, short, method string) *cobra.Command {
		return &cobra.Command{
			Use: use + " VM [ADDRESS:]HOST:GUEST[/udp]...", Short: short, Args: cobra.MinimumNArgs(2),
			Example: "  vmm port " + use + " dev 8080:80",
			RunE: func(cmd *cobra.Command, args []string) error {
				var ports []gateway.Publication
				for _, a := range args[1:] {
					p, err := gateway.ParsePublication(a)
					if err != nil {
						return &exitError{statusUsage, err}
					}
					ports = append(ports, p)
				}
				vm, err := findRunning(args[0])
				if err != nil {
					return failed(err)
				}
				for _, p := range ports {
					var did gateway.Publication
					if err := askVM(cmd.Context(), vm, method, "/ports", p, &did); err != nil {
						return failed(err)
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
				vm, err := findRunning(args[0])
				if err != nil {
					return failed(err)
				}
				vms = []api.VM{vm}
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 8, 3, ' ', 0)
			fmt.Fprintln(w, "VM\tHOST\tGUEST")
			for _, vm := range vms {
				var ports []gateway.Publication
				if err := askVM(cmd.Context(), vm, http.MethodGet, "/ports", nil, &ports); err != nil {
					return failed(err)
				}
				for _, p := range ports {
					proto := "tcp"
					if p.UDP {
						proto = "udp"
					}
					fmt.Fprintf(w, "%s\t%v\t%d/%s\n", vm.Name, p.Host, p.Guest, proto)
				}
			}
			return w.Flush()
		},
	}
	cmd.AddCommand(change("add", "Publish ports", http.MethodPost), change("rm", "Publish ports no longer", http.MethodDelete), ls)
	return cmd
}

// netCommand is vmm net: the network devices of a running VM.
func netCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "net", Short: "Look at a running VM's network devices, and plug their cables"}
	plug := func(use, short string, up bool) *cobra.Command {
		return &cobra.Command{
			Use: use + " VM [DEVICE-NUMBER]", Short: short, Args: cobra.RangeArgs(1, 2),
			RunE: func(cmd *cobra.Command, args []string) error {
				r := linkRequest{Up: up}
				if len(args) == 2 {
					n, err := strconv.Atoi(args[1])
					if err != nil {
						return &exitError{statusUsage, fmt.Errorf("%q is no device number", args[1])}
					}
					r.NIC = n
				}
				vm, err := findRunning(args[0])
				if err != nil {
					return failed(err)
				}
				return failed(askVM(cmd.Context(), vm, http.MethodPost, "/nics/link", r, nil))
			},
		}
	}
	ls := &cobra.Command{
		Use: "ls VM", Short: "List network devices with what went over them", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			vm, err := findRunning(args[0])
			if err != nil {
				return failed(err)
			}
			var nics []nicInfo
			if err := askVM(cmd.Context(), vm, http.MethodGet, "/nics", nil, &nics); err != nil {
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
					humanSize(int64(n.Received.Bytes)), humanSize(int64(n.Sent.Bytes)), n.Received.Dropped+n.Sent.Dropped, n.TCP, n.UDP)
			}
			return w.Flush()
		},
	}
	cmd.AddCommand(ls, plug("up", "Plug a cable in", true), plug("down", "Pull a cable out", false))
	return cmd
}

// nicInfo is a network device, for others.
type nicInfo struct {
	Mode     string     `json:"mode"`
	MAC      string     `json:"mac"`
	Up       bool       `json:"up"`
	Received vnet.Count `json:"received"`
	Sent     vnet.Count `json:"sent"`
	TCP      int        `json:"tcp_connections"`
	UDP      int        `json:"udp_flows"`
}

// linkRequest plugs a cable in or out.
type linkRequest struct {
	NIC int  `json:"nic"`
	Up  bool `json:"up"`
}

// info is what others see of the network devices.
func (n *networks) info() []nicInfo {
	out := []nicInfo{}
	for _, n := range n.nics {
		i := nicInfo{Mode: n.mode, MAC: n.device.MAC().String(), Up: n.device.Up()}
		i.Received, i.Sent = n.device.Counts()
		if g := n.gateway.Load(); g != nil {
			i.TCP, i.UDP = g.Connections()
		}
		out = append(out, i)
	}
	return out
}

func (c *control) listNICs(w http.ResponseWriter, _ *http.Request) {
	json.NewEncoder(w).Encode(c.nets.info())
}

func (c *control) setLink(w http.ResponseWriter, r *http.Request) {
	var req linkRequest
	if !decode(w, r, &req) {
		return
	}
	if req.NIC < 0 || req.NIC >= len(c.nets.nics) {
		http.Error(w, fmt.Sprintf("this VM has %d network devices, numbered from 0", len(c.nets.nics)), http.StatusNotFound)
		return
	}
	c.nets.nics[req.NIC].device.SetUp(req.Up)
}

// errNoGateway says why ports cannot be published.
var errNoGateway = errors.New("this VM has no gateway: ports are published of --net user, and of a switch with gateway=on")

func (c *control) listPorts(w http.ResponseWriter, _ *http.Request) {
	ports := []gateway.Publication{}
	if g := c.nets.gateway(); g != nil {
		ports = g.Publications()
	}
	json.NewEncoder(w).Encode(ports)
}

func (c *control) addPort(w http.ResponseWriter, r *http.Request) {
	c.changePort(w, r, (*gateway.Gateway).Publish)
}

func (c *control) removePort(w http.ResponseWriter, r *http.Request) {
	c.changePort(w, r, func(g *gateway.Gateway, p gateway.Publication) (gateway.Publication, error) { return p, g.Unpublish(p) })
}

func (c *control) changePort(w http.ResponseWriter, r *http.Request, do func(*gateway.Gateway, gateway.Publication) (gateway.Publication, error)) {
	var p gateway.Publication
	if !decode(w, r, &p) {
		return
	}
	err := errNoGateway
	if g := c.nets.gateway(); g != nil {
		p, err = do(g, p)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusConflict)
		return
	}
	json.NewEncoder(w).Encode(p)
}
