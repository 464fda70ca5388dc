package rootdisk

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func TestStore(t *testing.T) {
	t.Setenv("XDG_DATA_HOME", t.TempDir())
	s, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	if s.Has("web") {
		t.Error("there is a disk before there is a store")
	}
	path, made, err := s.Take("web", "sha256:1", 64<<20)
	if err != nil || !made {
		t.Fatal(path, made, err)
	}
	if again, made, err := s.Take("web", "sha256:1", 1<<30); err != nil || made || again != path {
		t.Errorf("taken again: %s, %v, %v", again, made, err)
	}
	if _, _, err := s.Take("web", "sha256:2", 64<<20); !errors.Is(err, ErrOther) {
		t.Errorf("another image: %v", err)
	}
	if _, _, err := s.Take("we", "sha256:2", 1<<50); err == nil || s.Has("we") {
		t.Errorf("a disk that is too large: %v, there: %v", err, s.Has("we"))
	}
	// What one that was killed has left is no disk, and in nobody's way.
	left := s.dir + "/we@sha256:2" + making
	if err := os.WriteFile(left, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if s.Has("we") {
		t.Error("a half-made disk counts")
	}
	if _, made, err := s.Take("we", "sha256:2", 64<<20); err != nil || !made {
		t.Errorf("after one that was killed: %v, %v", made, err)
	}
	for _, name := range []string{"web", "we"} {
		if was, err := s.Remove(name); !was || err != nil {
			t.Errorf("%s: removed: %v, %v", name, was, err)
		}
	}
	for _, name := range []string{"web", "../x", ""} {
		if was, err := s.Remove(name); was || err != nil {
			t.Errorf("%q, which is not there: removed: %v, %v", name, was, err)
		}
	}
	if files, err := os.ReadDir(s.dir); err != nil || len(files) != 0 {
		t.Errorf("%v, %v is left", files, err)
	}
}

func TestTakeDir(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can have such a directory")
	}
	dir := filepath.Join(t.TempDir(), "a", "b")
	for range 2 {
		layer, err := TakeDir(dir, "sha256:1")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(filepath.Join(layer, "upper"), 0o755); err != nil { // as a guest does
			t.Fatal(err)
		}
	}
	// What setuid programs a guest makes there is out of the reach of others.
	empty := filepath.Join(t.TempDir(), "empty")
	if err := os.Mkdir(empty, 0o755); err != nil {
		t.Fatal(err)
	}
	layer, err := TakeDir(empty, "sha256:1")
	if err != nil {
		t.Fatal(err)
	}
	for _, made := range []string{dir, empty} {
		if st, err := os.Stat(made); err != nil || st.Mode().Perm() != 0o700 {
			t.Errorf("%s: %v, %v", made, st.Mode(), err)
		}
	}
	// One that was killed in between is gone on with.
	if err := os.Remove(layer); err != nil {
		t.Fatal(err)
	}
	if _, err := TakeDir(empty, "sha256:1"); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(layer); err != nil {
		t.Error(err)
	}
	if _, err := TakeDir(dir, "sha256:2"); !errors.Is(err, ErrOther) {
		t.Errorf("another image: %v", err)
	}
	if _, err := TakeDir(filepath.Dir(dir), "sha256:1"); err == nil {
		t.Error("a directory of somebody's files is taken")
	}
}
