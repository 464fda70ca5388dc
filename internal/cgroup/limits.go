package cgroup

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"vmm/internal/bytesize"
)

// Limits are what a process may take of its host. The zero value bounds nothing.
type Limits struct {
	// CPUs is how much CPU time it may have per time, 1.5 for one and a half CPUs:
	// MinCPUs to MaxCPUs, or 0 for no bound.
	CPUs float64 `json:"cpus,omitempty"`
	// Memory is how much memory it may have, of which none is swapped out; 0 for no bound.
	Memory bytesize.Size `json:"memory,omitzero"`
	// PIDs is how many threads it may have, or 0 for no bound.
	PIDs int `json:"pids,omitempty"`
	// IO bounds what it reads and writes, by block device.
	IO []IO `json:"io,omitempty"`
}

// The bounds of Limits.CPUs. The kernel takes no quota below 1 ms, which is a hundredth
// of a period.
const (
	MinCPUs = 0.01
	MaxCPUs = 8192
)

// IO bounds what goes to and from a block device each second. What is 0 is not bounded.
type IO struct {
	// Path is the device, or a file or directory on it.
	Path      string `json:"path"`
	ReadBPS   int64  `json:"readBytesPerSecond,omitempty"`
	WriteBPS  int64  `json:"writeBytesPerSecond,omitempty"`
	ReadIOPS  int64  `json:"readIOPS,omitempty"`
	WriteIOPS int64  `json:"writeIOPS,omitempty"`
}

// rates are the bounds by their keys in io.max ("IO Interface Files" of
// Documentation/admin-guide/cgroup-v2.rst).
func (l *IO) rates() []rate {
	return []rate{{"rbps", &l.ReadBPS}, {"wbps", &l.WriteBPS}, {"riops", &l.ReadIOPS}, {"wiops", &l.WriteIOPS}}
}

type rate struct {
	key string
	to  *int64
}

// ParseIO reads PATH:KEY=RATE[,KEY=RATE...], with the keys rbps, wbps, riops and wiops;
// bytes may have a suffix, as in 20M.
func ParseIO(text string) (l IO, err error) {
	at := strings.LastIndexByte(text, ':')
	if at <= 0 {
		return l, fmt.Errorf("%q: %s", text, IOForm)
	}
	l.Path = text[:at]
	for part := range strings.SplitSeq(text[at+1:], ",") {
		key, value, _ := strings.Cut(part, "=")
		n, err := bytesize.Parse(value, 1)
		known := false
		for _, r := range l.rates() {
			if r.key == key {
				*r.to, known = int64(n), true
			}
		}
		if err != nil || n == 0 || !known {
			return l, fmt.Errorf("%q: %q: %s", text, part, IOForm)
		}
	}
	return l, nil
}

// IOForm is what ParseIO reads, for people.
const IOForm = "PATH:RATE[,RATE...]: rbps=SIZE, wbps=SIZE, riops=N, wiops=N, each a second"

// IsZero reports whether nothing is bounded.
func (l *Limits) IsZero() bool { return len(l.controllers()) == 0 }

// Check finds what is wrong with the limits by themselves. It names the field in Limits.
func (l *Limits) Check() (field string, err error) {
	if l.CPUs != 0 && !(l.CPUs >= MinCPUs && l.CPUs <= MaxCPUs) { // which NaN is not either
		return "CPUs", fmt.Errorf("%v: between %v and %d, or 0 for no limit", l.CPUs, MinCPUs, MaxCPUs)
	}
	if l.PIDs < 0 {
		return "PIDs", fmt.Errorf("%d: a number above 0, or 0 for no limit", l.PIDs)
	}
	for i := range l.IO {
		if l.IO[i].Path == "" {
			return "IO", errors.New("no path")
		}
		some := false
		for _, r := range l.IO[i].rates() {
			if some = some || *r.to > 0; *r.to < 0 {
				return "IO", fmt.Errorf("%s: %s %d: a number above 0", l.IO[i].Path, r.key, *r.to)
			}
		}
		if !some {
			return "IO", fmt.Errorf("%s: no rate", l.IO[i].Path)
		}
	}
	return "", nil
}

