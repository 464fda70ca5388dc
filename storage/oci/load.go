package oci

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"vmm/internal/ctxio"
	"vmm/internal/decompress"
)

// maxImages is how many images an archive may have.
const maxImages = 1000

// containerdName is the annotation in which docker has an image's whole name.
const containerdName = "io.containerd.image.name"

// Load takes the images of a file or directory into the store: an OCI image layout, or an
// archive of one or of docker's, compressed or not. name is that of the only image in it; "" leaves
// it to what the image has, or where that is nothing or only a tag to the file's name.
func (s *Store) Load(ctx context.Context, f *os.File, name string, progress Progress) ([]*Image, error) {
	a, err := openArchive(ctx, f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", f.Name(), err)
	}
	defer a.close()
	found, err := a.images(ctx)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", f.Name(), err)
	}
	if name != "" && len(found) > 1 {
		return nil, fmt.Errorf("%s: there are %d images in it, and %s can be the name of one", f.Name(), len(found), name)
	}
	var out []*Image
	for _, i := range found {
		names := i.names
		if name != "" {
			names = []string{name}
		} else if len(names) == 0 {
			names = []string{baseName(f.Name(), i.tag)}
		}
		for _, n := range names {
			whole, err := ParseName(n)
			if err != nil {
				return out, fmt.Errorf("%s: %w", f.Name(), err)
			}
			image, err := s.add(ctx, i, whole, progress)
			if err != nil {
				return out, fmt.Errorf("%s: %s: %w", f.Name(), n, err)
			}
			out = append(out, image)
		}
	}
	return out, nil
}

// baseName makes a name of a file's.
func baseName(path, tag string) string {
	base := strings.ToLower(filepath.Base(path))
	for _, end := range []string{".gz", ".xz", ".zst", ".tar", ".oci"} {
		base = strings.TrimSuffix(base, end)
	}
	base = strings.Trim(strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '.' || r == '_' || r == '-' {
			return r
		}
		return '-'
	}, base), ".-_")
	if base == "" {
		base = "image"
	}
	if tag != "" {
		base += ":" + tag
	}
	return base
}

// archived is an image of an archive.
type archived struct {
	in    *archive
	d     v1.Descriptor
	raw   []byte             // the manifest, where it is no file of the archive
	blobs map[v1.Hash]string // files that are not at their place in a layout
	names []string           // whole ones
	tag   string             // where that is all it has for a name
}

// manifest implements source.
func (i *archived) manifest(context.Context) (v1.Descriptor, []byte, error) {
	if i.raw != nil {
		return i.d, i.raw, nil
	}
	raw, err := i.in.described(i.d)
	return i.d, raw, err
}

// far implements source.
func (i *archived) far() bool { return false }

// blob implements source.
func (i *archived) blob(_ context.Context, d v1.Descriptor, _ int64) (io.ReadCloser, int64, error) {
	path, ok := i.blobs[d.Digest]
	if !ok {
		path = blobPath(d.Digest)
	}
	f, err := i.in.open(path)
	return f, 0, err
}

func blobPath(h v1.Hash) string { return "blobs/" + h.Algorithm + "/" + h.Hex }

