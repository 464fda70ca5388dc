package server

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"vmm/vm/api"
)

// metricsType is the media type of version 0.0.4 of Prometheus' text exposition format.
const metricsType = "text/plain; version=0.0.4; charset=utf-8"

func (s *Server) metrics(w http.ResponseWriter, _ *http.Request) error {
	var b bytes.Buffer
	writeMetrics(&b, s.vm.Info().Name, s.vm.Stats())
	w.Header().Set("Content-Type", metricsType)
	_, err := b.WriteTo(w)
	return err
}

// metric writes the metrics of one name.
type metric struct {
	out      io.Writer
	name, vm string
}

// newMetric begins a name, whose kind is counter or gauge.
func newMetric(out io.Writer, vm, name, kind, help string) metric {
	fmt.Fprintf(out, "# HELP vmm_%s %s\n# TYPE vmm_%s %s\n", name, help, name, kind)
	return metric{out, name, vm}
}

// value writes one of them, with labels as pairs of names, in their order, and values.
func (m metric) value(v float64, labels ...string) {
	fmt.Fprintf(m.out, "vmm_%s{", m.name)
	for i := 0; i < len(labels); i += 2 {
		fmt.Fprintf(m.out, "%s=\"%s\",", labels[i], escapeLabel.Replace(labels[i+1]))
	}
	fmt.Fprintf(m.out, "vm=\"%s\"} %s\n", escapeLabel.Replace(m.vm), strconv.FormatFloat(v, 'g', -1, 64))
}

// escapeLabel writes what cannot stand in a label's value.
var escapeLabel = strings.NewReplacer(`\`, `\\`, "\n", `\n`, `"`, `\"`)

// writeMetrics writes what a VM has used in Prometheus' text exposition format. A
// metric that the VM has no values of is left out.
func writeMetrics(out io.Writer, vm string, s api.Stats) {
	if len(s.Disks) > 0 {
		m := newMetric(out, vm, "disk_bytes_total", "counter", "What the guest read and wrote.")
		for _, d := range s.Disks {
			m.value(float64(d.In), "device", d.Device, "direction", "read")
			m.value(float64(d.Out), "device", d.Device, "direction", "written")
		}
	}
	if len(s.Exits) > 0 {
		m := newMetric(out, vm, "exits_total", "counter", "How often virtual CPUs came back, by reason.")
		for _, reason := range slices.Sorted(maps.Keys(s.Exits)) {
			m.value(float64(s.Exits[reason]), "reason", reason)
		}
	}
	if len(s.NICs) > 0 {
		m := newMetric(out, vm, "network_bytes_total", "counter", "What the guest received and sent.")
		for _, n := range s.NICs {
			m.value(float64(n.In), "device", n.Device, "direction", "received")
			m.value(float64(n.Out), "device", n.Device, "direction", "sent")
		}
	}
	newMetric(out, vm, "resident_bytes", "gauge", "Memory of the VM's process.").value(float64(s.Resident))
	if len(s.CPUSeconds) > 0 {
		m := newMetric(out, vm, "vcpu_seconds_total", "counter", "Time that the thread of a virtual CPU has used.")
		for i, t := range s.CPUSeconds {
			m.value(t, "cpu", strconv.Itoa(i))
		}
	}
}
