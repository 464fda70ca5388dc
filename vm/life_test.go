package vm

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	guestimages "vmm/guest-images"
	"vmm/kvm"
	"vmm/machine"
	"vmm/machine/migration"
	"vmm/virtio/rng"
)

// closer is a device that counts how often it is closed.
type closer struct {
	*rng.Device
	times atomic.Int32
}

// Close implements virtio.Device.
func (c *closer) Close() error {
	c.times.Add(1)
	return nil
}

// TestDeviceIsClosed: a device of WithDevice is closed once, whatever becomes of its VM.
func TestDeviceIsClosed(t *testing.T) {
	none := Nets{None{}}
	text := filepath.Join(t.TempDir(), "text")
	if err := os.WriteFile(text, []byte("no kernel"), 0o644); err != nil {
		t.Fatal(err)
	}
	prepare := func(c Config, o Option) error {
		v, err := New(c, o)
		if err != nil {
			t.Fatal(err)
		}
		err = v.Prepare(t.Context())
		if err := v.Close(); err != nil {
			t.Errorf("%+v: Close: %v", c, err)
		}
		return err
	}
	for name, do := range map[string]func(o Option) error{
		"a wrong Config": func(o Option) error {
			_, err := New(Config{CPUs: -1}, o)
			return err
		},
		"closed before it was prepared": func(o Option) error {
			v, err := New(Config{}, o)
			if err != nil {
				return err
			}
			return errors.Join(v.Close(), v.Start(t.Context()))
		},
		"no disk": func(o Option) error {
			return prepare(Config{Boot: Boot{Kernel: text}, Nets: none, Disks: []Disk{{Path: "/nowhere"}}}, o)
		},
		"no share": func(o Option) error {
			return prepare(Config{Boot: Boot{Kernel: text}, Nets: none, Shares: []Share{{Host: "/nowhere", Guest: "/x"}}}, o)
		},
		"no kernel": func(o Option) error { return prepare(Config{Boot: Boot{Kernel: text}, Nets: none}, o) },
		"no network": func(o Option) error {
			return prepare(Config{Boot: Boot{Kernel: text}, Nets: Nets{Stream{Path: "/nowhere"}}}, o)
		},
		"no snapshot": func(o Option) error {
			_, err := Restore("/nowhere", RestoreOptions{}, o)
			return err
		},
		"no warm start": func(o Option) error {
			_, err := NewWarm(Config{}, "/nowhere", o)
			return err
		},
		"a copy of what does not run": func(o Option) error {
			v, err := New(Config{})
			if err != nil {
				t.Fatal(err)
			}
			defer v.Close()
			_, err = v.Clone(t.Context(), "copy", o)
			return err
		},
		"nothing was received": func(o Option) error {
			r, _, err := Listen("unix:"+filepath.Join(t.TempDir(), "there"), nil)
			if err != nil {
				t.Fatal(err)
			}
			r.Close()
			_, err = r.Receive(t.Context(), RestoreOptions{}, o)
			return err
		},
	} {
		d := &closer{Device: rng.New()}
		if err := do(WithDevice(d)); err == nil {
			t.Errorf("%s: no error", name)
		}
		if n := d.times.Load(); n != 1 {
			t.Errorf("%s: closed %d times", name, n)
		}
	}
}

// mover is a source of a migration, but for a machine.
type mover struct {
	t    *testing.T
	conn net.Conn
}

// listenForMover makes a Receiver and one who is connected to it.
func listenForMover(t *testing.T) (*Receiver, *mover) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "there")
	r, _, err := Listen("unix:"+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return r, &mover{t, conn}
}

// The kinds of frames that a mover sends, as package migration has them.
const (
	helloFrame = 1
	finalFrame = 5
)

// send sends a frame.
func (m *mover) send(kind byte, payload any) {
	b, err := json.Marshal(payload)
	if err != nil {
		m.t.Error(err)
	}
	m.conn.Write(append(binary.LittleEndian.AppendUint32([]byte{kind}, uint32(len(b))), b...)) // the other side may have gone
}

// hello says that a machine comes, and waits until the other side takes it.
func (m *mover) hello(memory uint64) {
	m.send(helloFrame, migration.Hello{Version: migration.Version, Memory: memory})
	io.ReadFull(m.conn, make([]byte, 5))
}

// addressSpace is how much of this process's is used, in bytes.
func addressSpace(t *testing.T) int64 {
	t.Helper()
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		t.Fatal(err)
	}
	var pages int64
	if _, err := fmt.Sscan(string(b), &pages); err != nil {
		t.Fatal(err)
	}
	return pages * int64(os.Getpagesize())
}

