package image

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"vmm/storage"
	"vmm/storage/qcow2"
)

// layer makes an image over another with random content of its own, and
// returns what it shows.
func layer(t *testing.T, rng *rand.Rand, path, backing string, under []byte) []byte {
	t.Helper()
	if err := Create(path, CreateOptions{Backing: backing, Size: int64(len(under))}); err != nil {
		t.Fatal(err)
	}
	m := &model{t: t, rng: rng, path: path, data: append([]byte(nil), under...)}
	m.open()
	for range 60 {
		m.step()
		m.data = m.data[:min(len(m.data), len(under))]
		if m.img.Size() != int64(len(under)) {
			m.check("resize", m.img.Resize(int64(len(under))))
			m.data = append(m.data, make([]byte, len(under)-len(m.data))...)
		}
	}
	m.read(0, int64(len(m.data)))
	m.close()
	return m.data
}

func content(t *testing.T, path string, o Options) []byte {
	t.Helper()
	img, err := Open(path, o)
	if err != nil {
		t.Fatal(err)
	}
	defer img.Close()
	b := make([]byte, img.Size())
	if err := img.ReadV([][]byte{b}, 0); err != nil {
		t.Fatal(err)
	}
	return b
}

// TestChain commits and rebases in a chain of three, and asks qemu-img.
func TestChain(t *testing.T) {
	needQemuImg(t)
	for seed := range uint64(6) {
		dir := t.TempDir()
		rng := rand.New(rand.NewPCG(seed, 9))
		at := func(name string) string { return filepath.Join(dir, name) }
		base := layer(t, rng, at("base"), "", make([]byte, 4<<20))
		mid := layer(t, rng, at("mid"), "base", base)
		top := layer(t, rng, at("top"), "mid", mid)
		same := func(what, name string, want []byte) {
			t.Helper()
			if !bytes.Equal(content(t, at(name), Options{ReadOnly: true}), want) {
				t.Fatalf("seed %d: %s: %s shows something else", seed, what, name)
			}
			qemuImg(t, "check", at(name))
			if err := os.WriteFile(at("want"), want, 0o644); err != nil {
				t.Fatal(err)
			}
			qemuImg(t, "compare", "-F", "raw", at(name), at("want"))
		}
		same("made", "top", top)
		with := func(path string, o Options, do func(*Image) error) {
			t.Helper()
			img, err := Open(path, o)
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(do(img), img.Close()); err != nil {
				t.Fatal(err)
			}
		}
		with(at("top"), Options{}, func(i *Image) error { return i.Rebase("base", "", nil) })
		same("rebased", "top", top)
		with(at("top"), Options{}, func(i *Image) error { return i.Rebase("mid", "qcow2", nil) })
		same("rebased back", "top", top)
		with(at("top"), Options{WriteBacking: true}, func(i *Image) error { return i.Commit(nil) })
		same("committed", "mid", top)
		same("committed", "top", top)
		same("untouched", "base", base)
		with(at("top"), Options{}, func(i *Image) error { return i.Rebase("", "", nil) })
		same("alone", "top", top)
		qemuImg(t, "commit", "-q", at("mid"))
		same("committed by qemu-img", "base", top)

		a, err := Open(at("top"), Options{ReadOnly: true})
		if err != nil {
			t.Fatal(err)
		}
		b, err := Open(at("base"), Options{ReadOnly: true})
		if err != nil {
			t.Fatal(err)
		}
		if err := Diff(a, b, nil, func(r Range) error { return fmt.Errorf("they differ at %+v", r) }); err != nil {
			t.Error(err)
		}
		if err := errors.Join(a.Close(), b.Close()); err != nil {
			t.Error(err)
		}
	}
}

