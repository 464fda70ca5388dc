package snapshot

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
)

// ownKeys gives the test a key directory of its own.
func ownKeys(t testing.TB) string {
	dir := t.TempDir()
	t.Setenv("XDG_DATA_HOME", dir)
	return filepath.Join(dir, "vmm", "snapshot.key")
}

// forge changes what a snapshot says of itself, with a checksum that fits.
func forge(t *testing.T, dir string, change func([]byte) []byte) {
	t.Helper()
	path := filepath.Join(dir, ManifestFile)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	text, _, _ := bytes.Cut(b, []byte{'\n'})
	text = change(text)
	if err := os.WriteFile(path, []byte(string(text)+"\n"+digest(text)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestSignature(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(t *testing.T, dir, key string)
		want   bool
	}{
		{"as it was saved", func(*testing.T, string, string) {}, true},
		{"in another place", func(t *testing.T, dir, _ string) {
			if err := errors.Join(os.Rename(dir, dir+"-moved"), os.Rename(dir+"-moved", dir)); err != nil {
				t.Fatal(err)
			}
		}, true},
		{"another configuration", func(t *testing.T, dir, _ string) {
			forge(t, dir, func(b []byte) []byte { return bytes.Replace(b, []byte(`{"x":1}`), []byte(`{"x":2}`), 1) })
		}, false},
		{"another user's key", func(t *testing.T, _, key string) { os.Remove(key); userKey() }, false},
		{"no key", func(t *testing.T, _, key string) { os.Remove(key) }, false},
		{"a key for all to read", func(t *testing.T, _, key string) { os.Chmod(key, 0o644) }, false},
		{"a key that is cut off", func(t *testing.T, _, key string) { os.Truncate(key, 10) }, false},
		{"no signature", func(t *testing.T, dir, _ string) { os.Remove(filepath.Join(dir, signatureFile)) }, false},
		{"an empty signature", func(t *testing.T, dir, _ string) { os.Truncate(filepath.Join(dir, signatureFile), 0) }, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			key := ownKeys(t)
			dir := filepath.Join(t.TempDir(), "s")
			save(t, dir, memoryOf(t, 1), MemoryOptions{})
			if st, err := os.Stat(key); err != nil || st.Mode().Perm() != 0o600 {
				t.Errorf("the key: %v, %v", st, err)
			}
			c.change(t, dir, key)
			if got := mustOpen(t, dir).Signed(); got != c.want {
				t.Errorf("signed: %v, want %v", got, c.want)
			}
		})
	}
}

// TestForgedStamp: who has changed a file of a signed snapshot, and notes that it looks right, does not have it believed.
func TestForgedStamp(t *testing.T) {
	ownKeys(t)
	dir := withDisk(t)
	s := mustOpen(t, dir)
	if !s.stamped(false) || s.stamped(true) {
		t.Errorf("what was saved here has a stamp: %v, and one without a signature: %v", s.stamped(false), s.stamped(true))
	}
	if err := os.WriteFile(filepath.Join(dir, DiskFile(0)), []byte("evil"), 0o600); err != nil {
		t.Fatal(err)
	}
	look, err := s.look()
	if err != nil {
		t.Fatal(err)
	}
	for what, key := range map[string][]byte{"no": nil, "another": make([]byte, keySize)} {
		if err := os.WriteFile(filepath.Join(dir, stampFile), signedStamp(key, look), 0o600); err != nil {
			t.Fatal(err)
		}
		if s, err := Open(dir, Options{}); !errors.Is(err, ErrCorrupt) {
			t.Errorf("with a stamp of %s key: %v", what, err)
			s.Close()
		}
	}
}

// TestEndless: a file that has become larger than it was is not read.
func TestEndless(t *testing.T) {
	ownKeys(t)
	for _, name := range []string{ManifestFile, sumsFile, stampFile, workingFile, signatureFile, DiskFile(0)} {
		dir := withDisk(t)
		f, err := os.OpenFile(filepath.Join(dir, name), os.O_RDWR|os.O_CREATE, 0o600)
		if err == nil {
			err = errors.Join(f.Truncate(8<<40), f.Close()) // to read it would take hours
		}
		if err != nil {
			t.Fatal(err)
		}
		s, err := Open(dir, Options{})
		if needed := name == ManifestFile || name == sumsFile || name == DiskFile(0); needed != (err != nil) {
			t.Errorf("%s without an end: %v", name, err)
		}
		if err == nil {
			if s.Signed() && name == signatureFile {
				t.Error("signed by an endless signature")
			}
			s.Close()
		}
	}
}

// TestNoHome saves where there is no place for a key.
func TestNoHome(t *testing.T) {
	t.Setenv("XDG_DATA_HOME", "")
	t.Setenv("HOME", "")
	dir := filepath.Join(t.TempDir(), "s")
	save(t, dir, memoryOf(t, 1), MemoryOptions{})
	if mustOpen(t, dir).Signed() {
		t.Error("signed with nothing")
	}
}

// TestOneKey makes the key from many sides at once.
func TestOneKey(t *testing.T) {
	ownKeys(t)
	keys := make([][]byte, 20)
	var group sync.WaitGroup
	for i := range keys {
		group.Go(func() {
			var err error
			if keys[i], err = userKey(); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	for _, k := range keys {
		if len(k) != keySize || !bytes.Equal(k, keys[0]) {
			t.Fatalf("%x and %x", k, keys[0])
		}
	}
}

// TestWriteTo writes to files of another process's, which gives the snapshot its name.
func TestWriteTo(t *testing.T) {
	ownKeys(t)
	dir := filepath.Join(t.TempDir(), "s")
	m := memoryOf(t, 0, 300)
	p, err := NewPlace(dir, false)
	if err != nil {
		t.Fatal(err)
	}
	files, err := p.CreateAll(2, true)
	if err != nil {
		t.Fatal(err)
	}
	w := WriteTo(dir, files)
	if err := finish(w, m, MemoryOptions{Zstd: true}); err != nil {
		t.Fatal(err)
	}
	if err := p.Publish(); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(restored(t, dir), m.RAM()[0]) {
		t.Error("it is not what was saved")
	}
	if !mustOpen(t, dir).Signed() {
		t.Error("it is not signed")
	}
	if _, err := os.Stat(filepath.Join(dir, DiskFile(0))); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a file that was not used: %v", err)
	}
	if left, err := os.ReadDir(filepath.Dir(dir)); err != nil || len(left) != 1 {
		t.Errorf("beside it: %v, %v", left, err)
	}
}
