package guestimages

import (
	"bytes"
	"compress/gzip"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/klauspost/compress/zstd"
)

// TestModules finds what a guest needs, in the order to load it, and unpacks it.
func TestModules(t *testing.T) {
	root := t.TempDir()
	tree := filepath.Join(root, "lib/modules/6.1.0")
	if err := os.MkdirAll(tree, 0o755); err != nil {
		t.Fatal(err)
	}
	var gz, zst bytes.Buffer
	z, err := zstd.NewWriter(&zst)
	if err != nil {
		t.Fatal(err)
	}
	for w, text := range map[io.WriteCloser]string{gzip.NewWriter(&gz): "ring", z: "net"} {
		io.WriteString(w, text)
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
	for name, data := range map[string][]byte{
		"modules.dep":       []byte("virtio_ring.ko.gz: virtio.ko\nvirtio-net.ko.zst: virtio_ring.ko.gz virtio.ko\nvirtio.ko:\nother.ko: virtio.ko\n"),
		"virtio.ko":         []byte("virtio"),
		"virtio_ring.ko.gz": gz.Bytes(),
		"virtio-net.ko.zst": zst.Bytes(),
	} {
		if err := os.WriteFile(filepath.Join(tree, name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, dir := range []string{root, tree} {
		if got, err := ModuleTree(dir); err != nil || got != tree {
			t.Errorf("ModuleTree(%s) = %s, %v", dir, got, err)
		}
	}
	files, load, err := Modules(tree)
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"/modules/virtio.ko", "/modules/virtio_ring.ko", "/modules/virtio_net.ko"}; !slices.Equal(load, want) {
		t.Errorf("loads %v, want %v", load, want)
	}
	for i, want := range []string{"virtio", "ring", "net"} {
		b := make([]byte, len(want)+1)
		if n, _ := files[i].ReadAt(b, 0); string(b[:n]) != want {
			t.Errorf("%s has %q", files[i].Name, b[:n])
		}
	}
	os.Remove(filepath.Join(tree, "virtio-net.ko.zst"))
	if _, _, err := Modules(tree); err == nil {
		t.Error("a module that is not there was found")
	}
	if _, err := ModuleTree(t.TempDir()); err == nil {
		t.Error("modules in an empty directory")
	}
}
