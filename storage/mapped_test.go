package storage

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestMapped maps files one behind the other, and what is behind the last one is zeros.
func TestMapped(t *testing.T) {
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	want := append(pattern(t, a, 8192, 1), pattern(t, b, 5000, 2)...)
	m, err := OpenMapped(a, b)
	if err != nil {
		t.Fatal(err)
	}
	got := m.Bytes()
	if len(got) != MappedUnit || !bytes.Equal(got[:len(want)], want) || len(bytes.Trim(got[len(want):], "\x00")) > 0 || !m.ReadOnly() {
		t.Errorf("%d bytes, which are not the files'", len(got))
	}
	if _, err := OpenFile(a, false, ""); err == nil {
		t.Error("a mapped file is opened for writing")
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
}

// TestMappedWritable writes to a file by memory, whose holes are filled before.
func TestMappedWritable(t *testing.T) {
	name := filepath.Join(t.TempDir(), "a")
	if err := os.WriteFile(name, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(name, 2*MappedUnit); err != nil {
		t.Fatal(err)
	}
	m, err := OpenMappedWritable(name)
	if err != nil {
		t.Fatal(err)
	}
	if n := m.files[0].Allocated(); n < 2*MappedUnit {
		t.Errorf("%d bytes of the file have a place", n)
	}
	m.Bytes()[MappedUnit+1] = 7
	if err := m.Flush(); err != nil {
		t.Error(err)
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	if b, err := os.ReadFile(name); err != nil || b[MappedUnit+1] != 7 || len(b) != 2*MappedUnit {
		t.Error(err)
	}
}

func TestMappedErrors(t *testing.T) {
	dir := t.TempDir()
	file := func(name string, n int64) string {
		name = filepath.Join(dir, name)
		pattern(t, name, int(n), 1)
		return name
	}
	empty, odd, page := file("empty", 0), file("odd", 100), file("page", 4096)
	for _, c := range []struct {
		open func() (*Mapped, error)
		want string
	}{
		{func() (*Mapped, error) { return OpenMapped(filepath.Join(dir, "none")) }, "no such file"},
		{func() (*Mapped, error) { return OpenMapped(page, empty) }, "it is empty"},
		{func() (*Mapped, error) { return OpenMapped(odd, page) }, "not whole pages"},
		{func() (*Mapped, error) { return OpenMappedWritable(page) }, "2 MiB"},
		{func() (*Mapped, error) { return OpenMapped(dir) }, "neither a file"},
	} {
		if _, err := c.open(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v, and not %q", err, c.want)
		}
	}
	if f, err := OpenFile(page, false, ""); err != nil { // nothing is left open
		t.Error(err)
	} else {
		f.Close()
	}
}
