package vm

import (
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"vmm/bootloader"
	"vmm/internal/paths"
	"vmm/internal/vmname"
	"vmm/machine"
	"vmm/network/gateway"
	"vmm/storage"
	"vmm/storage/image"
	"vmm/virtio/blk"
)

// ConfigVersion is Config.Version of this build. It grows when an older one would
// misunderstand what is new.
const ConfigVersion = 1

// Config is the one description of a VM: flags become it, files and snapshots hold it.
// The zero value is a good VM: the default guest, with one CPU, 512 MiB and a network.
type Config struct {
	Version int `json:"version"` // ConfigVersion; New takes 0 for it
	// Name is the guest's hostname and what its addresses are made of: letters, digits
	// and dashes, at most 63. DefaultName if empty.
	Name string `json:"name,omitempty"`
	// Hostname is the guest's in the place of Name, also by DHCP: such names with dots between, at most 64 in all.
	Hostname string `json:"hostname,omitempty"`
	// Labels are what others note of the VM.
	Labels    map[string]string `json:"labels,omitempty"`
	CPUs      int               `json:"cpus,omitempty"`      // at most 64; 1 if 0
	Memory    Size              `json:"memory,omitzero"`     // from 16 MiB to 256 GiB, in whole pages; 512 MiB if 0
	HugePages bool              `json:"hugePages,omitempty"` // of the host's hugetlb pool
	Nested    bool              `json:"nested,omitempty"`    // the guest can have VMs of its own
	// Engine is what executes the guest on this host; machine.AutoEngine if empty. What is
	// saved of a VM does not have it.
	Engine machine.Engine `json:"engine,omitempty"`
	// CPUModel is what the guest sees of the CPU; machine.HostCPU if empty. With another one
	// what is saved can be restored by any engine, on any host whose CPU has that.
	CPUModel machine.CPUModel `json:"cpuModel,omitempty"`
	// Transport is how the guest finds its virtio devices; machine.PCI if empty.
	Transport machine.Transport `json:"transport,omitempty"`
	Boot      Boot              `json:"boot,omitzero"`
	// Root is a root that the guest is given; nil leaves it to what is booted.
	Root  *Root  `json:"root,omitempty"`
	Disks []Disk `json:"disks,omitempty"`
	Pmems []Pmem `json:"pmems,omitempty"`
	// OnNoSpace is what happens when the host's disk is full: Report if empty.
	OnNoSpace NoSpace `json:"onNoSpace,omitempty"`
	Nets      Nets    `json:"nets,omitempty"` // one User if there is none
	// Publish makes ports of the guest's ones of the host's, by the first gateway.
	Publish []gateway.Publication `json:"publish,omitempty"`
	Shares  []Share               `json:"shares,omitempty"`
	// Hide are paths of the host, absolute, that the guest sees as empty and unreadable in
	// Root and Shares, and cannot make there. A share of such a path itself, or of one below
	// it, shows it all the same. Package credentials lists what one would not show.
	Hide []string `json:"hide,omitempty"`
	// ShareOwner is who the user of this process is in the guest, for shares.
	ShareOwner Owner  `json:"shareOwner,omitzero"`
	Ports      []Port `json:"ports,omitempty"`
	// Console is where the console leads beside what WithConsole gives it.
	Console Endpoint `json:"console,omitzero"`
	// ConsoleDevice is what the console is in the guest; Serial if empty.
	ConsoleDevice ConsoleDevice `json:"consoleDevice,omitempty"`
	// Vsock is a unix socket through which others reach the guest's vsock ("CONNECT PORT"),
	// and at whose path with _PORT behind it the guest reaches them.
	Vsock string `json:"vsock,omitempty"`
	// NoAgent leaves the agent out, which Exec and Copy need.
	NoAgent bool `json:"noAgent,omitempty"`
	// Health is how it is found out whether what the VM is there for is well; see VM.Health.
	Health *HealthCheck `json:"health,omitempty"`
	// Limits bound the VM's process: see NewGroup.
	Limits Limits `json:"limits,omitzero"`
}

