package decompress

import (
	"bytes"
	"io"
	"os/exec"
	"strings"
	"testing"
)

// TestFormats unpacks what the programs of each format have packed.
func TestFormats(t *testing.T) {
	want := strings.Repeat("some text, and then more of it; ", 1000)
	for _, c := range []struct{ name, command string }{
		{"gzip", "gzip"}, {"xz", "xz"}, {"xz", "xz --x86 --lzma2=preset=6,dict=64MiB --check=crc32"}, {"zstd", "zstd"},
		{"lz4", "lz4"}, {"lz4", "lz4 -l"}, {"lzma", "xz --format=lzma"}, {"bzip2", "bzip2"},
	} {
		args := append(strings.Fields(c.command), "-c")
		if _, err := exec.LookPath(args[0]); err != nil {
			t.Logf("%s is not installed", args[0])
			continue
		}
		cmd := exec.Command(args[0], args[1:]...)
		cmd.Stdin = strings.NewReader(want)
		packed, err := cmd.Output()
		if err != nil {
			t.Fatalf("%s: %v", c.command, err)
		}
		f := Detect(packed[:HeadSize])
		if f == nil || f.Name != c.name {
			t.Errorf("%s: taken for %v", c.command, f)
			continue
		}
		r, err := f.NewReader(bytes.NewReader(packed))
		if err != nil {
			t.Errorf("%s: %v", c.command, err)
			continue
		}
		got, err := io.ReadAll(r)
		if err != nil || string(got) != want {
			t.Errorf("%s: %d bytes, %v", c.command, len(got), err)
		}
		if err := r.Close(); err != nil {
			t.Errorf("%s: %v", c.command, err)
		}
	}
	if f := Detect([]byte("plain text")); f != nil {
		t.Errorf("text is taken for %s", f.Name)
	}
}

// TestLimit refuses a dictionary of 4 GiB before it takes the memory for it.
func TestLimit(t *testing.T) {
	head := []byte("\x5d\x00\x00\x00\xff\xff\xff\xff\xff\xff\xff\xff\xff")
	if _, err := Detect(head).NewReader(bytes.NewReader(head)); err == nil || !strings.Contains(err.Error(), "dictionary") {
		t.Errorf("%v", err)
	}
}
