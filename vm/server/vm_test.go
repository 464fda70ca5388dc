package server

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"vmm/vm/api"
	"vmm/vm/client"
)

// fakeVM is a VM that says what it was asked. All that can fail fails with err.
type fakeVM struct {
	err error

	mu    sync.Mutex
	asked []string

	progress []api.Progress              // of Snapshot and Migrate
	hold     func(context.Context) error // ends them, if it is not nil
	guest    func() (Conn, error)        // the agent's
}

func (vm *fakeVM) was(format string, args ...any) error {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	vm.asked = append(vm.asked, fmt.Sprintf(format, args...))
	return vm.err
}

// fail has all that can fail do so from now on.
func (vm *fakeVM) fail(err error) {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	vm.err = err
}

// did returns what was asked since it was called before.
func (vm *fakeVM) did() []string {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	defer func() { vm.asked = nil }()
	return vm.asked
}

var (
	status = 7
	fakeOf = api.VM{Name: "dev", PID: 3, State: api.Running, Status: &status, Started: time.Unix(1e9, 5).UTC(), Memory: 1 << 40, CPUs: 2, Agent: true, Paused: true, Disks: []string{"a", "b"},
		Config: json.RawMessage(`{"version":1}`)}
	stats = api.Stats{CPUSeconds: []float64{1.25, 0}, Exits: map[string]uint64{"io": 12345678, "a \"b\"\\\n": 1}, Resident: 123456789012, Private: 5,
		Disks: []api.Transfer{{Device: "disk0", In: 1 << 30, Out: 3}}, NICs: []api.Transfer{{Device: "eth0", In: 7, Out: 1 << 60}}}
	port  = api.Port{UDP: true, Host: netip.MustParseAddrPort("[::1]:8080"), Guest: 80}
	nic   = api.NIC{Mode: "user", MAC: "52:54:00:12:34:56", Up: true, Received: api.Count{Packets: 1, Bytes: 2, Dropped: 3}, Sent: api.Count{Packets: 4, Bytes: 5, Dropped: 6}, TCPConnections: 7, UDPFlows: 8}
	saved = api.SnapshotResult{Paused: time.Second, Disks: map[string]string{"a": "b"}}
	moved = api.MigrateResult{Rounds: 2, Sent: 1 << 40, Downtime: time.Millisecond}
)

func (vm *fakeVM) Info() api.VM                     { vm.was("info"); return fakeOf }
func (vm *fakeVM) Stats() api.Stats                 { vm.was("stats"); return stats }
func (vm *fakeVM) Stop(context.Context) error       { return vm.was("stop") }
func (vm *fakeVM) Kill()                            { vm.was("kill") }
func (vm *fakeVM) Pause() error                     { return vm.was("pause") }
func (vm *fakeVM) Resume() error                    { return vm.was("resume") }
func (vm *fakeVM) Ports() []api.Port                { vm.was("ports"); return []api.Port{port} }
func (vm *fakeVM) NICs() []api.NIC                  { vm.was("nics"); return []api.NIC{nic} }
func (vm *fakeVM) Unpublish(p api.Port) error       { return vm.was("unpublish %v", p) }
func (vm *fakeVM) SetLink(nic int, up bool) error   { return vm.was("link %d %v", nic, up) }
func (vm *fakeVM) Resize(r api.ResizeRequest) error { return vm.was("resize %+v", r) }
func (vm *fakeVM) Publish(p api.Port) (api.Port, error) {
	err := vm.was("publish %v", p)
	p.Guest++
	return p, err
}

func (vm *fakeVM) Snapshot(ctx context.Context, r api.SnapshotRequest, progress func(api.Progress)) (*api.SnapshotResult, error) {
	vm.was("snapshot %+v", r)
	return &saved, vm.takeTime(ctx, progress)
}

func (vm *fakeVM) Migrate(ctx context.Context, r api.MigrateRequest, progress func(api.Progress)) (*api.MigrateResult, error) {
	vm.was("migrate %+v", r)
	return &moved, vm.takeTime(ctx, progress)
}

func (vm *fakeVM) takeTime(ctx context.Context, progress func(api.Progress)) error {
	for _, p := range vm.progress {
		progress(p)
	}
	if vm.hold != nil {
		return vm.hold(ctx)
	}
	return vm.was("done")
}

func (vm *fakeVM) Agent(context.Context) (Conn, error) {
	if err := vm.was("agent"); err != nil {
		return nil, err
	}
	return vm.guest()
}

func (vm *fakeVM) Console() (func(Conn), error) { return vm.echo, vm.was("console") }
func (vm *fakeVM) GDB() (func(Conn), error)     { return vm.echo, vm.was("gdb") }

// echo says what it hears, and then a last word.
func (vm *fakeVM) echo(c Conn) {
	io.Copy(c, c)
	io.WriteString(c, "bye")
}

// serve has a VM served until the test ends.
func serve(t *testing.T, vm VM) (*Server, *client.Client, string) {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "control.sock")
	s := New(vm)
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := s.Listen(socket); err != nil {
		t.Fatal(err)
	}
	s.Serve()
	return s, client.New(socket), socket
}