// DefaultName is a VM's name where none is given.
const DefaultName = "vmm"

// Boot says what is booted. The zero value is what the first disk would boot, and
// without one the default guest.
type Boot struct {
	// Kernel is a file (bzImage or vmlinux), or DefaultKernel.
	Kernel string `json:"kernel,omitempty"`
	// Modules is the kernel's tree of modules, with a modules.dep.
	Modules string   `json:"modules,omitempty"`
	Initrds []string `json:"initrds,omitempty"` // files, joined
	Args    []string `json:"args,omitempty"`    // of the kernel; they win over vmm's own
	// Protocol is how the kernel is entered; bootloader.Auto if empty.
	Protocol bootloader.Protocol `json:"protocol,omitempty"`
	// Entry is the number or title of what the first disk is to boot.
	Entry string `json:"entry,omitempty"`
}

// DefaultKernel is Boot.Kernel for the default guest's, whatever the disks boot.
const DefaultKernel = "default"

// Root is a root for the guest. What the guest writes to it goes with the VM, unless an
// Image says otherwise.
type Root struct {
	// Path is a directory, a tar archive, or (unless Boot is set) a disk image.
	Path string `json:"path,omitempty"`
	// Image is a container image in the place of Path, for commands or with an init of its own.
	Image *ImageRoot `json:"image,omitempty"`
	// Boot hands the guest over to the init that Path has. Without it the guest is
	// there for commands: its agent runs them, and it ends when it has none.
	Boot bool `json:"boot,omitempty"`
}

// IsDir reports whether Path is a directory now, which is shared with the guest and not a disk.
func (r *Root) IsDir() bool {
	st, err := os.Stat(r.Path)
	return err == nil && st.IsDir()
}

// check finds what is wrong with a root by itself; nil is one that the guest brings.
func (r *Root) check() error {
	switch {
	case r == nil:
		return nil
	case r.Image == nil && r.Path == "":
		return wrong("Root", "no path")
	case r.Image == nil:
		return nil
	case r.Path != "":
		return wrong("Root", "%s and the image %s: a guest has one root", r.Path, r.Image.Name)
	case r.Boot:
		return wrong("Root.Boot", "the image %s boots only as its Init says", r.Image.Name)
	}
	return r.Image.check()
}

// Disk is a virtio-blk disk.
type Disk struct {
	Path     string `json:"path"`
	Format   string `json:"format,omitempty"` // one of image.Formats; found out if empty
	ReadOnly bool   `json:"readOnly,omitempty"`
	// Ephemeral keeps what the guest writes in a temporary file, which goes with the VM.
	Ephemeral bool          `json:"ephemeral,omitempty"`
	Cache     storage.Cache `json:"cache,omitempty"`  // one of storage.Caches
	Serial    string        `json:"serial,omitempty"` // at most 20 bytes
	Queues    int           `json:"queues,omitempty"` // at most 64; if 0, one for each CPU, at most 8
	// AnyBacking allows a raw backing file that is not beside the image.
	AnyBacking     bool  `json:"anyBacking,omitempty"`
	IOPS           int64 `json:"iops,omitempty"`           // at most so many requests a second, read and written; no bound if 0
	BytesPerSecond int64 `json:"bytesPerSecond,omitempty"` // read and written; no bound if 0
}

// options are those of the image.
func (d *Disk) options() image.Options {
	return image.Options{Format: d.Format, ReadOnly: d.ReadOnly, Cache: d.Cache, Ephemeral: d.Ephemeral, AnyBacking: d.AnyBacking}
}

func (d *Disk) limit() blk.Limit { return blk.Limit{BytesPerSecond: d.BytesPerSecond, IOPS: d.IOPS} }

// NoSpace says what a full disk of the host is for the guest.
type NoSpace string

// The values of NoSpace.
const (
	Report NoSpace = "report" // an I/O error
	Pause  NoSpace = "pause"  // it stands still until there is room
)

