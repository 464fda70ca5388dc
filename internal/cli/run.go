package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"vmm/bootloader"
	guestimages "vmm/guest-images"
	"vmm/machine"
	"vmm/virtio/rng"
	"vmm/vm/api"
	"vmm/vm/registry"
	"vmm/vm/server"
)

// runFlags are the flags of vmm run.
type runFlags struct {
	kernel    string
	initrds   []string
	args      []string
	memory    byteSize
	hugePages bool
	nested    bool
	cpus      int
	timeout   time.Duration
	console   string
	name      string
	protocol  string
	profile   string
	transport string
	disks     []string
	rootfs    string
	bootEntry string
	onENOSPC  string
	terminal  string
	ports     []string
	nets      []string
	publish   []string
	pcap      string
	shares    []string
	root      string
	rw        []string
	noAgent   bool
	detach    bool
	remove    bool
	vsock     string
	verbose   bool
	config    string
	modules   string
	stock     bool // kernel and modules are Debian's, in the place of the slim kernel
	result    string
	gdb       string
	execFlags

	cold bool
	// warmConsole allows a warm start where the console is wanted.
	warmConsole bool
	restored    *restored  // not nil if the VM goes on from a saved one
	warm        *warmStart // nil if its kind cannot start warm

	command             []string
	named, consoleGiven bool // by the user
	// What --root means: a directory of the host, or the first disk.
	rootDir  string
	rootDisk bool
}

func newRunFlags() *runFlags { return &runFlags{memory: machine.DefaultMemory} }

func runCommand() *cobra.Command {
	f := newRunFlags()
	cmd := &cobra.Command{
		Use:   "run [flags] [--] [COMMAND [ARGUMENT...]]",
		Short: "Boot a virtual machine, or run a command in one",
		Long: "run boots a Linux kernel and connects this terminal to its serial console.\n" +
			"Without --kernel it boots what the first --disk would boot, and without that the default\n" +
			"guest: with the kernel that vmm setup builds if it has, else with Debian's own.\n\n" +
			"With a command, it runs that in the guest, with this process's standard streams, and ends\n" +
			"with its exit status. The guest's root is then what this host has, and the current\n" +
			"directory is the same; what the guest writes is gone with it (see --rw).\n\n" +
			"Ctrl-a x ends the VM, Ctrl-a h shows the other keys.\n\n" +
			"Exit status: the command's, or 0 the guest shut down or rebooted, 123 it crashed,\n" +
			"124 --timeout, 125 vmm could not start or failed, 2 wrong usage.",
		Example: "  vmm run\n" +
			"  vmm run -- make check\n" +
			"  vmm run -it\n" +
			"  vmm run --kernel /boot/vmlinuz-$(uname -r) --modules /lib/modules/$(uname -r)\n" +
			"  vmm run --kernel arch/x86/boot/bzImage --append 'loglevel=7' -m 2G -c 4\n" +
			"  vmm run --kernel vmlinuz --initrd initrd.img --console boot.log --timeout 5m",
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := f.read(cmd.Flags(), args); err != nil {
				return err
			}
			return f.start(cmd.Context(), cmd.OutOrStdout())
		},
	}
	f.add(cmd.Flags())
	return cmd
}

