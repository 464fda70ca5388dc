package server

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"strconv"

	"vmm/internal/bytesize"
	"vmm/network/gateway"
	"vmm/vm"
	"vmm/vm/api"
)

// Local is a VM of this process that can be served: it implements VM.
type Local struct {
	VM *vm.VM
	// Entry returns what is known of the VM beside what it says itself.
	Entry func() api.VM
	// End asks the VM to end in the place of its guest; nil asks the guest.
	End func() error
	// Ending is told that somebody asks for the VM's end, or for its end at once; nil is told nothing.
	Ending func(atOnce bool)
	// Jail tells what the process is confined to; "" if it is not.
	Jail string
	// NoConsole keeps the console to where the VM was started.
	NoConsole bool
}

// codes are the errors of vm, as the API has them.
var codes = []struct {
	is error
	as *api.Error
}{
	{vm.ErrPaused, api.ErrPaused}, {vm.ErrNotPaused, api.ErrNotPaused}, {vm.ErrNoSpace, api.ErrNoRoom}, {vm.ErrConfined, api.ErrConfined},
	{vm.ErrNotParent, api.ErrNotParent}, {vm.ErrNotFound, api.ErrNotFound}, {vm.ErrNoGateway, api.ErrNoGateway},
	{vm.ErrNoAgent, api.ErrNoAgent}, {vm.ErrUnknownEnd, api.ErrMigrationUnknown},
	{vm.ErrNotRunning, api.ErrNotRunning},
}

// coded gives an error its code.
func coded(err error) error {
	for _, c := range codes {
		if errors.Is(err, c.is) {
			return c.as.With("%v", err)
		}
	}
	return err
}

// Info implements VM.
func (l *Local) Info() api.VM {
	info := l.Entry()
	info.Config, _ = json.Marshal(l.VM.Config()) // plain data
	info.Jail, info.GuestWritable = l.Jail, l.VM.GuestWritable()
	if e := l.VM.Engine(); e != "" {
		info.Engine, info.EngineReason = string(e), l.VM.Config().Engine.Why(e)
	}
	info.Agent, info.Paused = l.VM.AgentAlive(), l.VM.Paused()
	info.Disks, info.PinnedDisks = l.VM.DiskPaths(), l.VM.PinnedDisks()
	if h := l.VM.Health(); h.Status != "" {
		info.Health = &api.Health{Status: string(h.Status), Failures: h.Failures, Output: h.Output}
	}
	return info
}

