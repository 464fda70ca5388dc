package fs

import (
	"encoding/binary"
	"math"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"vmm/storage/share"
	"vmm/virtio/virtiotest"
)

// allocated is how many bytes of heap a function allocates.
func allocated(do func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	do()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// overlapping sends a request whose parts lie over one another, which makes it larger
// than all of the guest's memory, and returns the answer's first bytes.
func (g *guest) overlapping(in []byte, more, room int) []byte {
	const part = 8 << 20
	at := g.Area
	copy(g.Mem.Bytes[at:], in)
	clear(g.Mem.Bytes[at+4<<20:][:outHeaderSize])
	chain := []virtiotest.Buffer{{Addr: at, Len: uint32(len(in))}}
	for range more / part {
		chain = append(chain, virtiotest.Buffer{Addr: at, Len: part})
	}
	// The answer's header has a place of its own.
	chain = append(chain, virtiotest.Buffer{Addr: at + 4<<20, Len: outHeaderSize, Write: true})
	for range room / part {
		chain = append(chain, virtiotest.Buffer{Addr: at + 5<<20, Len: part, Write: true})
	}
	from := g.Driver.Added()
	if _, ok := g.Driver.Add(chain...); !ok {
		panic("no descriptors")
	}
	g.Driver.Kick(from)
	_, n := g.Driver.Wait()
	return g.Mem.Bytes[at+4<<20:][:min(n, outHeaderSize)]
}

// TestSizes: what a request asks for or carries beyond what was agreed on is refused,
// and nothing of its size is allocated.
func TestSizes(t *testing.T) {
	g := start(t)
	g.mount(t)
	const root = virtiotest.FUSERoot
	dir, err := g.Open(virtiotest.FUSEOpendir, root, 0)
	if err != nil {
		t.Fatal(err)
	}
	const getxattr, listxattr, ioctl, readdir = 22, 23, 39, 28
	for _, size := range []uint32{maxAnswer, 64 << 20, 3 << 30, math.MaxUint32} {
		for _, c := range []struct {
			name string
			in   []byte
		}{
			{"READ", g.Request(virtiotest.FUSERead, root, dir, uint64(0), size, uint32(0), uint64(0), uint64(0))},
			{"READDIR", g.Request(readdir, root, dir, uint64(0), size, uint32(0), uint64(0), uint64(0))},
			{"READDIRPLUS", g.Request(virtiotest.FUSEReaddirplus, root, dir, uint64(0), size, uint32(0), uint64(0), uint64(0))},
			{"GETXATTR", g.Request(getxattr, root, size, uint32(0), "user.x")},
			{"LISTXATTR", g.Request(listxattr, root, size, uint32(0))},
			{"IOCTL", g.Request(ioctl, root, dir, uint32(0), uint32(0), uint64(0), uint32(0), size)},
		} {
			var out []byte
			n := allocated(func() { out = g.overlapping(c.in, 0, 3<<30) })
			if errno := errnoOf(out); errno != unix.EIO {
				t.Errorf("%s of %d bytes: %v, want %v", c.name, size, errno, unix.EIO)
			}
			if n > 4*maxAnswer {
				t.Errorf("%s of %d bytes: %d bytes are allocated", c.name, size, n)
			}
		}
	}
	for _, c := range []struct {
		name  string
		in    []byte
		errno unix.Errno
	}{
		{"WRITE", g.WriteRequest(root, dir, 0, nil), unix.EIO},
		{"SETXATTR", g.Request(opSetXAttr, root, uint32(1<<30), uint32(0), "user.x"), unix.E2BIG},
		{"LOOKUP", g.Request(virtiotest.FUSELookup, root, "name"), unix.EIO},
		{"SETLKW", g.Request(opSetLkw, root, dir), unix.EIO},
		{"FSYNC", g.Request(opFsync, root, dir), unix.EIO},
		{"INIT", g.Request(opInit, root), unix.EIO},
	} {
		var out []byte
		n := allocated(func() { out = g.overlapping(c.in, 2<<30, 0) })
		if errno := errnoOf(out); errno != c.errno {
			t.Errorf("%s with 2 GiB: %v, want %v", c.name, errno, c.errno)
		}
		if n > 4*maxAnswer {
			t.Errorf("%s with 2 GiB: %d bytes are allocated", c.name, n)
		}
	}
	if _, err := g.Do(virtiotest.FUSEStatfs, root, 80); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

// TestTakenOnce: what the guest changes after a request was looked at has no effect,
// but on what a write carries.
func TestTakenOnce(t *testing.T) {
	for _, op := range []uint32{opWrite, opSetXAttr, opInit} {
		memory := make([]byte, 4096)
		binary.LittleEndian.PutUint32(memory[inOpcode:], op)
		var s queue
		s.chain.Readable = [][]byte{memory[:13], memory[13:]}
		head, size, err := s.take()
		if err != nil || size != len(memory) || head.opcode() != op {
			t.Fatalf("opcode %d: %d of %d bytes, %v", head.opcode(), size, len(memory), err)
		}
		for i := range memory {
			memory[i] = 0xff
		}
		if got := binary.LittleEndian.Uint32(s.in[0][inOpcode:]); got != op {
			t.Errorf("opcode %d has become %d", op, got)
		}
		if len(s.in[0]) != len(memory) && op != opWrite || len(s.in[0]) != writeInSize && op == opWrite {
			t.Errorf("opcode %d: %d bytes are copied", op, len(s.in[0]))
		}
	}
}

// TestHiprio: the queue for what cannot wait begins and ends no mount, and has nothing
// that waits.
func TestHiprio(t *testing.T) {
	g := start(t)
	g.mount(t)
	hiprio := &virtiotest.FUSE{Driver: g.g.Queues[queueHiprio], Mem: g.Mem, Area: g.Area}
	for _, op := range []uint32{opInit, opDestroy, opSetLkw, opFsync, opWrite, virtiotest.FUSELookup} {
		if out := hiprio.Send(hiprio.Request(op, virtiotest.FUSERoot, make([]byte, 64)), 256); errnoOf(out) != unix.EINVAL {
			t.Errorf("opcode %d: % x", op, out)
		}
	}
	if _, err := g.Do(virtiotest.FUSEStatfs, virtiotest.FUSERoot, 80); err != nil {
		t.Errorf("the mount has ended: %v", err)
	}
}

// TestStopAgain: a queue may be stopped before its goroutine has served anything.
func TestStopAgain(t *testing.T) {
	g := start(t)
	g.mount(t)
	g.g.PCI.Suspend()
	for range 3 {
		g.dev.StopQueue(1)
		g.dev.StopQueue(queueHiprio)
	}
	g.g.PCI.Resume()
	g.g.ConnectKicks()
	if _, err := g.Do(virtiotest.FUSEStatfs, virtiotest.FUSERoot, 80); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

// TestReadOnlyMount: the guest's kernel is told to keep locks to itself.
func TestReadOnlyMount(t *testing.T) {
	const posixLocks, flockLocks = 1 << 1, 1 << 10
	for _, readOnly := range []bool{false, true} {
		g := startWith(t, share.Options{ReadOnly: readOnly})
		out, err := g.Do(opInit, 0, 64, uint32(7), uint32(36), uint32(1<<20), uint32(1|posixLocks|flockLocks), make([]byte, 48))
		if err != nil {
			t.Fatal(err)
		}
		if got := binary.LittleEndian.Uint32(out[12:]) & (posixLocks | flockLocks); (got == 0) != readOnly {
			t.Errorf("read-only %v: flags %#x", readOnly, got)
		}
	}
}
