package storage

import (
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestOpenOthers: what is neither a file nor a block device is refused, and not waited for:
// a FIFO has no other end here.
func TestOpenOthers(t *testing.T) {
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{fifo, "/dev/null", t.TempDir()} {
		for _, readOnly := range []bool{true, false} {
			if f, err := OpenFile(name, readOnly, Writeback); err == nil {
				t.Errorf("%s is opened, read-only %v", name, readOnly)
				f.Close()
			}
		}
	}
}