// add makes the flags.
func (f *runFlags) add(fl *pflag.FlagSet) {
	fl.SortFlags = false
	fl.SetInterspersed(false)
	fl.StringVar(&f.kernel, "kernel", "", "kernel `FILE`: a bzImage or a vmlinux; \"default\" is the default guest's, whatever the disks boot")
	fl.StringVar(&f.modules, "modules", "", "the kernel's modules: `DIRECTORY` with a modules.dep; those that the guest needs are loaded by the default guest's init, and all are in its /lib/modules")
	fl.StringArrayVar(&f.initrds, "initrd", nil, "initial RAM disk `FILE`; several are joined")
	fl.StringArrayVar(&f.args, "append", nil, "kernel `ARGUMENTS`; they win over vmm's own")
	fl.VarP(&f.memory, "memory", "m", "guest memory `SIZE`, such as 512M or 4G")
	fl.BoolVar(&f.hugePages, "huge-pages", false, "back guest memory with huge pages")
	fl.BoolVar(&f.nested, "nested", false, "show the guest the CPU's virtualization, so that it can have VMs of its own")
	fl.IntVarP(&f.cpus, "cpus", "c", 1, "`NUMBER` of virtual CPUs")
	fl.DurationVar(&f.timeout, "timeout", 0, "end the VM after `DURATION`, such as 90s")
	fl.StringVar(&f.console, "console", "serial", "serial console: serial (this terminal), none, `FILE`, or unix:PATH")
	fl.StringVar(&f.terminal, "console-device", "serial", "what the console is in the guest: serial (ttyS0), or virtio (hvc0), which is faster and knows the terminal's size")
	fl.StringArrayVar(&f.ports, "port", nil, portUsage)
	fl.StringArrayVar(&f.nets, "net", nil, netUsage)
	fl.StringArrayVarP(&f.publish, "publish", "p", nil, "make a port of the guest's one of the host's: `[ADDRESS:]HOST:GUEST[/udp]`; several are possible")
	fl.StringVar(&f.pcap, "pcap", "", "write what crosses the guest's networks to `FILE`, for Wireshark")
	fl.BoolVarP(&f.detach, "detach", "d", false, "run the VM in the background, and print its name (see vmm ps, exec, logs, attach, stop)")
	fl.BoolVar(&f.remove, "rm", false, "with -d: remove the VM from the list when it has ended")
	f.execFlags.add(fl)
	fl.StringVar(&f.root, "root", "", "the root of the guest that runs a command: `DIRECTORY`, disk image or tar archive; / if not given")
	fl.StringArrayVar(&f.rw, "rw", nil, "a `DIRECTORY` of the host that the command may write to; several are possible")
	fl.StringArrayVar(&f.shares, "share", nil, shareUsage)
	fl.StringVar(&f.vsock, "vsock", "", vsockUsage)
	fl.BoolVar(&f.cold, "cold", false, "boot, also if there is a snapshot of such a VM that can run a command at once")
	fl.BoolVar(&f.warmConsole, "warm", false, "with --console: go on from such a snapshot all the same; the console lacks the boot's messages then")
	fl.BoolVar(&f.noAgent, "no-agent", false, "leave the guest's agent out; vmm exec, cp and a command need it")
	fl.StringVar(&f.name, "name", registry.DefaultName, "the VM's `NAME`, and the default guest's hostname")
	fl.StringVar(&f.protocol, "boot-protocol", string(bootloader.Auto), "force how the kernel is entered: auto, bzimage, elf or pvh")
	fl.StringArrayVar(&f.disks, "disk", nil, diskUsage)
	fl.StringVar(&f.rootfs, "rootfs", "", "make the root disk of a `DIRECTORY` or tar archive; changes are gone with the VM")
	fl.StringVar(&f.bootEntry, "boot-entry", "", "boot this `ENTRY` of the first disk: its number or title (see vmm image boot-entries)")
	fl.StringVar(&f.onENOSPC, "on-enospc", "report", "when the host's disk is full: report an I/O error to the guest, or pause it until there is room")
	fl.StringVar(&f.transport, "virtio", string(machine.PCI), "how the guest finds its virtio devices: pci, mmio, or mmio-cmdline")
	fl.StringVar(&f.profile, "profile", "", "write a pprof profile of the guest's kernel to `FILE`")
	fl.StringVar(&f.gdb, "gdb", "", gdbUsage)
	fl.StringVar(&f.config, "config", "", "take flags from a TOML `FILE` (see vmm config)")
	fl.StringVar(&f.result, "result", "", "write how the VM ended to `FILE`, as JSON")
	fl.BoolVarP(&f.verbose, "verbose", "v", false, "report times and exits at the end")
}

// sandbox tells whether there is a command to run, a shell included.
func (f *runFlags) sandbox() bool { return len(f.command) > 0 || f.tty || f.interactive }

// check finds what is wrong with the flags themselves.
func (f *runFlags) check() error {
	usage := func(format string, args ...any) error {
		return &exitError{statusUsage, fmt.Errorf(format, args...)}
	}
	if err := checkName("--name", f.name); err != nil {
		return err
	}
	switch {
	case f.cpus < 1 || f.cpus > machine.MaxCPUs:
		return usage("--cpus %d: between 1 and %d", f.cpus, machine.MaxCPUs)
	case f.detach && f.tty:
		return usage("-d -t: a VM in the background has no terminal: vmm exec -it gives it one")
	case f.timeout < 0:
		return usage("--timeout %v: a time cannot be negative", f.timeout)
	case f.console == "":
		return usage("--console: serial, none, a file or unix:PATH")
	case f.memory < machine.MinMemory || f.memory > machine.MaxMemory:
		return usage("--memory %v: between %v and %v", f.memory, byteSize(machine.MinMemory), byteSize(machine.MaxMemory))
	}
	if f.onENOSPC != "report" && f.onENOSPC != "pause" {
		return usage("--on-enospc %q: report or pause", f.onENOSPC)
	}
	if f.sandbox() {
		if f.noAgent {
			return usage("--no-agent: a command needs the agent")
		}
		if f.rootfs != "" {
			return usage("--rootfs: a guest that runs a command has a --root")
		}
		if err := f.execFlags.check(); err != nil {
			return err
		}
	} else if f.root != "" || f.rw != nil || f.env != nil || f.user != "" || f.cwd != "" {
		return usage("--root, --rw, --env, --user and --cwd are for a command: vmm run ... -- COMMAND, or -it for a shell")
	}
	if !slices.Contains(terminalDevices, f.terminal) {
		return usage("--console-device %q: serial or virtio", f.terminal)
	}
	if !slices.Contains(machine.Transports, machine.Transport(f.transport)) {
		return usage("--virtio %q: pci, mmio or mmio-cmdline", f.transport)
	}
	if !slices.Contains(bootloader.Protocols, bootloader.Protocol(f.protocol)) {
		return usage("--boot-protocol %q: auto, bzimage, elf or pvh", f.protocol)
	}
	return nil
}