// Stats implements VM.
func (l *Local) Stats() api.Stats {
	s, _ := l.VM.Stats() // of one that has ended there is nothing to say
	out := api.Stats{Exits: s.Exits, Resident: residentBytes(), Private: s.Private}
	for _, d := range s.CPUTimes {
		out.CPUSeconds = append(out.CPUSeconds, d.Seconds())
	}
	for _, d := range s.Disks {
		out.Disks = append(out.Disks, api.Transfer(d))
	}
	for _, d := range s.NICs {
		out.NICs = append(out.NICs, api.Transfer(d))
	}
	return out
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

// Stop implements VM.
func (l *Local) Stop(ctx context.Context) error {
	l.ending(false)
	if l.End != nil {
		return l.End()
	}
	return coded(l.VM.Shutdown(ctx))
}

// Kill implements VM.
func (l *Local) Kill() {
	l.ending(true)
	l.VM.Kill()
}

func (l *Local) ending(atOnce bool) {
	if l.Ending != nil {
		l.Ending(atOnce)
	}
}

// Pause implements VM.
func (l *Local) Pause() error { return coded(l.VM.Pause()) }

// Resume implements VM.
func (l *Local) Resume() error { return coded(l.VM.Resume()) }

// Snapshot implements VM. It goes on when the one who has asked hangs up.
func (l *Local) Snapshot(ctx context.Context, r api.SnapshotRequest, progress func(api.Progress)) (*api.SnapshotResult, error) {
	files, err := descriptors(ctx, r.Files)
	if err != nil {
		return nil, err
	}
	defer func() {
		for _, f := range files { // those that were not taken
			f.Close()
		}
	}()
	overlays := map[string]*vm.Overlay{}
	for disk, path := range r.Overlays {
		o := &vm.Overlay{Path: path, File: files[path], Direct: files[path+api.DirectSuffix]}
		if o.File == nil || o.Direct == nil {
			return nil, api.ErrBadRequest.With("the overlay %s came without its descriptors", path)
		}
		overlays[disk] = o
	}
	result, err := l.VM.Snapshot(ctx, r.Dir, vm.SnapshotOptions{
		Files: files, ParentID: r.ParentID, Overlays: overlays,
		Replace: r.Replace, Parent: r.Parent, Zstd: r.Zstd, DiskCopy: r.DiskCopy, Stop: r.Stop,
		Progress: func(done, total int64) { progress(api.Progress{Done: done, Total: total}) },
	})
	if err != nil {
		return nil, coded(err)
	}
	return &api.SnapshotResult{Paused: result.Paused, Disks: result.Disks}, nil
}

// Migrate implements VM.
func (l *Local) Migrate(ctx context.Context, r api.MigrateRequest, progress func(api.Progress)) (*api.MigrateResult, error) {
	memory := int64(l.VM.Config().Memory)
	var conn net.Conn
	if r.Connected {
		var err error
		if conn, err = connection(ctx); err != nil {
			return nil, err
		}
		defer conn.Close()
	}
	result, err := l.VM.Migrate(ctx, r.Address, vm.MigrateOptions{Key: r.Key, Downtime: r.Downtime, Conn: conn,
		Progress: func(sent int64, round int) {
			progress(api.Progress{Done: sent, Total: max(memory, sent), Round: round})
		}})
	if err != nil {
		return nil, coded(err)
	}
	return &api.MigrateResult{Rounds: result.Rounds, Sent: result.Sent, Downtime: result.Downtime}, nil
}

// Resize implements VM.
func (l *Local) Resize(r api.ResizeRequest) error {
	return coded(l.VM.ResizeDisk(r.Path, func(old int64) (int64, error) { return NewSize(&r, old) }))
}

// NewSize is the size in bytes that a request means for a disk of the size old.
func NewSize(r *api.ResizeRequest, old int64) (int64, error) {
	size := r.Size
	switch r.Sign {
	case "":
	case "+":
		size = old + size
	case "-":
		size = old - size
	default:
		return 0, api.ErrBadRequest.With("a size has no sign %q", r.Sign)
	}
	if size < 0 {
		return 0, api.ErrConflict.With("%s has only %v", r.Path, bytesize.Size(old))
	}
	if size < old && !r.Shrink {
		return 0, api.ErrShrink.With("%s would lose its last %v", r.Path, bytesize.Size(old-size))
	}
	return size, nil
}

// NICs implements VM.
func (l *Local) NICs() []api.NIC {
	out := []api.NIC{}
	for _, n := range l.VM.NICs() {
		out = append(out, api.NIC{Mode: n.Mode, MAC: n.MAC, Up: n.Up, Received: api.Count(n.Received), Sent: api.Count(n.Sent),
			TCPConnections: n.TCP, UDPFlows: n.UDP})
	}
	return out
}

// SetLink implements VM.
func (l *Local) SetLink(nic int, up bool) error { return coded(l.VM.SetLink(nic, up)) }

// Ports implements VM.
func (l *Local) Ports() []api.Port {
	out := []api.Port{}
	for _, p := range l.VM.Published() {
		out = append(out, api.Port(p))
	}
	return out
}

// Publish implements VM.
func (l *Local) Publish(p api.Port) (api.Port, error) {
	did, err := l.VM.Publish(gateway.Publication(p))
	return api.Port(did), changed(err, api.ErrConflict)
}

// Unpublish implements VM.
func (l *Local) Unpublish(p api.Port) error {
	return changed(l.VM.Unpublish(gateway.Publication(p)), api.ErrNotFound)
}

// changed is coded, where what has no code of its own has another.
func changed(err error, other *api.Error) error {
	var known *api.Error
	if err = coded(err); err == nil || errors.As(err, &known) {
		return err
	}
	return other.With("%v", err)
}

// Agent implements VM.
func (l *Local) Agent(ctx context.Context) (Conn, error) {
	conn, err := l.VM.DialAgent(ctx)
	if err != nil {
		return nil, coded(err)
	}
	return conn.(Conn), nil
}

// Console implements VM.
func (l *Local) Console() (func(Conn), error) {
	if l.NoConsole {
		return nil, api.ErrNoConsole
	}
	return func(c Conn) { l.VM.AttachConsole(c) }, nil
}

// GDB implements VM.
func (l *Local) GDB() (func(Conn), error) {
	return func(c Conn) { l.VM.ServeGDB(c, l.Kill) }, nil
}
