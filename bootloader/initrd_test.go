package bootloader

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// archive makes a cpio archive of one file.
func archive(name, data string) []byte {
	var b bytes.Buffer
	entry := func(name, data string) {
		fmt.Fprintf(&b, "070701%s%08x%s%08x%08x", "0000000000000000000000000000000000000000"+"00000000", len(data),
			"00000000000000000000000000000000", len(name)+1, 0)
		b.WriteString(name + "\x00")
		b.Write(make([]byte, -b.Len()&3))
		b.WriteString(data)
		b.Write(make([]byte, -b.Len()&3))
	}
	entry(name, data)
	entry(cpioTrailer, "")
	return b.Bytes()
}

func TestUnpackInitrd(t *testing.T) {
	plain, early := archive("init", "program"), archive("kernel/x86/microcode", "code!")
	var gz bytes.Buffer
	w := gzip.NewWriter(&gz)
	w.Write(plain)
	w.Close()
	z, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	zst := z.EncodeAll(plain, nil)
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	for _, c := range []struct {
		name     string
		in, want []byte
	}{
		{"plain", plain, plain},
		{"two plain ones", join(early, plain), join(early, plain)},
		{"gzip", gz.Bytes(), plain},
		{"zstd", zst, plain},
		{"microcode, then zstd", join(early, make([]byte, 512), zst), join(early, plain)},
		{"unknown", []byte("something else"), []byte("something else")},
		{"damaged", zst[:len(zst)/2], zst[:len(zst)/2]},
	} {
		if got := UnpackInitrd(c.in, 1<<20); !bytes.Equal(got, c.want) {
			t.Errorf("%s: %d bytes, want %d", c.name, len(got), len(c.want))
		}
	}
	if got := UnpackInitrd(zst, int64(len(plain)-1)); !bytes.Equal(got, zst) {
		t.Error("more than the limit was unpacked")
	}
}

func FuzzInitrd(f *testing.F) {
	f.Add(archive("init", "program"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if got := UnpackInitrd(b, 1<<20); len(got) > max(len(b)+8, 1<<20+8) {
			t.Errorf("%d bytes became %d", len(b), len(got))
		}
	})
}
