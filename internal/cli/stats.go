package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/spf13/cobra"

	"vmm/vm/api"
	"vmm/vm/registry"
)

// vmStats is what a VM has used so far.
type vmStats struct {
	CPUSeconds []float64         `json:"cpuSeconds"` // of each virtual CPU's thread
	Exits      map[string]uint64 `json:"exits"`
	Resident   uint64            `json:"resident"` // bytes of the process, the guest's memory included
	Private    int64             `json:"private"`  // bytes of the guest's memory that are not shared with a snapshot's file
	Disks      []ioStats         `json:"disks,omitempty"`
	NICs       []ioStats         `json:"nics,omitempty"`
}

// ioStats is what went through a device, in bytes, from the guest's side.
type ioStats struct {
	Device string `json:"device"`
	In     uint64 `json:"in"`  // read or received
	Out    uint64 `json:"out"` // written or sent
}

// stats collects them.
func (c *control) stats() vmStats {
	s := vmStats{Exits: c.machine.Exits(), Resident: residentBytes(), Private: c.machine.PrivateMemory()}
	for _, d := range c.machine.CPUTimes() {
		s.CPUSeconds = append(s.CPUSeconds, d.Seconds())
	}
	for i, d := range c.disks {
		in, out := d.device.Transferred()
		s.Disks = append(s.Disks, ioStats{fmt.Sprintf("disk%d", i), in, out})
	}
	for i, n := range c.nets.info() {
		s.NICs = append(s.NICs, ioStats{fmt.Sprintf("eth%d", i), n.Received.Bytes, n.Sent.Bytes})
	}
	return s
}

// residentBytes is the memory of this process, by /proc/self/statm.
func residentBytes() uint64 {
	b, _ := os.ReadFile("/proc/self/statm")
	f := bytes.Fields(b)
	if len(f) < 2 {
		return 0
	}
	pages, _ := strconv.ParseUint(string(f[1]), 10, 64)
	return pages * uint64(os.Getpagesize())
}

func (c *control) getStats(w http.ResponseWriter, _ *http.Request) {
	json.NewEncoder(w).Encode(c.stats())
}

// metrics answers GET /metrics, for Prometheus. The registry is made for the request:
// no VM should start later for what most are never asked.
func (c *control) metrics(w http.ResponseWriter, r *http.Request) {
	registry := prometheus.NewRegistry()
	registry.MustRegister(collector{c})
	promhttp.HandlerFor(registry, promhttp.HandlerOpts{}).ServeHTTP(w, r)
}

// collector makes metrics of the stats whenever it is asked.
type collector struct{ c *control }

func describe(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("vmm_"+name, help, append([]string{"vm"}, labels...), nil)
}

var (
	cpuDesc      = describe("vcpu_seconds_total", "Time that the thread of a virtual CPU has used.", "cpu")
	exitsDesc    = describe("exits_total", "How often virtual CPUs came back, by reason.", "reason")
	residentDesc = describe("resident_bytes", "Memory of the VM's process.")
	diskDesc     = describe("disk_bytes_total", "What the guest read and wrote.", "device", "direction")
	netDesc      = describe("network_bytes_total", "What the guest received and sent.", "device", "direction")
)

// Describe implements prometheus.Collector.
func (collector) Describe(to chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{cpuDesc, exitsDesc, residentDesc, diskDesc, netDesc} {
		to <- d
	}
}

// Collect implements prometheus.Collector.
func (c collector) Collect(to chan<- prometheus.Metric) {
	s, vm := c.c.stats(), c.c.dir.Name()
	counter := func(d *prometheus.Desc, v float64, labels ...string) {
		to <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, v, append([]string{vm}, labels...)...)
	}
	for i, t := range s.CPUSeconds {
		counter(cpuDesc, t, strconv.Itoa(i))
	}
	for reason, n := range s.Exits {
		counter(exitsDesc, float64(n), reason)
	}
	to <- prometheus.MustNewConstMetric(residentDesc, prometheus.GaugeValue, float64(s.Resident), vm)
	for _, d := range s.Disks {
		counter(diskDesc, float64(d.In), d.Device, "read")
		counter(diskDesc, float64(d.Out), d.Device, "written")
	}
	for _, d := range s.NICs {
		counter(netDesc, float64(d.In), d.Device, "received")
		counter(netDesc, float64(d.Out), d.Device, "sent")
	}
}

// statsCommand is vmm stats.
func statsCommand() *cobra.Command {
	var once, asJSON bool
	cmd := &cobra.Command{
		Use: "stats [VM...]", Short: "Show what VMs use",
		RunE: func(cmd *cobra.Command, args []string) error {
			before := map[string]float64{}
			at := time.Now()
			for first := true; ; first = false {
				now := time.Now()
				vms, err := registry.User().Running()
				if err != nil {
					return failed(err)
				}
				if len(args) > 0 {
					vms = nil
					for _, name := range args {
						vm, err := findRunning(name)
						if err != nil {
							return failed(err)
						}
						vms = append(vms, vm)
					}
				}
				var table bytes.Buffer
				if err := statsTable(cmd, &table, vms, before, now.Sub(at), asJSON); err != nil {
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

// statsTable writes a line for each VM; before is the CPU time that each had used
// the last time.
func statsTable(cmd *cobra.Command, out io.Writer, vms []api.VM, before map[string]float64, passed time.Duration, asJSON bool) error {
	w := tabwriter.NewWriter(out, 0, 8, 3, ' ', 0)
	if !asJSON {
		fmt.Fprintln(w, "VM\tCPU\tCPU TIME\tRESIDENT\tMEMORY\tDISK R/W\tNET R/S\tEXITS")
	}
	all := map[string]vmStats{}
	for _, vm := range vms {
		var s vmStats
		if err := askVM(cmd.Context(), vm, http.MethodGet, "/stats", nil, &s); err != nil {
			return fmt.Errorf("%s: %w", vm.Name, err)
		}
		all[vm.Name] = s
		var cpu float64
		for _, t := range s.CPUSeconds {
			cpu += t
		}
		use := (cpu - before[vm.Name]) / passed.Seconds() * 100
		before[vm.Name] = cpu
		fmt.Fprintf(w, "%s\t%.0f %%\t%v\t%s\t%s\t%s\t%s\t%s\n", vm.Name, max(use, 0), time.Duration(cpu*float64(time.Second)).Round(10*time.Millisecond),
			humanSize(int64(s.Resident)), humanSize(int64(vm.Memory)), inOut(s.Disks), inOut(s.NICs), topExits(s.Exits))
	}
	if asJSON {
		return json.NewEncoder(out).Encode(all)
	}
	return w.Flush()
}

func inOut(list []ioStats) string {
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
