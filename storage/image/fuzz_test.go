package image

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// FuzzQcow2 opens, reads, writes, checks and repairs any file. Its L1, L2 and
// refcount tables come from the fuzzer: images are small, so that it reaches
// them.
func FuzzQcow2(f *testing.F) {
	dir := f.TempDir()
	for i, o := range []CreateOptions{{Size: 1 << 20, ClusterSize: 512}, {Size: 1 << 16, ClusterSize: 512, LazyRefcounts: true}} {
		path := filepath.Join(dir, string(rune('a'+i)))
		if err := Create(path, o); err != nil {
			f.Fatal(err)
		}
		img, err := Open(path, Options{})
		if err != nil {
			f.Fatal(err)
		}
		if err := img.WriteV([][]byte{make([]byte, 2048)}, 1024); err != nil {
			f.Fatal(err)
		}
		img.Close()
		b, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 1<<20 {
			return
		}
		// In memory, where Flush waits for no disk.
		fd, err := unix.MemfdCreate("disk", unix.MFD_CLOEXEC)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		path := fmt.Sprintf("/proc/self/fd/%d", fd)
		if err := os.WriteFile(path, b, 0o644); err != nil {
			t.Fatal(err)
		}
		// Any result will do, but no panic and no end of memory.
		img, err := Open(path, Options{Format: Qcow2})
		if err != nil {
			return
		}
		defer img.Close()
		buf := make([]byte, 4096)
		for _, off := range []int64{0, 1024, img.Size() / 2 &^ 511, img.Size() - 4096} {
			if off < 0 || off+4096 > img.Size() {
				continue
			}
			img.ReadV([][]byte{buf}, off)
			img.WriteV([][]byte{buf}, off)
			img.Discard(off, 2048)
			img.Qcow2.Map(off, 4096)
		}
		img.Flush()
		if r, err := img.Qcow2.Check(true); err == nil && r.Repaired {
			if again, err := img.Qcow2.Check(false); err == nil && again.Corruptions > 0 {
				t.Errorf("after a repair: %+v", again)
			}
		}
	})
}
