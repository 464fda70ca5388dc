package oci

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/gzip"
)

// Commit is a new image: another one with a layer on top.
type Commit struct {
	Name      string // "" is none: it is known by its ID
	Author    string
	Message   string
	CreatedBy string // what made the layer
	Changes   []Change
}

// Commit makes an image of one of the store and a layer, the tar archive that layer writes, not
// compressed, and names it. The archive passes what one passes that is pulled. The store is as it
// was before if it fails, or the process is killed.
func (s *Store) Commit(ctx context.Context, base *Image, c Commit, layer func(io.Writer) error) (*Image, error) {
	whole := ""
	if c.Name != "" {
		var err error
		if whole, err = ParseName(c.Name); err != nil {
			return nil, err
		}
		if strings.Contains(whole, "@") {
			return nil, fmt.Errorf("%q: a digest is no name to give", c.Name)
		}
	}
	if len(base.Manifest.Layers) >= maxLayers {
		return nil, fmt.Errorf("%s has %d layers: %w", base.ref(), len(base.Manifest.Layers), ErrLimit)
	}
	config := base.Config.DeepCopy()
	if err := applyChanges(&config.Config, c.Changes); err != nil {
		return nil, err
	}
	f, err := os.CreateTemp(s.dir, makingName)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := os.Remove(f.Name()); err != nil { // nothing is left of it in any case
		return nil, err
	}
	d, diffID, err := s.pack(f, layer)
	if err != nil {
		return nil, err
	}
	now := v1.Time{Time: time.Now().UTC()}
	config.Created, config.Author = now, c.Author
	config.OS, config.Architecture = platform.OS, platform.Architecture
	config.Container = ""
	config.History = append(config.History, v1.History{Created: now, Author: c.Author, Comment: c.Message, CreatedBy: c.CreatedBy})
	config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, diffID)
	from := &committed{layer: f, d: d}
	if err := from.describe(base, config); err != nil {
		return nil, err
	}
	return s.add(ctx, from, whole, nil)
}

// pack writes a layer to a file, compressed, and describes it.
func (s *Store) pack(f *os.File, layer func(io.Writer) error) (d v1.Descriptor, diffID v1.Hash, err error) {
	packed, plain := sha256.New(), sha256.New()
	z, err := gzip.NewWriterLevel(io.MultiWriter(f, packed), gzip.BestSpeed)
	if err != nil {
		return d, diffID, err
	}
	to := &boundedWriter{w: io.MultiWriter(z, plain), left: s.limits.Bytes}
	if err := errors.Join(layer(to), z.Close()); err != nil {
		return d, diffID, err
	}
	size, err := f.Seek(0, io.SeekCurrent)
	return v1.Descriptor{MediaType: types.OCILayer, Size: size, Digest: hashOf(packed)}, hashOf(plain), err
}

// boundedWriter writes at most so many bytes, and then ends with an ErrLimit.
type boundedWriter struct {
	w    io.Writer
	left int64
}

// Write implements io.Writer.
func (b *boundedWriter) Write(p []byte) (int, error) {
	if b.left -= int64(len(p)); b.left < 0 {
		return 0, fmt.Errorf("an archive too large: %w", ErrLimit)
	}
	return b.w.Write(p)
}

// committed is an image that is made here.
type committed struct {
	layer       *os.File
	d           v1.Descriptor // of the layer
	raw, config []byte
}

// describe makes the manifest and the configuration.
func (c *committed) describe(base *Image, config *v1.ConfigFile) (err error) {
	if c.config, err = json.Marshal(config); err != nil {
		return err
	}
	m := v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1, Layers: slices.Clone(base.Manifest.Layers),
		Config: v1.Descriptor{MediaType: types.OCIConfigJSON, Size: int64(len(c.config)), Digest: digestOf(c.config)}}
	for n := range m.Layers {
		switch m.Layers[n].MediaType { // one manifest has one kind
		case types.DockerLayer:
			m.Layers[n].MediaType = types.OCILayer
		case types.DockerUncompressedLayer:
			m.Layers[n].MediaType = types.OCIUncompressedLayer
		}
	}
	m.Layers = append(m.Layers, c.d)
	c.raw, err = json.Marshal(m)
	return err
}

// manifest implements source.
func (c *committed) manifest(context.Context) (v1.Descriptor, []byte, error) {
	return v1.Descriptor{MediaType: types.OCIManifestSchema1, Size: int64(len(c.raw)), Digest: digestOf(c.raw)}, c.raw, nil
}

// far implements source.
func (c *committed) far() bool { return false }

// blob implements source.
func (c *committed) blob(_ context.Context, d v1.Descriptor, from int64) (io.ReadCloser, int64, error) {
	switch d.Digest {
	case digestOf(c.config):
		return io.NopCloser(strings.NewReader(string(c.config))), 0, nil
	case c.d.Digest:
		return io.NopCloser(io.NewSectionReader(c.layer, from, d.Size-from)), from, nil
	}
	return nil, 0, fmt.Errorf("layer %v: %w: pull or load the image again", d.Digest, ErrNotFound)
}
