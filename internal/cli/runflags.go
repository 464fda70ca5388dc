package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"vmm/bootloader"
	"vmm/internal/bytesize"
	"vmm/internal/paths"
	"vmm/machine"
	"vmm/network/gateway"
	"vmm/vm"
	"vmm/vm/spec"
)

// runFlags are the flags of vmm run, as they were written: session says what they mean.
type runFlags struct {
	fl *pflag.FlagSet

	kernel, modules, protocol, bootEntry string
	initrds, args                        []string
	memory                               bytesize.Size
	hugePages, nested                    bool
	cpus                                 int
	name, transport, terminal, onENOSPC  string
	cpuModel                             string
	disks, pmems                         []string
	ports, nets, publish                 []string
	shares, rw, hide, expose             []string
	untrusted                            bool
	root, rootfs, vsock, hostname        string
	labels                               []string
	stopSignal                           string
	stopSeconds                          int
	restart                              string
	noAgent                              bool
	config                               string
	sessionFlags
	execFlags
	runImage          runImageFlags
	health            healthFlags
	volumes           volumeFlags
	cold, warmConsole bool
}

// sessionFlags are those that any command has which runs a VM here.
type sessionFlags struct {
	console string
	engine  string
	timeout time.Duration
	gdb     string
	detach  bool
	remove  bool
	verbose bool
	pcap    string
	profile string
	result  string
	jail    string
	jailAs  string
	limits  limitFlags
}

// add makes the flags that vmm run, restore and receive have.
func (f *sessionFlags) add(fl *pflag.FlagSet) {
	fl.StringVar(&f.console, "console", "serial", "serial console: serial (this terminal), none, `FILE`, or unix:PATH")
	fl.StringVar(&f.engine, "engine", string(machine.AutoEngine), engineUsage)
	fl.DurationVar(&f.timeout, "timeout", 0, "end the VM after `DURATION`, such as 90s")
	fl.StringVar(&f.gdb, "gdb", "", gdbUsage)
	fl.BoolVarP(&f.detach, "detach", "d", false, "run the VM in the background, and print its name (see vmm ps, exec, logs, attach, stop)")
	fl.BoolVar(&f.remove, "rm", false, "with -d: remove the VM from the list when it has ended")
	fl.BoolVarP(&f.verbose, "verbose", "v", false, "report times and exits at the end")
	fl.StringVar(&f.jail, "jail", string(vm.JailFull), "what this process gives up while the guest runs: full (all files and system calls that the VM does not need), landlock (only files), off; see docs/jail.md")
	fl.StringVar(&f.jailAs, "jail-user", "", "where root runs it: this process becomes `USER[:GROUP]` while the guest runs, by names or numbers")
	f.limits.add(fl)
}

var (
	engineUsage  = "what executes the guest: kvm, software, which is slower and needs no /dev/kvm, or auto, which is kvm where hardware executes all of a guest; see docs/hosts.md"
	netUsage     = form("network", spec.NetForm) + "; see docs/network.md; several are possible"
	diskUsage    = form("disk", spec.DiskForm) + "; several are possible"
	pmemUsage    = form("persistent memory", spec.PmemForm) + "; several are possible"
	portUsage    = "a virtio-serial port: `NAME=FILE`, NAME=unix:PATH or NAME=none; the guest has it as /dev/virtio-ports/NAME; several are possible"
	publishUsage = "make a port of the guest's one of the host's, as docker does: `" + gateway.PublicationForm + "`; several are possible"
	shareUsage   = "a directory of the host in the guest: `HOST:GUEST[:ro]`; several are possible"
	vsockUsage   = "the guest's vsock as unix sockets of the host: write \"CONNECT PORT\" to `PATH` to reach the guest, which reaches PATH_PORT"
)

// form is a form of package spec for a flag's help, where backquotes are around what
// stands for the value.
func form(what, form string) string {
	value, rest, _ := strings.Cut(form, ": ")
	return what + " `" + value + "`: " + rest
}

