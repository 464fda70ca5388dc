package xattr

import (
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestOf reads attributes of all sizes that the file system takes.
func TestOf(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if got, err := Of(path); err != nil || len(got) != 0 {
		t.Errorf("of none: %v, %v", got, err)
	}
	want := map[string]string{"user.empty": "", "user.a=b": "a\x00b", "user.256": strings.Repeat("v", 256), "user.1000": strings.Repeat("v", 1000)}
	for name, value := range want {
		if err := unix.Setxattr(path, name, []byte(value), 0); err != nil {
			t.Skip(err)
		}
	}
	if large := strings.Repeat("v", 60000); unix.Setxattr(path, "user.large", []byte(large), 0) == nil { // not on each file system
		want["user.large"] = large
	}
	for name, read := range map[string]func() (map[string]string, error){"path": func() (map[string]string, error) { return Of(path) },
		"file": func() (map[string]string, error) { return OfFile(int(f.Fd())) }} {
		got, err := read()
		maps.DeleteFunc(got, func(name, _ string) bool { return !strings.HasPrefix(name, "user.") })
		if err != nil || !maps.Equal(got, want) {
			t.Errorf("by %s: %.300q, %v", name, got, err)
		}
	}
	if _, err := Of(path + "/none"); !errors.Is(err, unix.ENOTDIR) || !errors.As(err, new(*fs.PathError)) {
		t.Errorf("of what cannot be: %v", err)
	}
}

// TestRead reads attributes that change meanwhile.
func TestRead(t *testing.T) {
	got, err := read(func(b []byte) (int, error) { return copy(b, "user.gone\x00user.here\x00"), nil }, func(name string, b []byte) (int, error) {
		if name == "user.gone" {
			return -1, unix.ENODATA
		}
		return copy(b, "x"), nil
	})
	if err != nil || !maps.Equal(got, map[string]string{"user.here": "x"}) {
		t.Errorf("%q, %v", got, err)
	}
}