// Share is a directory of the host in the guest, by virtio-fs.
type Share struct {
	Host     string `json:"host"`
	Guest    string `json:"guest"` // absolute; made, if it is not there
	ReadOnly bool   `json:"readOnly,omitempty"`
	// Overlay takes what the guest writes into its memory.
	Overlay bool `json:"overlay,omitempty"`
	// Fill copies what the guest's root has at Guest to the directory, if that is empty and
	// the guest can write to it.
	Fill bool `json:"fill,omitempty"`
	// Lock is a file that has a shared flock(2) as long as the guest has the directory; none if empty.
	Lock string `json:"lock,omitempty"`
}

// ErrShareGone is in the error for a Share whose Lock somebody has, or has removed.
var ErrShareGone = errors.New("somebody is removing it")

// ErrNeedsRoot is in the error for an ImageRoot.Dir where this process is not root's.
var ErrNeedsRoot = errors.New("only root can give a guest a directory for what it writes to its root")

// ErrShareBusy is in the error for an ImageRoot.Dir that another VM has.
var ErrShareBusy = errors.New("another VM has it")

// Owner is a user and group of the guest; the zero value is root.
type Owner struct {
	UID uint32 `json:"uid"`
	GID uint32 `json:"gid"`
}

// Port is a port of the virtio console, which the guest has as
// /dev/virtio-ports/NAME.
type Port struct {
	Name string   `json:"name"` // letters, digits, dashes, dots and underlines, at most 63
	To   Endpoint `json:"to,omitzero"`
}

// Endpoint is where bytes lead on the host: to a file, which is made anew, or to a
// unix socket where one client at a time may connect. The zero value leads nowhere.
type Endpoint struct {
	File   string `json:"file,omitempty"`
	Socket string `json:"socket,omitempty"`
}

// ConsoleDevice is what the console is in the guest.
type ConsoleDevice string

// The values of ConsoleDevice.
const (
	Serial        ConsoleDevice = "serial" // ttyS0
	VirtioConsole ConsoleDevice = "virtio" // hvc0, which is faster and knows the terminal's size
)

// ConfigError is the error for a part of a Config, by the name of its field.
type ConfigError struct {
	Field string // such as "CPUs" or "Disks"
	Err   error
}

// Error implements error.
func (e *ConfigError) Error() string { return e.Field + ": " + e.Err.Error() }

// Unwrap returns what is wrong.
func (e *ConfigError) Unwrap() error { return e.Err }

// wrong makes a ConfigError of a text.
func wrong(field, format string, args ...any) error {
	return &ConfigError{field, fmt.Errorf(format, args...)}
}

// of names the field that an error is about, unless it is nil or has one.
func of(field string, err error) error {
	var known *ConfigError
	if err == nil || errors.As(err, &known) {
		return err
	}
	return &ConfigError{field, err}
}

// portForm is what a port may be called, with up to 63 characters.
var portForm = regexp.MustCompile(`^[A-Za-z0-9._]([A-Za-z0-9._-]*[A-Za-z0-9._])?$`)

// complete fills in what is left out.
func (c *Config) complete() {
	if c.Version == 0 {
		c.Version = ConfigVersion
	}
	if c.Name == "" {
		c.Name = DefaultName
	}
	if c.CPUs == 0 {
		c.CPUs = 1
	}
	if c.Memory == 0 {
		c.Memory = machine.DefaultMemory
	}
	if c.Engine == "" {
		c.Engine = machine.AutoEngine
	}
	if c.CPUModel == "" {
		c.CPUModel = machine.HostCPU
	}
	if c.Transport == "" {
		c.Transport = machine.PCI
	}
	if c.Boot.Protocol == "" {
		c.Boot.Protocol = bootloader.Auto
	}
	if c.OnNoSpace == "" {
		c.OnNoSpace = Report
	}
	if c.ConsoleDevice == "" {
		c.ConsoleDevice = Serial
	}
	if len(c.Nets) == 0 {
		c.Nets = Nets{User{}}
	}
}

// WithDefaults returns the Config with what is left out filled in.
func (c Config) WithDefaults() Config {
	c.complete()
	return c
}

