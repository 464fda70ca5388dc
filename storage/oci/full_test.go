package oci

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestFullDisk: what finds no room leaves nothing, and images can be removed all the same.
func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("none", dir, "tmpfs", 0, "size=6m"); err != nil {
		t.Skipf("a small file system is for root: %v", err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	s, err := Open(filepath.Join(dir, "images"), Limits{})
	if err != nil {
		t.Fatal(err)
	}
	add := func(name string, size int) error {
		_, err := s.add(t.Context(), memory{Image: imageOf(t, layerOf(t, text(name, noise(size))))}, "docker.io/library/"+name+":latest", nil)
		return err
	}
	if err := add("small", 1000); err != nil {
		t.Fatal(err)
	}
	had := len(contentsOf(t, s.dir))
	for _, size := range []int{3 << 20, 20 << 20} { // of which the blob has room, and not even that
		err := add("large", size)
		if !errors.Is(err, unix.ENOSPC) || strings.Contains(err.Error(), "\n") || !strings.Contains(err.Error(), "no room for it in "+s.dir) {
			t.Errorf("%v", err)
		}
		if left := contentsOf(t, s.dir); len(left) != had {
			t.Errorf("%q are left", left)
		}
	}
	fill, err := os.Create(filepath.Join(dir, "fill"))
	if err != nil {
		t.Fatal(err)
	}
	defer fill.Close()
	for size := 1 << 20; size > 0; size /= 2 {
		for err == nil {
			_, err = fill.Write(make([]byte, size))
		}
		err = nil
	}
	if err := s.Tag(t.Context(), "small", "other"); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("the disk is not full: %v", err)
	}
	if removed, err := s.Remove(t.Context(), "small"); err != nil || removed.Digest == "" || len(removed.Names) != 1 {
		t.Errorf("%+v, %v", removed, err)
	}
	if _, err := s.Prune(t.Context()); err != nil {
		t.Error(err)
	}
	if left := contentsOf(t, s.dir); len(left) > 0 {
		t.Errorf("%q are left", left)
	}
}
