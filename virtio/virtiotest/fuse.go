package virtiotest

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"
)

// Opcodes of FUSE requests (<linux/fuse.h>).
const (
	FUSELookup      = 1
	FUSEForget      = 2
	FUSEGetattr     = 3
	FUSEUnlink      = 10
	FUSEOpen        = 14
	FUSERead        = 15
	FUSEWrite       = 16
	FUSEStatfs      = 17
	FUSERelease     = 18
	FUSEFsync       = 20
	FUSEFlush       = 25
	FUSEInit        = 26
	FUSEOpendir     = 27
	FUSEReleasedir  = 29
	FUSECreate      = 35
	FUSEReaddirplus = 44

	// FUSERoot is the root's node.
	FUSERoot = 1

	fuseInHeader  = 40
	fuseOutHeader = 16
)

// FUSE is a guest's FUSE client on a request queue. It serves one goroutine.
type FUSE struct {
	Driver *Driver
	Mem    *Memory
	// Area is where its requests and their answers lie; each slot has 4 MiB, so memory has to be that large.
	Area   uint64
	unique uint64
}

// fuseSlot is a slot's size, of which the second half is the answer's.
const fuseSlot = 4 << 20

// Request makes a request with its header. Texts get a NUL at their end.
func (f *FUSE) Request(op uint32, node uint64, body ...any) []byte {
	b := make([]byte, fuseInHeader, 128)
	le := binary.LittleEndian
	for _, v := range body {
		switch v := v.(type) {
		case string:
			b = append(append(b, v...), 0)
		case []byte:
			b = append(b, v...)
		case uint32:
			b = le.AppendUint32(b, v)
		case uint64:
			b = le.AppendUint64(b, v)
		default:
			panic(fmt.Sprintf("a %T in a FUSE request", v))
		}
	}
	f.unique++
	le.PutUint32(b, uint32(len(b)))
	le.PutUint32(b[4:], op)
	le.PutUint64(b[8:], f.unique)
	le.PutUint64(b[16:], node)
	return b
}

// Put makes a request available in a slot, with room for an answer. The answer is
// in two pieces, as Linux has it for a read.
func (f *FUSE) Put(slot int, in []byte, room int) (head uint16, ok bool) {
	at := f.Area + uint64(slot)*fuseSlot
	copy(f.Mem.Bytes[at:], in)
	chain := []Buffer{{Addr: at, Len: uint32(min(len(in), fuseInHeader))}}
	if len(in) > fuseInHeader {
		chain = append(chain, Buffer{Addr: at + fuseInHeader, Len: uint32(len(in) - fuseInHeader)})
	}
	at += fuseSlot / 2
	if first := min(room, fuseOutHeader); first > 0 {
		chain = append(chain, Buffer{Addr: at, Len: uint32(first), Write: true})
	}
	if room > fuseOutHeader {
		chain = append(chain, Buffer{Addr: at + fuseOutHeader, Len: uint32(room - fuseOutHeader), Write: true})
	}
	return f.Driver.Add(chain...)
}

// Send sends a request and returns what came back, header and all.
func (f *FUSE) Send(in []byte, room int) []byte {
	from := f.Driver.Added()
	if _, ok := f.Put(0, in, room); !ok {
		panic("no descriptors for a FUSE request")
	}
	f.Driver.Kick(from)
	_, n := f.Driver.Wait()
	at := f.Area + fuseSlot/2
	return bytes.Clone(f.Mem.Bytes[at : at+uint64(n)])
}

// Do sends a request and returns the answer without its header.
func (f *FUSE) Do(op uint32, node uint64, room int, body ...any) ([]byte, error) {
	out := f.Send(f.Request(op, node, body...), fuseOutHeader+room)
	if len(out) < fuseOutHeader || binary.LittleEndian.Uint64(out[8:]) != f.unique || int(binary.LittleEndian.Uint32(out)) != len(out) {
		return nil, fmt.Errorf("answer % x", out[:min(len(out), 32)])
	}
	if errno := unix.Errno(-int32(binary.LittleEndian.Uint32(out[4:]))); errno != 0 {
		return nil, errno
	}
	return out[fuseOutHeader:], nil
}

// Mount is FUSE_INIT.
func (f *FUSE) Mount() error {
	const major, minor, readAhead = uint32(7), uint32(36), uint32(1 << 20)
	const flags = uint32(1<<0 | 1<<5 | 1<<13 | 1<<22) // ASYNC_READ, BIG_WRITES, DO_READDIRPLUS, MAX_PAGES
	_, err := f.Do(FUSEInit, 0, 64, major, minor, readAhead, flags, make([]byte, 48))
	return err
}

// Lookup returns a name's node.
func (f *FUSE) Lookup(dir uint64, name string) (uint64, error) {
	out, err := f.Do(FUSELookup, dir, 128, name)
	if err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint64(out), nil
}

// Open returns a handle of a file or, with FUSEOpendir, a directory.
func (f *FUSE) Open(op uint32, node uint64, flags uint32) (uint64, error) {
	out, err := f.Do(op, node, 16, flags, uint32(0))
	if err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint64(out), nil
}

// Create makes a file and opens it.
func (f *FUSE) Create(dir uint64, name string) (node, handle uint64, err error) {
	out, err := f.Do(FUSECreate, dir, 144, uint32(unix.O_RDWR|unix.O_CREAT), uint32(unix.S_IFREG|0o644), uint32(0o022), uint32(0), name)
	if err != nil {
		return 0, 0, err
	}
	return binary.LittleEndian.Uint64(out), binary.LittleEndian.Uint64(out[128:]), nil
}

// ReadRequest and WriteRequest are requests for files.
func (f *FUSE) ReadRequest(op uint32, node, handle, off uint64, n int) []byte {
	return f.Request(op, node, handle, off, uint32(n), uint32(0), uint64(0), uint32(0), uint32(0))
}

// WriteRequest writes data.
func (f *FUSE) WriteRequest(node, handle, off uint64, data []byte) []byte {
	return f.Request(FUSEWrite, node, handle, off, uint32(len(data)), uint32(0), uint64(0), uint32(0), uint32(0), data)
}

// FUSEAnswer is the size of an answer with n bytes of content.
func FUSEAnswer(n int) int { return fuseOutHeader + n }
