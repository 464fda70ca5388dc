package virtio_test

import (
	"encoding/binary"
	"errors"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"vmm/network/ether"
	"vmm/storage"
	"vmm/storage/share"
	"vmm/virtio"
	"vmm/virtio/blk"
	"vmm/virtio/console"
	"vmm/virtio/fs"
	"vmm/virtio/net"
	"vmm/virtio/rng"
	"vmm/virtio/vsock"
)

// subjects are the devices that the hostile driver has: a new one is a line here. request
// fills the beginning of a request with what looks like one.
var subjects = []struct {
	name    string
	device  func(t *testing.T) (virtio.Device, error)
	request func(r *rand.Rand, b []byte)
}{
	{"rng", func(*testing.T) (virtio.Device, error) { return rng.New(), nil }, anyRequest},
	{"blk", newDisk, diskRequest},
	{"net", func(*testing.T) (virtio.Device, error) { return net.New(&echoLink{}, net.Options{Pairs: 2}) }, frameRequest},
	{"console", newConsole, consoleRequest},
	{"vsock", newVsock, vsockRequest},
	{"fs", func(t *testing.T) (virtio.Device, error) { return newFS(t, share.Options{}) }, fsRequest},
	{"fs read-only", func(t *testing.T) (virtio.Device, error) {
		return newFS(t, share.Options{ReadOnly: true, Static: true, System: true})
	}, fsRequest},
}

// sizes are numbers at which something may end.
var sizes = []uint64{0, 1, 2, 3, 7, 16, 40, 80, 4095, 4096, 65536, 1 << 20, 1<<20 + 4097, 1 << 29, 3 << 30, math.MaxUint32, 1 << 62, math.MaxInt64, math.MaxUint64}

func pick[T any](r *rand.Rand, of []T) T { return of[r.IntN(len(of))] }

// anyRequest knows of no request.
func anyRequest(r *rand.Rand, b []byte) {
	for len(b) >= 8 {
		binary.LittleEndian.PutUint64(b, pick(r, sizes))
		b = b[8:]
	}
}

func newDisk(t *testing.T) (virtio.Device, error) {
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, make([]byte, 1<<20), 0o600); err != nil {
		return nil, err
	}
	f, err := storage.OpenFile(path, false, "")
	if err != nil {
		return nil, err
	}
	return blk.New(storage.NewRaw(f, false), blk.Options{Queues: 2})
}

func diskRequest(r *rand.Rand, b []byte) {
	anyRequest(r, b)
	binary.LittleEndian.PutUint32(b, r.Uint32N(16))
	if r.IntN(4) > 0 {
		binary.LittleEndian.PutUint64(b[8:], r.Uint64N(2048))
	}
}

// echoLink gives the guest back what it sends, if it is a proper frame.
type echoLink struct{ nic ether.NIC }

func (l *echoLink) Attach(n ether.NIC)      { l.nic = n }
func (l *echoLink) Sent(int)                { l.nic.Flush() }
func (l *echoLink) Ready()                  {}
func (l *echoLink) Offloads(ether.Offloads) {}
func (l *echoLink) Close() error            { return nil }
func (l *echoLink) Send(queue int, h ether.Header, parts [][]byte) {
	frame := slices.Concat(parts...)
	if h, err := ether.Check(h, frame); err == nil {
		l.nic.Receive(uint32(queue), h, [][]byte{frame})
	}
}

// frameRequest is struct virtio_net_hdr (5.1.6) and a frame, mostly a plain one.
func frameRequest(r *rand.Rand, b []byte) {
	anyRequest(r, b)
	if r.IntN(4) > 0 {
		clear(b[:ether.HeaderSize])
	}
	copy(b[ether.HeaderSize:], []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 1, 2, 3, 4, 5, 8, 0, 0x45})
}

func newConsole(*testing.T) (virtio.Device, error) {
	d, err := console.New(io.Discard, console.Port{Name: "a"}, console.Port{Name: "b", Out: io.Discard})
	if err == nil {
		for i := range 3 {
			go func() {
				for d.Receive(i, make([]byte, 100)) == nil {
				}
			}()
		}
	}
	return d, err
}

