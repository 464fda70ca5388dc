package cli

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	guestimages "vmm/guest-images"
	"vmm/internal/cgroup"
	"vmm/internal/jail"
	"vmm/internal/meminfo"
	"vmm/kvm"
	"vmm/machine"
	"vmm/vm"
)

// diagnosis is what vmm doctor finds out; also its --json form.
type diagnosis struct {
	OK           bool            `json:"ok"`                      // a VM can run
	Engine       machine.Engine  `json:"engine,omitempty"`        // which would run it; none if it cannot
	EngineReason string          `json:"engine_reason,omitempty"` // why that one
	Software     softwareSpeed   `json:"software"`
	Device       string          `json:"device"`
	Error        string          `json:"error,omitempty"` // of KVM
	APIVersion   int             `json:"api_version,omitempty"`
	MaxCPUs      int             `json:"max_cpus,omitempty"`
	Capabilities map[string]bool `json:"capabilities,omitempty"`
	KernelMode   string          `json:"kernel_mode,omitempty"` // hardware or interpreted
	Host         string          `json:"host,omitempty"`        // its kind, for people
	Backend      string          `json:"backend,omitempty"`     // kvm_intel or kvm_amd, where it can be seen
	Nested       bool            `json:"nested"`                // the host is a virtual machine itself
	ExitNS       int64           `json:"exit_ns,omitempty"`     // what an exit costs
	Slow         []string        `json:"slow,omitempty"`        // what makes guests slow here
	// Speeds in million instructions per second.
	Ring0MIPS    float64          `json:"ring0_mips,omitempty"`
	Ring3MIPS    float64          `json:"ring3_mips,omitempty"`
	Jail         string           `json:"jail"`                    // what a VM's process can be confined by
	Background   string           `json:"jail_background"`         // and one in the background, for who is not root without shared directories
	Limits       string           `json:"limits"`                  // which it can have
	LimitsAdvice string           `json:"limits_advice,omitempty"` // what to do about those that it cannot
	MemoryMiB    uint64           `json:"memory_available_mib"`
	HugePages    uint64           `json:"huge_pages_free"`
	GuestImages  []guestImageInfo `json:"guest_images"`
}

// softwareSpeed is what the software engine can do here, in million instructions per second.
type softwareSpeed struct {
	Error     string  `json:"error,omitempty"`
	Ring0MIPS float64 `json:"ring0_mips,omitempty"`
	Ring3MIPS float64 `json:"ring3_mips,omitempty"`
}

type guestImageInfo struct {
	Name    string `json:"name"`
	Path    string `json:"path"`
	Present bool   `json:"present"`
}

// usedCaps are the capabilities that vmm uses; required ones stop it.
var usedCaps = []struct {
	cap      kvm.Cap
	required bool
}{
	{kvm.CapIRQChip, true}, {kvm.CapUserMemory, true}, {kvm.CapSetTSSAddr, true},
	{kvm.CapPIT2, true}, {kvm.CapImmediateExit, true}, {kvm.CapExtCPUID, true},
	{kvm.CapIRQFD, false}, {kvm.CapIOEventFD, false}, {kvm.CapSignalMSI, false},
	{kvm.CapSyncRegs, false}, {kvm.CapXSave, false}, {kvm.CapXCRS, false},
	{kvm.CapTSCDeadlineTimer, false}, {kvm.CapSplitIRQChip, false}, {kvm.CapDirtyLogRing, false},
}

func doctorCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Check what stands between this host and a VM",
		Long: "doctor says which engine runs a guest here and why, checks /dev/kvm and its permissions, the KVM\n" +
			"capabilities that vmm uses, whether guest kernel mode runs on hardware and what is slow about the host,\n" +
			"how fast guests are in software, memory, and which guest images are there.\n" +
			"Its exit status is 0 if a VM can run.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			d := diagnose()
			if asJSON {
				if err := printJSON(cmd.OutOrStdout(), d); err != nil {
					return failed(err)
				}
			} else {
				d.print(cmd.OutOrStdout())
			}
			if !d.OK {
				return &exitError{statusFailed, nil}
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print as JSON")
	return cmd
}

