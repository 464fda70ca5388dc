package volume

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"vmm/internal/flock"
)

func create(t *testing.T, s *Store, name string) *Volume {
	t.Helper()
	v, err := s.Create(name, map[string]string{"a": "b"})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func names(t *testing.T, s *Store) string {
	t.Helper()
	list, err := s.List()
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, v := range list {
		out = append(out, v.Name)
	}
	return strings.Join(out, " ")
}

// TestStore makes, finds and removes volumes.
func TestStore(t *testing.T) {
	s := At(filepath.Join(t.TempDir(), "volumes"))
	if got := names(t, s); got != "" {
		t.Errorf("there is %s", got)
	}
	data, other := create(t, s, "data"), create(t, s, "other_1.x")
	if err := os.WriteFile(filepath.Join(data.Data(), "file"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if again := create(t, s, "data"); again.Data() != data.Data() || !again.Created.Equal(data.Created) || again.Labels["a"] != "b" {
		t.Errorf("made again: %+v", again)
	}
	if _, err := os.Stat(filepath.Join(data.Data(), "file")); err != nil {
		t.Error(err)
	}
	if got := names(t, s); got != "data other_1.x" {
		t.Errorf("there are %s", got)
	}
	for _, bad := range []string{"a/b", "..", ".x", "-x", strings.Repeat("x", 129), "a b", "ü"} {
		if _, err := s.Create(bad, nil); !errors.Is(err, ErrName) {
			t.Errorf("%q: %v", bad, err)
		}
		if _, err := s.Get(bad); !errors.Is(err, ErrNotFound) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if err := s.Remove("none"); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
	if err := s.Remove(other.Name); err != nil {
		t.Error(err)
	}
	if got := names(t, s); got != "data" {
		t.Errorf("there are %s", got)
	}
}

// TestInUse holds that nobody's volume goes while it is used.
func TestInUse(t *testing.T) {
	s := At(t.TempDir())
	v, loose := create(t, s, "data"), create(t, s, "")
	f, err := os.Open(v.LockFile())
	if err != nil {
		t.Fatal(err)
	}
	if err := flock.Try(f, unix.LOCK_SH); err != nil {
		t.Fatal(err)
	}
	if used, err := v.InUse(); !used || err != nil {
		t.Errorf("in use: %v, %v", used, err)
	}
	if err := s.Remove("data"); !errors.Is(err, ErrInUse) {
		t.Errorf("removed: %v", err)
	}
	if gone, err := s.Prune(t.Context(), true); err != nil || len(gone) != 1 || gone[0] != loose.Name || !loose.Anonymous {
		t.Errorf("pruned: %v, %v", gone, err)
	}
	f.Close()
	if gone, err := s.Prune(t.Context(), false); err != nil || len(gone) != 0 {
		t.Errorf("pruned a volume with a name: %v, %v", gone, err)
	}
	// Somebody was ended while removing one.
	left := filepath.Join(s.dir, removed+"x")
	if err := os.MkdirAll(filepath.Join(left, "data"), 0o700); err != nil {
		t.Fatal(err)
	}
	if gone, err := s.Prune(t.Context(), true); err != nil || len(gone) != 1 {
		t.Errorf("pruned: %v, %v", gone, err)
	}
	if _, err := os.Stat(left); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what was left: %v", err)
	}
}

// TestTogether has many make and remove one volume at once.
func TestTogether(t *testing.T) {
	s := At(t.TempDir())
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			for range 50 {
				if v, err := s.Create("data", nil); err != nil && !errors.Is(err, ErrNotFound) || err == nil && v.Name != "data" {
					t.Errorf("create: %v", err)
				}
				if err := s.Remove("data"); err != nil && !errors.Is(err, ErrNotFound) && !errors.Is(err, ErrInUse) {
					t.Errorf("remove: %v", err)
				}
			}
		})
	}
	group.Wait()
	if _, err := s.Prune(t.Context(), true); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(s.dir); err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}
