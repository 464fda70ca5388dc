package vm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"vmm/internal/paths"
	"vmm/machine"
	"vmm/machine/gdb"
	"vmm/network/gateway"
	vnet "vmm/virtio/net"
)

// Errors of methods that look at devices or change them.
var (
	ErrNotFound  = errors.New("the VM has no such device")
	ErrNoGateway = errors.New("this VM has no gateway, by which ports are published")
)

// NICInfo is a network device with what went over it.
type NICInfo struct {
	Mode     string     // as Net.Mode
	MAC      string     // that the guest has now
	Up       bool       // the cable is plugged in
	Received vnet.Count // by the guest, as Sent is
	Sent     vnet.Count
	TCP, UDP int // connections and flows through the gateway, now
}

// NICs returns the network devices, in their order.
func (v *VM) NICs() []NICInfo {
	out := []NICInfo{}
	if !v.made() {
		return out
	}
	for _, n := range v.nets.nics {
		i := NICInfo{Mode: n.cfg.Mode(), MAC: n.device.MAC().String(), Up: n.device.Up()}
		i.Received, i.Sent = n.device.Counts()
		if g := n.gateway.Load(); g != nil {
			i.TCP, i.UDP = g.Connections()
		}
		out = append(out, i)
	}
	return out
}

// SetLink plugs the cable of a network device, by its number in NICs, in or pulls it out. The
// error is ErrNotFound if there is none of that number.
func (v *VM) SetLink(nic int, up bool) error {
	if err := v.running(); err != nil {
		return err
	}
	if nic < 0 || nic >= len(v.nets.nics) {
		return fmt.Errorf("%w: it has %d network devices, numbered from 0", ErrNotFound, len(v.nets.nics))
	}
	v.nets.nics[nic].device.SetUp(up)
	return nil
}

// Published returns what is published of the guest's ports.
func (v *VM) Published() []gateway.Publication {
	if v.running() == nil {
		if g := v.nets.gateway(); g != nil {
			return g.Publications()
		}
	}
	return []gateway.Publication{}
}

// Publish makes a port of the guest's one of the host's, and returns it with the host's
// port, which the system chooses if it is 0. The error is ErrNoGateway if there is none, or
// says what is wrong with the port, such as that another program has it.
func (v *VM) Publish(p gateway.Publication) (gateway.Publication, error) {
	g, err := v.gateway()
	if err != nil {
		return p, err
	}
	return g.Publish(p)
}

// Unpublish closes a port, as Publish has returned it, to new connections; those that there
// are go on. It is an error if it is not published.
func (v *VM) Unpublish(p gateway.Publication) error {
	g, err := v.gateway()
	if err != nil {
		return err
	}
	return g.Unpublish(p)
}

func (v *VM) gateway() (*gateway.Gateway, error) {
	if err := v.running(); err != nil {
		return nil, err
	}
	g := v.nets.gateway()
	if g == nil {
		return nil, ErrNoGateway
	}
	return g, nil
}

// ResizeDisk changes the size of the disk that began as the file at path. size returns
// the new size for the old one, both in bytes and a multiple of 512. The error is ErrNotFound
// if there is no such disk, storage.ErrReadOnly, or what size returns.
func (v *VM) ResizeDisk(path string, size func(old int64) (int64, error)) error {
	if err := v.running(); err != nil {
		return err
	}
	if real, err := paths.Real(path); err == nil { // in a jail no disk has a name
		path = real
	}
	for _, d := range v.disks.disks {
		if d.path == "" || d.path != path {
			continue
		}
		n, err := size(d.device.Size())
		if err == nil {
			err = d.device.Resize(n)
		}
		return err
	}
	return fmt.Errorf("%w: no disk %s", ErrNotFound, path)
}

// DiskPaths are the files that the disks are in now. A root that the VM was given is
// not among them.
func (v *VM) DiskPaths() []string {
	var out []string
	if !v.made() {
		return out
	}
	for _, d := range v.disks.disks {
		if path := d.now(); path != "" {
			out = append(out, path)
		}
	}
	return out
}

// PinnedDisks are the files of the disks that a snapshot keeps as they are while the VM
// goes on, which writes to overlays beside them then.
func (v *VM) PinnedDisks() []string {
	var out []string
	if !v.made() {
		return out
	}
	for _, d := range v.disks.disks {
		d.mu.Lock()
		if d.pinned() {
			out = append(out, d.file)
		}
		d.mu.Unlock()
	}
	return out
}

