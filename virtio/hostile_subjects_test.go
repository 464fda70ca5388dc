package virtio_test

import (
	"errors"
	"io"
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
	"vmm/virtio/pmem"
	"vmm/virtio/rng"
	"vmm/virtio/virtiotest/hostile"
	"vmm/virtio/vsock"
)

// subjects are the devices that the hostile driver has: a new one is a line here.
var subjects = []struct {
	name    string
	device  func(t *testing.T) (virtio.Device, error)
	request func(r *rand.Rand, b []byte) int
}{
	{"rng", func(*testing.T) (virtio.Device, error) { return rng.New(), nil }, hostile.Any},
	{"blk", newDisk, hostile.Disk},
	{"pmem", newPmem, hostile.Any},
	{"net", func(*testing.T) (virtio.Device, error) { return net.New(&echoLink{}, net.Options{Pairs: 2}) }, hostile.Frame},
	{"console", newConsole, hostile.Console},
	{"vsock", newVsock, hostile.Vsock},
	{"fs", func(t *testing.T) (virtio.Device, error) { return newFS(t, share.Options{}) }, hostile.FS},
	{"fs read-only", func(t *testing.T) (virtio.Device, error) {
		return newFS(t, share.Options{ReadOnly: true, Static: true, System: true})
	}, hostile.FS},
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

func newPmem(t *testing.T) (virtio.Device, error) {
	path := filepath.Join(t.TempDir(), "memory")
	if err := os.WriteFile(path, make([]byte, storage.MappedUnit), 0o600); err != nil {
		return nil, err
	}
	m, err := storage.OpenMappedWritable(path)
	if err != nil {
		return nil, err
	}
	return pmem.New(m), nil
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