// add makes the flags.
func (f *runFlags) add(fl *pflag.FlagSet) {
	f.fl = fl
	fl.SortFlags = false
	fl.SetInterspersed(false)
	f.memory = machine.DefaultMemory
	fl.StringVar(&f.kernel, "kernel", "", "kernel `FILE`: a bzImage or a vmlinux; \"default\" is the default guest's, whatever the disks boot")
	fl.StringVar(&f.modules, "modules", "", "the kernel's modules: `DIRECTORY` with a modules.dep; those that the guest needs are loaded by the default guest's init, and all are in its /lib/modules")
	fl.StringArrayVar(&f.initrds, "initrd", nil, "initial RAM disk `FILE`; several are joined")
	fl.StringArrayVar(&f.args, "append", nil, "kernel `ARGUMENTS`; they win over vmm's own")
	fl.VarP(&f.memory, "memory", "m", "guest memory `SIZE`, such as 512M or 4G")
	fl.BoolVar(&f.hugePages, "huge-pages", false, "back guest memory with huge pages")
	fl.StringVar(&f.cpuModel, "cpu-model", string(machine.HostCPU), "what the guest sees of the CPU: host (all), or the level x86-64-v2 or x86-64-v3, with which what is saved can be restored on other CPUs and by another engine")
	fl.BoolVar(&f.nested, "nested", false, "show the guest the CPU's virtualization, so that it can have VMs of its own")
	fl.IntVarP(&f.cpus, "cpus", "c", 1, "`NUMBER` of virtual CPUs")
	f.sessionFlags.add(fl)
	fl.StringVar(&f.terminal, "console-device", string(vm.Serial), "what the console is in the guest: serial (ttyS0), or virtio (hvc0), which is faster and knows the terminal's size")
	fl.StringArrayVar(&f.ports, "port", nil, portUsage)
	fl.StringArrayVar(&f.nets, "net", nil, netUsage)
	fl.StringArrayVarP(&f.publish, "publish", "p", nil, publishUsage)
	fl.StringVar(&f.pcap, "pcap", "", "write what crosses the guest's networks to `FILE`, for Wireshark")
	f.execFlags.add(fl)
	f.runImage.add(fl)
	f.health.add(fl)
	fl.StringVar(&f.root, "root", "", "the root of the guest that runs a command: `DIRECTORY`, disk image or tar archive; / if not given")
	fl.StringArrayVar(&f.rw, "rw", nil, "a `DIRECTORY` of the host that the command may write to; several are possible")
	fl.StringArrayVar(&f.shares, "share", nil, shareUsage)
	f.volumes.add(fl)
	fl.StringArrayVar(&f.hide, "hide", nil, "a `PATH` of the host that the guest sees as empty, beside credentials, which it sees so anyway; several are possible")
	fl.StringArrayVar(&f.expose, "expose", nil, "a `PATH` of the host that the guest sees although it has credentials; several are possible")
	fl.BoolVar(&f.untrusted, "untrusted", false, "for a command that nobody trusts: it sees the system's directories and the current one, no home and no network")
	fl.StringVar(&f.vsock, "vsock", "", vsockUsage)
	fl.BoolVar(&f.cold, "cold", false, "boot, also if there is a snapshot of such a VM that can run a command at once")
	fl.BoolVar(&f.warmConsole, "warm", false, "with --console: go on from such a snapshot all the same; the console lacks the boot's messages then")
	fl.BoolVar(&f.noAgent, "no-agent", false, "leave the guest's agent out; vmm exec, cp and a command need it")
	fl.StringVar(&f.name, "name", vm.DefaultName, "the VM's `NAME`, and the default guest's hostname")
	fl.StringVar(&f.hostname, "hostname", "", "the guest's host `NAME` in the place of the VM's, with dots if it has a domain")
	fl.StringArrayVarP(&f.labels, "label", "l", nil, "note `KEY=VALUE` of the VM, for vmm ps --filter and inspect; several are possible")
	fl.StringVar(&f.stopSignal, "stop-signal", "", "the `SIGNAL` that the command gets from vmm stop: a name or number; the image's, or SIGTERM, if not given")
	fl.IntVar(&f.stopSeconds, "stop-timeout", 10, "`SECONDS` that vmm stop gives the command; 90 if not given, of an init of --systemd")
	fl.StringVar(&f.restart, "restart", "no", "with -d: when the VM is started again after its end: `"+restartForm+"`; the last two are the same here: not what vmm stop has ended")
	fl.StringVar(&f.protocol, "boot-protocol", string(bootloader.Auto), "force how the kernel is entered: auto, bzimage, elf or pvh")
	fl.StringArrayVar(&f.disks, "disk", nil, diskUsage)
	fl.StringArrayVar(&f.pmems, "pmem", nil, pmemUsage)
	fl.StringVar(&f.rootfs, "rootfs", "", "make the root disk of a `DIRECTORY` or tar archive; changes are gone with the VM")
	fl.StringVar(&f.bootEntry, "boot-entry", "", "boot this `ENTRY` of the first disk: its number or title (see vmm image boot-entries)")
	fl.StringVar(&f.onENOSPC, "on-enospc", string(vm.Report), "when the host's disk is full: report an I/O error to the guest, or pause it until there is room")
	fl.StringVar(&f.transport, "virtio", string(machine.PCI), "how the guest finds its virtio devices: pci, mmio, or mmio-cmdline")
	fl.StringVar(&f.profile, "profile", "", "write a pprof profile of the guest's kernel to `FILE`")
	fl.StringVar(&f.config, "config", "", "take the VM from a TOML `FILE` (see vmm config)")
	fl.StringVar(&f.result, "result", "", "write how the VM ended to `FILE`, as JSON")
}

