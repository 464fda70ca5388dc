package oci

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"vmm/internal/flock"
)

// sized is a source whose manifest says other sizes of the blobs.
type sized struct {
	memory
	size func(of int64) int64
}

// manifest implements source.
func (s sized) manifest(ctx context.Context) (v1.Descriptor, []byte, error) {
	d, raw, err := s.memory.manifest(ctx)
	if err != nil {
		return d, nil, err
	}
	m, err := parseManifest(raw)
	if err != nil {
		return d, nil, err
	}
	for n := range m.Layers {
		m.Layers[n].Size = s.size(m.Layers[n].Size)
	}
	raw, err = json.Marshal(m)
	d.Digest, d.Size = digestOf(raw), int64(len(raw))
	return d, raw, err
}

// TestWrongSizes: what a manifest says of a blob's size is no more than a word.
func TestWrongSizes(t *testing.T) {
	image := imageOf(t, layerOf(t, text("a", noise(5000))))
	for name, c := range map[string]struct {
		size func(int64) int64
		want error
	}{
		"negative": {func(int64) int64 { return -1 }, nil},
		"endless":  {func(int64) int64 { return 1 << 60 }, ErrLimit},
		"too long": {func(n int64) int64 { return n + 1 }, nil},
		"too low":  {func(n int64) int64 { return n - 1 }, nil},
		"none":     {func(int64) int64 { return 0 }, nil},
	} {
		t.Run(name, func(t *testing.T) {
			refusedFrom(t, Limits{Bytes: 1 << 20, Entries: 100}, sized{memory{Image: image}, c.size}, c.want)
		})
	}
}

// TestPartial: what had come is more than the manifest says now.
func TestPartial(t *testing.T) {
	image := imageOf(t, layerOf(t, text("a", noise(5000))))
	m, err := image.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	layer, blob := m.Layers[0], []byte(nil)
	if r, _, err := (memory{Image: image}).blob(t.Context(), layer, 0); err != nil {
		t.Fatal(err)
	} else if blob, err = readDescribed(r, layer, 1<<20); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		kept []byte
		size func(int64) int64
		ok   bool
	}{
		"longer":         {append(append([]byte{}, blob...), "more"...), func(n int64) int64 { return n }, true},
		"than is said":   {blob, func(n int64) int64 { return n / 2 }, false},
		"than anything":  {blob, func(int64) int64 { return 0 }, false},
		"of other bytes": {[]byte(noise(len(blob))), func(n int64) int64 { return n }, false},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStore(t, Limits{})
			if err := os.WriteFile(s.hashed(partialsDir, layer.Digest), c.kept, 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := s.add(t.Context(), sized{memory{Image: image}, c.size}, "docker.io/library/x:latest", nil)
			if (err == nil) != c.ok {
				t.Errorf("%v", err)
			}
			if st, err := os.Stat(s.blob(layer.Digest)); c.ok && (err != nil || st.Size() != layer.Size) {
				t.Errorf("the blob has %d bytes, not %d, %v", st.Size(), layer.Size, err)
			}
		})
	}
}

// TestLockedFile: who waited for a file that has gone meanwhile has the next one of its name.
func TestLockedFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	first, err := lockedFile(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	second := make(chan *os.File)
	go func() {
		f, err := lockedFile(context.WithoutCancel(t.Context()), path)
		if err != nil {
			t.Error(err)
		}
		second <- f
	}()
	for { // until it waits
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		waits := countOpen(t, path) > 2
		f.Close()
		if waits {
			break
		}
	}
	if err := errors.Join(os.Remove(path), first.Close()); err != nil {
		t.Fatal(err)
	}
	got := <-second
	defer got.Close()
	named, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer named.Close()
	if err := flock.Try(named, unix.LOCK_EX); !errors.Is(err, flock.ErrBusy) {
		t.Errorf("%v: what is locked is not what has the name", err)
	}
}

// countOpen is how often this process has a file open.
func countOpen(t *testing.T, path string) (n int) {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range all {
		if to, _ := os.Readlink("/proc/self/fd/" + e.Name()); to == path {
			n++
		}
	}
	return n
}
