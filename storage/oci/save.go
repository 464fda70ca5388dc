package oci

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sys/unix"

	"vmm/internal/ctxio"
)

// Save writes images as an archive: an OCI image layout that is docker's form too.
func (s *Store) Save(ctx context.Context, w io.Writer, refs []string) error {
	return s.locked(ctx, usersLock, unix.LOCK_SH, func() error {
		a := &saver{ctx: ctx, store: s, to: tar.NewWriter(w), has: map[v1.Hash]bool{}}
		for _, ref := range refs {
			i, err := s.Get(ref)
			if err != nil {
				return err
			}
			if err := a.image(i); err != nil {
				return fmt.Errorf("%s: %w", ref, err)
			}
		}
		return a.end()
	})
}

// saver writes an archive.
type saver struct {
	ctx    context.Context
	store  *Store
	to     *tar.Writer
	has    map[v1.Hash]bool
	index  []v1.Descriptor
	docker []dockerImage
}

// dockerImage is an image in the manifest.json of docker save.
type dockerImage struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// image writes what an image has that the archive has not.
func (a *saver) image(i *Image) (err error) {
	d := v1.Descriptor{MediaType: i.Manifest.MediaType, Digest: i.Digest, Platform: platform}
	entry := dockerImage{Config: blobPath(i.ID()), RepoTags: []string{}, Layers: []string{}}
	if i.Name != "" {
		d.Annotations = map[string]string{containerdName: i.Name, refName: i.Name}
		if !strings.Contains(i.Name, "@") {
			entry.RepoTags = append(entry.RepoTags, ShortName(i.Name))
		}
	}
	if d.Size, err = a.blob(i.Digest); err != nil {
		return err
	}
	if d.MediaType == "" { // an OCI manifest may leave it out
		d.MediaType = types.OCIManifestSchema1
	}
	if _, err := a.blob(i.ID()); err != nil {
		return err
	}
	for _, layer := range i.Manifest.Layers {
		if _, err := a.blob(layer.Digest); err != nil {
			return err
		}
		entry.Layers = append(entry.Layers, blobPath(layer.Digest))
	}
	a.index, a.docker = append(a.index, d), append(a.docker, entry)
	return nil
}

// blob writes a blob unless the archive has it, and returns its size.
func (a *saver) blob(h v1.Hash) (int64, error) {
	f, err := os.Open(a.store.blob(h))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil || a.has[h] {
		return st.Size(), err
	}
	a.has[h] = true
	return st.Size(), a.file(blobPath(h), st.Size(), f)
}

func (a *saver) file(name string, size int64, r io.Reader) error {
	if err := a.to.WriteHeader(&tar.Header{Name: path.Clean(name), Typeflag: tar.TypeReg, Mode: 0o644, Size: size}); err != nil {
		return err
	}
	_, err := io.Copy(a.to, ctxio.Reader(a.ctx, r))
	return err
}

// end writes what says what is in the archive.
func (a *saver) end() error {
	index, err := json.Marshal(v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: a.index})
	if err != nil {
		return err
	}
	docker, err := json.Marshal(a.docker)
	if err != nil {
		return err
	}
	for _, f := range []struct{ name, text string }{{"oci-layout", layoutVersion}, {"index.json", string(index)}, {"manifest.json", string(docker)}} {
		err = errors.Join(err, a.file(f.name, int64(len(f.text)), strings.NewReader(f.text)))
	}
	return errors.Join(err, a.to.Close())
}
