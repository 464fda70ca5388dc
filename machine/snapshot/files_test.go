package snapshot

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// withDisk saves a machine that has a disk of its own, and returns where.
func withDisk(t *testing.T) (dir string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "s")
	w, err := Create(dir, false)
	if err != nil {
		t.Fatal(err)
	}
	if f, err := w.File(DiskFile(0)); err != nil {
		t.Fatal(err)
	} else if _, err := f.WriteString("disk"); err != nil {
		t.Fatal(err)
	}
	if err := finish(w, memoryOf(t, 1), MemoryOptions{}); err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestForeignFiles: in a directory that somebody else has made, no file of a snapshot leads
// elsewhere, is waited for or has no end.
func TestForeignFiles(t *testing.T) {
	for _, name := range []string{ManifestFile, memoryFile, sumsFile, stampFile, workingFile, signatureFile, DiskFile(0)} {
		for kind, place := range map[string]func(path, other string) error{
			"a link":          func(path, other string) error { return os.Symlink(other, path) },
			"an endless file": func(path, _ string) error { return os.Symlink("/dev/zero", path) },
			"a FIFO":          func(path, _ string) error { return unix.Mkfifo(path, 0o600) },
			"a directory":     func(path, _ string) error { return os.Mkdir(path, 0o700) },
		} {
			dir := withDisk(t)
			// What a link leads to is what would be right there.
			path, other := filepath.Join(dir, name), filepath.Join(t.TempDir(), "other")
			err := os.Rename(path, other)
			if errors.Is(err, os.ErrNotExist) {
				err = os.WriteFile(other, []byte("mine"), 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
			before, err := os.ReadFile(other)
			if err == nil {
				err = place(path, other)
			}
			if err != nil {
				t.Fatal(err)
			}
			s, err := Open(dir, Options{})
			needed := name != stampFile && name != workingFile && name != signatureFile
			if needed != (err != nil) || needed && !errors.Is(err, ErrNoFile) {
				t.Errorf("%s is %s: %v", name, kind, err)
			}
			if err == nil {
				if s.Signed() && name == signatureFile || s.WorkingSet() != nil {
					t.Errorf("%s is %s: signed, or with a working set", name, kind)
				}
				if err := s.PrepareWorkingSet(); (err != nil) != (name == workingFile) {
					t.Errorf("%s is %s: a working set: %v", name, kind, err)
				}
				s.Close()
			}
			if after, err := os.ReadFile(other); err != nil || string(after) != string(before) {
				t.Errorf("%s is %s: what is elsewhere was changed, %v", name, kind, err)
			}
		}
	}
}
