package image

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"vmm/storage"
	"vmm/storage/qcow2"
)

// TestHeld releases a chain whose names lead nowhere any more, opens it again, and goes on
// in an overlay, by each way to cache.
func TestHeld(t *testing.T) {
	const size = 1 << 20
	for _, cache := range []storage.Cache{storage.Writeback, storage.None} {
		t.Run(string(cache), func(t *testing.T) {
			dir := t.TempDir()
			base, top, over := filepath.Join(dir, "base"), filepath.Join(dir, "top"), filepath.Join(dir, "over")
			if err := errors.Join(Create(base, CreateOptions{Format: Qcow2, Size: size}), Create(top, CreateOptions{Backing: base})); err != nil {
				t.Fatal(err)
			}
			o := Options{Cache: cache}
			i, err := Open(top, o)
			if errors.Is(err, storage.ErrNoDirectIO) {
				t.Skip(err)
			}
			check := func(err error) {
				t.Helper()
				if err != nil {
					t.Fatal(err)
				}
			}
			check(err)
			word := bytes.Repeat([]byte("one "), 1024)
			check(i.WriteV([][]byte{word}, 0))
			h, err := i.Release()
			check(err)

			other, err := Open(top, o) // nobody has it
			check(err)
			if _, err := h.Open(o); !errors.As(err, new(*storage.LockError)) {
				t.Fatalf("somebody has it: %v", err)
			}
			check(other.Close())
			other, err = Open(top, o) // no lock was left
			check(err)
			check(other.Close())

			f, err := os.OpenFile(over, os.O_RDWR|os.O_CREATE, 0o600)
			check(err)
			direct, err := os.OpenFile(over, os.O_RDWR, 0)
			check(err)
			aside := dir + ".aside"
			check(os.Rename(dir, aside))
			t.Cleanup(func() { os.Rename(aside, dir) })
			again, err := h.Open(o)
			check(err)
			check(again.WriteV([][]byte{word}, 8192))
			h2, err := again.Release()
			check(err)
			kept, err := storage.HoldOpen(over, cache, f, direct)
			check(err)
			o.Format = Qcow2
			last, err := h2.Extend(kept, qcow2.Options{Size: size, BackingFile: top, BackingFormat: Qcow2}, o)
			check(err)
			got := make([]byte, len(word))
			check(last.ReadV([][]byte{got}, 8192))
			if !bytes.Equal(got, word) {
				t.Errorf("read %q", got[:8])
			}
			check(last.WriteV([][]byte{make([]byte, 4096)}, 0))
			check(last.Close())
			check(errors.Join(f.Close(), direct.Close(), h.Close(), h2.Close(), kept.Close()))
		})
	}
}