// usage is an error of the command line.
func usage(format string, args ...any) error {
	return &exitError{statusUsage, fmt.Errorf(format, args...)}
}

// flagOf are the flags that fill the fields of a Config.
var flagOf = map[string]string{
	"Version": "--config", "Name": "--name", "Hostname": "--hostname", "CPUs": "--cpus", "Memory": "--memory", "Engine": "--engine", "CPUModel": "--cpu-model", "Transport": "--virtio",
	"Boot.Protocol": "--boot-protocol", "Boot.Modules": "--modules", "Root": "--root", "Root.Image.Dir": "--root-dir", "Root.Image.Disk": "--root-size", "Root.Image.Tmpfs": "--tmpfs",
	"Root.Image.Hosts": "--add-host", "Root.Image.Init": "--systemd", "Root.Image.Volumes": "the image's VOLUME", "Root.Boot": "--rootfs", "Disks": "--disk", "Pmems": "--pmem", "OnNoSpace": "--on-enospc",
	"Nets": "--net", "Publish": "--publish", "Shares": "--share", "Ports": "--port", "Console": "--console",
	"ConsoleDevice": "--console-device", "Vsock": "--vsock", "NoAgent": "--no-agent", "Health": "--health-cmd",
	"Limits.CPUs": "--cpu-limit", "Limits.Memory": "--memory-limit", "Limits.PIDs": "--pids-limit", "Limits.IO": "--io-limit",
}

// inFlags says an error about a Config in terms of flags.
func inFlags(err error) error {
	var config *vm.ConfigError
	var untrusted *vm.UntrustedError
	switch {
	case errors.As(err, &untrusted):
		return fmt.Errorf("%w\nIf you believe that: --trust. Else give other --net, --publish, --port or --vsock", err)
	case !errors.As(err, &config):
		return err
	case errors.Is(err, vm.ErrNoGateway):
		return fmt.Errorf("--publish needs a --net user, or to be the first with gateway=on on a switch: %w", config.Err)
	}
	flag := flagOf[config.Field]
	if flag == "" { // a field that no flag fills by itself
		return config.Err
	}
	return fmt.Errorf("%s %w", flag, config.Err)
}

