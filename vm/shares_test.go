package vm

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"vmm/storage/share"
)

// TestKernelFiles: the host's kernel is no directory to share, by whatever name.
func TestKernelFiles(t *testing.T) {
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink("/proc/self", link); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"/proc", "/proc/self", "/proc/self/root/proc", "/sys", "/sys/kernel", "/dev", "/dev/../sys", link} {
		for _, o := range []share.Options{{}, {ReadOnly: true}} {
			if err := new(shares).add("tag", dir, o, nil); !errors.Is(err, ErrKernelFiles) {
				t.Errorf("%s: %v", dir, err)
			}
		}
	}
	if err := checkShare(t.TempDir()); err != nil {
		t.Error(err)
	}
}