// TestSnapshotOption leaves the file as it was.
func TestSnapshotOption(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk.raw")
	before := bytes.Repeat([]byte{9}, 1<<20)
	if err := os.WriteFile(path, before, 0o644); err != nil {
		t.Fatal(err)
	}
	img, err := Open(path, Options{Ephemeral: true})
	if err != nil {
		t.Fatal(err)
	}
	b := []byte(strings.Repeat("x", 4096))
	if err := img.WriteV([][]byte{b}, 8192); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 16384)
	if err := img.ReadV([][]byte{got}, 4096); err != nil || got[4096] != 'x' || got[0] != 9 || got[8192] != 9 {
		t.Errorf("what was written is not read: %v", err)
	}
	if err := img.Close(); err != nil {
		t.Fatal(err)
	}
	if after, _ := os.ReadFile(path); !bytes.Equal(before, after) {
		t.Error("the file was changed")
	}
}

// TestCaches writes and reads by every way to cache.
func TestCaches(t *testing.T) {
	for _, cache := range storage.Caches {
		for _, format := range Formats {
			t.Run(fmt.Sprint(cache, " ", format), func(t *testing.T) {
				path := filepath.Join(t.TempDir(), "disk")
				if err := Create(path, CreateOptions{Format: format, Size: 8 << 20}); err != nil {
					t.Fatal(err)
				}
				img, err := Open(path, Options{Cache: cache})
				if err != nil && strings.Contains(err.Error(), "direct I/O") {
					t.Skip(err)
				} else if err != nil {
					t.Fatal(err)
				}
				m := &model{t: t, rng: rand.New(rand.NewPCG(5, 6)), path: path, data: make([]byte, 8<<20), img: img}
				for range 150 {
					off, n := m.span()
					b := make([]byte, n)
					for i := range b {
						b[i] = byte(m.rng.Uint32())
					}
					m.check("write", img.WriteV(m.vector(b), off))
					copy(m.data[off:], b)
					m.read(m.span())
				}
				m.check("flush", img.Flush())
				m.close()
				if !bytes.Equal(content(t, path, Options{}), m.data) {
					t.Error("it holds something else")
				}
			})
		}
	}
}

