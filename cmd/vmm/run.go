package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"math"
	"os"
	"os/signal"
	"regexp"
	"runtime"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/u-root/u-root/pkg/cpio"
	"golang.org/x/sys/unix"

	"vmm/bootloader"
	guestimages "vmm/guest-images"
	"vmm/guest-images/guestinit"
	"vmm/machine"
	"vmm/virtio/rng"
)

// runFlags are the flags of vmm run.
type runFlags struct {
	kernel    string
	initrds   []string
	args      []string
	memory    byteSize
	hugePages bool
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
	vsock     string
	verbose   bool
	execFlags

	command []string
	// What --root means: a directory of the host, or the first disk.
	rootDir  string
	rootDisk bool
}

func runCommand() *cobra.Command {
	f := &runFlags{memory: machine.DefaultMemory}
	cmd := &cobra.Command{
		Use:   "run [flags] [--] [COMMAND [ARGUMENT...]]",
		Short: "Boot a virtual machine, or run a command in one",
		Long: "run boots a Linux kernel and connects this terminal to its serial console.\n" +
			"Without --kernel it boots what the first --disk would boot, and without that the default\n" +
			"guest, which is built once (see vmm setup).\n\n" +
			"With a command, it runs that in the guest, with this process's standard streams, and ends\n" +
			"with its exit status. The guest's root is then what this host has, and the current\n" +
			"directory is the same; what the guest writes is gone with it (see --rw).\n\n" +
			"Ctrl-a x ends the VM, Ctrl-a h shows the other keys.\n\n" +
			"Exit status: the command's, or 0 the guest shut down or rebooted, 123 it crashed,\n" +
			"124 --timeout, 125 vmm could not start or failed, 2 wrong usage.",
		Example: "  vmm run\n" +
			"  vmm run -- make check\n" +
			"  vmm run -it\n" +
			"  vmm run --kernel arch/x86/boot/bzImage --append 'loglevel=7' -m 2G -c 4\n" +
			"  vmm run --kernel vmlinuz --initrd initrd.img --console boot.log --timeout 5m",
		RunE: func(cmd *cobra.Command, args []string) error {
			f.command = args
			if f.sandbox() && !cmd.Flags().Changed("console") {
				f.console = "none"
			}
			return f.run(cmd.Context())
		},
	}
	fl := cmd.Flags()
	fl.SortFlags = false
	fl.SetInterspersed(false)
	fl.StringVar(&f.kernel, "kernel", "", "kernel `FILE`: a bzImage or a vmlinux; \"default\" is the default guest's, whatever the disks boot")
	fl.StringArrayVar(&f.initrds, "initrd", nil, "initial RAM disk `FILE`; several are joined")
	fl.StringArrayVar(&f.args, "append", nil, "kernel `ARGUMENTS`; they win over vmm's own")
	fl.VarP(&f.memory, "memory", "m", "guest memory `SIZE`, such as 512M or 4G")
	fl.BoolVar(&f.hugePages, "huge-pages", false, "back guest memory with huge pages")
	fl.IntVarP(&f.cpus, "cpus", "c", 1, "`NUMBER` of virtual CPUs")
	fl.DurationVar(&f.timeout, "timeout", 0, "end the VM after `DURATION`, such as 90s")
	fl.StringVar(&f.console, "console", "serial", "serial console: serial (this terminal), none, `FILE`, or unix:PATH")
	fl.StringVar(&f.terminal, "console-device", "serial", "what the console is in the guest: serial (ttyS0), or virtio (hvc0), which is faster and knows the terminal's size")
	fl.StringArrayVar(&f.ports, "port", nil, portUsage)
	fl.StringArrayVar(&f.nets, "net", nil, netUsage)
	fl.StringArrayVarP(&f.publish, "publish", "p", nil, "make a port of the guest's one of the host's: `[ADDRESS:]HOST:GUEST[/udp]`; several are possible")
	fl.StringVar(&f.pcap, "pcap", "", "write what crosses the guest's networks to `FILE`, for Wireshark")
	f.execFlags.add(fl)
	fl.StringVar(&f.root, "root", "", "the root of the guest that runs a command: `DIRECTORY`, disk image or tar archive; / if not given")
	fl.StringArrayVar(&f.rw, "rw", nil, "a `DIRECTORY` of the host that the command may write to; several are possible")
	fl.StringArrayVar(&f.shares, "share", nil, shareUsage)
	fl.StringVar(&f.vsock, "vsock", "", vsockUsage)
	fl.BoolVar(&f.noAgent, "no-agent", false, "leave the guest's agent out; vmm exec, cp and a command need it")
	fl.StringVar(&f.name, "name", "vmm", "the VM's `NAME`, and the default guest's hostname")
	fl.StringVar(&f.protocol, "boot-protocol", string(bootloader.Auto), "force how the kernel is entered: auto, bzimage, elf or pvh")
	fl.StringArrayVar(&f.disks, "disk", nil, diskUsage)
	fl.StringVar(&f.rootfs, "rootfs", "", "make the root disk of a `DIRECTORY` or tar archive; changes are gone with the VM")
	fl.StringVar(&f.bootEntry, "boot-entry", "", "boot this `ENTRY` of the first disk: its number or title (see vmm image boot-entries)")
	fl.StringVar(&f.onENOSPC, "on-enospc", "report", "when the host's disk is full: report an I/O error to the guest, or pause it until there is room")
	fl.StringVar(&f.transport, "virtio", string(machine.PCI), "how the guest finds its virtio devices: pci, mmio, or mmio-cmdline")
	fl.StringVar(&f.profile, "profile", "", "write a pprof profile of the guest's kernel to `FILE`")
	fl.BoolVarP(&f.verbose, "verbose", "v", false, "report times and exits at the end")
	return cmd
}

