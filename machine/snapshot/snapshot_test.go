package snapshot

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"vmm/machine"
)

// TestMain keeps the user's key out of it.
func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "vmm-test-")
	if err != nil {
		panic(err)
	}
	os.Setenv("XDG_DATA_HOME", dir)
	status := m.Run()
	os.RemoveAll(dir)
	os.Exit(status)
}

const testSize = machine.MinMemory + 3*pageSize // not whole chunks

// memoryOf makes a memory with some pages filled.
func memoryOf(t testing.TB, pages ...int) *machine.Memory {
	t.Helper()
	m, err := machine.NewMemory(testSize)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range pages {
		page(m, p)[7] = byte(p) | 1
	}
	return m
}

func page(m *machine.Memory, n int) []byte { return m.RAM()[0][n*pageSize : (n+1)*pageSize] }

func save(t testing.TB, dir string, m *machine.Memory, o MemoryOptions) {
	t.Helper()
	w, err := Create(dir, false)
	if err == nil {
		err = finish(w, m, o)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func finish(w *Writer, m *machine.Memory, o MemoryOptions) error {
	if err := w.Memory(m, o); err != nil {
		return err
	}
	return w.Commit("test", map[string]int{"x": 1}, &machine.State{Version: machine.StateVersion})
}

// restored reads a snapshot's memory as a machine would map it.
func restored(t testing.TB, dir string) []byte {
	t.Helper()
	s, err := Open(dir, Options{Verify: true})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	out := make([]byte, testSize)
	for _, b := range s.Backings() {
		if _, err := b.File.ReadAt(out[b.Offset:b.Offset+b.Length], b.FileOffset); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

// TestRoundTrip saves memory in every way and gets it back.
func TestRoundTrip(t *testing.T) {
	dir := t.TempDir()
	m := memoryOf(t, 0, 5, 6, 300, 4097, testSize/pageSize-1)
	full, packed, diff := filepath.Join(dir, "full"), filepath.Join(dir, "packed"), filepath.Join(dir, "diff")
	save(t, full, m, MemoryOptions{})
	save(t, packed, m, MemoryOptions{Zstd: true})
	for _, d := range []string{full, packed} {
		if !bytes.Equal(restored(t, d), m.RAM()[0]) {
			t.Errorf("%s is not what was saved", d)
		}
	}
	parent, err := Open(full, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer parent.Close()
	dirty := make(machine.Bitmap, testSize/pageSize/64+1)
	for _, p := range []int{6, 40, 300, 2000, testSize/pageSize - 1} {
		page(m, p)[100]++
		dirty[p/64] |= 1 << (p % 64)
	}
	clear(page(m, 300)) // one that has become zero
	save(t, diff, m, MemoryOptions{Parent: &Parent{parent.Dir, parent.ID}, Dirty: dirty})
	if !bytes.Equal(restored(t, diff), m.RAM()[0]) {
		t.Error("the difference is not what was saved")
	}
	if n := len(mustOpen(t, diff).Memory.Parts); n < 3 {
		t.Errorf("the difference has %d parts", n)
	}
	os.RemoveAll(full)
	save(t, full, m, MemoryOptions{})
	if _, err := Open(diff, Options{}); err == nil {
		t.Error("a difference goes with another parent")
	}
	if _, err := Create(full, false); err == nil {
		t.Error("a snapshot is overwritten")
	}
}

func mustOpen(t *testing.T, dir string) *Snapshot {
	t.Helper()
	s, err := Open(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// TestEveryBit flips bits of all files: each is found.
func TestEveryBit(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "s")
	save(t, dir, memoryOf(t, 0, 300), MemoryOptions{})
	for _, name := range []string{ManifestFile, memoryFile, sumsFile} {
		path := filepath.Join(dir, name)
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for range 40 {
			at, bit := rand.IntN(len(b)), byte(1)<<rand.IntN(8)
			b[at] ^= bit
			os.WriteFile(path, b, 0o600)
			s, err := Open(dir, Options{})
			if err == nil {
				s.Close()
				t.Errorf("%s: bit %#x of byte %d", name, bit, at)
			}
			var known *Error
			if err != nil && !errors.As(err, &known) {
				t.Errorf("%s: %v", name, err)
			}
			b[at] ^= bit
		}
		os.WriteFile(path, b, 0o600)
	}
	mustOpen(t, dir)
}

// FuzzManifest opens whatever claims to be a snapshot.
func FuzzManifest(f *testing.F) {
	dir := filepath.Join(f.TempDir(), "s")
	save(f, dir, memoryOf(f, 1), MemoryOptions{Zstd: true})
	b, err := os.ReadFile(filepath.Join(dir, ManifestFile))
	if err != nil {
		f.Fatal(err)
	}
	text, _, _ := bytes.Cut(b, []byte{'\n'})
	f.Add(text)
	f.Add([]byte(`{"format":"vmm snapshot","version":1,"id":"x","state":{},"memory":{"size":16777216,"parts":[[0,16777216]],"zstd":[0,1]}}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		if i := bytes.IndexByte(text, '\n'); i >= 0 {
			text = text[:i]
		}
		whole := append(append(append([]byte{}, text...), '\n'), digest(text)...)
		os.WriteFile(filepath.Join(dir, ManifestFile), append(whole, '\n'), 0o600)
		if s, err := Open(dir, Options{}); err == nil {
			s.Backings()
			s.Close()
		}
	})
}

// TestUnpacksOnDisk: what a compressed memory is unpacked into is where large files
// go, and not in memory itself.
func TestUnpacksOnDisk(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "s")
	save(t, dir, memoryOf(t, 0, 300), MemoryOptions{Zstd: true})
	own := t.TempDir()
	for tmp, want := range map[string]string{"": "/var/tmp/", own: own + "/"} {
		t.Setenv("TMPDIR", tmp)
		path, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", mustOpen(t, dir).memory.Fd()))
		if err != nil || !strings.HasPrefix(path, want) {
			t.Errorf("with TMPDIR=%q: %s, %v", tmp, path, err)
		}
	}
	if left, err := os.ReadDir(own); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestWorkingSet(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "s")
	save(t, dir, memoryOf(t, 1), MemoryOptions{})
	s := mustOpen(t, dir)
	if s.WorkingSet() != nil {
		t.Error("a working set out of nothing")
	}
	want := machine.WorkingSet{{Page: 1, Pages: 2}, {Page: 9, Pages: 1, Written: true}}
	if err := errors.Join(s.PrepareWorkingSet(), s.NoteWorkingSet(append(want, want...)), s.NoteWorkingSet(want)); err != nil {
		t.Fatal(err)
	}
	if got := s.WorkingSet(); len(got) != 2 || got[0] != want[0] || got[1] != want[1] {
		t.Errorf("%v", got)
	}
}