// Check finds what is wrong with a Config by itself, without a look at the host. The
// error is a *ConfigError.
func (c *Config) Check() error {
	full := c.WithDefaults()
	return full.check()
}

func (c *Config) check() error {
	switch {
	case c.Version != ConfigVersion:
		return wrong("Version", "%d, and this build understands %d", c.Version, ConfigVersion)
	case !vmname.Valid(c.Name):
		return wrong("Name", "%q: only letters, digits and dashes, at most 63", c.Name)
	case c.Hostname != "" && !validHostname(c.Hostname):
		return wrong("Hostname", "%q: only letters, digits and dashes, with dots between, at most %d", c.Hostname, maxHostname)
	case c.CPUs < 1 || c.CPUs > machine.MaxCPUs:
		return wrong("CPUs", "%d: between 1 and %d", c.CPUs, machine.MaxCPUs)
	case c.Memory < machine.MinMemory || c.Memory > machine.MaxMemory:
		return wrong("Memory", "%v: between %v and %v", c.Memory, Size(machine.MinMemory), Size(machine.MaxMemory))
	case !slices.Contains(machine.Engines, c.Engine):
		return wrong("Engine", "%q: auto, kvm or software", c.Engine)
	case !slices.Contains(machine.CPUModels, c.CPUModel):
		return wrong("CPUModel", "%q: host, x86-64-v2 or x86-64-v3", c.CPUModel)
	case c.Nested && c.CPUModel != machine.HostCPU:
		return wrong("Nested", "only a CPU like the host's can have it, and %s is none", c.CPUModel)
	case !slices.Contains(machine.Transports, c.Transport):
		return wrong("Transport", "%q: pci, mmio or mmio-cmdline", c.Transport)
	case !slices.Contains(bootloader.Protocols, c.Boot.Protocol):
		return wrong("Boot.Protocol", "%q: auto, bzimage, elf or pvh", c.Boot.Protocol)
	case c.OnNoSpace != Report && c.OnNoSpace != Pause:
		return wrong("OnNoSpace", "%q: report or pause", c.OnNoSpace)
	case c.ConsoleDevice != Serial && c.ConsoleDevice != VirtioConsole:
		return wrong("ConsoleDevice", "%q: serial or virtio", c.ConsoleDevice)
	case c.Health != nil && c.NoAgent:
		return wrong("NoAgent", "a health check needs the agent")
	case c.ForCommands() && c.NoAgent:
		return wrong("NoAgent", "a command needs the agent")
	case c.HasImageInit() && c.NoAgent:
		return wrong("NoAgent", "the agent has the network of an image with an init of its own")
	}
	if err := c.Health.check(); err != nil {
		return err
	}
	if err := c.Root.check(); err != nil {
		return err
	}
	for i := range c.Disks {
		if err := c.Disks[i].check(); err != nil {
			return of("Disks", err)
		}
	}
	for _, p := range c.Pmems {
		if p.Path == "" {
			return wrong("Pmems", "no file")
		}
	}
	for _, p := range c.Hide {
		if !filepath.IsAbs(p) {
			return wrong("Hide", "%q: an absolute path", p)
		}
	}
	if err := c.checkShares(); err != nil {
		return err
	}
	if err := c.checkPorts(); err != nil {
		return err
	}
	if err := c.checkLimits(); err != nil {
		return err
	}
	return c.checkNets()
}

// maxHostname is Linux's bound (HOST_NAME_MAX).
const maxHostname = 64

func validHostname(name string) bool {
	invalid := func(part string) bool { return !vmname.Valid(part) }
	return len(name) <= maxHostname && !slices.ContainsFunc(strings.Split(name, "."), invalid)
}

// GuestName is the guest's hostname.
func (c *Config) GuestName() string {
	if c.Hostname != "" {
		return c.Hostname
	}
	return c.Name
}

// guestsOwn are where the guest has file systems that it cannot do without.
var guestsOwn = []string{"/proc", "/sys", "/dev"}