// validName is what a VM may be called: it becomes a hostname.
var validName = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?$`)

// sandbox tells whether there is a command to run, a shell included.
func (f *runFlags) sandbox() bool { return len(f.command) > 0 || f.tty || f.interactive }

// check finds what is wrong with the flags themselves.
func (f *runFlags) check() error {
	usage := func(format string, args ...any) error {
		return &exitError{statusUsage, fmt.Errorf(format, args...)}
	}
	switch {
	case !validName.MatchString(f.name):
		return usage("--name %q: only letters, digits and dashes, at most 63", f.name)
	case f.cpus < 1 || f.cpus > machine.MaxCPUs:
		return usage("--cpus %d: between 1 and %d", f.cpus, machine.MaxCPUs)
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

func (f *runFlags) run(ctx context.Context) error {
	if err := f.check(); err != nil {
		return err
	}
	start := time.Now()
	if err := f.chooseRoot(); err != nil {
		return failed(err)
	}
	disks, err := f.openDisks()
	if err != nil {
		return failed(err)
	}
	defer disks.close()
	con, err := openConsole(f.console)
	if err != nil {
		return failed(err)
	}
	defer con.restore()
	output := &tail{Writer: con}
	logger := log.New(con.messages(), "vmm: ", 0)
	logged := func(err error) { logger.Print(err) }
	shares, err := f.openShares(logged)
	if err != nil {
		return failed(err)
	}
	cfg, symbols, err := f.config(ctx, disks, &shares.config)
	if err != nil {
		return failed(err)
	}
	cfg.Console, cfg.Log = output, logger
	ports, err := f.openPorts(con)
	if err != nil {
		return failed(err)
	}
	defer ports.close()
	nets, err := f.openNetworks(logged)
	if err != nil {
		return failed(err)
	}
	defer nets.close()
	space, err := f.addDevices(cfg, disks, ports, nets, con)
	if err != nil {
		return failed(err)
	}
	cfg.Devices = append(cfg.Devices, shares.devices...)
	guest, err := openAgent(f.vsock)
	if err != nil {
		return failed(err)
	}
	defer guest.close()
	if !f.noAgent || f.vsock != "" {
		cfg.Devices = append(cfg.Devices, guest.devices()...)
	}
	spareForCPUs(f.cpus)
	m, err := machine.New(*cfg)
	if err != nil {
		return failed(err)
	}
	space.attach(m)
	ports.run()
	control, err := listenControl(f.name, disks.controlled, nets)
	if err != nil {
		return failed(errors.Join(err, m.Close()))
	}
	defer control.close()
	built := time.Now()
	if f.profile != "" {
		m.StartProfile(symbols)
	}
	var job func(context.Context) (int, error)
	if f.sandbox() {
		job = func(ctx context.Context) (int, error) { return f.runJob(ctx, guest) }
	}
	result, status, err := f.drive(ctx, m, con, ports.input(m), job)
	con.restore()
	if err != nil {
		return failed(err)
	}
	if f.profile != "" {
		if err := writeProfile(f.profile, m); err != nil {
			return failed(err)
		}
	}
	if f.verbose {
		report(os.Stderr, m, built.Sub(start), time.Since(built))
		nets.report(os.Stderr)
	}
	return f.outcome(result, status, output)
}

// spareForCPUs gives Go's scheduler a place more for each virtual CPU: one that
// is in KVM_RUN keeps its place for up to milliseconds, and the devices'
// goroutines would wait for it.
func spareForCPUs(n int) { runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) + n) }

// drive runs the machine, with a job in the guest, or with its console and the
// signals that end it; and with the timeout.
func (f *runFlags) drive(ctx context.Context, m *machine.Machine, con *hostConsole, input func([]byte) error,
	job func(context.Context) (int, error)) (machine.Result, int, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := func(status int, err error) { cancel(&exitError{status, err}) }
	if f.timeout > 0 {
		t := time.AfterFunc(f.timeout, func() { stop(statusTimeout, fmt.Errorf("the guest did not end within %v", f.timeout)) })
		defer t.Stop()
	}
	if job != nil {
		done := make(chan struct{})
		defer func() {
			cancel(nil)
			<-done // it has the terminal
		}()
		go func() {
			defer close(done)
			stop(job(ctx))
		}()
	} else {
		defer f.interact(ctx, m, con, input, stop)()
	}
	result, err := m.Run(ctx)
	var exit *exitError
	if errors.As(context.Cause(ctx), &exit) && result.End == machine.EndStopped {
		if exit.err != nil {
			con.restore()
			fmt.Fprintln(os.Stderr, "\nvmm:", exit.err)
			if exit.status == statusOK {
				exit.status = statusFailed
			}
		}
		return result, exit.status, err
	}
	if job != nil && result.End != machine.EndCrash && result.End != machine.EndDebugExit {
		return result, statusFailed, err
	}
	return result, statusOK, err
}

// interact connects the console, and ends the VM by a signal. The returned
// function ends that.
func (f *runFlags) interact(ctx context.Context, m *machine.Machine, con *hostConsole, input func([]byte) error, stop func(int, error)) func() {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	go func() {
		select {
		case s := <-signals:
			stop(128+int(s.(unix.Signal)), nil)
		case <-ctx.Done():
		}
	}()
	go con.copyInput(input, consoleActions{
		quit:  func() { stop(statusOK, nil) },
		power: m.PressPowerButton,
		help:  func() { io.WriteString(con, consoleHelp) },
	})
	return func() { signal.Stop(signals) }
}

// shellCommand is the command of -it without one: the user's shell, as far as the
// guest has it.
func (f *runFlags) shellCommand() []string {
	if shell := os.Getenv("SHELL"); f.rootDir == "/" && shell != "" {
		return []string{shell}
	}
	return []string{"/bin/sh"}
}

// runJob runs the command in the guest and saves what that has written.
func (f *runFlags) runJob(ctx context.Context, guest *guestAgent) (int, error) {
	argv := f.command
	if len(argv) == 0 {
		argv = f.shellCommand()
	}
	status, err := runInGuest(ctx, guest.wait, guest.client(), f.execFlags.request(argv), os.Stdout, os.Stderr)
	if err != nil {
		select { // the guest may be about to end, which says more
		case <-ctx.Done():
		case <-time.After(lastWords):
		}
		return statusFailed, err
	}
	if len(f.disks)+len(f.rw)+len(f.shares) > 0 {
		if err := guest.client().Sync(ctx); err != nil && ctx.Err() == nil {
			return statusFailed, fmt.Errorf("saving what the guest has written: %w", err)
		}
	}
	if status >= statusCrash && status <= statusFailed {
		fmt.Fprintf(os.Stderr, "vmm: status %d is the command's own\n", status)
	}
	return status, nil
}

// lastWords is how long a guest may take to end when its agent has hung up.
const lastWords = 3 * time.Second

// consoleLines is how much of the console is shown when a guest fails whose console
// is not seen.
const consoleLines = 40

// outcome is what the guest's end means for the exit status.
func (f *runFlags) outcome(r machine.Result, status int, output *tail) error {
	switch {
	case r.End == machine.EndCrash:
		if f.console == "none" {
			fmt.Fprintln(os.Stderr, output.lines(consoleLines))
		}
		return &exitError{statusCrash, fmt.Errorf("the guest crashed: %s", r.Detail)}
	case r.End == machine.EndDebugExit:
		status = r.Status
	case r.End != machine.EndStopped && f.sandbox():
		if why := output.said("init: "); why != nil {
			return &exitError{statusFailed, fmt.Errorf("the guest could not run the command: %s", strings.Join(why, "; "))}
		}
		return &exitError{statusFailed, errors.New("the guest shut down before the command had ended")}
	}
	if status == statusOK {
		return nil
	}
	return &exitError{status, nil}
}

// boot is what to boot.
type boot struct {
	kernel  *bootloader.Kernel
	symbols string // its System.map, if known
	initrds [][]byte
	args    []string
}

// defaultKernel is the value of --kernel for the default guest's.
const defaultKernel = "default"

// chooseRoot decides what the root of a guest is that runs a command.
func (f *runFlags) chooseRoot() error {
	switch {
	case !f.sandbox():
		return nil
	case f.root == "":
		f.rootDir = "/"
		return nil
	}
	st, err := os.Stat(f.root)
	if err != nil {
		return fmt.Errorf("--root: %w", err)
	}
	if f.rootDisk = !st.IsDir(); !f.rootDisk {
		f.rootDir, err = realPath(f.root)
	}
	return err
}

// chooseBoot finds what the flags say to boot. A guest that runs a command has our
// init, whatever its kernel.
func (f *runFlags) chooseBoot(ctx context.Context, disks *diskSet, guest *guestinit.Config) (*boot, error) {
	if f.kernel != "" && f.kernel != defaultKernel {
		kernel, err := bootloader.Open(f.kernel)
		if err != nil || !f.sandbox() {
			return &boot{kernel: kernel}, err
		}
		builder, finish := setupBuilder()
		defer finish()
		b := &boot{kernel: kernel}
		return b, f.addInit(ctx, builder, b, guest)
	}
	if f.kernel == "" && f.rootfs == "" && !f.sandbox() && len(disks.open) > 0 {
		b, err := disks.boot(f.bootEntry)
		if err == nil || f.bootEntry != "" {
			return b, err
		}
		fmt.Fprintf(os.Stderr, "vmm: %v: booting the default guest\n", err)
	}
	return f.defaultGuest(ctx, guest)
}

// defaultGuest is the slim kernel, with the initial RAM disk unless there is a
// root disk.
func (f *runFlags) defaultGuest(ctx context.Context, guest *guestinit.Config) (*boot, error) {
	builder, finish := setupBuilder()
	slim, err := builder.SlimKernel(ctx)
	if err != nil {
		return nil, err
	}
	b := &boot{symbols: slim.SystemMap}
	if f.rootfs == "" {
		if err := f.addInit(ctx, builder, b, guest); err != nil {
			return nil, err
		}
	}
	finish()
	if t := terminalArgs(f.terminal == "serial"); t != "" && f.console == "serial" {
		b.args = append(b.args, t)
	}
	b.kernel, err = bootloader.Open(slim.Image)
	return b, err
}

// addInit gives a guest the default initial RAM disk, with what its init is to do.
func (f *runFlags) addInit(ctx context.Context, builder *guestimages.Builder, b *boot, guest *guestinit.Config) error {
	initrd, err := builder.Initramfs(ctx)
	if err != nil {
		return err
	}
	guest.NoAgent, guest.AgentOnly = f.noAgent, f.sandbox()
	config, err := json.Marshal(guest)
	if err != nil {
		return err
	}
	extra, err := guestimages.Archive(cpio.StaticFile(strings.TrimPrefix(guestinit.ConfigPath, "/"), string(config), 0o644))
	if err != nil {
		return err
	}
	b.initrds = append(b.initrds, initrd, extra)
	b.args = append(b.args, guestinit.HostnameArg+f.name, "quiet")
	return nil
}

// config reads the kernel and the initial RAM disks.
func (f *runFlags) config(ctx context.Context, disks *diskSet, guest *guestinit.Config) (*machine.Config, string, error) {
	b, err := f.chooseBoot(ctx, disks, guest)
	if err != nil {
		return nil, "", err
	}
	// The user's come last, where they win if the kernel takes the last.
	args := b.args
	if f.rootfs != "" {
		args = append(args, rootArgs)
	}
	if f.terminal == "virtio" {
		args = append(args, "console=hvc0")
	}
	args = append(args, f.args...)
	for _, path := range f.initrds {
		initrd, err := os.ReadFile(path)
		if err != nil {
			return nil, "", err
		}
		b.initrds = append(b.initrds, initrd)
	}
	return &machine.Config{
		CPUs: f.cpus, Memory: uint64(f.memory), HugePages: f.hugePages, Kernel: b.kernel,
		Initrd: bootloader.JoinInitrds(b.initrds...), Cmdline: strings.Join(args, " "),
		Protocol:  bootloader.Protocol(f.protocol),
		Transport: machine.Transport(f.transport),
	}, b.symbols, nil
}

// addDevices makes the virtio devices: the disks, in their order, come first.
func (f *runFlags) addDevices(cfg *machine.Config, disks *diskSet, ports *ports, nets *networks, con *hostConsole) (*spaceWatch, error) {
	var space *spaceWatch
	if f.onENOSPC == "pause" {
		space = &spaceWatch{out: con.messages()}
	}
	devices, err := disks.devices(f.cpus, space, func(err error) { cfg.Log.Print(err) })
	if err != nil {
		return nil, err
	}
	cfg.Devices = append(devices, rng.New())
	if ports.device != nil {
		cfg.Devices = append(cfg.Devices, ports.device)
	}
	nics, err := nets.devices()
	cfg.Devices = append(cfg.Devices, nics...)
	return space, err
}

func writeProfile(path string, m *machine.Machine) error {
	out, err := os.Create(path)
	if err != nil {
		return fmt.Errorf("--profile: %w", err)
	}
	return errors.Join(m.WriteProfile(out), out.Close())
}

// report prints what -v asks for.
func report(w io.Writer, m *machine.Machine, setup, ran time.Duration) {
	mode := "hardware"
	if m.Interpreted() {
		mode = "interpreted"
	}
	fmt.Fprintf(w, "\nvmm: set up in %v, ran for %v, guest kernel mode: %s\n",
		setup.Round(time.Microsecond), ran.Round(time.Millisecond), mode)
	exits := m.Exits()
	names := make([]string, 0, len(exits))
	for n := range exits {
		names = append(names, n)
	}
	sort.Slice(names, func(i, j int) bool { return exits[names[i]] > exits[names[j]] })
	for _, n := range names {
		fmt.Fprintf(w, "vmm: %10d exits: %s\n", exits[n], n)
	}
}

// byteSize is a flag for sizes with the suffixes K, M, G and T.
type byteSize uint64

// String implements pflag.Value.
func (s byteSize) String() string {
	for _, u := range []struct {
		shift uint
		name  string
	}{{40, "T"}, {30, "G"}, {20, "M"}, {10, "K"}} {
		if s > 0 && s%(1<<u.shift) == 0 {
			return fmt.Sprintf("%d%s", s>>u.shift, u.name)
		}
	}
	return strconv.FormatUint(uint64(s), 10)
}

// Set implements pflag.Value. A number without a suffix is in MiB, as with
// other VMMs.
func (s *byteSize) Set(v string) error { return s.setUnit(v, 20) }

// setUnit is Set where a number without a suffix is in units of 2^unit.
func (s *byteSize) setUnit(v string, unitShift uint) error {
	digits := strings.TrimRight(strings.TrimSuffix(strings.TrimSuffix(strings.ToUpper(v), "B"), "I"), "KMGT")
	unit := strings.TrimSuffix(strings.TrimSuffix(strings.ToUpper(v)[len(digits):], "B"), "I")
	shifts := map[string]uint{"": unitShift, "K": 10, "M": 20, "G": 30, "T": 40}
	shift, ok := shifts[unit]
	n, err := strconv.ParseUint(digits, 10, 64)
	if err != nil || !ok || n > math.MaxInt64>>shift {
		return errors.New("a size such as 512M or 4G")
	}
	*s = byteSize(n << shift)
	return nil
}

// Type implements pflag.Value.
func (s *byteSize) Type() string { return "size" }