// TestReceivedMemory: the memory of a VM that was received and does not come to run here
// is freed, wherever it ends.
func TestReceivedMemory(t *testing.T) {
	const size = 64 << 30 // that nobody touches: more than all else that a process reserves
	good := saved{Version: savedVersion, Config: Config{Version: ConfigVersion, Memory: size, Nets: Nets{None{}}}}
	old, noDisk := good, good
	old.Version--
	noDisk.Disks = []savedDisk{{Disk: Disk{Path: "/nowhere"}}}
	limited := good
	limited.Config.Limits.CPUs = 1
	broken := errors.New("broken")
	for name, c := range map[string]struct {
		vm      saved
		options RestoreOptions
	}{
		"another version's":  {old, RestoreOptions{}},
		"Configure fails":    {good, RestoreOptions{Configure: func(*Config) ([]Option, error) { return nil, broken }}},
		"a wrong Config":     {good, RestoreOptions{Nets: Nets{User{}, User{}}}},
		"never prepared":     {good, RestoreOptions{}},
		"no disk":            {noDisk, RestoreOptions{}},
		"no group":           {limited, RestoreOptions{}},
		"no state of a kind": {good, RestoreOptions{Console: Endpoint{File: os.DevNull}}},
	} {
		before := addressSpace(t)
		r, m := listenForMover(t)
		go func() {
			m.hello(size)
			config, err := json.Marshal(c.vm)
			if err != nil {
				t.Error(err)
			}
			m.send(finalFrame, migration.Final{Config: config, State: &machine.State{}})
			io.Copy(io.Discard, m.conn)
		}()
		v, err := r.Receive(t.Context(), c.options)
		if err == nil {
			if name != "never prepared" {
				err = v.Prepare(t.Context())
			}
			if bad := v.Close(); bad != nil {
				t.Errorf("%s: Close: %v", name, bad)
			}
		}
		if (err == nil) != (name == "never prepared") {
			t.Errorf("%s: %v", name, err)
		}
		if left := addressSpace(t) - before; left > size/2 {
			t.Errorf("%s: %d GiB are left", name, left>>30)
		}
	}
}

// TestReceiveContext: who waits for a VM ends with its context, however far a source is.
func TestReceiveContext(t *testing.T) {
	for name, begin := range map[string]func(*mover){
		"it says nothing":       func(*mover) {},
		"it has said hello":     func(m *mover) { m.hello(machine.MinMemory) },
		"in the midst of state": func(m *mover) { m.hello(machine.MinMemory); m.conn.Write([]byte{finalFrame, 0, 1, 0, 0, '{'}) },
	} {
		r, m := listenForMover(t)
		ctx, cancel := context.WithCancelCause(t.Context())
		why := errors.New("enough")
		go func() {
			begin(m)
			cancel(why)
		}()
		if _, err := r.Receive(ctx, RestoreOptions{}); !errors.Is(err, why) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestStartContext: a VM that was received waits for the other side's word no longer than
// its context lasts, nor than until it is closed.
func TestStartContext(t *testing.T) {
	for name, end := range map[string]func(v *VM, cancel func()){
		"the context": func(_ *VM, cancel func()) { cancel() },
		"Close":       func(v *VM, _ func()) { v.Close() },
	} {
		r, m := listenForMover(t)
		ready := make(chan error, 1)
		go func() {
			m.hello(machine.MinMemory)
			config, err := json.Marshal(saved{Version: savedVersion, Config: Config{Version: ConfigVersion, Memory: machine.MinMemory, Nets: Nets{None{}}}})
			if err != nil {
				t.Error(err)
			}
			m.send(finalFrame, migration.Final{Config: config, State: &machine.State{}})
			_, err = io.ReadFull(m.conn, make([]byte, 5))
			ready <- err
		}()
		v, err := r.Receive(t.Context(), RestoreOptions{})
		if err != nil {
			t.Fatal(err)
		}
		v.prepared = true // as if there were such a state
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go func() {
			if err := <-ready; err != nil {
				t.Error(err)
			}
			end(v, cancel)
		}()
		if err := v.Start(ctx); !errors.Is(err, context.Canceled) && !errors.Is(err, ErrNotRunning) {
			t.Errorf("%s: %v", name, err)
		}
		if err := v.Close(); err != nil {
			t.Errorf("%s: Close: %v", name, err)
		}
	}
}

// TestCloseEndsPrepare: a kernel that is being made is waited for no more.
func TestCloseEndsPrepare(t *testing.T) {
	sys, err := kvm.Open()
	if err != nil {
		t.Skip("nothing is made where no VM can run: ", err)
	}
	sys.Close()
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	waits := make(chan struct{})
	v, err := New(Config{Nets: Nets{None{}}}, WithBuilder(&guestimages.Builder{Log: onWrite(func(s string) {
		if strings.Contains(s, "waiting for another process") {
			close(waits)
		}
	})}))
	if err != nil {
		t.Fatal(err)
	}
	defer holdKernel(t)()
	prepared := make(chan error)
	go func() { prepared <- v.Prepare(t.Context()) }()
	<-waits
	v.Kill() // which does not wait for it either
	if err := v.Exec(t.Context(), Cmd{Args: []string{"true"}}); !errors.Is(err, ErrNotRunning) {
		t.Errorf("Exec: %v", err)
	}
	closed := make(chan error)
	go func() { closed <- v.Close() }()
	if err := <-prepared; !errors.Is(err, ErrNotRunning) {
		t.Errorf("Prepare: %v", err)
	}
	if err := <-closed; err != nil {
		t.Errorf("Close: %v", err)
	}
}

// onWrite is told what is written.
type onWrite func(string)

// Write implements io.Writer.
func (f onWrite) Write(p []byte) (int, error) {
	f(string(p))
	return len(p), nil
}

// holdKernel is another process that makes the default guest's kernel, until release.
func holdKernel(t *testing.T) (release func()) {
	t.Helper()
	image, _ := guestimages.HasStockKernel()
	var b guestimages.Builder
	making, over := make(chan struct{}), make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		b.Once(t.Context(), filepath.Base(filepath.Dir(image)), func(context.Context, string) error {
			close(making)
			<-over
			return unix.EINTR
		})
	}()
	<-making
	return func() {
		close(over)
		<-done
	}
}
