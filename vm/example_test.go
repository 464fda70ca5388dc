package vm_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"vmm/machine"
	"vmm/network/gateway"
	"vmm/storage/image"
	"vmm/virtio"
	"vmm/vm"
)

// TestMain leaves the examples out on a host where no VM can run.
func TestMain(m *testing.M) {
	flag.Parse()
	if sys, _, err := machine.AutoEngine.Open(""); err == nil {
		sys.Close()
	} else {
		fmt.Println("the examples are skipped, for they run VMs:", err)
		flag.Set("test.skip", "^Example")
	}
	dir, remove := scratch()
	os.Setenv("XDG_DATA_HOME", dir) // where the key is that snapshots are signed with
	status := m.Run()
	remove()
	os.Exit(status)
}

// exampleTimeout bounds an example, also on a host that is emulated.
const exampleTimeout = 10 * time.Minute

// scratch makes a directory for an example.
func scratch() (dir string, remove func()) {
	dir, err := os.MkdirTemp("", "vmm-example-")
	if err != nil {
		log.Fatal(err)
	}
	return dir, func() { os.RemoveAll(dir) }
}

// build has a guest work on a directory of the host's, with a disk.
func build(ctx context.Context, disk, dir string) error {
	v, err := vm.New(vm.Config{Disks: []vm.Disk{{Path: disk}}, Nets: []vm.Net{vm.User{}}, Shares: []vm.Share{{Host: dir, Guest: "/src"}}})
	if err != nil {
		return err
	}
	defer v.Close()
	if err := v.Start(ctx); err != nil {
		return err
	}
	return v.Exec(ctx, vm.Cmd{Args: []string{"sh", "build.sh"}, Dir: "/src", Stdout: os.Stdout})
}

func Example() {
	dir, remove := scratch()
	defer remove()
	disk := filepath.Join(dir, "x.qcow2")
	if err := image.Create(disk, image.CreateOptions{Size: 1 << 30}); err != nil {
		log.Fatal(err)
	}
	os.WriteFile(filepath.Join(dir, "build.sh"), []byte("uname -s; cat /sys/block/vda/size; echo built > result"), 0o644)
	ctx, cancel := context.WithTimeout(context.Background(), exampleTimeout)
	defer cancel()
	if err := build(ctx, disk, dir); err != nil {
		log.Fatal(err)
	}
	result, _ := os.ReadFile(filepath.Join(dir, "result"))
	fmt.Print(string(result))
	// Output:
	// Linux
	// 2097152
	// built
}

// boot starts a VM without networks.
func boot(ctx context.Context, name string, options ...vm.Option) *vm.VM {
	v, err := vm.New(vm.Config{Name: name, Nets: vm.Nets{vm.None{}}}, options...)
	if err == nil {
		err = v.Start(ctx)
	}
	if err != nil {
		log.Fatal(err)
	}
	return v
}

// A VM is changed while it runs, stands still, and is asked to shut down.
func ExampleVM() {
	dir, remove := scratch()
	defer remove()
	ctx, cancel := context.WithTimeout(context.Background(), exampleTimeout)
	defer cancel()
	disk, notes := filepath.Join(dir, "x.raw"), filepath.Join(dir, "notes")
	if err := errors.Join(os.WriteFile(disk, make([]byte, 1<<20), 0o600), os.WriteFile(notes, []byte("read by the guest\n"), 0o600)); err != nil {
		log.Fatal(err)
	}
	v, err := vm.New(vm.Config{Disks: []vm.Disk{{Path: disk}}, Nets: vm.Nets{vm.User{}}})
	if err == nil {
		defer v.Close()
		err = v.Start(ctx)
	}
	if err != nil {
		log.Fatal(err)
	}
	port, err := v.Publish(gateway.Publication{Host: netip.MustParseAddrPort("127.0.0.1:0"), Guest: 80})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("published on", port.Host.Addr())
	for _, change := range []func() error{
		func() error { return v.ResizeDisk(disk, func(old int64) (int64, error) { return 2 * old, nil }) },
		func() error { return v.SetLink(0, false) }, // the cable is out
		func() error { return v.CopyTo(ctx, notes, "/tmp") },
		v.Pause, v.Resume,
	} {
		if err := change(); err != nil {
			log.Fatal(err)
		}
	}
	script := "until [ $(cat /sys/block/vda/size) = 4096 ] && [ $(cat /sys/class/net/eth0/carrier) = 0 ]; do sleep 0.1; done; cat /tmp/notes"
	if err := v.Exec(ctx, vm.Cmd{Args: []string{"sh", "-c", script}, Stdout: os.Stdout}); err != nil {
		log.Fatal(err)
	}
	if err := v.Stop(ctx); err != nil {
		log.Fatal(err)
	}
	result, err := v.Wait(ctx)
	fmt.Println(result.End, err)
	// Output:
	// published on 127.0.0.1
	// read by the guest
	// power off <nil>
}

// A command has streams, and a status.
func ExampleVM_Exec() {
	ctx, cancel := context.WithTimeout(context.Background(), exampleTimeout)
	defer cancel()
	v := boot(ctx, "exec")
	defer v.Close()

	var out strings.Builder
	err := v.Exec(ctx, vm.Cmd{Args: []string{"tr", "a-z", "A-Z"}, Stdin: strings.NewReader("a guest\n"), Stdout: &out})
	fmt.Print(out.String())
	if err != nil {
		log.Fatal(err)
	}
	err = v.Exec(ctx, vm.Cmd{Args: []string{"sh", "-c", "echo no >&2; exit 3"}, Stderr: os.Stdout})
	var exit *vm.ExitError
	if errors.As(err, &exit) {
		fmt.Println("status", exit.Status)
	}
	// Output:
	// A GUEST
	// no
	// status 3
}

