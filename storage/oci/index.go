package oci

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sys/unix"
)

// refName is the annotation of a descriptor that has the image's name (OCI image
// specification, annotations.md).
const refName = "org.opencontainers.image.ref.name"

// ErrNotFound is in the error for an image that is not in the store.
var ErrNotFound = errors.New("no such image")

// Names as docker has them: what it is short for, and what it leaves out when it shows one.
const (
	hubName    = "docker.io"
	hubHost    = "index.docker.io" // what the library calls it
	hubLibrary = "library/"
)

// ParseName returns an image's whole name: "debian" is docker.io/library/debian:latest.
func ParseName(ref string) (string, error) {
	r, err := name.ParseReference(ref)
	if err != nil {
		return "", fmt.Errorf("%.200q is no name of an image: such as debian:12 or registry.example/team/image@sha256:DIGEST", ref)
	}
	return strings.Replace(r.Name(), hubHost+"/", hubName+"/", 1), nil
}

// ShortName is how a whole name is shown.
func ShortName(whole string) string {
	short, ok := strings.CutPrefix(whole, hubName+"/")
	if !ok {
		return whole
	}
	return strings.TrimPrefix(short, hubLibrary)
}

// index reads the store's index.
func (s *Store) index() (*v1.IndexManifest, error) {
	b, err := os.ReadFile(s.path("index.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return &v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: []v1.Descriptor{}}, nil
	}
	if err != nil {
		return nil, err
	}
	index, err := v1.ParseIndexManifest(bytes.NewReader(b))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", s.path("index.json"), err)
	}
	return index, nil
}

// changeIndex changes the store's index, one change at a time.
func (s *Store) changeIndex(ctx context.Context, change func(*v1.IndexManifest) error) error {
	return s.locked(ctx, indexLock, unix.LOCK_EX, func() error {
		index, err := s.index()
		if err != nil {
			return err
		}
		if err := change(index); err != nil {
			return err
		}
		b, err := json.Marshal(index)
		if err != nil {
			return err
		}
		return s.write(s.path("index.json"), b)
	})
}

// setName gives an image a name, which another may have had. "" is for one that has none, until
// it gets one.
func (s *Store) setName(ctx context.Context, whole string, d v1.Descriptor) error {
	d = v1.Descriptor{MediaType: d.MediaType, Size: d.Size, Digest: d.Digest, Platform: d.Platform}
	if whole != "" {
		d.Annotations = map[string]string{refName: whole}
	}
	return s.changeIndex(ctx, func(index *v1.IndexManifest) error {
		index.Manifests = slices.DeleteFunc(index.Manifests, func(o v1.Descriptor) bool {
			before := o.Annotations[refName]
			return before == whole && whole != "" || before == "" && o.Digest == d.Digest
		})
		index.Manifests = append(index.Manifests, d)
		return nil
	})
}

// minPrefix is how much of a digest names an image, in hexadecimal digits.
const minPrefix = 4

// find returns the descriptor of an image by its name, or by the beginning of its digest or of
// its configuration's, which docker calls its ID.
func (s *Store) find(ref string) (v1.Descriptor, error) {
	index, err := s.index()
	if err != nil {
		return v1.Descriptor{}, err
	}
	if whole, err := ParseName(ref); err == nil {
		for _, d := range index.Manifests {
			if d.Annotations[refName] == whole {
				return d, nil
			}
		}
	}
	hex := strings.TrimPrefix(ref, "sha256:")
	if len(hex) < minPrefix || strings.Trim(hex, "0123456789abcdef") != "" {
		return v1.Descriptor{}, fmt.Errorf("%s: %w here", ref, ErrNotFound)
	}
	var found []v1.Descriptor
	for _, d := range index.Manifests {
		m, err := s.manifest(d)
		if err != nil {
			return v1.Descriptor{}, err
		}
		same := func(o v1.Descriptor) bool { return o.Digest == d.Digest }
		if (strings.HasPrefix(d.Digest.Hex, hex) || strings.HasPrefix(m.Config.Digest.Hex, hex)) && !slices.ContainsFunc(found, same) {
			found = append(found, d)
		}
	}
	switch len(found) {
	case 0:
		return v1.Descriptor{}, fmt.Errorf("%s: %w here", ref, ErrNotFound)
	case 1:
		return found[0], nil
	}
	return v1.Descriptor{}, fmt.Errorf("%s: %d images begin so: give more of it", ref, len(found))
}

// Tag gives an image of the store another name.
func (s *Store) Tag(ctx context.Context, ref, newName string) error {
	whole, err := ParseName(newName)
	if err != nil {
		return err
	}
	if strings.Contains(whole, "@") {
		return fmt.Errorf("%q: a digest is no name to give", newName)
	}
	return s.locked(ctx, usersLock, unix.LOCK_SH, func() error {
		d, err := s.find(ref)
		if err != nil {
			return err
		}
		return s.setName(ctx, whole, d)
	})
}

// Removed is what Remove has done.
type Removed struct {
	Names  []string // whole names that lead to nothing now
	Digest string   // of the image, if no name leads to it any more
}

// Remove takes a name from an image, or all of its names if ref is a digest or an ID. What no
// image needs any more goes with Prune.
func (s *Store) Remove(ctx context.Context, ref string) (Removed, error) {
	var out Removed
	d, err := s.find(ref)
	if err != nil {
		return out, err
	}
	whole, err := ParseName(ref)
	byName := err == nil && d.Annotations[refName] == whole
	remove := func(index *v1.IndexManifest) error {
		left := 0
		index.Manifests = slices.DeleteFunc(index.Manifests, func(o v1.Descriptor) bool {
			if o.Digest != d.Digest {
				return false
			}
			gone := !byName || o.Annotations[refName] == whole
			if gone && o.Annotations[refName] != "" {
				out.Names = append(out.Names, o.Annotations[refName])
			}
			if !gone {
				left++
			}
			return gone
		})
		if left == 0 {
			out.Digest = d.Digest.String()
		}
		return nil
	}
	err = s.changeIndex(ctx, remove)
	if errors.Is(err, unix.ENOSPC) { // a full disk must not keep the image there: what is made anew when it is needed makes room
		if i, e := s.open(d); e == nil && os.Remove(s.hashed(treesDir, i.chain())) == nil {
			out = Removed{}
			err = s.changeIndex(ctx, remove)
		}
	}
	if err != nil {
		return Removed{}, err
	}
	return out, nil
}