func TestLocks(t *testing.T) {
	needQemuImg(t)
	path := filepath.Join(t.TempDir(), "disk")
	if err := Create(path, CreateOptions{Size: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	img, err := Open(path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	var locked *storage.LockError
	for _, o := range []Options{{}, {ReadOnly: true}} {
		if _, err := Open(path, o); !errors.As(err, &locked) {
			t.Errorf("opened %+v while it is written: %v", o, err)
		}
	}
	if out, err := qemuTry("info", path); err == nil || !strings.Contains(out, "lock") {
		t.Errorf("qemu-img opened it while it is written: %v\n%s", err, out)
	}
	if err := img.Close(); err != nil {
		t.Fatal(err)
	}
	first, err := Open(path, Options{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	second, err := Open(path, Options{ReadOnly: true})
	if err != nil {
		t.Fatalf("two readers: %v", err)
	}
	defer second.Close()
	if _, err := Open(path, Options{}); !errors.As(err, &locked) {
		t.Errorf("opened for writing while it is read: %v", err)
	}
}

// TestRefused opens what must not be opened, and wants to be told why.
func TestRefused(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	fresh := func(name string) []byte {
		os.Remove(at(name))
		if err := Create(at(name), CreateOptions{Size: 64 << 20}); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(at(name))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	be := binary.BigEndian
	for _, c := range []struct {
		name   string
		change func(b []byte) []byte
		want   string
	}{
		{"cut off in the header", func(b []byte) []byte { return b[:50] }, "not a qcow2"},
		{"cut off before the L1 table", func(b []byte) []byte { return b[:3*65536] }, "cut off"},
		{"cut off in a table", func(b []byte) []byte { return b[:65536+100] }, "cut off"},
		{"encrypted", func(b []byte) []byte { be.PutUint32(b[32:], 2); return b }, "encryption"},
		{"data file", func(b []byte) []byte { be.PutUint64(b[72:], 4); return b }, "external data file"},
		{"unknown feature", func(b []byte) []byte { be.PutUint64(b[72:], 1<<40); return b }, "incompatible features"},
		{"version", func(b []byte) []byte { be.PutUint32(b[4:], 9); return b }, "version 9"},
		{"clusters", func(b []byte) []byte { be.PutUint32(b[20:], 40); return b }, "clusters of 2^40"},
		{"huge L1", func(b []byte) []byte { be.PutUint32(b[36:], 1<<30); return b }, "L1 table"},
		{"short L1", func(b []byte) []byte { be.PutUint64(b[24:], 1<<50); return b }, "L1 table"},
		{"huge refcount table", func(b []byte) []byte { be.PutUint32(b[56:], 1<<20); return b }, "refcount table"},
		{"L1 in the header", func(b []byte) []byte { be.PutUint64(b[40:], 0); return b }, "L1 table"},
		{"L2 in the L1 table", func(b []byte) []byte { be.PutUint64(b[3*65536:], 3*65536|1<<63); return b }, "another table"},
		{"L2 beyond the file", func(b []byte) []byte { be.PutUint64(b[3*65536:], 1<<40|1<<63); return b }, "L2 table 0"},
		{"marked corrupt", func(b []byte) []byte { be.PutUint64(b[72:], 2); return b }, "marked so"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if err := os.WriteFile(at("disk"), c.change(fresh("disk")), 0o644); err != nil {
				t.Fatal(err)
			}
			_, err := Open(at("disk"), Options{Format: Qcow2})
			if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
				t.Fatalf("%v; want %q", err, c.want)
			}
		})
	}
	t.Run("raw backing file elsewhere", func(t *testing.T) {
		secret := filepath.Join(t.TempDir(), "secret")
		if err := os.WriteFile(secret, make([]byte, 1<<16), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := Create(at("hostile"), CreateOptions{Backing: secret}); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(at("hostile"), Options{}); !errors.Is(err, ErrForeignBacking) {
			t.Error(err)
		}
		img, err := Open(at("hostile"), Options{AnyBacking: true})
		if err != nil {
			t.Fatal(err)
		}
		img.Close()
	})
	t.Run("a guest that writes a header", func(t *testing.T) {
		if err := Create(at("guessed.raw"), CreateOptions{Format: Raw, Size: 1 << 20}); err != nil {
			t.Fatal(err)
		}
		head := append([]byte(qcow2.Magic), make([]byte, 508)...)
		for _, c := range []struct {
			format string
			want   error
		}{{"", storage.ErrMasquerade}, {Raw, nil}} {
			img, err := Open(at("guessed.raw"), Options{Format: c.format})
			if err != nil {
				t.Fatal(err)
			}
			if err := img.WriteV([][]byte{head}, 0); !errors.Is(err, c.want) {
				t.Errorf("format %q: %v", c.format, err)
			}
			img.Close()
		}
	})
}

// TestCorruptWhileOpen: what turns out to be corrupt is not written any more.
func TestCorruptWhileOpen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk")
	if err := Create(path, CreateOptions{Size: 64 << 20}); err != nil {
		t.Fatal(err)
	}
	img, err := Open(path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	b := bytes.Repeat([]byte{1}, 4096)
	if err := errors.Join(img.WriteV([][]byte{b}, 0), img.Close()); err != nil {
		t.Fatal(err)
	}
	// The second entry of the L2 table points into the L1 table.
	raw, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	var l1 [8]byte
	if _, err := raw.ReadAt(l1[:], 3*65536); err != nil {
		t.Fatal(err)
	}
	l2 := int64(binary.BigEndian.Uint64(l1[:]) & 0x00fffffffffffe00)
	if _, err := raw.WriteAt(binary.BigEndian.AppendUint64(nil, 3*65536|1<<63), l2+8); err != nil {
		t.Fatal(err)
	}
	raw.Close()
	if img, err = Open(path, Options{}); err != nil {
		t.Fatal(err)
	}
	if err := img.WriteV([][]byte{b}, 65536); !errors.Is(err, qcow2.ErrCorrupt) {
		t.Errorf("writing to it: %v", err)
	}
	img.Close()
	if _, err := Open(path, Options{}); err == nil {
		t.Error("it is not marked as corrupt")
	}
	if img, err = Open(path, Options{ReadOnly: true}); err != nil {
		t.Fatalf("for reading: %v", err)
	}
	img.Close()
}
