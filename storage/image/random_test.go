package image

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"vmm/storage"
)

// qemuImg runs qemu-img, which must succeed.
func qemuImg(t *testing.T, args ...string) string {
	t.Helper()
	out, err := qemuTry(args...)
	if err != nil {
		t.Fatalf("qemu-img %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// qemuTry runs qemu-img, which may fail.
func qemuTry(args ...string) (string, error) {
	out, err := exec.Command("qemu-img", args...).CombinedOutput()
	return string(out), err
}

// needQemuImg skips where the oracle is not there; make test installs it.
func needQemuImg(t *testing.T) {
	t.Helper()
	if _, err := exec.LookPath("qemu-img"); err != nil {
		t.Skip("no qemu-img: install qemu-utils")
	}
}

// model is a disk in memory that does what an image must do.
type model struct {
	t    *testing.T
	rng  *rand.Rand
	path string
	data []byte
	img  *Image
}

func (m *model) open() {
	m.t.Helper()
	var err error
	if m.img, err = Open(m.path, Options{}); err != nil {
		m.t.Fatal(err)
	}
	if m.img.Size() != int64(len(m.data)) {
		m.t.Fatalf("%s has %d bytes, want %d", m.path, m.img.Size(), len(m.data))
	}
}

func (m *model) close() {
	m.t.Helper()
	// A process that another test starts has the image, and its lock, until its exec.
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	if err := m.img.Close(); err != nil {
		m.t.Fatal(err)
	}
}

// span picks a range: small ones, large ones, and such that are whole
// clusters.
func (m *model) span() (off, n int64) {
	size := int64(len(m.data))
	unit := []int64{512, 4096, 65536}[m.rng.IntN(3)]
	off = m.rng.Int64N(size) / unit * unit
	n = (1 + m.rng.Int64N(1+m.rng.Int64N(40))) * unit
	return off, min(n, size-off)
}

// vector cuts b into pieces of sectors.
func (m *model) vector(b []byte) (v [][]byte) {
	for len(b) > 0 {
		n := min(len(b), 512*(1+m.rng.IntN(200)))
		v = append(v, b[:n])
		b = b[n:]
	}
	return v
}

func (m *model) check(what string, err error) {
	m.t.Helper()
	if err != nil {
		m.t.Fatalf("%s: %v", what, err)
	}
}

// step does something to both.
func (m *model) step() {
	m.t.Helper()
	off, n := m.span()
	switch k := m.rng.IntN(100); {
	case k < 45:
		b := make([]byte, n)
		if m.rng.IntN(8) > 0 {
			for i := range b {
				b[i] = byte(m.rng.Uint32())
			}
		}
		m.check("write", m.img.WriteV(m.vector(b), off))
		copy(m.data[off:], b)
	case k < 55:
		m.check("write zeroes", m.img.WriteZeroes(off, n, m.rng.IntN(2) == 0))
		clear(m.data[off : off+n])
	case k < 65:
		m.check("discard", m.img.Discard(off, n))
		m.discarded(off, n)
	case k < 92:
		m.read(off, n)
	case k < 97:
		m.check("flush", m.img.Flush())
	case k < 98 && m.img.Qcow2 != nil && m.img.Qcow2.Info().Snapshots == 0:
		size := max(512, (int64(len(m.data))+m.rng.Int64N(4<<20)-2<<20)&^511)
		m.check("resize", m.img.Resize(size))
		m.data = append(m.data, make([]byte, max(0, size-int64(len(m.data))))...)[:size]
	default:
		m.close()
		m.open()
	}
}

// discarded takes over what a discarded range reads as, which is what it was
// or zeros.
func (m *model) discarded(off, n int64) {
	m.t.Helper()
	b := make([]byte, n)
	m.check("read", m.img.ReadV([][]byte{b}, off))
	for at := int64(0); at < n; at += 512 {
		s := b[at : at+512]
		if !storage.IsZero(s) && !bytes.Equal(s, m.data[off+at:off+at+512]) {
			m.t.Fatalf("sector at %d is neither what it was nor zero after a discard", off+at)
		}
	}
	copy(m.data[off:], b)
}

func (m *model) read(off, n int64) {
	m.t.Helper()
	b := bytes.Repeat([]byte{0xa5}, int(n))
	v := m.vector(b)
	ok, err := m.img.TryReadV(v, off)
	m.check("read", err)
	if !ok {
		m.check("read", m.img.ReadV(v, off))
	}
	for at := range b {
		if b[at] != m.data[off+int64(at)] {
			m.t.Fatalf("byte %d is %#x, want %#x", off+int64(at), b[at], m.data[off+int64(at)])
		}
	}
}

// verify has qemu-img check the image and say what it shows.
func (m *model) verify() {
	m.t.Helper()
	m.check("flush", m.img.Flush())
	m.close()
	if m.img.Format == Qcow2 {
		qemuImg(m.t, "check", m.path)
	}
	raw := m.path + ".qemu"
	qemuImg(m.t, "convert", "-O", "raw", m.path, raw)
	b, err := os.ReadFile(raw)
	m.check("read", err)
	os.Remove(raw)
	if !bytes.Equal(b, m.data) {
		for at := range b {
			if at >= len(m.data) || b[at] != m.data[at] {
				m.t.Fatalf("qemu-img shows %d bytes, want %d; they differ from byte %d on", len(b), len(m.data), at)
			}
		}
		m.t.Fatalf("qemu-img shows %d bytes, want %d", len(b), len(m.data))
	}
	m.open()
	if m.img.Qcow2 != nil {
		r, err := m.img.Qcow2.Check(false)
		m.check("check", err)
		if r.Corruptions > 0 || r.Leaks > 0 {
			m.t.Fatalf("check found what qemu-img did not: %+v", r)
		}
	}
}

// fill gives a model random content through qemu-img.
func (m *model) content(density int) {
	for at := 0; at < len(m.data); at += 65536 {
		if m.rng.IntN(10) < density {
			for i := at; i < min(at+65536, len(m.data)); i++ {
				m.data[i] = byte(m.rng.Uint32() >> (i / 65536 % 8))
			}
		}
	}
}

// TestRandom does thousands of random things to images of every kind and asks
// qemu-img what it thinks of them.
func TestRandom(t *testing.T) {
	needQemuImg(t)
	steps := 400
	if testing.Short() {
		steps = 100
	}
	for _, c := range []struct {
		name    string
		options string // of qemu-img create; "vmm" makes it here
		size    int64
		backing string // "raw" or "qcow2": with one
		convert string // options of qemu-img convert: the image begins with content
		snap    bool
	}{
		{name: "ours", options: "vmm", size: 20 << 20},
		{name: "ours, backing", options: "vmm", size: 20 << 20, backing: "qcow2"},
		{name: "raw", options: "raw", size: 5<<20 + 512},
		{name: "v2", options: "compat=0.10", size: 20 << 20},
		{name: "v2, backing", options: "compat=0.10", size: 12 << 20, backing: "raw"},
		{name: "v3, backing", options: "compat=1.1", size: 20 << 20, backing: "raw"},
		{name: "512 byte clusters", options: "cluster_size=512", size: 5 << 20},
		{name: "4 KiB clusters, 1 bit", options: "cluster_size=4096,refcount_bits=1", size: 9 << 20, backing: "qcow2"},
		{name: "512 byte clusters, 64 bits", options: "cluster_size=512,refcount_bits=64", size: 8 << 20},
		{name: "2 MiB clusters, 8 bits", options: "cluster_size=2M,refcount_bits=8", size: 64 << 20, backing: "qcow2"},
		{name: "32 bits, lazy", options: "refcount_bits=32,lazy_refcounts=on", size: 20 << 20},
		{name: "preallocated", options: "preallocation=metadata", size: 10 << 20},
		{name: "odd size", options: "cluster_size=4096", size: 3<<20 + 512*3, backing: "raw"},
		{name: "deflate", convert: "-c", size: 12 << 20},
		{name: "zstd", convert: "-c -o compression_type=zstd", size: 12 << 20},
		{name: "snapshot", options: "compat=1.1", size: 12 << 20, snap: true},
		{name: "snapshot, 2 bits", options: "cluster_size=4096,refcount_bits=2", size: 4 << 20, snap: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			m := &model{t: t, rng: rand.New(rand.NewPCG(1, uint64(len(c.name)))), path: filepath.Join(dir, "disk"), data: make([]byte, c.size)}
			args := []string{"create", "-q", "-f", "qcow2", "-o", c.options}
			if c.backing != "" {
				// Mostly shorter than the overlay.
				base := &model{rng: m.rng, data: make([]byte, max(c.size-4<<20+512, 2<<20))}
				base.content(6)
				copy(m.data, base.data)
				raw := filepath.Join(dir, "base.raw")
				m.check("base", os.WriteFile(raw, base.data, 0o644))
				if c.backing == "qcow2" {
					qemuImg(t, "convert", "-O", "qcow2", raw, filepath.Join(dir, "base.qcow2"))
				}
				args = append(args, "-b", "base."+c.backing, "-F", c.backing)
			}
			switch {
			case c.convert != "":
				m.content(7)
				m.check("content", os.WriteFile(m.path+".raw", m.data, 0o644))
				qemuImg(t, append(append([]string{"convert", "-O", "qcow2"}, strings.Fields(c.convert)...), m.path+".raw", m.path)...)
			case c.options == "raw":
				m.check("create", Create(m.path, CreateOptions{Format: Raw, Size: c.size}))
			case c.options == "vmm":
				o := CreateOptions{Size: c.size}
				if c.backing != "" {
					o.Backing = "base." + c.backing
				}
				m.check("create", Create(m.path, o))
			default:
				qemuImg(t, append(args, m.path, fmt.Sprint(c.size))...)
			}
			m.open()
			for n := range steps {
				if m.step(); n%(steps/3) == steps/3-1 {
					m.read(0, int64(len(m.data)))
					m.verify()
				}
				if c.snap && n == steps/4 {
					m.close()
					before := append([]byte(nil), m.data...)
					qemuImg(t, "snapshot", "-c", "one", m.path)
					m.open()
					defer func() { // what the snapshot kept is untouched
						m.close()
						qemuImg(t, "snapshot", "-a", "one", m.path)
						m.data = before
						m.open()
						m.read(0, int64(len(before)))
						m.verify()
						m.close()
					}()
				}
			}
			if !c.snap {
				m.close()
			}
		})
	}
}

// TestExtendedL2 reads what qemu-io wrote with extended L2 entries.
func TestExtendedL2(t *testing.T) {
	needQemuImg(t)
	dir := t.TempDir()
	path := filepath.Join(dir, "disk")
	base := filepath.Join(dir, "base.raw")
	if err := os.WriteFile(base, bytes.Repeat([]byte{7}, 4<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	qemuImg(t, "create", "-q", "-f", "qcow2", "-o", "extended_l2=on", "-b", "base.raw", "-F", "raw", path)
	var script []string
	rng := rand.New(rand.NewPCG(3, 4))
	for range 200 {
		at, n := rng.IntN(4<<20-40960)&^511, 512*(1+rng.IntN(80))
		op := fmt.Sprintf("write -P %d %d %d", 1+rng.IntN(200), at, n)
		switch rng.IntN(4) {
		case 0:
			op = fmt.Sprintf("write -z %d %d", at, n)
		case 1:
			op = fmt.Sprintf("discard %d %d", at, n)
		}
		script = append(script, "-c", op)
	}
	if out, err := exec.Command("qemu-io", append(script, path)...).CombinedOutput(); err != nil {
		t.Fatalf("qemu-io: %v\n%s", err, out)
	}
	raw := filepath.Join(dir, "raw")
	qemuImg(t, "convert", "-O", "raw", path, raw)
	want, err := os.ReadFile(raw)
	if err != nil {
		t.Fatal(err)
	}
	img, err := Open(path, Options{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(want))
	if err := img.ReadV([][]byte{got}, 0); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("it does not read as with qemu-img")
	}
	if r, err := img.Qcow2.Check(false); err != nil || r.Corruptions+r.Leaks > 0 {
		t.Errorf("check: %+v, %v", r, err)
	}
	if err := img.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path, Options{}); err == nil || !strings.Contains(err.Error(), "extended L2") {
		t.Errorf("opened for writing: %v", err)
	}
}
