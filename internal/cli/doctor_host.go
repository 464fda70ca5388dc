package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"

	"vmm/machine"
)

// hostFacts is what the host's kernel tells of its virtualization, as far as it does.
// It serves for explanations only: what counts is what KVM does.
type hostFacts struct {
	Module string // kvm_intel, kvm_amd, or another backend of KVM's; "" if unknown
	Nested bool   // the host is a virtual machine itself
	// Parameters of the module that are turned off and cost speed: name and value.
	Off []string
	// THP is the host's setting of transparent huge pages; "" if unknown.
	THP         string
	ClockSource string
	CPU         string
}

// backends are the modules that KVM's hardware support is in, with its name.
var backends = []struct{ module, name string }{{"kvm_intel", "VMX"}, {"kvm_amd", "SVM"}}

// wanted are parameters of the modules without which guests are slow, and why.
var wanted = []struct{ name, without string }{
	{"ept", "no EPT: KVM shadows the guest's page tables"},
	{"npt", "no nested paging: KVM shadows the guest's page tables"},
	{"unrestricted_guest", "no unrestricted guest: real mode is emulated"},
	{"flexpriority", "no TPR shadow: each change of the guest's priority is an exit"},
}

// readHost looks at /proc and /sys, which root is.
func readHost(root fs.FS) hostFacts {
	var h hostFacts
	read := func(name string) string {
		b, _ := fs.ReadFile(root, name)
		return strings.TrimSpace(string(b))
	}
	for _, b := range backends {
		dir := "sys/module/" + b.module
		if _, err := fs.Stat(root, dir); errors.Is(err, fs.ErrNotExist) {
			continue
		}
		h.Module = b.module
		for _, w := range wanted {
			if v := read(dir + "/parameters/" + w.name); v == "N" || v == "0" {
				h.Off = append(h.Off, w.without)
			}
		}
	}
	for line := range strings.Lines(read("proc/cpuinfo")) {
		name, value, _ := strings.Cut(line, ":")
		switch strings.TrimSpace(name) {
		case "flags":
			h.Nested = strings.Contains(value+" ", " hypervisor ")
		case "model name":
			h.CPU = strings.TrimSpace(value)
		}
	}
	if _, rest, ok := strings.Cut(read("sys/kernel/mm/transparent_hugepage/enabled"), "["); ok {
		h.THP, _, _ = strings.Cut(rest, "]")
	}
	h.ClockSource = read("sys/devices/system/clocksource/clocksource0/current_clocksource")
	return h
}

// kind names the host for people.
func (h *hostFacts) kind(interpreted bool) string {
	if interpreted {
		return "KVM interprets guest kernel mode"
	}
	name := "hardware virtualization"
	for _, b := range backends {
		if b.module == h.Module {
			name = fmt.Sprintf("%s (%s)", b.name, b.module)
		}
	}
	if h.Nested {
		return name + ", nested: this host is a virtual machine"
	}
	return name
}

// slowExit is more than an exit costs on any hardware that is not nested.
const slowExit = 10 * time.Microsecond

// slow tells what makes guests slow here.
func (h *hostFacts) slow(speed machine.Speed) []string {
	out := append([]string(nil), h.Off...)
	if !speed.Interpreted && speed.Exit > slowExit {
		why := "the host is busy, or a virtual machine that hides it"
		if h.Nested {
			why = "each is one of the outer host's too: virtio-blk, -net and -fs need fewer than the serial console"
		}
		out = append(out, fmt.Sprintf("an exit takes %v: %s", speed.Exit.Round(100*time.Nanosecond), why))
	}
	if h.THP == "never" {
		out = append(out, "transparent huge pages are off: echo madvise > /sys/kernel/mm/transparent_hugepage/enabled, and --huge-pages")
	}
	switch h.ClockSource {
	case "", "tsc", "kvm-clock", "hyperv_clocksource_tsc_page":
	default:
		out = append(out, fmt.Sprintf("the host's clock source is %s, not tsc: reading the clock is slow in guests too", h.ClockSource))
	}
	return out
}
