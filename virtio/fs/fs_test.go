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

// FUSE's opcodes that only the tests use, and the root's node.
const (
	opLookup  = 1
	opForget  = 2
	opOpen    = 14
	opRead    = 15
	opCreate  = 35
	opStatfs  = 17
	rootNode  = 1
	outBuffer = 1<<20 + 4096
)

// guest sends FUSE requests by the device's request queue.
type guest struct {
	t      testing.TB
	g      *virtiotest.Guest
	mem    *virtiotest.Memory
	dir    string
	unique uint64
}

var (
	inAt  = virtiotest.QueueEnd(2)
	outAt = inAt + 2<<20
)

func start(t testing.TB) *guest {
	t.Helper()
	dir := t.TempDir()
	dev, err := New("tag", func() (FileSystem, error) { return share.New(dir, share.Options{}) }, func(err error) { t.Error(err) })
	if err != nil {
		t.Fatal(err)
	}
	mem, err := virtiotest.NewMemory(8 << 20)
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
	return &guest{t: t, g: g, mem: mem, dir: dir}
}

// send sends what is a request, and returns what came back.
func (g *guest) send(queue int, in []byte, room int) []byte {
	g.t.Helper()
	copy(g.mem.Bytes[inAt:], in)
	chain := []virtiotest.Buffer{{Addr: inAt, Len: uint32(min(len(in), inHeaderSize))}}
	if len(in) > inHeaderSize {
		chain = append(chain, virtiotest.Buffer{Addr: inAt + inHeaderSize, Len: uint32(len(in) - inHeaderSize)})
	}
	// The answer comes in two pieces, as Linux provides it for a read.
	if first := min(room, outHeaderSize); first > 0 {
		chain = append(chain, virtiotest.Buffer{Addr: outAt, Len: uint32(first), Write: true})
	}
	if room > outHeaderSize {
		chain = append(chain, virtiotest.Buffer{Addr: outAt + outHeaderSize, Len: uint32(room - outHeaderSize), Write: true})
	}
	q := g.g.Queues[queue]
	from := q.Added()
	if _, ok := q.Add(chain...); !ok {
		g.t.Fatal("no descriptors")
	}
	q.Kick(from)
	_, n := q.Wait()
	return bytes.Clone(g.mem.Bytes[outAt : outAt+uint64(n)])
}

// request makes a request with its header.
func (g *guest) request(op uint32, node uint64, body ...any) []byte {
	var b bytes.Buffer
	for _, v := range body {
		if s, ok := v.(string); ok {
			b.WriteString(s + "\x00")
		} else if err := binary.Write(&b, binary.LittleEndian, v); err != nil {
			g.t.Fatal(err)
		}
	}
	g.unique++
	head := make([]byte, inHeaderSize)
	binary.LittleEndian.PutUint32(head, uint32(inHeaderSize+b.Len()))
	binary.LittleEndian.PutUint32(head[inOpcode:], op)
	binary.LittleEndian.PutUint64(head[inUnique:], g.unique)
	binary.LittleEndian.PutUint64(head[16:], node)
	return append(head, b.Bytes()...)
}

// do sends a request and returns the answer without its header.
func (g *guest) do(op uint32, node uint64, room int, body ...any) ([]byte, unix.Errno) {
	g.t.Helper()
	out := g.send(1, g.request(op, node, body...), outHeaderSize+room)
	if len(out) < outHeaderSize || binary.LittleEndian.Uint64(out[8:]) != g.unique || int(binary.LittleEndian.Uint32(out)) != len(out) {
		g.t.Fatalf("operation %d: answer % x", op, out[:min(len(out), 32)])
	}
	return out[outHeaderSize:], unix.Errno(-int32(binary.LittleEndian.Uint32(out[4:])))
}

// mount is FUSE_INIT.
func (g *guest) mount() {
	g.t.Helper()
	const major, minor, readAhead, flags = 7, 36, 1 << 20, 1<<0 | 1<<22 // FUSE_ASYNC_READ, FUSE_MAX_PAGES
	if _, errno := g.do(opInit, 0, 64, uint32(major), uint32(minor), uint32(readAhead), uint32(flags), [48]byte{}); errno != 0 {
		g.t.Fatal(errno)
	}
}

// lookup returns a node.
func (g *guest) lookup(name string) (uint64, unix.Errno) {
	out, errno := g.do(opLookup, rootNode, 128, name)
	if errno != 0 {
		return 0, errno
	}
	return binary.LittleEndian.Uint64(out), 0
}

func (g *guest) open(node uint64) uint64 {
	g.t.Helper()
	out, errno := g.do(opOpen, node, 16, uint32(unix.O_RDWR), uint32(0))
	if errno != 0 {
		g.t.Fatal(errno)
	}
	return binary.LittleEndian.Uint64(out)
}

func (g *guest) read(node, fh, off uint64, n int) []byte {
	g.t.Helper()
	out, errno := g.do(opRead, node, n, fh, off, uint32(n), uint32(0), uint64(0), uint32(0), uint32(0))
	if errno != 0 {
		g.t.Fatal(errno)
	}
	return out
}

