package bench

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmm/storage/share"
	"vmm/virtio/fs"
	"vmm/virtio/virtiotest"
)

const (
	fsFile   = 64 << 20 // bytes of the large file
	fsChunk  = 1 << 20  // of one request
	fsDepth  = 4
	fsSmall  = 400 // files
	fsRounds = 7
	fsMemory = 32 << 20
)

// fsWork is something that a guest does with a shared directory. It returns how
// much it did, to be divided by the time.
type fsWork struct {
	name, unit string
	do         func(f *virtiotest.FUSE) (float64, error)
}

var fsWorks = []fsWork{
	{"1 MiB sequential reads, depth 4", "MiB/s", func(f *virtiotest.FUSE) (float64, error) { return fsStream(f, false) }},
	{"1 MiB sequential writes, depth 4", "MiB/s", func(f *virtiotest.FUSE) (float64, error) { return fsStream(f, true) }},
	{"small files, read", "files/s", fsReadSmall},
	{"small files, made and removed", "files/s", fsMakeSmall},
	{"a directory with attributes", "entries/s", fsList},
}

// fsStream moves the large file, several requests at a time.
func fsStream(f *virtiotest.FUSE, write bool) (float64, error) {
	node, err := f.Lookup(virtiotest.FUSERoot, "large")
	if err != nil {
		return 0, err
	}
	h, err := f.Open(virtiotest.FUSEOpen, node, unix.O_RDWR)
	if err != nil {
		return 0, err
	}
	data := make([]byte, fsChunk)
	next, underWay := 0, 0
	slots := map[uint16]int{}
	put := func(slot int) {
		var head uint16
		if write {
			head, _ = f.Put(slot, f.WriteRequest(node, h, uint64(next), data), virtiotest.FUSEAnswer(8))
		} else {
			head, _ = f.Put(slot, f.ReadRequest(virtiotest.FUSERead, node, h, uint64(next), fsChunk), virtiotest.FUSEAnswer(fsChunk))
		}
		slots[head] = slot
		next, underWay = next+fsChunk, underWay+1
	}
	from := f.Driver.Added()
	for slot := range fsDepth {
		put(slot)
	}
	f.Driver.Kick(from)
	for underWay > 0 {
		head, n := f.Driver.Wait()
		underWay--
		if !write && int(n) != virtiotest.FUSEAnswer(fsChunk) {
			return 0, fmt.Errorf("a read of %d bytes", n)
		}
		if from := f.Driver.Added(); next < fsFile {
			put(slots[head])
			f.Driver.Kick(from)
		}
	}
	_, err = f.Do(virtiotest.FUSERelease, node, 0, h, uint64(0), uint64(0))
	return fsFile >> 20, err
}

// fsReadSmall opens, reads and closes each of many files, as a build does.
func fsReadSmall(f *virtiotest.FUSE) (float64, error) {
	for i := range fsSmall {
		node, err := f.Lookup(virtiotest.FUSERoot, fmt.Sprintf("small-%d", i))
		if err != nil {
			return 0, err
		}
		h, err := f.Open(virtiotest.FUSEOpen, node, unix.O_RDONLY)
		if err != nil {
			return 0, err
		}
		f.Send(f.ReadRequest(virtiotest.FUSERead, node, h, 0, 4096), virtiotest.FUSEAnswer(4096))
		_, e1 := f.Do(virtiotest.FUSEFlush, node, 0, h, uint64(0), uint64(1))
		_, e2 := f.Do(virtiotest.FUSERelease, node, 0, h, uint64(0), uint64(0))
		f.Send(f.Request(virtiotest.FUSEForget, node, uint64(1)), 0)
		if err := errors.Join(e1, e2); err != nil {
			return 0, err
		}
	}
	return fsSmall, nil
}

func fsMakeSmall(f *virtiotest.FUSE) (float64, error) {
	data := make([]byte, 4096)
	for i := range fsSmall {
		name := fmt.Sprintf("new-%d", i)
		node, h, err := f.Create(virtiotest.FUSERoot, name)
		if err != nil {
			return 0, err
		}
		f.Send(f.WriteRequest(node, h, 0, data), virtiotest.FUSEAnswer(8))
		_, e1 := f.Do(virtiotest.FUSEFlush, node, 0, h, uint64(0), uint64(1))
		_, e2 := f.Do(virtiotest.FUSERelease, node, 0, h, uint64(0), uint64(0))
		_, e3 := f.Do(virtiotest.FUSEUnlink, virtiotest.FUSERoot, 0, name)
		f.Send(f.Request(virtiotest.FUSEForget, node, uint64(1)), 0)
		if err := errors.Join(e1, e2, e3); err != nil {
			return 0, err
		}
	}
	return fsSmall, nil
}