// session is what the flags, and a file of --config, mean for a VM that runs now.
func (f *runFlags) session(ctx context.Context, command []string) (*session, error) {
	s, err := f.read(command)
	if err != nil {
		return nil, err
	}
	if s.Config.Name == "" {
		s.Config.Name = vm.DefaultName
	}
	if err := checkName("--name", s.Config.Name); err != nil {
		return nil, err
	}
	if err := f.complete(ctx, s); err != nil {
		return nil, err
	}
	if err := s.Config.Check(); err != nil {
		return nil, &exitError{statusUsage, inFlags(err)}
	}
	*s.Config = s.Config.WithDefaults()
	return s, nil
}

// read is what the flags and a file say, wherever and whenever it is to run.
func (f *runFlags) read(command []string) (s *session, err error) {
	s = &session{Config: &vm.Config{}, Command: command}
	if f.config != "" {
		if err := f.load(s); err != nil {
			return nil, &exitError{statusUsage, fmt.Errorf("--config: %w", err)}
		}
		if len(command) > 0 {
			s.Command = command
		}
	}
	if err := f.fill(s.Config); err != nil {
		return nil, err
	}
	if s.Config.Console, err = f.sessionFlags.fill(s, f.fl, s.Config.Console); err != nil {
		return nil, err
	}
	env, err := readEnvFiles(f.runImage.envFiles)
	if err != nil {
		return nil, err
	}
	f.env = append(env, f.env...)
	s.Exec, s.Cold, s.Warm = f.execFlags.settings(), f.cold, f.warmConsole
	s.Named = s.Config.Name != ""
	if s.Restart, err = readRestart(f.restart); err != nil {
		return nil, usage("--restart %w", err)
	}
	switch {
	case s.Restart != nil && !s.Detach:
		return nil, usage("--restart goes with -d; in the foreground, a loop of the shell does it")
	case s.Restart != nil && s.Remove:
		return nil, usage("--restart and --rm: a VM is started again, or removed")
	}
	return s, f.fillStop(s)
}

// fill sets what the flags say, in the place of what a file does.
func (f *runFlags) fill(c *vm.Config) (err error) {
	given := f.fl.Changed
	set := func(flag string, to *string, v string) {
		if given(flag) {
			*to = v
		}
	}
	set("kernel", &c.Boot.Kernel, f.kernel)
	set("modules", &c.Boot.Modules, f.modules)
	set("boot-entry", &c.Boot.Entry, f.bootEntry)
	set("boot-protocol", (*string)(&c.Boot.Protocol), f.protocol)
	set("engine", (*string)(&c.Engine), f.engine)
	set("cpu-model", (*string)(&c.CPUModel), f.cpuModel)
	set("virtio", (*string)(&c.Transport), f.transport)
	set("console-device", (*string)(&c.ConsoleDevice), f.terminal)
	set("on-enospc", (*string)(&c.OnNoSpace), f.onENOSPC)
	set("vsock", &c.Vsock, f.vsock)
	set("name", &c.Name, f.name)
	set("hostname", &c.Hostname, f.hostname)
	if given("label") {
		if c.Labels, err = readLabels(f.labels); err != nil {
			return err
		}
	}
	if given("memory") {
		if c.Memory = f.memory; c.Memory == 0 {
			return usage("--memory 0: between %v and %v", bytesize.Size(machine.MinMemory), bytesize.Size(machine.MaxMemory))
		}
	}
	if given("cpus") {
		if c.CPUs = f.cpus; c.CPUs == 0 {
			return usage("--cpus 0: between 1 and %d", machine.MaxCPUs)
		}
	}
	for _, b := range []struct {
		flag string
		to   *bool
		v    bool
	}{{"huge-pages", &c.HugePages, f.hugePages}, {"nested", &c.Nested, f.nested}, {"no-agent", &c.NoAgent, f.noAgent}} {
		if given(b.flag) {
			*b.to = b.v
		}
	}
	if given("initrd") {
		c.Boot.Initrds = f.initrds
	}
	if given("append") {
		c.Boot.Args = f.args
	}
	switch {
	case f.rootfs != "" && f.root != "":
		return usage("--rootfs: a guest that runs a command has a --root")
	case f.rootfs != "":
		c.Root = &vm.Root{Path: f.rootfs, Boot: true}
	case f.root != "":
		c.Root = &vm.Root{Path: f.root}
	}
	err = errors.Join(
		read(f.fl, "disk", f.disks, spec.Disk, &c.Disks), read(f.fl, "pmem", f.pmems, spec.Pmem, &c.Pmems), read(f.fl, "net", f.nets, spec.Net, (*[]vm.Net)(&c.Nets)),
		readPublish(f.fl, f.publish, &c.Publish), read(f.fl, "port", f.ports, spec.Port, &c.Ports),
		read(f.fl, "share", f.shares, spec.Share, &c.Shares))
	if err != nil {
		return err
	}
	if _, err := f.limits.fill(f.fl, &c.Limits); err != nil {
		return err
	}
	return shareWritable(c, f.rw)
}

