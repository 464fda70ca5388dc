package vmem

import (
	"os"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

func TestReserve(t *testing.T) {
	for _, c := range []struct{ size, align uint64 }{
		{Page, Page}, {3 * Page, Page}, {HugePage, HugePage}, {HugePage + Page, HugePage}, {GiantPage + HugePage, GiantPage},
	} {
		b, err := Reserve(c.size, unix.PROT_READ|unix.PROT_WRITE)
		if err != nil {
			t.Fatal(err)
		}
		if at := uint64(uintptr(unsafe.Pointer(&b[0]))); at%c.align != 0 || uint64(len(b)) != c.size {
			t.Errorf("%d bytes: %d bytes at %#x, no multiple of %#x", c.size, len(b), at, c.align)
		}
		b[0], b[len(b)-1] = 1, 1
		if err := Release(b); err != nil {
			t.Error(err)
		}
	}
}

func TestMap(t *testing.T) {
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString("hello"); err != nil {
		t.Fatal(err)
	}
	b, err := Reserve(2*Page, unix.PROT_READ)
	if err != nil {
		t.Fatal(err)
	}
	defer Release(b)
	if err := Map(b[Page:], int(f.Fd()), 0, 5, unix.PROT_READ, unix.MAP_SHARED); err != nil {
		t.Fatal(err)
	}
	if b[0] != 0 || string(b[Page:Page+6]) != "hello\x00" {
		t.Errorf("%q", b[Page:Page+6])
	}
}