// A snapshot, and ten copies that go on from it: each is a machine of its own, with the
// memory of the one that was saved.
func ExampleRestore() {
	dir, remove := scratch()
	defer remove()
	ctx, cancel := context.WithTimeout(context.Background(), exampleTimeout)
	defer cancel()
	origin := boot(ctx, "origin")
	defer origin.Close()
	if err := origin.Exec(ctx, vm.Cmd{Args: []string{"sh", "-c", "echo what origin knows > /tmp/known"}}); err != nil {
		log.Fatal(err)
	}
	saved := filepath.Join(dir, "saved")
	if _, err := origin.Snapshot(ctx, saved, vm.SnapshotOptions{}); err != nil {
		log.Fatal(err)
	}
	for n := range 10 {
		copied, err := vm.Restore(saved, vm.RestoreOptions{Name: fmt.Sprintf("copy-%d", n)})
		if err != nil {
			log.Fatal(err)
		}
		defer copied.Close()
		if err := copied.Start(ctx); err != nil {
			log.Fatal(err)
		}
		if err := copied.Exec(ctx, vm.Cmd{Args: []string{"sh", "-c", "echo $(hostname) has $(cat /tmp/known)"}, Stdout: os.Stdout}); err != nil {
			log.Fatal(err)
		}
	}
	// Output:
	// copy-0 has what origin knows
	// copy-1 has what origin knows
	// copy-2 has what origin knows
	// copy-3 has what origin knows
	// copy-4 has what origin knows
	// copy-5 has what origin knows
	// copy-6 has what origin knows
	// copy-7 has what origin knows
	// copy-8 has what origin knows
	// copy-9 has what origin knows
}

// A copy of a running VM: both go on.
func ExampleVM_Clone() {
	ctx, cancel := context.WithTimeout(context.Background(), exampleTimeout)
	defer cancel()
	v := boot(ctx, "first")
	defer v.Close()
	if err := v.Ready(ctx); err != nil {
		log.Fatal(err)
	}
	clone, err := v.Clone(ctx, "second")
	if err != nil {
		log.Fatal(err)
	}
	defer clone.Close()
	if err := clone.Start(ctx); err != nil {
		log.Fatal(err)
	}
	for _, v := range []*vm.VM{v, clone} {
		if err := v.Exec(ctx, vm.Cmd{Args: []string{"hostname"}, Stdout: os.Stdout}); err != nil {
			log.Fatal(err)
		}
	}
	// Output:
	// first
	// second
}

// Two VMs on a switch, of which one has the gateway that gives both their addresses and
// names.
func ExampleSwitch() {
	dir, remove := scratch()
	defer remove()
	ctx, cancel := context.WithTimeout(context.Background(), exampleTimeout)
	defer cancel()
	start := func(name string, gateway *vm.Gateway) *vm.VM {
		v, err := vm.New(vm.Config{Name: name, Nets: vm.Nets{vm.Switch{Name: "lab", Gateway: gateway}}}, vm.WithRuntimeDir(dir))
		if err == nil {
			err = v.Start(ctx)
		}
		if err == nil {
			err = v.Ready(ctx)
		}
		if err != nil {
			log.Fatal(err)
		}
		return v
	}
	a := start("a", &vm.Gateway{})
	defer a.Close()
	b := start("b", nil)
	defer b.Close()
	script := "until ping -c 1 -w 5 a >/dev/null 2>&1; do sleep 1; done; echo $(hostname) reaches a"
	if err := b.Exec(ctx, vm.Cmd{Args: []string{"sh", "-c", script}, Stdout: os.Stdout}); err != nil {
		log.Fatal(err)
	}
	// Output:
	// b reaches a
}

// dice is a virtio entropy device that always rolls the same.
type dice struct{ chain virtio.Chain }

func (*dice) Type() virtio.DeviceType       { return virtio.TypeRNG }
func (*dice) Features() uint64              { return 0 }
func (*dice) QueueSizes() []uint16          { return []uint16{8} }
func (*dice) ReadConfig(_ uint32, b []byte) { clear(b) }
func (*dice) WriteConfig(uint32, []byte)    {}
func (*dice) Start(uint64, virtio.Control)  {}
func (*dice) StopQueue(int)                 {}
func (*dice) Reset()                        {}
func (*dice) Close() error                  { return nil }
func (*dice) Save() (any, error)            { return nil, nil }
func (*dice) Load([]byte) error             { return nil }

// HandleQueue fills the guest's buffers.
func (d *dice) HandleQueue(_ int, q *virtio.Queue) error {
	for {
		ok, err := q.Pop(&d.chain)
		if err != nil || !ok {
			q.Notify()
			return err
		}
		n := 0
		for _, b := range d.chain.Writable {
			for i := range b {
				b[i] = '6'
			}
			n += len(b)
		}
		q.Push(&d.chain, uint32(n))
	}
}

// A device that is none of vmm's own.
func ExampleWithDevice() {
	ctx, cancel := context.WithTimeout(context.Background(), exampleTimeout)
	defer cancel()
	v := boot(ctx, "casino", vm.WithDevice(&dice{}))
	defer v.Close()
	script := "cd /sys/class/misc/hw_random; for r in $(cat rng_available); do last=$r; done; echo $last > rng_current; dd if=/dev/hwrng bs=10 count=1 2>/dev/null; echo"
	if err := v.Exec(ctx, vm.Cmd{Args: []string{"sh", "-c", script}, Stdout: os.Stdout}); err != nil {
		log.Fatal(err)
	}
	// Output:
	// 6666666666
}
