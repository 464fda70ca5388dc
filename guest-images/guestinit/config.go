package guestinit

import (
	"encoding/json"
	"errors"
	"io/fs"
	"net/netip"
	"os"

	"vmm/guest-images/agent"
)

// ConfigPath is where the initial RAM disk has a Config.
const ConfigPath = "/etc/vmm.json"

// Config is what the host wants of the guest beyond the defaults.
type Config struct {
	// Modules are files to load into the kernel, in this order.
	Modules []string `json:"modules,omitempty"`
	// Volumes has the arrays on the disks found, of Linux's software RAID, and the logical
	// volumes of LVM2, to read them.
	Volumes bool `json:"volumes,omitempty"`
	// Root is the guest's root; nil is the initial RAM disk itself.
	Root   *Root   `json:"root,omitempty"`
	Mounts []Mount `json:"mounts,omitempty"`
	// Refresh are directories below the root, whose attributes are not what the guest's
	// kernel remembers. Of a guest that goes on only, for which a Root is one to mount anew.
	Refresh []string `json:"refresh,omitempty"`
	// AgentOnly has no shell on the console: the host works through the agent, and
	// a guest that it could not reach ends.
	AgentOnly bool `json:"agentOnly,omitempty"`
	// Addresses are those of network interfaces that do not ask for one.
	Addresses map[string]netip.Prefix `json:"addresses,omitempty"`
	// WaitNetwork has commands wait until there is a network to use, and with AgentOnly
	// the agent itself.
	WaitNetwork bool `json:"waitNetwork,omitempty"`
	NoAgent     bool `json:"noAgent,omitempty"`
}

// Root is a file system that becomes the guest's root. What is written to it goes
// to the guest's memory, but for one that boots.
type Root struct {
	Tag  string `json:"tag,omitempty"`  // of a virtio-fs device
	Disk string `json:"disk,omitempty"` // or a disk, such as /dev/vda, or its first partition with a system on it
	// Boot hands over to the init that the disk has.
	Boot bool `json:"boot,omitempty"`
	// Image says that the disk is the EROFS file system of a container image.
	Image *Image `json:"image,omitempty"`
}

// Image is what the root of a container image has beside its files.
type Image struct {
	// Upper is a disk with an ext4 file system for what is written, in the place of the
	// guest's memory.
	Upper string `json:"upper,omitempty"`
	// UpperTag is of a virtio-fs device for it, in the place of both.
	UpperTag string `json:"upperTag,omitempty"`
	// ReadOnly lets nobody write to the root, once what is mounted in it is.
	ReadOnly bool     `json:"readOnly,omitempty"`
	Tmpfs    []Tmpfs  `json:"tmpfs,omitempty"`
	Volumes  []string `json:"volumes,omitempty"` // directories to write to also in a read-only root
	Hosts    []string `json:"hosts,omitempty"`   // lines of /etc/hosts
	// Init hands over to a system of the image's own.
	Init *Init `json:"init,omitempty"`
	// Defaults are what its commands have that say nothing else.
	Defaults agent.Defaults `json:"defaults,omitzero"`
}

// Init is what becomes PID 1 of the guest in the place of vmm's init, whose agent goes on as a process
// beside it.
type Init struct {
	// Argv is the program, by its path or as PATH finds it, and its arguments. Empty is the first
	// of InitPrograms that the image has.
	Argv []string `json:"argv,omitempty"`
}

// InitPrograms are where an image has its init.
var InitPrograms = []string{"/sbin/init", "/init"}

// Tmpfs is a file system in the guest's memory.
type Tmpfs struct {
	Guest   string `json:"guest"`             // absolute; made, if it is not there
	Options string `json:"options,omitempty"` // of mount(8), such as size=64m,mode=1777
}

// Mount is a directory of the host in the guest.
type Mount struct {
	Tag      string `json:"tag"`
	Path     string `json:"path"`
	ReadOnly bool   `json:"readOnly,omitempty"`
	// Overlay takes what is written into the guest's memory.
	Overlay bool `json:"overlay,omitempty"`
	// Fill copies what is at Path to the directory before, if that is empty.
	Fill bool `json:"fill,omitempty"`
}

// readConfig returns the Config, which may be missing.
func readConfig(path string) (*Config, error) {
	c := &Config{}
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return c, nil
	}
	if err != nil {
		return c, err
	}
	return c, json.Unmarshal(b, c)
}
