package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"reflect"
	"testing"

	"vmm/vm"
	"vmm/vm/api"
)

// TestLocal asks a VM that does not run.
func TestLocal(t *testing.T) {
	v, err := vm.New(vm.Config{CPUs: 2, Disks: []vm.Disk{{Path: "/x"}}, Nets: vm.Nets{vm.None{}}})
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	var l VM = &Local{VM: v, Entry: func() api.VM { return api.VM{Name: "x"} }, NoConsole: true}
	_, publish := l.Publish(api.Port{Guest: 1})
	_, agent := l.Agent(context.Background())
	_, console := l.Console()
	_, save := l.Snapshot(context.Background(), api.SnapshotRequest{Dir: "/x"}, nil)
	for _, e := range []struct{ got, want error }{
		{l.Resize(api.ResizeRequest{Path: "/x", Size: 1}), api.ErrNotRunning}, {l.SetLink(0, true), api.ErrNotRunning}, {publish, api.ErrNotRunning},
		{l.Unpublish(api.Port{}), api.ErrNotRunning}, {agent, api.ErrNotRunning}, {console, api.ErrNoConsole}, {l.Resume(), api.ErrNotRunning}, {save, api.ErrNotRunning},
		{l.Stop(context.Background()), api.ErrNotRunning},
	} {
		if !errors.Is(e.got, e.want) {
			t.Errorf("%v, want %v", e.got, e.want)
		}
	}
	var config vm.Config
	if err := json.Unmarshal(l.Info().Config, &config); err != nil || !reflect.DeepEqual(config, v.Config()) {
		t.Errorf("the VM is made of %s, %v, and not of %+v", l.Info().Config, err, v.Config())
	}
	l.Kill()
	if len(l.NICs()) != 0 || len(l.Ports()) != 0 || l.Info().Paused || l.Info().Agent || l.Info().Name != "x" {
		t.Errorf("%v, %v, %+v", l.NICs(), l.Ports(), l.Info())
	}
}

// TestCodes gives each error of a VM's its code, and leaves its message.
func TestCodes(t *testing.T) {
	for err, want := range map[error]*api.Error{
		vm.ErrPaused: api.ErrPaused, vm.ErrNotPaused: api.ErrNotPaused, vm.ErrNoSpace: api.ErrNoRoom, vm.ErrNotParent: api.ErrNotParent,
		vm.ErrNotFound: api.ErrNotFound, vm.ErrNoGateway: api.ErrNoGateway, vm.ErrNoAgent: api.ErrNoAgent, vm.ErrUnknownEnd: api.ErrMigrationUnknown,
		vm.ErrNotRunning: api.ErrNotRunning, vm.ErrConfined: api.ErrConfined,
	} {
		of := fmt.Errorf("disk 7: %w", err)
		if got := coded(of); !errors.Is(got, want) || got.Error() != of.Error() {
			t.Errorf("%v is coded %v", of, got)
		}
	}
	if err := errors.New("x"); coded(err) != err || changed(nil, api.ErrNotFound) != nil || !errors.Is(changed(err, api.ErrNotFound), api.ErrNotFound) {
		t.Error("what has no code")
	}
}

func TestNewSize(t *testing.T) {
	for _, c := range []struct {
		r    api.ResizeRequest
		want int64
		err  error
	}{
		{api.ResizeRequest{Size: 20}, 20, nil}, {api.ResizeRequest{Sign: "+", Size: 5}, 15, nil}, {api.ResizeRequest{Sign: "-", Size: 4, Shrink: true}, 6, nil},
		{api.ResizeRequest{Size: 9, Shrink: true}, 9, nil}, {api.ResizeRequest{Size: 9}, 0, api.ErrShrink}, {api.ResizeRequest{Sign: "-", Size: 1}, 0, api.ErrShrink},
		{api.ResizeRequest{Sign: "-", Size: 11, Shrink: true}, 0, api.ErrConflict}, {api.ResizeRequest{Sign: "+", Size: math.MaxInt64}, 0, api.ErrConflict},
		{api.ResizeRequest{Size: -1, Shrink: true}, 0, api.ErrConflict}, {api.ResizeRequest{Sign: "*", Size: 2}, 0, api.ErrBadRequest},
	} {
		if got, err := NewSize(&c.r, 10); got != c.want || !errors.Is(err, c.err) {
			t.Errorf("%+v: %d, %v", c.r, got, err)
		}
	}
}
