package oci

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"vmm/storage/erofs"
)

// Image is an image of a store.
type Image struct {
	Name     string // whole, "" where it was found by its digest and has none
	Digest   v1.Hash
	Manifest *v1.Manifest
	Config   *v1.ConfigFile
	store    *Store
}

// ID is the digest of the image's configuration, by which docker knows it.
func (i *Image) ID() v1.Hash { return i.Manifest.Config.Digest }

// Bounds of what describes an image, in bytes.
const (
	maxManifest = 4 << 20
	maxConfig   = 8 << 20
	maxLayers   = 500
)

// readBlob reads what describes an image, and checks its digest.
func (s *Store) readBlob(d v1.Descriptor, limit int64) ([]byte, error) {
	f, err := os.Open(s.blob(d.Digest))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return readDescribed(f, d, limit)
}

// readDescribed reads what a descriptor describes, which is checked.
func readDescribed(r io.Reader, d v1.Descriptor, limit int64) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("%v: over %d bytes: %w", d.Digest, limit, ErrLimit)
	}
	if got := digestOf(b); got != d.Digest {
		return nil, &DigestError{d.Digest, got}
	}
	return b, nil
}

// digestOf is the digest of bytes.
func digestOf(b []byte) v1.Hash {
	return v1.Hash{Algorithm: "sha256", Hex: fmt.Sprintf("%x", sha256.Sum256(b))}
}

// DigestError is the error for contents that are not what their digest says.
type DigestError struct{ Want, Got v1.Hash }

// Error implements error.
func (e *DigestError) Error() string {
	return fmt.Sprintf("contents with the digest %v came for %v: damaged, or forged", e.Got, e.Want)
}

func (s *Store) manifest(d v1.Descriptor) (*v1.Manifest, error) {
	b, err := s.readBlob(d, maxManifest)
	if err != nil {
		return nil, err
	}
	return parseManifest(b)
}

// parseManifest reads the manifest of an image and checks what the store depends on.
func parseManifest(b []byte) (*v1.Manifest, error) {
	m, err := v1.ParseManifest(bytes.NewReader(b))
	if err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	if len(m.Layers) > maxLayers {
		return nil, fmt.Errorf("%d layers: %w", len(m.Layers), ErrLimit)
	}
	for _, d := range append(slices.Clone(m.Layers), m.Config) {
		if err := checkDigest(d.Digest); err != nil {
			return nil, err
		}
		if d.Size < 0 {
			return nil, fmt.Errorf("manifest: %v has %d bytes", d.Digest, d.Size)
		}
	}
	return m, nil
}

// maxShown is how much of a stranger's text is in an error, in bytes.
const maxShown = 500

// oneLine is a stranger's text as it is in an error.
func oneLine(text string) string {
	line := strings.Join(strings.Fields(text), " ")
	if len(line) > maxShown {
		line = line[:maxShown] + "…"
	}
	return line
}

// checkDigest refuses digests of which no file's name is made.
func checkDigest(h v1.Hash) error {
	if h.Algorithm != "sha256" || len(h.Hex) != 2*sha256.Size || !isHex(h.Hex) {
		return fmt.Errorf("%q is no digest of SHA-256", h.String())
	}
	return nil
}

func isHex(s string) bool {
	return !slices.ContainsFunc([]byte(s), func(c byte) bool { return (c < '0' || c > '9') && (c < 'a' || c > 'f') })
}

