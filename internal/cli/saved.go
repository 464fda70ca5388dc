package cli

import (
	"fmt"
	"os"
	"path/filepath"

	"vmm/network/ether"
	"vmm/network/gateway"
	"vmm/storage/image"
	"vmm/storage/share"
	"vmm/virtio/blk"
)

// savedVM is how a saved VM is made again: all but its state and memory.
type savedVM struct {
	Name      string       `json:"name"`
	CPUs      int          `json:"cpus"`
	Memory    uint64       `json:"memory"` // bytes
	HugePages bool         `json:"hugePages,omitempty"`
	Nested    bool         `json:"nested,omitempty"`
	Kernel    string       `json:"kernel,omitempty"` // for people
	Transport string       `json:"transport"`        // pci, mmio or mmio-cmdline
	Terminal  string       `json:"terminal"`         // serial or virtio
	Disks     []savedDisk  `json:"disks,omitempty"`
	OnENOSPC  string       `json:"onENOSPC"`
	Nets      []string     `json:"nets"` // as --net has them
	NICs      []savedNIC   `json:"nics,omitempty"`
	Publish   []string     `json:"publish,omitempty"` // as --publish has them
	Ports     []string     `json:"ports,omitempty"`   // as --port has them
	Shares    []savedShare `json:"shares,omitempty"`
	Vsock     string       `json:"vsock,omitempty"` // as --vsock has it
	CID       uint64       `json:"cid"`
	NoAgent   bool         `json:"noAgent,omitempty"`
	Agent     bool         `json:"agent"` // the guest's agent answered
}

// savedDisk is a disk as it was: nobody may change the file meanwhile.
type savedDisk struct {
	Path    string        `json:"path"` // absolute, or of a file in the snapshot
	Options image.Options `json:"options"`
	Serial  string        `json:"serial,omitempty"`
	Queues  int           `json:"queues,omitempty"`
	Limit   blk.Limit     `json:"limit"`
	Size    int64         `json:"size"`           // of the file, in bytes
	Changed int64         `json:"changed"`        // when the file was, in nanoseconds since 1970
	Temp    bool          `json:"temp,omitempty"` // what the guest writes was not to be kept
}

// savedNIC is what the network of an interface had in use.
type savedNIC struct {
	MAC ether.MAC      `json:"mac"`
	TCP []gateway.Conn `json:"tcp,omitempty"` // connections through the gateway
}

// savedShare is a directory of the host that the guest has.
type savedShare struct {
	Tag     string        `json:"tag"`
	Dir     string        `json:"dir"`
	Options share.Options `json:"options"`
}

// describe returns how the VM of these flags and parts is made again. Its disks
// follow.
func (f *runFlags) describe(p *parts) *savedVM {
	abs := func(path string) string {
		if a, err := filepath.Abs(path); err == nil && path != "" {
			return a
		}
		return path
	}
	vm := &savedVM{Name: f.name, CPUs: f.cpus, Memory: uint64(f.memory), HugePages: f.hugePages, Nested: f.nested, Kernel: f.kernel,
		Transport: f.transport, Terminal: f.terminal, OnENOSPC: f.onENOSPC, Nets: f.nets, Publish: f.publish, Ports: f.ports,
		Shares: p.shares.saved, Vsock: abs(f.vsock), NoAgent: f.noAgent, Agent: !f.noAgent && p.guest.greeted(), CID: p.guest.device.CID()}
	for _, n := range p.nets.nics {
		s := savedNIC{MAC: n.device.MAC()}
		if g := n.gateway.Load(); g != nil {
			s.TCP = g.TCP()
		}
		vm.NICs = append(vm.NICs, s)
	}
	return vm
}

// note keeps how the disk's file looks now.
func (d *savedDisk) note() error {
	st, err := os.Stat(d.Path)
	if err == nil {
		d.Size, d.Changed = st.Size(), st.ModTime().UnixNano()
	}
	return err
}

// check finds out whether the file is as it was.
func (d *savedDisk) check(path string) error {
	now := savedDisk{Path: path}
	if err := now.note(); err != nil {
		return fmt.Errorf("the disk that the snapshot goes with: %w", err)
	}
	if now.Size != d.Size || now.Changed != d.Changed && filepath.IsAbs(d.Path) {
		return fmt.Errorf("the disk %s has changed since the snapshot was taken, which is of no use without it as it was", path)
	}
	return nil
}