// guestsOwnAt is the one of guestsOwn that something at a place, clean, would be in the way of; "" for none.
func guestsOwnAt(place string) string {
	for _, own := range guestsOwn {
		if place == own || own != "/dev" && paths.Below(place, own) {
			return own
		}
	}
	return ""
}

// checkShares refuses what the guest could not see of a share, or of a tmpfs.
func (c *Config) checkShares() error {
	at := map[string]string{}
	for _, s := range c.Shares {
		if s.Host == "" || !strings.HasPrefix(s.Guest, "/") {
			return wrong("Shares", "%q at %q: a directory of the host, and an absolute path in the guest", s.Host, s.Guest)
		}
		place := path.Clean(s.Guest)
		if place == "/" {
			return wrong("Shares", "%s at /: that is the guest's root; share it somewhere below", s.Host)
		}
		if own := guestsOwnAt(place); own != "" {
			return wrong("Shares", "%s at %s: the guest has a %s of its own", s.Host, s.Guest, own)
		}
		if other, ok := at[place]; ok {
			return wrong("Shares", "%s and %s are both to be %s in the guest, which sees one directory there", other, s.Host, place)
		}
		at[place] = s.Host
	}
	if c.Root == nil || c.Root.Image == nil {
		return nil
	}
	for _, t := range c.Root.Image.Tmpfs {
		place := path.Clean(t.Guest)
		if other, ok := at[place]; ok {
			return wrong("Root.Image.Tmpfs", "%s: %s is to be there too, and the guest sees one of them", place, other)
		}
		at[place] = "a tmpfs"
	}
	return nil
}

func (d *Disk) check() error {
	switch {
	case d.Path == "":
		return errors.New("no file")
	case d.Format != "" && !slices.Contains(image.Formats, d.Format):
		return fmt.Errorf("%s: format %q: one of %s", d.Path, d.Format, strings.Join(image.Formats, ", "))
	case d.Cache != "" && !slices.Contains(storage.Caches, d.Cache):
		return fmt.Errorf("%s: cache %q: one of %v", d.Path, d.Cache, storage.Caches)
	case len(d.Serial) > blk.MaxSerial:
		return fmt.Errorf("%s: serial %q: at most %d characters", d.Path, d.Serial, blk.MaxSerial)
	case d.Queues < 0 || d.Queues > blk.MaxQueues:
		return fmt.Errorf("%s: %d queues: at most %d", d.Path, d.Queues, blk.MaxQueues)
	case d.IOPS < 0 || d.BytesPerSecond < 0:
		return fmt.Errorf("%s: a bound below 0", d.Path)
	}
	return nil
}

func (c *Config) checkPorts() error {
	var names []string
	for _, p := range c.Ports {
		if len(p.Name) > 63 || !portForm.MatchString(p.Name) {
			return wrong("Ports", "%q: only letters, digits, dashes, dots and underlines", p.Name)
		}
		if slices.Contains(names, p.Name) {
			return wrong("Ports", "%q: there is a port of that name already", p.Name)
		}
		names = append(names, p.Name)
	}
	return nil
}

// ForCommands reports whether the guest is there for commands, which its agent runs.
func (c *Config) ForCommands() bool { return c.Root != nil && !c.Root.Boot && !c.HasImageInit() }

// HasHostFiles reports whether the guest sees files of the host's, and whose they are: in shared directories, or a directory
// that is its root or becomes its root's disk.
func (c *Config) HasHostFiles() bool {
	return len(c.Shares) > 0 || c.Root != nil && c.Root.Image == nil && c.Root.IsDir()
}

// HasImageInit reports whether the guest is handed over to an init of its container image's.
func (c *Config) HasImageInit() bool {
	return c.Root != nil && c.Root.Image != nil && c.Root.Image.Init != nil
}

// Persistent reports whether what the guest writes can outlast it: VM.Sync is of use then.
func (c *Config) Persistent() bool {
	return len(c.Disks)+len(c.Pmems)+len(c.Shares) > 0 || c.Root != nil && c.Root.Image != nil && (c.Root.Image.Disk != nil || c.Root.Image.Dir != "")
}