func diagnose() *diagnosis {
	d := &diagnosis{Device: kvm.DevicePath}
	d.Jail = jail.Able().String()
	var lacks error
	d.Limits, lacks = cgroup.Able()
	var cannot *cgroup.UnavailableError
	if errors.As(lacks, &cannot) {
		d.LimitsAdvice = limitsAdvice(cannot.Remedy)
	}
	d.Background = isolatedJail()
	d.MemoryMiB = meminfo.Value("MemAvailable") >> 10
	d.HugePages = meminfo.Value("HugePages_Free")
	slim, ok := guestimages.HasSlimKernel()
	d.GuestImages = append(d.GuestImages, guestImageInfo{"slim", slim, ok})
	stock, ok := guestimages.HasStockKernel()
	d.GuestImages = append(d.GuestImages, guestImageInfo{"debian-cloud", stock, ok})
	if err := d.examineKVM(); err != nil {
		d.Error = withHint(err).Error()
	}
	if speed, err := machine.MeasureSpeed(machine.SoftwareEngine); err != nil {
		d.Software.Error = err.Error()
	} else {
		d.Software.Ring0MIPS, d.Software.Ring3MIPS = speed.Ring0, speed.Ring3
	}
	e, err := machine.AutoEngine.Choose(vm.HostNotes())
	if d.OK = err == nil && (e == machine.KVMEngine && d.Error == "" || e == machine.SoftwareEngine && d.Software.Error == ""); d.OK {
		d.Engine, d.EngineReason = e, machine.AutoEngine.Why(e)
	}
	return d
}

func (d *diagnosis) examineKVM() error {
	sys, err := kvm.Open()
	if err != nil {
		return err
	}
	defer sys.Close()
	d.APIVersion = kvm.APIVersion
	if d.MaxCPUs, err = sys.CheckExtension(kvm.CapMaxVCPUs); err != nil {
		return err
	}
	d.Capabilities = map[string]bool{}
	for _, c := range usedCaps {
		has := sys.Has(c.cap)
		d.Capabilities[c.cap.String()] = has
		if c.required && !has {
			return fmt.Errorf("this KVM has no %v, which vmm needs: the host's kernel is too old or built without it", c.cap)
		}
	}
	speed, err := machine.MeasureSpeed(machine.KVMEngine)
	if err != nil {
		return err
	}
	d.Ring0MIPS, d.Ring3MIPS = speed.Ring0, speed.Ring3
	if d.KernelMode = "hardware"; speed.Interpreted {
		d.KernelMode = "interpreted"
	}
	host := readHost(os.DirFS("/"))
	d.Host, d.Backend, d.Nested = host.kind(speed.Interpreted), host.Module, host.Nested
	d.ExitNS, d.Slow = speed.Exit.Nanoseconds(), host.slow(speed)
	return nil
}

func (d *diagnosis) print(w io.Writer) {
	line := func(name, format string, args ...any) {
		fmt.Fprintf(w, "%-14s %s\n", name, fmt.Sprintf(format, args...))
	}
	if d.OK {
		line("engine", "%s: %s", d.Engine, d.EngineReason)
	} else {
		line("engine", "NONE")
	}
	if d.Error == "" {
		line("KVM", "ok: %s, API version %d, up to %d CPUs a VM", d.Device, d.APIVersion, d.MaxCPUs)
	} else {
		line("KVM", "NO: %s", d.Error)
	}
	if d.Capabilities != nil {
		var have, lack []string
		for _, c := range usedCaps {
			if n := c.cap.String(); d.Capabilities[n] {
				have = append(have, n)
			} else {
				lack = append(lack, n)
			}
		}
		line("capabilities", "%s", strings.Join(have, " "))
		if lack != nil {
			line("", "missing: %s", strings.Join(lack, " "))
		}
	}
	if d.KernelMode != "" {
		line("host", "%s", d.Host)
		line("an exit", "takes %v", (time.Duration(d.ExitNS) * time.Nanosecond).Round(100*time.Nanosecond))
		for _, s := range d.Slow {
			line("slow", "%s", s)
		}
		line("kernel mode", "%s: %.4g million instructions/s in KVM, user mode %.4g", d.KernelMode, d.Ring0MIPS, d.Ring3MIPS)
		if d.KernelMode == "interpreted" {
			line("", "so vmm executes it itself; see docs/hosts.md")
		}
	}
	if d.Software.Error == "" {
		line("software", "ok: %.4g million instructions/s, user mode %.4g; vmm run --engine software", d.Software.Ring0MIPS, d.Software.Ring3MIPS)
	} else {
		line("software", "NO: %s", d.Software.Error)
	}
	line("jail", "%s", d.Jail)
	if os.Getuid() == 0 {
		line("", "with run -d: %s", d.Background)
	} else {
		line("", "with run -d, without shared directories: %s", d.Background)
	}
	line("limits", "%s", d.Limits)
	if d.LimitsAdvice != "" {
		line("", "%s", d.LimitsAdvice)
	}
	line("memory", "%d MiB available, %d huge pages free", d.MemoryMiB, d.HugePages)
	for _, g := range d.GuestImages {
		state := g.Path
		if !g.Present {
			state = "not there: vmm setup builds it, for guests that boot faster than with debian-cloud"
			if g.Name != "slim" {
				state = "not there: vmm run fetches it where slim is not there, and so does vmm setup --stock"
			}
		}
		line("guest image", "%s: %s", g.Name, state)
	}
}