// start runs the VM here or in the background.
func (f *runFlags) start(ctx context.Context, out io.Writer) error {
	if f.detach && !isDetached() {
		return detach(out)
	}
	if err := f.chooseKernel(ctx); err != nil {
		return failed(err)
	}
	kernel := f.kernel
	if kernel == "" {
		kernel = defaultKernel
	}
	claim := registry.User().ClaimSimilar
	if f.named {
		claim = registry.User().Claim
	}
	dir, err := claim(api.VM{
		Name: f.name, PID: os.Getpid(), Command: f.command, Detached: f.detach,
		CPUs: f.cpus, Memory: uint64(f.memory), Kernel: kernel, Disks: f.disks, Shares: f.shares, Nets: f.nets,
	})
	if err != nil {
		return failed(advise(err))
	}
	f.name = dir.Name()
	ready := false
	err = f.runWarm(ctx, dir, &ready)
	if f.remove || !ready {
		dir.Remove()
		return err
	}
	dir.End(statusOf(err))
	return err
}

// runResult is how a VM ended, for --result.
type runResult struct {
	Started bool   `json:"started"` // the command was
	Exited  bool   `json:"exited"`  // the command has
	Status  int    `json:"status"`  // of the command, or vmm's
	End     string `json:"end"`     // stopped, power off, reset, crash, debug exit or timeout
	Detail  string `json:"detail,omitempty"`
}

// endTimeout is runResult.End after --timeout.
const endTimeout = "timeout"

// save writes the result to the file of --result.
func (r *runResult) save(path string, end machine.Result, err error) error {
	if path == "" {
		return nil
	}
	r.Status, r.Detail = statusOf(err)
	if r.End = end.End.String(); r.Status == statusTimeout && !r.Exited {
		r.End = endTimeout
	}
	b, bad := json.Marshal(r)
	if bad == nil {
		bad = os.WriteFile(path, append(b, '\n'), 0o644)
	}
	if bad != nil {
		return fmt.Errorf("--result: %w", bad)
	}
	return nil
}

// parts are what a VM is made of beside the machine; close undoes what opening
// them did.
type parts struct {
	dir        *registry.Entry
	disks      *diskSet
	console    *hostConsole
	background *background // nil if the VM is not in it
	output     *tail       // what the console says
	shares     *shares
	ports      *ports
	nets       *networks
	guest      *guestAgent
	saving     sync.WaitGroup // of a warm start
	gdb        *gdbListener   // nil without --gdb
	space      *spaceWatch
	stdout     io.Writer // of a command
	stderr     io.Writer
	result     runResult
}

func (p *parts) close() {
	p.gdb.close()
	if p.guest != nil {
		p.guest.close()
	}
	if p.nets != nil {
		p.nets.close()
	}
	if p.ports != nil {
		p.ports.close()
	}
	if p.console != nil {
		p.console.restore()
	}
	if p.background != nil {
		p.background.close()
	}
	if p.disks != nil {
		p.disks.close()
	}
}

// open makes the parts and the machine's configuration.
func (f *runFlags) open(ctx context.Context, p *parts) (cfg *machine.Config, symbols string, err error) {
	cid := uint64(guestCID)
	if f.restored != nil {
		cid = f.restored.cid(f.name)
	}
	if p.disks, err = f.openDisks(); err != nil {
		return
	}
	if err = f.openTerminal(p); err != nil {
		return
	}
	p.output = &tail{Writer: p.console}
	logger := log.New(p.console.messages(), "vmm: ", 0)
	logged := func(err error) { logger.Print(err) }
	if p.shares, err = f.openShares(logged); err != nil {
		return
	}
	if f.restored != nil {
		cfg = f.restored.machineConfig(f)
	} else if cfg, symbols, err = f.machineConfig(ctx, p.disks, &p.shares.config); err != nil {
		return
	}
	cfg.Console, cfg.Log = p.output, logger
	if p.ports, err = f.openPorts(p.console); err != nil {
		return
	}
	if p.nets, err = f.openNetworks(logged); err != nil {
		return
	}
	if p.guest, err = openAgent(f.vsock, cid); err != nil {
		return
	}
	p.guest.setUp = f.sandbox()
	if p.gdb, err = listenGDB(f.gdb); err != nil {
		return
	}
	return cfg, symbols, f.addDevices(cfg, p)
}

