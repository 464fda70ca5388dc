package oci

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestHostileArchive loads what would lead out of an archive, wait for ever or take all memory.
func TestHostileArchive(t *testing.T) {
	outside := t.TempDir()
	if err := os.WriteFile(filepath.Join(outside, "index.json"), []byte(`{"manifests":[]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	digest := strings.Repeat("ab", 32)
	descriptor := `{"mediaType":"application/vnd.oci.image.manifest.v1+json","size":1,"digest":"sha256:` + digest + `"}`
	index := func(n int) string {
		return `{"manifests":[` + strings.TrimSuffix(strings.Repeat(descriptor+",", n), ",") + `]}`
	}
	many := make([]string, maxImages+1)
	for i := range many {
		many[i] = fmt.Sprintf(`"name:%d"`, i)
	}
	file := func(name, text string) func(dir string) error {
		return func(dir string) error { return os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600) }
	}
	for name, c := range map[string]struct {
		fill func(dir string) error
		want error // nil for any
	}{
		"index outside": {func(dir string) error {
			return os.Symlink(filepath.Join(outside, "index.json"), filepath.Join(dir, "index.json"))
		}, nil},
		"index of a pipe":  {func(dir string) error { return unix.Mkfifo(filepath.Join(dir, "index.json"), 0o600) }, nil},
		"huge index":       {file("index.json", strings.Repeat(" ", maxManifest+1)), ErrLimit},
		"many images":      {file("index.json", index(maxImages+1)), ErrLimit},
		"many names":       {file("manifest.json", `[{"Config":"manifest.json","RepoTags":[`+strings.Join(many, ",")+`],"Layers":[]}]`), ErrLimit},
		"config outside":   {file("manifest.json", `[{"Config":"/etc/hostname","Layers":[]}]`), nil},
		"layer outside":    {file("manifest.json", `[{"Config":"manifest.json","Layers":["../../../../../../../../etc/hostname"]}]`), nil},
		"layer of nothing": {file("manifest.json", `[{"Config":"manifest.json","Layers":[""]}]`), nil},
		"blob of a pipe": {func(dir string) error {
			blobs := filepath.Join(dir, "blobs/sha256")
			return errors.Join(os.MkdirAll(blobs, 0o700), unix.Mkfifo(filepath.Join(blobs, digest), 0o600), file("index.json", index(1))(dir))
		}, nil},
		"blobs outside": {func(dir string) error {
			return errors.Join(os.Symlink(outside, filepath.Join(dir, "blobs")), file("index.json", index(1))(dir))
		}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := c.fill(dir); err != nil {
				t.Fatal(err)
			}
			f, err := os.Open(dir)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			s := newStore(t, Limits{})
			_, err = s.Load(t.Context(), f, "", nil)
			if err == nil || c.want != nil && !errors.Is(err, c.want) || strings.Contains(err.Error(), "\n") || len(err.Error()) > 1000 {
				t.Errorf("%.300v", err)
			}
			if left := contentsOf(t, s.dir); len(left) > 0 {
				t.Errorf("%q are left", left)
			}
		})
	}
}
