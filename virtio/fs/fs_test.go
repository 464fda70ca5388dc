package fs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"vmm/storage/share"
	"vmm/virtio/virtiotest"
)

// guest sends FUSE requests by the device's request queue.
type guest struct {
	*virtiotest.FUSE
	g   *virtiotest.Guest
	dev *Device
	dir string
}

func start(t testing.TB) *guest { return startWith(t, share.Options{}) }

func startWith(t testing.TB, o share.Options) *guest {
	t.Helper()
	dir := t.TempDir()
	dev, err := New("tag", func() (FileSystem, error) { return share.New(dir, o) }, func(err error) { t.Error(err) })
	if err != nil {
		t.Fatal(err)
	}
	mem, err := virtiotest.NewMemory(16 << 20)
	if err != nil {
		t.Fatal(err)
	}
	g, err := virtiotest.Start(dev, mem, 1024, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(g.Close(), mem.Close()); err != nil {
			t.Error(err)
		}
	})
	return &guest{&virtiotest.FUSE{Driver: g.Queues[1], Mem: mem, Area: virtiotest.QueueEnd(2)}, g, dev, dir}
}

func (g *guest) mount(t testing.TB) {
	t.Helper()
	if err := g.Mount(); err != nil {
		t.Fatal(err)
	}
}

// errnoOf is the error in an answer.
func errnoOf(out []byte) unix.Errno {
	if len(out) < outHeaderSize {
		return 0
	}
	return unix.Errno(-int32(binary.LittleEndian.Uint32(out[4:])))
}

func TestFiles(t *testing.T) {
	g := start(t)
	if _, err := g.Lookup(virtiotest.FUSERoot, "x"); err != unix.EIO {
		t.Errorf("before the mount: %v", err)
	}
	g.mount(t)
	if _, err := g.Lookup(virtiotest.FUSERoot, "x"); err != unix.ENOENT {
		t.Errorf("what is not there: %v", err)
	}
	data := make([]byte, 3*maxWrite)
	for i := range data {
		data[i] = byte(rand.Uint32())
	}
	node, fh, err := g.Create(virtiotest.FUSERoot, "f")
	if err != nil {
		t.Fatal(err)
	}
	for off := 0; off < len(data); off += maxWrite {
		out := g.Send(g.WriteRequest(node, fh, uint64(off), data[off:off+maxWrite]), virtiotest.FUSEAnswer(8))
		if errnoOf(out) != 0 || binary.LittleEndian.Uint32(out[outHeaderSize:]) != maxWrite {
			t.Fatalf("write: % x", out)
		}
	}
	if b, err := os.ReadFile(filepath.Join(g.dir, "f")); err != nil || !bytes.Equal(b, data) {
		t.Errorf("the host has %d other bytes, %v", len(b), err)
	}
	read := func(off, n int) []byte {
		return g.Send(g.ReadRequest(virtiotest.FUSERead, node, fh, uint64(off), n), virtiotest.FUSEAnswer(n))
	}
	for off := 0; off < len(data); off += maxWrite {
		if out := read(off, maxWrite); errnoOf(out) != 0 || !bytes.Equal(out[outHeaderSize:], data[off:off+maxWrite]) {
			t.Errorf("at %d the guest reads something else", off)
		}
	}
	if out := read(len(data)-5, 100); len(out) != outHeaderSize+5 {
		t.Errorf("at the end: %d bytes", len(out)-outHeaderSize)
	}
	// What may wait is answered aside.
	if _, err := g.Do(virtiotest.FUSEFsync, node, 0, fh, uint32(0), uint32(0)); err != nil {
		t.Errorf("fsync: %v", err)
	}
	if _, err := g.Do(virtiotest.FUSEStatfs, node, 80); err != nil {
		t.Errorf("statfs: %v", err)
	}
	// Nothing is answered to what wants none.
	hiprio := &virtiotest.FUSE{Driver: g.g.Queues[queueHiprio], Mem: g.Mem, Area: g.Area}
	if out := hiprio.Send(hiprio.Request(virtiotest.FUSEForget, node, uint64(1)), 0); len(out) != 0 {
		t.Errorf("forget is answered with % x", out)
	}
	// A new mount knows nothing of the old.
	g.mount(t)
	if _, err := g.Open(virtiotest.FUSEOpen, node, 0); err != unix.ESTALE {
		t.Errorf("a node of an earlier mount: %v", err)
	}
}

// TestHostile: what is no request is answered with an error, or ends the device;
// and the next one is served.
func TestHostile(t *testing.T) {
	g := start(t)
	g.mount(t)
	const root = virtiotest.FUSERoot
	for _, c := range []struct {
		name  string
		in    []byte
		room  int
		errno unix.Errno
	}{
		{"unknown operation", g.Request(4000, root), 64, unix.ENOSYS},
		{"without its structure", g.Request(virtiotest.FUSEOpen, root), 64, unix.EIO},
		{"no room for the answer", g.Request(virtiotest.FUSEOpen, root, uint32(0), uint32(0)), outHeaderSize, unix.EIO},
		{"no such handle", g.ReadRequest(virtiotest.FUSERead, root, 99, 0, 10), 64, unix.EBADF},
		{"no such node", g.Request(virtiotest.FUSEOpen, 999, uint32(0), uint32(0)), 64, unix.ESTALE},
		{"a name with a slash", g.Request(virtiotest.FUSELookup, root, "../etc"), 256, unix.EINVAL},
	} {
		if out := g.Send(c.in, c.room); errnoOf(out) != c.errno {
			t.Errorf("%s: % x, want %v", c.name, out, c.errno)
		}
	}
	if g.g.NeedsReset() {
		t.Fatal("the device gave up")
	}
	if _, err := g.Do(virtiotest.FUSEStatfs, root, 80); err != nil {
		t.Errorf("afterwards: %v", err)
	}
	from := g.Driver.Added()
	g.Put(0, make([]byte, 8), 64)
	g.Driver.Kick(from)
	for !g.g.NeedsReset() {
	}
}

// FuzzFUSE lets the guest send any requests.
func FuzzFUSE(f *testing.F) {
	var c virtiotest.FUSE
	for op := range uint32(54) {
		f.Add(c.Request(op, virtiotest.FUSERoot, uint64(1), uint64(2), uint64(3), "name", "other"), uint16(200))
	}
	g := start(f)
	g.mount(f)
	os.WriteFile(filepath.Join(g.dir, "file"), []byte("content"), 0o644)
	f.Fuzz(func(t *testing.T, in []byte, room uint16) {
		if len(in) < inHeaderSize {
			return
		}
		switch binary.LittleEndian.Uint32(in[inOpcode:]) {
		case opSetLkw: // it may wait for ever, as it should
			return
		case opDestroy, opInit:
			defer g.mount(t)
		}
		g.Send(in[:min(len(in), 1<<20)], int(room))
		if g.g.NeedsReset() {
			t.Fatal(g.g.Errors())
		}
	})
}
