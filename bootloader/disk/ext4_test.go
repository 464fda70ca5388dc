package disk

import (
	"bytes"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestExt reads back what mke2fs has written, in the layouts that there are:
// extents, block maps, small blocks, clusters.
func TestExt(t *testing.T) {
	dir := t.TempDir()
	rng := rand.New(rand.NewPCG(1, 1))
	want := map[string][]byte{}
	put := func(name string, b []byte) {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, b, 0o644); err != nil {
			t.Fatal(err)
		}
		want[name] = b
	}
	random := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		return b
	}
	put("empty", nil)
	put("small", []byte("a few bytes"))
	put("boot/large", random(9<<20+123))
	holes := make([]byte, 8<<20)
	copy(holes[5<<20:], random(5000))
	put("boot/holes", holes)
	for i := range 500 {
		put("many/"+strings.Repeat("x", i%200)+string(rune('a'+i%26))+strings.Repeat("y", i/26), []byte{byte(i)})
	}
	for link, target := range map[string]string{"vmlinuz": "boot/large", "boot/up": "../small", "boot/abs": "/boot/large",
		"dir": "boot", "long": strings.Repeat("./", 60) + "small", "loop": "loop"} {
		if err := os.Symlink(target, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	want["vmlinuz"], want["boot/up"], want["boot/abs"] = want["boot/large"], want["small"], want["boot/large"]
	want["dir/holes"], want["long"] = holes, want["small"]
	for _, options := range []string{"-t ext4", "-t ext4 -b 1024", "-t ext2", "-t ext3 -b 1024", "-t ext4 -O 64bit -I 256", "-t ext4 -O bigalloc -C 65536 -b 1024", "-t ext2 -r 1 -I 128 -b 4096"} {
		t.Run(options, func(t *testing.T) {
			disk := sparse(t, 64<<20)
			run(t, "mke2fs", append(append([]string{"-q", "-d", dir}, strings.Fields(options)...), disk)...)
			b, err := os.ReadFile(disk)
			if err != nil {
				t.Fatal(err)
			}
			e, err := openExt(bytes.NewReader(b), int64(len(b)))
			if err != nil {
				t.Fatal(err)
			}
			for name, content := range want {
				got, err := fs.ReadFile(e, name)
				if err != nil || !bytes.Equal(got, content) {
					t.Errorf("%s: %d bytes, want %d; %v", name, len(got), len(content), err)
				}
			}
			names, err := fs.ReadDir(e, "many")
			if err != nil || len(names) != 500 {
				t.Errorf("%d names, %v", len(names), err)
			}
			for _, name := range []string{"loop", "nowhere", "small/x"} {
				if _, err := e.Open(name); err == nil {
					t.Errorf("%s was opened", name)
				}
			}
		})
	}
}

// TestExtFeatures: what is not read here is left to a guest.
func TestExtFeatures(t *testing.T) {
	for features, want := range map[string]int{"inline_data": 1, "meta_bg,^resize_inode": 1, "64bit": 0} {
		disk := sparse(t, 64<<20)
		run(t, "mke2fs", "-q", "-t", "ext4", "-O", features, disk)
		b, err := os.ReadFile(disk)
		if err != nil {
			t.Fatal(err)
		}
		unread := UnreadPartitions(bytes.NewReader(b), int64(len(b)))
		if len(unread) != want || want > 0 && unread[0].Kind != "ext4" {
			t.Errorf("%s: %v", features, unread)
		}
	}
}