func consoleRequest(r *rand.Rand, b []byte) {
	anyRequest(r, b)
	binary.LittleEndian.PutUint32(b, r.Uint32N(4))
	binary.LittleEndian.PutUint16(b[4:], uint16(r.IntN(9)))
	binary.LittleEndian.PutUint16(b[6:], uint16(r.IntN(2)))
}

func newVsock(*testing.T) (virtio.Device, error) {
	return vsock.New(vsock.Options{CID: 3, Connect: func(port uint32) (func(*vsock.Conn), error) {
		if port > 4 {
			return nil, errors.New("nobody listens")
		}
		return func(c *vsock.Conn) {
			io.Copy(c, c)
			c.Close()
		}, nil
	}})
}

// vsockRequest is struct virtio_vsock_hdr (5.10.6).
func vsockRequest(r *rand.Rand, b []byte) {
	le := binary.LittleEndian
	le.PutUint64(b, 3)
	le.PutUint64(b[8:], 2)
	le.PutUint32(b[16:], r.Uint32N(8))
	le.PutUint32(b[20:], r.Uint32N(8))
	le.PutUint32(b[24:], uint32(pick(r, sizes)))
	le.PutUint16(b[28:], 1)
	le.PutUint16(b[30:], uint16(r.IntN(9)))
	le.PutUint32(b[32:], r.Uint32N(4))
	le.PutUint32(b[36:], uint32(pick(r, sizes)))
	le.PutUint32(b[40:], uint32(pick(r, sizes)))
}

func newFS(t *testing.T, o share.Options) (virtio.Device, error) {
	dir := t.TempDir()
	for _, name := range []string{"a", "b"} {
		if err := os.WriteFile(filepath.Join(dir, name), make([]byte, 5000), 0o600); err != nil {
			return nil, err
		}
	}
	t.Cleanup(func() { // what the guest has taken the rights of can be removed
		filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
			if err == nil && e.IsDir() {
				os.Chmod(path, 0o700)
			}
			return nil
		})
	})
	return fs.New("tag", func() (fs.FileSystem, error) { return share.New(dir, o) }, func(error) {})
}

// sized are FUSE's opcodes that say how much is to be read, or carry much: READ, WRITE,
// SETXATTR, GETXATTR, LISTXATTR, READDIR, IOCTL, READDIRPLUS.
var sized = []uint32{15, 16, 21, 22, 23, 28, 39, 44}

// fsRequest is a FUSE request: a header, numbers, and a name or two.
func fsRequest(r *rand.Rand, b []byte) {
	const opInit, opLseek, opFallocate = 26, 46, 43
	le := binary.LittleEndian
	op, same := r.Uint32N(54), r.Uint64N(4)
	if r.IntN(2) == 0 {
		op, same = pick(r, sized), pick(r, sizes)
	}
	switch {
	case op == opFallocate: // fills the host's disk, as it may
		op = opLseek
	case r.IntN(5) == 0: // without a mount, nothing is served
		op = opInit
	}
	body := b[40:]
	for i := 0; i+8 <= len(body); i += 8 {
		le.PutUint64(body[i:], same)
		if r.IntN(4) == 0 {
			le.PutUint64(body[i:], pick(r, sizes))
		}
	}
	if op == opInit {
		le.PutUint32(body, 7)
		le.PutUint32(body[4:], 36)
		le.PutUint32(body[12:], r.Uint32())
	}
	at := pick(r, []int{0, 8, 16, 24, 40})
	copy(body[at:], pick(r, []string{"a\x00", "b\x00", "a\x00b\x00", "..\x00", "user.x\x00", "c\x00"}))
	le.PutUint32(b, uint32(pick(r, sizes)))
	le.PutUint32(b[4:], op)
	le.PutUint64(b[8:], r.Uint64N(16))
	le.PutUint64(b[16:], r.Uint64N(6))
	clear(b[24:40])
}
