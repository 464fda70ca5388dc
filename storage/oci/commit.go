package oci

import (
	"bufio"
	"bytes"
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
// compressed, and names it. The archive passes what one passes that is pulled, while it comes: it
// is cut off where it goes beyond the limits. The store is as it was before if it fails; if the
// process is killed, what is left goes with Prune.
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
	made, err := s.making(ctx, func() (*Image, error) {
		d, diffID, err := s.addMade(layer)
		if err != nil {
			return nil, err
		}
		now := v1.Time{Time: time.Now().UTC()}
		config.Created, config.Author = now, c.Author
		config.OS, config.Architecture = platform.OS, platform.Architecture
		config.Container = ""
		config.History = append(config.History, v1.History{Created: now, Author: c.Author, Comment: c.Message, CreatedBy: c.CreatedBy})
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, diffID)
		from := &committed{}
		if err := from.describe(base, d, config); err != nil {
			return nil, err
		}
		return s.addNamed(ctx, from, whole, nil)
	})
	if err != nil {
		s.Tidy(context.WithoutCancel(ctx)) // the layer may be there by itself; Prune finds what this cannot remove
		return nil, err
	}
	return made, nil
}

// addMade has the blob and the files of a layer in the store that a function writes. Both are
// made in one pass, which ends where the archive goes beyond the limits.
func (s *Store) addMade(layer func(io.Writer) error) (d v1.Descriptor, diffID v1.Hash, err error) {
	f, err := os.CreateTemp(s.dir, makingName)
	if err != nil {
		return d, diffID, err
	}
	err = s.makeNamed(func(dir string) (string, error) {
		d, diffID, err = s.pack(f, dir, layer)
		return s.hashed(layersDir, diffID), err
	})
	return d, diffID, s.place(f, err, s.blob(d.Digest))
}

// pack writes a layer to a file, compressed, and unpacks it to a directory meanwhile.
func (s *Store) pack(f *os.File, dir string, layer func(io.Writer) error) (d v1.Descriptor, diffID v1.Hash, err error) {
	packed, plain := sha256.New(), sha256.New()
	z, err := gzip.NewWriterLevel(io.MultiWriter(f, packed), gzip.BestSpeed)
	if err != nil {
		return d, diffID, err
	}
	r, w := io.Pipe()
	unpacked := make(chan error)
	go func() {
		err := unpackLayer(bufio.NewReaderSize(&bounded{r: r, left: s.limits.Bytes}, packBuffer), dir, s.limits)
		r.CloseWithError(err)
		unpacked <- err
	}()
	err = layer(io.MultiWriter(w, plain, z))
	w.CloseWithError(err)
	if refused := <-unpacked; refused != nil && (err == nil || !errors.Is(refused, err)) {
		err = refused // which is why it could not be written, if it could not
	}
	if err == nil {
		err = z.Close()
	}
	if err != nil {
		return d, diffID, err
	}
	size, err := f.Seek(0, io.SeekCurrent)
	return v1.Descriptor{MediaType: types.OCILayer, Size: size, Digest: hashOf(packed)}, hashOf(plain), err
}

// packBuffer is how much of an archive is unpacked while the next is compressed, in bytes.
const packBuffer = 256 << 10

// committed is an image that is made here.
type committed struct {
	raw, config []byte
}

// describe makes the manifest and the configuration of an image with a layer on top.
func (c *committed) describe(base *Image, layer v1.Descriptor, config *v1.ConfigFile) (err error) {
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
	m.Layers = append(m.Layers, layer)
	c.raw, err = json.Marshal(m)
	return err
}

// manifest implements source.
func (c *committed) manifest(context.Context) (v1.Descriptor, []byte, error) {
	return v1.Descriptor{MediaType: types.OCIManifestSchema1, Size: int64(len(c.raw)), Digest: digestOf(c.raw)}, c.raw, nil
}

// far implements source.
func (c *committed) far() bool { return false }

// blob implements source. The layers are in the store.
func (c *committed) blob(_ context.Context, d v1.Descriptor, _ int64) (io.ReadCloser, int64, error) {
	if d.Digest == digestOf(c.config) {
		return io.NopCloser(bytes.NewReader(c.config)), 0, nil
	}
	return nil, 0, fmt.Errorf("layer %v: %w: pull or load the image again", d.Digest, ErrNotFound)
}
