package cli

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"vmm/machine"
	"vmm/machine/gdb"
	"vmm/network/gateway"
	"vmm/virtio/blk"
	"vmm/vm/api"
	"vmm/vm/registry"
	"vmm/vm/server"
)

// control is what a running VM can do for others: it implements server.VM.
type control struct {
	dir     *registry.Entry
	machine *machine.Machine
	disks   []controlledDisk
	nets    *networks
	agent   *guestAgent // nil if the guest is not to have one
	console *consoleHub // nil if the console is elsewhere
	command bool        // the VM is there for a command
	saver   *saver
	// end ends the VM at once.
	end func()
}

// controlledDisk is a disk that can be resized.
type controlledDisk struct {
	path   string // absolute, without symbolic links
	device *blk.Device
}

// Info implements server.VM.
func (c *control) Info() api.VM {
	vm := c.dir.VM()
	vm.Agent = c.agent != nil && c.agent.alive()
	vm.Paused = c.saver.isPaused()
	vm.Disks = c.saver.diskPaths()
	return vm
}

// Stats implements server.VM.
func (c *control) Stats() api.Stats {
	s := api.Stats{Exits: c.machine.Exits(), Resident: residentBytes(), Private: c.machine.PrivateMemory()}
	for _, d := range c.machine.CPUTimes() {
		s.CPUSeconds = append(s.CPUSeconds, d.Seconds())
	}
	for i, d := range c.disks {
		in, out := d.device.Transferred()
		s.Disks = append(s.Disks, api.Transfer{Device: fmt.Sprintf("disk%d", i), In: in, Out: out})
	}
	for i, n := range c.NICs() {
		s.NICs = append(s.NICs, api.Transfer{Device: fmt.Sprintf("eth%d", i), In: n.Received.Bytes, Out: n.Sent.Bytes})
	}
	return s
}

// residentBytes is the memory of this process, by /proc/self/statm.
func residentBytes() uint64 {
	b, _ := os.ReadFile("/proc/self/statm")
	f := bytes.Fields(b)
	if len(f) < 2 {
		return 0
	}
	pages, _ := strconv.ParseUint(string(f[1]), 10, 64)
	return pages * uint64(os.Getpagesize())
}

// Stop implements server.VM: the guest is asked by its agent, or by the power button. A
// command is asked to end, which ends the VM.
func (c *control) Stop(ctx context.Context) error {
	if c.command {
		return unix.Kill(os.Getpid(), unix.SIGTERM) // which goes on to the command
	}
	if c.agent != nil && c.agent.alive() {
		if err := c.agent.client().Shutdown(ctx); err == nil {
			return nil
		}
	}
	c.machine.PressPowerButton()
	return nil
}

// Kill implements server.VM.
func (c *control) Kill() { c.end() }

// Pause implements server.VM.
func (c *control) Pause() error { return c.saver.setPaused(true) }

// Resume implements server.VM.
func (c *control) Resume() error { return c.saver.setPaused(false) }

// Snapshot implements server.VM.
func (c *control) Snapshot(_ context.Context, req api.SnapshotRequest, progress func(api.Progress)) (*api.SnapshotResult, error) {
	return c.saver.snapshot(&snapshotRequest{SnapshotRequest: req}, func(done, total int64) {
		progress(api.Progress{Done: done, Total: total})
	})
}

// Migrate implements server.VM.
func (c *control) Migrate(ctx context.Context, req api.MigrateRequest, progress func(api.Progress)) (*api.MigrateResult, error) {
	memory := int64(c.dir.VM().Memory)
	result, err := c.saver.migrate(ctx, &req, func(sent int64, round int) {
		progress(api.Progress{Done: sent, Total: max(memory, sent), Round: round})
	})
	if err != nil {
		return nil, err
	}
	return &api.MigrateResult{Rounds: result.Rounds, Sent: result.Sent, Downtime: result.Downtime}, nil
}

// Resize implements server.VM.
func (c *control) Resize(req api.ResizeRequest) error {
	for _, d := range c.disks {
		if d.path != req.Path {
			continue
		}
		size, err := newSize(&req, d.device.Size())
		if err == nil {
			err = d.device.Resize(size)
		}
		return err
	}
	return api.ErrNotFound.With("this VM has no disk %s", req.Path)
}

// NICs implements server.VM.
func (c *control) NICs() []api.NIC {
	out := []api.NIC{}
	for _, n := range c.nets.nics {
		i := api.NIC{Mode: n.mode, MAC: n.device.MAC().String(), Up: n.device.Up()}
		received, sent := n.device.Counts()
		i.Received, i.Sent = api.Count(received), api.Count(sent)
		if g := n.gateway.Load(); g != nil {
			i.TCPConnections, i.UDPFlows = g.Connections()
		}
		out = append(out, i)
	}
	return out
}

// SetLink implements server.VM.
func (c *control) SetLink(nic int, up bool) error {
	if nic < 0 || nic >= len(c.nets.nics) {
		return api.ErrNotFound.With("this VM has %d network devices, numbered from 0", len(c.nets.nics))
	}
	c.nets.nics[nic].device.SetUp(up)
	return nil
}

// Ports implements server.VM.
func (c *control) Ports() []api.Port {
	out := []api.Port{}
	if g := c.nets.gateway(); g != nil {
		for _, p := range g.Publications() {
			out = append(out, api.Port(p))
		}
	}
	return out
}

// Publish implements server.VM.
func (c *control) Publish(p api.Port) (api.Port, error) {
	g := c.nets.gateway()
	if g == nil {
		return p, api.ErrNoGateway
	}
	did, err := g.Publish(gateway.Publication(p))
	if err != nil {
		err = api.ErrConflict.With("%v", err)
	}
	return api.Port(did), err
}

// Unpublish implements server.VM.
func (c *control) Unpublish(p api.Port) error {
	g := c.nets.gateway()
	if g == nil {
		return api.ErrNoGateway
	}
	if err := g.Unpublish(gateway.Publication(p)); err != nil {
		return api.ErrNotFound.With("%v", err)
	}
	return nil
}

// Agent implements server.VM.
func (c *control) Agent(ctx context.Context) (server.Conn, error) {
	if c.agent == nil {
		return nil, api.ErrNoAgent
	}
	if err := c.agent.waitOpen(ctx); err != nil {
		return nil, err
	}
	conn, err := c.agent.client().Dial(ctx)
	if err != nil {
		return nil, err
	}
	return conn.(server.Conn), nil
}

// Console implements server.VM.
func (c *control) Console() (func(server.Conn), error) {
	if c.console == nil {
		return nil, api.ErrNoConsole
	}
	return func(conn server.Conn) { c.console.attach(conn) }, nil
}

// GDB implements server.VM.
func (c *control) GDB() (func(server.Conn), error) {
	return func(conn server.Conn) { gdb.Serve(conn, c.machine.Debugger(), c.end) }, nil
}