// images finds what is in the archive.
func (a *archive) images(ctx context.Context) ([]*archived, error) {
	b, err := a.read("index.json")
	if err == nil {
		return a.layout(b)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if b, err = a.read("manifest.json"); errors.Is(err, fs.ErrNotExist) {
		return nil, errors.New("neither an OCI image layout (index.json) nor an archive of docker save (manifest.json)")
	}
	if err != nil {
		return nil, err
	}
	return a.docker(ctx, b)
}

// layout finds the images of an OCI image layout.
func (a *archive) layout(b []byte) (out []*archived, err error) {
	index, err := v1.ParseIndexManifest(bytes.NewReader(b))
	if err != nil {
		return nil, fmt.Errorf("index.json: %w", err)
	}
	if len(index.Manifests) > maxImages {
		return nil, fmt.Errorf("%d images: %w", len(index.Manifests), ErrLimit)
	}
	for _, d := range index.Manifests {
		i := &archived{in: a}
		name := d.Annotations[containerdName]
		if ref := d.Annotations[refName]; name == "" && strings.ContainsAny(ref, "/:") {
			name = ref
		} else if name == "" {
			i.tag = ref
		}
		if name != "" {
			i.names = []string{name}
		}
		if d.MediaType.IsIndex() {
			b, err := a.described(d)
			if err != nil {
				return nil, err
			}
			inner, err := v1.ParseIndexManifest(bytes.NewReader(b))
			if err != nil {
				return nil, fmt.Errorf("%v: %w", d.Digest, err)
			}
			if d, err = choose(inner); err != nil {
				return nil, err
			}
		}
		if !d.MediaType.IsImage() {
			continue // other things may be in a layout
		}
		i.d = d
		out = append(out, i)
	}
	if len(out) == 0 {
		return nil, errors.New("there is no image in its index.json")
	}
	return out, nil
}

// described reads a manifest or an index of a layout.
func (a *archive) described(d v1.Descriptor) ([]byte, error) {
	if err := checkDigest(d.Digest); err != nil {
		return nil, err
	}
	f, err := a.open(blobPath(d.Digest))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return readDescribed(f, d, maxManifest)
}

// docker finds the images of an archive of docker save, which has no manifests as registries
// have them: they are made.
func (a *archive) docker(ctx context.Context, b []byte) (out []*archived, err error) {
	known := map[string]v1.Descriptor{} // files, which many images may have
	describe := func(path string) (v1.Descriptor, error) {
		d, ok := known[path]
		if !ok {
			if d, err = a.describe(ctx, path); err != nil {
				return d, err
			}
			known[path] = d
		}
		return d, nil
	}
	var list []dockerImage
	if err := json.Unmarshal(b, &list); err != nil {
		return nil, fmt.Errorf("manifest.json: %w", err)
	}
	if len(list) == 0 {
		return nil, errors.New("there is no image in its manifest.json")
	}
	names := 0
	for _, l := range list {
		if names += max(1, len(l.RepoTags)); names > maxImages {
			return nil, fmt.Errorf("over %d images: %w", maxImages, ErrLimit)
		}
		if len(l.Layers) > maxLayers {
			return nil, fmt.Errorf("%d layers: %w", len(l.Layers), ErrLimit)
		}
		i := &archived{in: a, names: l.RepoTags, blobs: map[v1.Hash]string{}}
		m := v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1, Layers: []v1.Descriptor{}}
		if m.Config, err = describe(l.Config); err != nil {
			return nil, err
		}
		m.Config.MediaType = types.OCIConfigJSON
		i.blobs[m.Config.Digest] = l.Config
		for _, path := range l.Layers {
			d, err := describe(path)
			if err != nil {
				return nil, err
			}
			m.Layers = append(m.Layers, d)
			i.blobs[d.Digest] = path
		}
		if i.raw, err = json.Marshal(m); err != nil {
			return nil, err
		}
		i.d = v1.Descriptor{MediaType: m.MediaType, Size: int64(len(i.raw)), Digest: digestOf(i.raw)}
		out = append(out, i)
	}
	return out, nil
}

// describe makes the descriptor of a file in the archive, as that of a layer.
func (a *archive) describe(ctx context.Context, path string) (v1.Descriptor, error) {
	f, err := a.open(path)
	if err != nil {
		return v1.Descriptor{}, err
	}
	defer f.Close()
	head := make([]byte, decompress.HeadSize)
	n, err := io.ReadFull(f, head)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return v1.Descriptor{}, err
	}
	digest, size, err := v1.SHA256(io.MultiReader(bytes.NewReader(head[:n]), ctxio.Reader(ctx, f)))
	if err != nil {
		return v1.Descriptor{}, err
	}
	d := v1.Descriptor{MediaType: types.OCIUncompressedLayer, Size: size, Digest: digest}
	if format := decompress.Detect(head[:n]); format != nil {
		d.MediaType += types.MediaType("+" + format.Name)
	}
	return d, nil
}
