package server

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"vmm/vm/api"
)

// writingVM writes its request's names to the descriptors that came with it.
type writingVM struct{ fakeVM }

func (vm *writingVM) Snapshot(ctx context.Context, r api.SnapshotRequest, _ func(api.Progress)) (*api.SnapshotResult, error) {
	files, err := descriptors(ctx, r.Files)
	for name, f := range files {
		io.WriteString(f, name)
		f.Close()
	}
	return &api.SnapshotResult{}, err
}

// TestDescriptors hands files over with a request, and finds each under its own name.
func TestDescriptors(t *testing.T) {
	_, c, _ := serve(t, &writingVM{})
	files := map[string]*os.File{}
	for _, name := range []string{"memory", "memory.crc", "snapshot.json"} {
		f, err := os.Create(filepath.Join(t.TempDir(), "a file"))
		if err != nil {
			t.Fatal(err)
		}
		files[name] = f
	}
	if _, err := c.SnapshotTo(t.Context(), api.SnapshotRequest{Dir: "/x"}, files, nil); err != nil {
		t.Fatal(err)
	}
	for name, f := range files {
		if text, err := os.ReadFile(f.Name()); err != nil || string(text) != name {
			t.Errorf("%s: %q, %v", name, text, err)
		}
	}
	// A request that names more than came, and one that names none.
	if _, err := c.Snapshot(t.Context(), api.SnapshotRequest{Dir: "/x", Files: []string{"memory"}}, nil); !errors.Is(err, api.ErrBadRequest) {
		t.Errorf("without descriptors: %v", err)
	}
	if _, err := c.Snapshot(t.Context(), api.SnapshotRequest{Dir: "/x"}, nil); err != nil {
		t.Error(err)
	}
}