// Traffic is what went through a device, in bytes, from the guest's side.
type Traffic struct {
	Device  string // disk0, eth0, ...
	In, Out uint64 // read or received, and written or sent
}

// Stats are what a VM has used so far.
type Stats struct {
	CPUTimes []time.Duration   // of each virtual CPU's thread
	Exits    map[string]uint64 // by reason
	// Private is how much of the guest's memory is not shared with a snapshot's file.
	Private int64 // bytes
	Disks   []Traffic
	NICs    []Traffic
}

// Stats returns what the VM has used so far.
func (v *VM) Stats() (Stats, error) {
	if err := v.running(); err != nil {
		return Stats{}, err
	}
	s := Stats{CPUTimes: v.machine.CPUTimes(), Exits: v.machine.Exits(), Private: v.machine.PrivateMemory()}
	for i, d := range v.disks.disks {
		in, out := d.device.Transferred()
		s.Disks = append(s.Disks, Traffic{fmt.Sprintf("disk%d", i), in, out})
	}
	for i, n := range v.NICs() {
		s.NICs = append(s.NICs, Traffic{fmt.Sprintf("eth%d", i), n.Received.Bytes, n.Sent.Bytes})
	}
	return s, nil
}

// AttachConsole connects a terminal to the guest's console until the terminal or the VM
// ends. The terminal is to be closed then, which ends what reads it.
func (v *VM) AttachConsole(rw io.ReadWriter) error {
	if err := v.running(); err != nil {
		return err
	}
	v.console.attach(rw, v.ended)
	return nil
}

// ResizeConsole tells the guest the size of its terminal, where ConsoleDevice can.
func (v *VM) ResizeConsole(cols, rows int) {
	if v.made() && v.ports.device != nil && v.cfg.ConsoleDevice == VirtioConsole {
		v.ports.device.Resize(cols, rows)
	}
}

// DialAgent connects to the guest's agent, once that can be used. It is for those who
// speak its protocol themselves.
func (v *VM) DialAgent(ctx context.Context) (net.Conn, error) {
	switch err := v.running(); {
	case err != nil:
		return nil, err
	case v.cfg.NoAgent:
		return nil, ErrNoAgent
	}
	if err := v.untilEnded(ctx, v.guest.waitOpen); err != nil {
		return nil, err
	}
	return v.guest.client().Dial(ctx)
}

// AgentAlive reports whether the guest's agent can be used now.
func (v *VM) AgentAlive() bool { return v.running() == nil && !v.cfg.NoAgent && v.guest.alive() }

// HoldForDebugger has the guest, once it is started, wait for a debugger before its first
// instruction. It is for a VM that Prepare has made.
func (v *VM) HoldForDebugger() {
	if v.made() {
		v.machine.Debugger().Await()
	}
}

// ServeGDB lets a gdb on a connection debug the guest's kernel, until that ends. kill is
// called when gdb ends the VM; nil is Kill.
func (v *VM) ServeGDB(c net.Conn, kill func()) error {
	if kill == nil {
		kill = v.Kill
	}
	v.mu.Lock()
	ready := v.prepared && !v.closed
	v.mu.Unlock()
	if !ready {
		return ErrNotRunning
	}
	return gdb.Serve(c, v.machine.Debugger(), kill)
}

// StartProfile notes where the guest's kernel runs, from Start on. It is for a VM that
// Prepare has made.
func (v *VM) StartProfile() {
	if v.made() {
		v.machine.StartProfile(v.symbols)
	}
}

// WriteProfile writes what StartProfile has had noted, in pprof's format, once the VM
// has ended.
func (v *VM) WriteProfile(w io.Writer) error {
	if !v.made() {
		return ErrNotRunning
	}
	return v.machine.WriteProfile(w)
}

// Engine returns what executes the guest: machine.KVMEngine or machine.SoftwareEngine. It is
// for a VM that Prepare has made, and else empty.
func (v *VM) Engine() machine.Engine {
	if !v.made() {
		return ""
	}
	return v.machine.Engine()
}

// Interpreted reports whether the engine is a KVM that interprets guest kernel mode. It is for a
// VM that Prepare has made.
func (v *VM) Interpreted() bool { return v.made() && v.machine.Interpreted() }

// Exits returns how often virtual CPUs came back, by reason.
func (v *VM) Exits() map[string]uint64 {
	if !v.made() {
		return nil
	}
	return v.machine.Exits()
}

// StockKernel reports whether Debian's own kernel boots because the default guest's is
// not built. It is for a VM that Prepare has made.
func (v *VM) StockKernel() bool { return v.kernel.stock }