// readPublish reads the ports of --publish, if it was given.
func readPublish(fl *pflag.FlagSet, values []string, to *[]gateway.Publication) error {
	if !fl.Changed("publish") {
		return nil
	}
	*to = nil
	for _, v := range values {
		list, err := gateway.ParsePublications(v)
		if err != nil {
			return usage("--publish %w", err)
		}
		*to = append(*to, list...)
	}
	return nil
}

// shareWritable shares directories that the guest has by the same paths, for it to write
// to.
func shareWritable(c *vm.Config, dirs []string) error {
	for _, dir := range dirs {
		path, err := paths.Real(dir)
		if err != nil {
			return failed(fmt.Errorf("--rw %s: %w", dir, notThere(err)))
		}
		if st, err := os.Stat(path); err == nil && !st.IsDir() {
			return usage("--rw %s: not a directory: name the one that it is in", dir)
		}
		if path == "/" {
			return usage("--rw /: the guest's root is for reading: name the directories to write to")
		}
		if s := (vm.Share{Host: path, Guest: path}); !slices.Contains(c.Shares, s) {
			c.Shares = append(c.Shares, s)
		}
	}
	return nil
}

// read reads the values of a flag, if it was given.
func read[T any](fl *pflag.FlagSet, flag string, values []string, read func(string) (T, error), to *[]T) error {
	if !fl.Changed(flag) {
		return nil
	}
	*to = nil
	return parse(flag, values, read, to)
}

// parse reads the values of a flag.
func parse[T any](flag string, values []string, read func(string) (T, error), to *[]T) error {
	for _, v := range values {
		t, err := read(v)
		if err != nil {
			return usage("--%s %w", flag, err)
		}
		*to = append(*to, t)
	}
	return nil
}

// fill sets what concerns the session. It returns where the console leads beside this
// terminal: to what a file has said, unless that is given.
func (f *sessionFlags) fill(s *session, fl *pflag.FlagSet, file vm.Endpoint) (console vm.Endpoint, err error) {
	if f.timeout < 0 {
		return file, usage("--timeout %v: a time cannot be negative", f.timeout)
	}
	if console, s.Terminal, err = f.endpoint(); err != nil {
		return file, err
	}
	if s.ConsoleGiven = fl.Changed("console"); !s.ConsoleGiven && file != (vm.Endpoint{}) {
		console, s.Terminal, s.ConsoleGiven = file, false, true
	}
	s.Timeout, s.GDB, s.Detach, s.Remove, s.Verbose = f.timeout, f.gdb, f.detach, f.remove, f.verbose
	s.Capture, s.Profile, s.Result, s.Jail = f.pcap, f.profile, f.result, vm.JailLevel(f.jail)
	if !slices.Contains(vm.JailLevels, s.Jail) {
		return file, usage("--jail %s: full, landlock or off", f.jail)
	}
	s.JailUser, err = f.jailUser()
	return console, err
}

