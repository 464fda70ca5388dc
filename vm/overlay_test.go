package vm

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"vmm/storage"
)

// TestNewOverlay: an overlay lies only beside a file that is a VM's disk, both of its files
// are one, and nothing is left of one that was not used.
func TestNewOverlay(t *testing.T) {
	dir := t.TempDir()
	disk, other, link := filepath.Join(dir, "disk.raw"), filepath.Join(dir, "other"), filepath.Join(dir, "link")
	if err := errors.Join(os.WriteFile(disk, make([]byte, 4096), 0o600), os.WriteFile(other, nil, 0o600), os.Symlink(disk, link)); err != nil {
		t.Fatal(err)
	}
	f, err := storage.OpenFile(disk, false, storage.Writeback)
	if err != nil {
		t.Fatal(err)
	}
	read, err := storage.OpenFile(other, true, storage.Writeback)
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]error{other: ErrNoDisk, dir: ErrNoDisk, link: unix.ELOOP, filepath.Join(dir, "none"): os.ErrNotExist} {
		if o, err := NewOverlay(path); !errors.Is(err, want) || o != nil {
			t.Errorf("beside %s: %v, want %v", path, err, want)
		}
	}
	o, err := NewOverlay(disk)
	if err != nil {
		t.Fatal(err)
	}
	file, err := o.File.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if direct, err := o.Direct.Stat(); err != nil || !os.SameFile(file, direct) {
		t.Errorf("the file that was opened twice is two, %v", err)
	}
	if err := o.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(o.Path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("one that was not used: %v", err)
	}
	if o, err = NewOverlay(disk); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Remove(o.Path), os.WriteFile(o.Path, nil, 0o600), o.Close()); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(o.Path); err != nil {
		t.Errorf("another file of its name: %v", err)
	}
	if err := errors.Join(f.Close(), read.Close()); err != nil {
		t.Error(err)
	}
	if _, err := NewOverlay(disk); !errors.Is(err, ErrNoDisk) {
		t.Errorf("beside a disk that no VM has any more: %v", err)
	}
}