// parseConfig reads the configuration of an image with a number of layers.
func parseConfig(b []byte, layers int) (*v1.ConfigFile, error) {
	c, err := v1.ParseConfigFile(bytes.NewReader(b))
	if err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	if len(c.RootFS.DiffIDs) != layers {
		return nil, fmt.Errorf("its manifest has %d layers and its configuration %d", layers, len(c.RootFS.DiffIDs))
	}
	for _, h := range c.RootFS.DiffIDs {
		if err := checkDigest(h); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// Get returns an image by its name, its digest, its ID, or the beginning of one of these two.
// ErrNotFound is in the error if there is none.
func (s *Store) Get(ref string) (*Image, error) {
	d, err := s.find(ref)
	if err != nil {
		return nil, err
	}
	return s.open(d)
}

func (s *Store) open(d v1.Descriptor) (*Image, error) {
	m, err := s.manifest(d)
	if err != nil {
		return nil, err
	}
	b, err := s.readBlob(m.Config, maxConfig)
	if err != nil {
		return nil, err
	}
	c, err := parseConfig(b, len(m.Layers))
	if err != nil {
		return nil, err
	}
	return &Image{Name: d.Annotations[refName], Digest: d.Digest, Manifest: m, Config: c, store: s}, nil
}

// List returns all images, one for each name, in the order in which they got it.
func (s *Store) List() ([]*Image, error) {
	index, err := s.index()
	if err != nil {
		return nil, err
	}
	var out []*Image
	for _, d := range index.Manifests {
		i, err := s.open(d)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", ShortName(d.Annotations[refName]), err)
		}
		out = append(out, i)
	}
	return out, nil
}

// Created is when the image was made, as it says itself.
func (i *Image) Created() time.Time { return i.Config.Created.Time }

// Layer is a layer of an image as the store has it.
type Layer struct {
	Digest   v1.Hash // of its archive, not compressed
	Packed   int64   // bytes of the blob as it came
	Unpacked int64   // bytes that its files take on the disk
}

// Layers returns the image's layers from the lowest up.
func (i *Image) Layers() ([]Layer, error) {
	out := make([]Layer, len(i.Manifest.Layers))
	for n, d := range i.Manifest.Layers {
		h := i.Config.RootFS.DiffIDs[n]
		size, err := diskUse(i.store.hashed(layersDir, h))
		if err != nil {
			return nil, err
		}
		out[n] = Layer{Digest: h, Packed: d.Size, Unpacked: size}
	}
	return out, nil
}

// Segments returns the files that, one behind the other, are the image's file system: the
// metadata of EROFS, which are made when they are not there, and the layers' contents. The size
// of each is a multiple of erofs.SegmentAlign. They stay until the image is removed and its store
// cleaned up; what is open of them then goes on.
func (i *Image) Segments() ([]string, error) {
	s := i.store
	tree := s.hashed(treesDir, i.chain())
	files := []string{tree}
	var sizes []int64
	for _, h := range i.Config.RootFS.DiffIDs {
		file := filepath.Join(s.hashed(layersDir, h), dataName)
		st, err := os.Stat(file)
		if err != nil {
			return nil, fmt.Errorf("a layer of %s is missing: pull or load it again (%w)", i.ref(), err)
		}
		if sizes = append(sizes, st.Size()); st.Size() > 0 { // else it has no contents
			files = append(files, file)
		}
	}
	if _, err := os.Stat(tree); errors.Is(err, fs.ErrNotExist) {
		if err := i.writeTree(tree, sizes); err != nil {
			return nil, fmt.Errorf("%s: %w", i.ref(), err)
		}
	}
	return files, nil
}

// ref is how a user knows the image.
func (i *Image) ref() string {
	if i.Name != "" {
		return ShortName(i.Name)
	}
	return i.Digest.String()
}

// treeVersion is in the name of the metadata: it grows when what is written changes.
const treeVersion = 3

// chain is the digest of all of the image's layers together.
func (i *Image) chain() v1.Hash {
	b, err := json.Marshal([]any{treeVersion, i.Config.RootFS.DiffIDs})
	if err != nil {
		panic(err) // digests are texts
	}
	return digestOf(b)
}

// writeTree writes the metadata of the layers put together, whose contents have these sizes.
func (i *Image) writeTree(path string, sizes []int64) error {
	m := newMerger(i.store.limits)
	for n, h := range i.Config.RootFS.DiffIDs {
		if err := m.layer(i.store.hashed(layersDir, h), n); err != nil {
			return err
		}
	}
	dropWhiteouts(m.root)
	f, err := os.CreateTemp(i.store.dir, makingName)
	if err != nil {
		return err
	}
	size, err := erofs.Write(f, m.root, sizes)
	if err == nil {
		err = f.Truncate(size)
	}
	return i.store.place(f, err, path)
}