// fsList reads the directory with the attributes of all that is in it.
func fsList(f *virtiotest.FUSE) (float64, error) {
	const room = 32 << 10
	entries := 0
	for range 5 {
		h, err := f.Open(virtiotest.FUSEOpendir, virtiotest.FUSERoot, 0)
		if err != nil {
			return 0, err
		}
		for off := uint64(0); ; {
			out := f.Send(f.ReadRequest(virtiotest.FUSEReaddirplus, virtiotest.FUSERoot, h, off, room), virtiotest.FUSEAnswer(room))
			if out = out[virtiotest.FUSEAnswer(0):]; len(out) == 0 {
				break
			}
			const entryOut, dirent = 128, 24 // struct fuse_entry_out and fuse_dirent
			for len(out) > 0 {
				off = binary.LittleEndian.Uint64(out[entryOut+8:])
				n := int(binary.LittleEndian.Uint32(out[entryOut+16:]))
				out = out[entryOut+(dirent+n+7)/8*8:]
				entries++
			}
		}
		if _, err := f.Do(virtiotest.FUSEReleasedir, virtiotest.FUSERoot, 0, h, uint64(0), uint64(0)); err != nil {
			return 0, err
		}
	}
	return float64(entries), nil
}

// virtiofsdPath is where Debian's packages have it: of QEMU, or of its own.
func virtiofsdPath() string {
	for _, p := range []string{"/usr/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd"} {
		if _, err := os.Stat(p); err == nil {
			return p
		}
	}
	return ""
}

// TestCompareShare drives virtio-fs without a VM: vmm's device in this process, and
// virtiofsd behind vhost-user, on directories alike.
func TestCompareShare(t *testing.T) {
	if !*compare {
		t.Skip("make bench runs this")
	}
	peer := virtiofsdPath()
	if peer == "" {
		t.Skip("virtiofsd is not installed: apt-get install qemu-system-common (or virtiofsd)")
	}
	ours, theirs := fsOurs(t, fsDirectory(t)), fsTheirs(t, peer, fsDirectory(t))
	for _, w := range fsWorks {
		var a, b []float64
		measure := func(f *virtiotest.FUSE) float64 {
			start := time.Now()
			n, err := w.do(f)
			if err != nil {
				t.Fatalf("%s: %v", w.name, err)
			}
			return n / time.Since(start).Seconds()
		}
		measure(ours)
		measure(theirs)
		for range fsRounds {
			a, b = append(a, measure(ours)), append(b, measure(theirs))
		}
		ratio(t, "virtio-fs: "+w.name, a, b, w.unit)
	}
}

// fsDirectory makes what the works need.
func fsDirectory(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for i := range fsSmall {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("small-%d", i)), make([]byte, 4096), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "large"), make([]byte, fsFile), 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

func fsClient(t *testing.T, mem *virtiotest.Memory, requests *virtiotest.Driver) *virtiotest.FUSE {
	t.Helper()
	f := &virtiotest.FUSE{Driver: requests, Mem: mem, Area: virtiotest.QueueEnd(2)}
	if err := f.Mount(); err != nil {
		t.Fatal(err)
	}
	return f
}

func fsOurs(t *testing.T, dir string) *virtiotest.FUSE {
	t.Helper()
	dev, err := fs.New("bench", func() (fs.FileSystem, error) { return share.New(dir, share.Options{}) }, func(err error) { t.Error(err) })
	if err != nil {
		t.Fatal(err)
	}
	mem, err := virtiotest.NewMemory(fsMemory)
	if err != nil {
		t.Fatal(err)
	}
	g, err := virtiotest.Start(dev, mem, 1024, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { errors.Join(g.Close(), mem.Close()) })
	return fsClient(t, mem, g.Queues[1])
}

func fsTheirs(t *testing.T, path, dir string) *virtiotest.FUSE {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "fs")
	c := exec.Command(path, "--socket-path="+socket, "-o", "source="+dir, "-o", "sandbox=chroot", "-o", "xattr", "-o", "posix_lock", "-o", "flock")
	if filepath.Dir(path) == "/usr/libexec" { // the newer one, in Rust
		c = exec.Command(path, "--socket-path="+socket, "--shared-dir="+dir, "--sandbox=chroot", "--xattr")
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.Process.Kill()
		c.Wait()
	})
	v, err := dialVhostUser(socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { v.c.Close() })
	mem, err := virtiotest.NewMemory(fsMemory)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { mem.Close() })
	drivers, err := v.start(mem, 1024, 1024)
	if err != nil {
		t.Fatal(err)
	}
	return fsClient(t, mem, drivers[1])
}