// String is one line for people: "cpu 1.5, memory 1G".
func (l *Limits) String() string {
	var out []string
	if l.CPUs != 0 {
		out = append(out, fmt.Sprintf("cpu %v", l.CPUs))
	}
	if l.Memory != 0 {
		out = append(out, fmt.Sprintf("memory %v", l.Memory))
	}
	if l.PIDs != 0 {
		out = append(out, fmt.Sprintf("pids %d", l.PIDs))
	}
	for i := range l.IO {
		out = append(out, "io "+l.IO[i].Path+l.IO[i].text())
	}
	return strings.Join(out, ", ")
}

// text is the rates as io.max takes them, each behind a space.
func (l *IO) text() string {
	var b strings.Builder
	for _, r := range l.rates() {
		if *r.to > 0 {
			fmt.Fprintf(&b, " %s=%d", r.key, *r.to)
		}
	}
	return b.String()
}

// The controllers, by their names in cgroup.controllers.
const (
	cpu    = "cpu"
	memory = "memory"
	pids   = "pids"
	io     = "io"
)

// all are the controllers that Limits can need.
var all = []string{cpu, memory, pids, io}

// controllers are what the limits need. Of what is written through the page cache, the io
// controller knows whose it was by the memory controller ("Writeback").
func (l *Limits) controllers() []string {
	var out []string
	if l.CPUs != 0 {
		out = append(out, cpu)
	}
	if l.Memory != 0 || len(l.IO) > 0 {
		out = append(out, memory)
	}
	if l.PIDs != 0 {
		out = append(out, pids)
	}
	if len(l.IO) > 0 {
		out = append(out, io)
	}
	return out
}

// setting is a file of a group, and what is written to it.
type setting struct {
	file, text string
	optional   bool // a kernel may lack the file
}

// cpuPeriod is over which time a quota of the CPU counts, in microseconds: the kernel's
// default.
const cpuPeriod = 100000

// settings are the limits as a group's files have them. The error is of a path without a
// block device.
func (h *host) settings(l *Limits) (out []setting, err error) {
	if l.CPUs != 0 {
		out = append(out, setting{file: "cpu.max", text: fmt.Sprintf("%d %d", int64(l.CPUs*cpuPeriod+0.5), cpuPeriod)})
	}
	if l.Memory != 0 {
		out = append(out, setting{file: "memory.max", text: fmt.Sprint(uint64(l.Memory))},
			setting{file: "memory.swap.max", text: "0", optional: true}) // a kernel without swap
	}
	if l.PIDs != 0 {
		out = append(out, setting{file: "pids.max", text: fmt.Sprint(l.PIDs)})
	}
	for i := range l.IO {
		device, err := h.device(l.IO[i].Path)
		if err != nil {
			return nil, err
		}
		out = append(out, setting{file: "io.max", text: device + l.IO[i].text()})
	}
	return out, nil
}

// device is the number, as MAJOR:MINOR, of the block device that a path is or is on.
func (h *host) device(path string) (string, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return "", &os.PathError{Op: "stat", Path: path, Err: err}
	}
	dev := st.Dev
	if st.Mode&unix.S_IFMT == unix.S_IFBLK {
		dev = st.Rdev
	}
	if unix.Major(dev) == 0 { // "unnamed" in Documentation/admin-guide/devices.txt
		return "", fmt.Errorf("%s is on no single block device whose rate the kernel could bound (btrfs, overlayfs, tmpfs, NFS): give the path of the device itself", path)
	}
	return h.wholeDisk(fmt.Sprintf("%d:%d", unix.Major(dev), unix.Minor(dev))), nil
}

// wholeDisk is the disk of a partition: io.max knows only disks. Of others it is the
// device itself.
func (h *host) wholeDisk(device string) string {
	dir := h.path("/sys/dev/block/" + device) // a link into the tree of devices
	if _, err := os.Stat(dir + "/partition"); err != nil {
		return device
	}
	b, err := os.ReadFile(dir + "/../dev")
	if err != nil {
		return device
	}
	return strings.TrimSpace(string(b))
}
