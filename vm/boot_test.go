package vm

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"vmm/bootloader/disk"
)

// TestUnclearDisk: a disk with a system that is not wholly understood boots nothing by itself, not
// even another system.
func TestUnclearDisk(t *testing.T) {
	mke2fs, err := exec.LookPath("mke2fs")
	if err != nil {
		t.Skip("no mke2fs")
	}
	tree, path := t.TempDir(), filepath.Join(t.TempDir(), "disk")
	os.MkdirAll(filepath.Join(tree, "boot/grub"), 0o755)
	os.WriteFile(filepath.Join(tree, "boot/vmlinuz"), []byte("kernel"), 0o644)
	os.WriteFile(filepath.Join(tree, "boot/grub/grub.cfg"), []byte("menuentry A {\n linux /boot/vmlinuz root=$nowhere\n}\n"), 0o644)
	if out, err := exec.Command(mke2fs, "-q", "-t", "ext4", "-d", tree, path, "8M").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	v, err := New(Config{Disks: []Disk{{Path: path}}, Nets: Nets{None{}}})
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	if err := v.Prepare(t.Context()); !errors.Is(err, disk.ErrUnclear) {
		t.Errorf("it is prepared: %v", err)
	}
}
