package agent

import (
	"archive/tar"
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"vmm/internal/paths"
)

// TestArchiveExchanged archives a tree in which somebody exchanges a directory for a link all
// the time: what the link leads to is never in it.
func TestArchiveExchanged(t *testing.T) {
	const secret = "of the host alone"
	outside, tree := t.TempDir(), t.TempDir()
	for path, text := range map[string]string{filepath.Join(outside, "file"): secret, filepath.Join(tree, "dir", "file"): "shared"} {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	dir, link := filepath.Join(tree, "dir"), filepath.Join(tree, "link")
	if err := os.Symlink(outside, link); err != nil {
		t.Fatal(err)
	}
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
				unix.Renameat2(unix.AT_FDCWD, dir, unix.AT_FDCWD, link, unix.RENAME_EXCHANGE)
			}
		}
	}()
	whole := 0
	for range 2000 {
		for _, path := range []string{tree, filepath.Join(dir, "file")} {
			// A path that leads through the link when it is asked for is the user's own choice.
			real, _, err := paths.Walk(path, true)
			if err != nil || filepath.Dir(real) == outside {
				continue
			}
			var b bytes.Buffer
			w := tar.NewWriter(&b)
			err = errors.Join(addTree(w, place{nil, real}, "top"), w.Close())
			if bytes.Contains(b.Bytes(), []byte(secret)) {
				t.Fatalf("%s: the archive has a file from outside", path)
			}
			if err == nil && bytes.Contains(b.Bytes(), []byte("shared")) {
				whole++
			}
		}
	}
	close(stop)
	<-stopped
	if whole == 0 {
		t.Error("not one archive was whole")
	}
}