// openTerminal opens the console: a VM in the background has logs, and of one that
// runs a command the console is seen only if it crashes.
func (f *runFlags) openTerminal(p *parts) (err error) {
	p.stdout, p.stderr = os.Stdout, os.Stderr
	if f.detach {
		if p.background, err = openBackground(p.dir); err != nil {
			return err
		}
		p.stdout, p.stderr = p.background.output, p.background.output
		if !f.consoleGiven {
			p.console = p.background.console()
			return nil
		}
	}
	if f.sandbox() && !f.consoleGiven {
		f.console = "none"
	}
	p.console, err = openConsole(f.console)
	return err
}

func (f *runFlags) run(ctx context.Context, dir *registry.Entry, ready *bool) error {
	start := time.Now()
	p := &parts{dir: dir}
	defer p.close()
	cfg, symbols, err := f.open(ctx, p)
	if err != nil {
		return failed(err)
	}
	spareForCPUs(f.cpus)
	if cache, err := guestimages.CacheDir(); err == nil {
		cfg.HostNotes = filepath.Join(cache, "host")
	}
	m, err := machine.New(*cfg)
	if err != nil {
		var state *machine.StateError
		if f.restored != nil && f.restored.warm && errors.As(err, &state) {
			return &coldError{err}
		}
		return failed(f.restored.explain(err))
	}
	p.space.attach(m)
	p.ports.run()
	var killed atomic.Bool
	control := &control{dir: dir, machine: m, disks: p.disks.controlled, nets: p.nets, command: f.sandbox(),
		saver: &saver{flags: f, parts: p, machine: m, base: f.restored.id()}, end: func() {
			killed.Store(true)
			m.Stop()
		}}
	if !f.noAgent {
		control.agent = p.guest
	}
	if p.background != nil && !f.consoleGiven {
		control.console = p.background.hub
	}
	serving := server.New(control)
	defer serving.Close()
	if err := serving.Listen(dir.Socket()); err != nil {
		return failed(errors.Join(err, m.Close()))
	}
	if p.background != nil {
		if err := p.background.ready(f.name); err != nil {
			return failed(errors.Join(err, m.Close()))
		}
	}
	*ready = true
	if p.gdb != nil {
		p.gdb.serve(m, p.console.messages())
	}
	built := time.Now()
	if f.profile != "" {
		m.StartProfile(symbols)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go p.guest.keepTime(ctx)
	if f.restored != nil {
		go f.restored.settle(ctx, f, p)
	}
	var job func(context.Context) (int, error)
	if f.sandbox() {
		job = func(ctx context.Context) (int, error) { return f.runJob(ctx, p, control.saver) }
	}
	if r := f.restored; r != nil && r.confirm != nil {
		if err := r.confirm(); err != nil {
			return failed(errors.Join(err, m.Close()))
		}
		r.confirmed = true
	}
	result, status, err := f.drive(ctx, m, p.console, p.ports.input(m), job)
	p.console.restore()
	p.saving.Wait()
	if err != nil {
		return failed(err)
	}
	if to := control.saver.hasMoved(); to != "" {
		fmt.Fprintf(p.console.messages(), "vmm: the VM has moved to %s\n", to)
		f.remove = true
		return nil
	}
	if killed.Load() && result.End == machine.EndStopped {
		status = 128 + int(unix.SIGKILL)
	}
	if f.profile != "" {
		if err := writeProfile(f.profile, m); err != nil {
			return failed(err)
		}
	}
	if f.verbose {
		report(os.Stderr, m, built.Sub(start), time.Since(built))
		p.nets.report(os.Stderr)
	}
	err = f.outcome(result, status, p)
	if bad := p.result.save(f.result, result, err); bad != nil {
		return failed(errors.Join(bad, err))
	}
	return err
}

// addDevices makes the virtio devices: the disks, in their order, come first.
func (f *runFlags) addDevices(cfg *machine.Config, p *parts) error {
	if f.onENOSPC == "pause" {
		p.space = &spaceWatch{out: p.console.messages()}
	}
	devices, err := p.disks.devices(f.cpus, p.space, func(err error) { cfg.Log.Print(err) })
	if err != nil {
		return err
	}
	cfg.Devices = append(devices, rng.New())
	if p.ports.device != nil {
		cfg.Devices = append(cfg.Devices, p.ports.device)
	}
	nics, err := p.nets.devices()
	if err != nil {
		return err
	}
	cfg.Devices = append(append(cfg.Devices, nics...), p.shares.devices...)
	if !f.noAgent || f.vsock != "" {
		cfg.Devices = append(cfg.Devices, p.guest.device)
	}
	return nil
}