func (g *guest) write(node, fh, off uint64, data []byte) int {
	g.t.Helper()
	out, errno := g.do(opWrite, node, 8, fh, off, uint32(len(data)), uint32(0), uint64(0), uint32(0), uint32(0), data)
	if errno != 0 {
		g.t.Fatal(errno)
	}
	return int(binary.LittleEndian.Uint32(out))
}

func TestFiles(t *testing.T) {
	g := start(t)
	if _, errno := g.lookup("x"); errno != unix.EIO {
		t.Errorf("before the mount: %v", errno)
	}
	g.mount()
	if _, errno := g.lookup("x"); errno != unix.ENOENT {
		t.Errorf("what is not there: %v", errno)
	}
	data := make([]byte, 3<<20)
	for i := range data {
		data[i] = byte(rand.Uint32())
	}
	os.WriteFile(filepath.Join(g.dir, "f"), nil, 0o644)
	node, errno := g.lookup("f")
	if errno != 0 {
		t.Fatal(errno)
	}
	fh := g.open(node)
	for off := 0; off < len(data); off += maxWrite {
		if n := g.write(node, fh, uint64(off), data[off:off+maxWrite]); n != maxWrite {
			t.Fatalf("wrote %d", n)
		}
	}
	if b, err := os.ReadFile(filepath.Join(g.dir, "f")); err != nil || !bytes.Equal(b, data) {
		t.Errorf("the host has %d other bytes, %v", len(b), err)
	}
	for off := 0; off < len(data); off += maxWrite {
		if b := g.read(node, fh, uint64(off), maxWrite); !bytes.Equal(b, data[off:off+maxWrite]) {
			t.Errorf("at %d the guest reads something else", off)
		}
	}
	if b := g.read(node, fh, uint64(len(data)-5), 100); len(b) != 5 {
		t.Errorf("at the end: %d bytes", len(b))
	}
	// What may wait is answered aside.
	if _, errno := g.do(opFsync, node, 0, fh, uint32(0), uint32(0)); errno != 0 {
		t.Errorf("fsync: %v", errno)
	}
	if _, errno := g.do(opStatfs, node, 80); errno != 0 {
		t.Errorf("statfs: %v", errno)
	}
	// Nothing is answered to what wants none.
	if out := g.send(queueHiprio, g.request(opForget, node, uint64(1)), 0); len(out) != 0 {
		t.Errorf("forget is answered with % x", out)
	}
	// A new mount knows nothing of the old.
	g.mount()
	if _, errno := g.do(opOpen, node, 16, uint32(0), uint32(0)); errno != unix.ESTALE {
		t.Errorf("a node of an earlier mount: %v", errno)
	}
}

// TestHostile: what is no request is answered with an error, or ends the device;
// and the next one is served.
func TestHostile(t *testing.T) {
	g := start(t)
	g.mount()
	node := uint64(rootNode)
	for _, c := range []struct {
		name  string
		in    []byte
		room  int
		errno unix.Errno
	}{
		{"unknown operation", g.request(4000, node), 64, unix.ENOSYS},
		{"without its structure", g.request(opOpen, node), 64, unix.EIO},
		{"no room for the answer", g.request(opOpen, node, uint32(0), uint32(0)), outHeaderSize, unix.EIO},
		{"no such file handle", g.request(opRead, node, uint64(99), uint64(0), uint32(10), uint32(0), uint64(0), uint32(0), uint32(0)), 64, unix.EBADF},
		{"no such node", g.request(opOpen, 999, uint32(0), uint32(0)), 64, unix.ESTALE},
		{"a name with a slash", g.request(opLookup, node, "../etc"), 256, unix.EINVAL},
	} {
		out := g.send(1, c.in, c.room)
		if len(out) < outHeaderSize || unix.Errno(-int32(binary.LittleEndian.Uint32(out[4:]))) != c.errno {
			t.Errorf("%s: % x, want %v", c.name, out, c.errno)
		}
	}
	if g.g.NeedsReset() {
		t.Fatal("the device gave up")
	}
	if _, errno := g.do(opStatfs, node, 80); errno != 0 {
		t.Errorf("afterwards: %v", errno)
	}
	q := g.g.Queues[1]
	from := q.Added()
	q.Add(virtiotest.Buffer{Addr: inAt, Len: 8}, virtiotest.Buffer{Addr: outAt, Len: 64, Write: true})
	q.Kick(from)
	for !g.g.NeedsReset() {
	}
}

// FuzzFUSE lets the guest send any requests.
func FuzzFUSE(f *testing.F) {
	g := &guest{t: f}
	for op := range uint32(54) {
		f.Add(g.request(op, rootNode, uint64(1), uint64(2), uint64(3), "name", "other"), uint16(200))
	}
	g = start(f)
	g.mount()
	os.WriteFile(filepath.Join(g.dir, "file"), []byte("content"), 0o644)
	f.Fuzz(func(t *testing.T, in []byte, room uint16) {
		g.t = t
		if len(in) < inHeaderSize {
			return
		}
		switch binary.LittleEndian.Uint32(in[inOpcode:]) {
		case opSetLkw: // it may wait for ever, as it should
			return
		case opDestroy, opInit:
			defer g.mount()
		}
		g.send(1, in[:min(len(in), 1<<20)], int(room))
		if g.g.NeedsReset() {
			t.Fatal(g.g.Errors())
		}
	})
}
