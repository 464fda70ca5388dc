package room

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

type endless struct{}

// Read implements io.Reader.
func (endless) Read(p []byte) (int, error) { return len(p), nil }

// TestWriter fills a small file system up to what is left free.
func TestWriter(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("none", dir, "tmpfs", 0, "size=16m"); err != nil {
		t.Skipf("a small file system is for root: %v", err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	f, err := os.Create(filepath.Join(dir, "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	n, err := io.Copy(Writer{File: f}, endless{})
	if !errors.Is(err, unix.ENOSPC) || n < 14<<20 || n > 15<<20 {
		t.Errorf("%d bytes, %v", n, err)
	}
	if left, err := Of(f); err != nil || left > 64<<10 {
		t.Errorf("%d bytes are left, %v", left, err)
	}
}