// endpoint is where --console leads; terminal if that is this one.
func (f *sessionFlags) endpoint() (to vm.Endpoint, terminal bool, err error) {
	switch f.console {
	case "":
		return to, false, usage("--console: serial, none, a file or unix:PATH")
	case "serial":
		return to, true, nil
	case "none":
		return to, false, nil
	}
	return spec.Endpoint(f.console), false, nil
}

// complete finds out what the guest is for: commands, with the root and the directories
// that these need, or what it boots.
func (f *runFlags) complete(ctx context.Context, s *session) (err error) {
	c := s.Config
	if err := f.runImage.apply(ctx, s, f.fl); err != nil {
		return err
	}
	if err := f.health.apply(c, f.fl); err != nil {
		return err
	}
	if err := f.volumes.apply(c); err != nil {
		return err
	}
	if s.Detach && s.Exec.TTY {
		return usage("-d -t: a VM in the background has no terminal: vmm exec -it gives it one")
	}
	s.Sandbox = !c.HasImageInit() && (len(s.Command) > 0 || s.Exec.TTY || s.Exec.Input)
	if s.Sandbox || len(c.Shares) > 0 || len(f.hide)+len(f.expose) > 0 { // else the guest has nothing of this host's
		if err := hideCredentials(c, f.hide, f.expose); err != nil {
			return err
		}
	}
	if c.HasImageInit() {
		if f.rw != nil || f.user != "" || f.cwd != "" || f.untrusted || f.stopSignal != "" {
			return usage("--rw, --user, --cwd, --stop-signal and --untrusted are for a command, and --systemd starts an init")
		}
		return f.execFlags.check()
	}
	if !s.Sandbox {
		if c.ForCommands() || f.rw != nil || f.env != nil || f.user != "" || f.cwd != "" || f.untrusted || s.StopSignal != 0 || s.StopSeconds != nil {
			return usage("--root, --rw, --env, --user, --cwd, --stop-signal, --stop-timeout and --untrusted are for a command: vmm run ... -- COMMAND, or -it for a shell")
		}
		return nil
	}
	if !s.ConsoleGiven {
		s.Terminal = false
	}
	switch {
	case c.Root != nil && c.Root.Boot:
		return usage("--rootfs: a guest that runs a command has a --root")
	case c.NoAgent:
		return usage("--no-agent: a command needs the agent")
	}
	if err := f.execFlags.check(); err != nil {
		return err
	}
	if f.untrusted {
		if err := f.distrust(c); err != nil {
			return err
		}
	}
	return s.completeSandbox()
}

// completeSandbox gives a guest that runs a command its root and directory.
func (s *session) completeSandbox() error {
	c := s.Config
	root := vm.Root{Path: "/"}
	switch {
	case c.Root == nil:
	case c.Root.Image != nil:
		root = *c.Root
	default:
		st, err := os.Stat(c.Root.Path)
		if root = *c.Root; err == nil && st.IsDir() {
			root.Path, err = paths.Real(root.Path)
		}
		if err != nil {
			return failed(fmt.Errorf("--root: %w", err))
		}
	}
	c.Root, c.ShareOwner = &root, guestOwner(s.Exec.User)
	if root.Path == "/" {
		if err := s.completeDirectory(); err != nil {
			return err
		}
	} else if s.Exec.Dir != "" && !filepath.IsAbs(s.Exec.Dir) {
		return usage("--cwd %s: with --root, an absolute path in the guest", s.Exec.Dir)
	}
	if len(s.Command) == 0 {
		s.Exec.Input = true // a shell is of no use without
		s.Command = []string{"/bin/sh"}
		if shell := os.Getenv("SHELL"); root.Path == "/" && shell != "" {
			s.Command = []string{shell}
		}
	}
	return nil
}
