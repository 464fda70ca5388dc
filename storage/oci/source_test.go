package oci

import (
	"bytes"
	"context"
	"io"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/partial"
)

// memory is a source of an image that a test has made. Where it has other bytes, those come
// for each layer.
type memory struct {
	v1.Image
	other []byte
}

func (m memory) manifest(context.Context) (v1.Descriptor, []byte, error) {
	raw, err := m.RawManifest()
	if err != nil {
		return v1.Descriptor{}, nil, err
	}
	d, err := partial.Descriptor(m.Image)
	if err != nil {
		return v1.Descriptor{}, nil, err
	}
	return *d, raw, nil
}

func (m memory) far() bool { return false }

func (m memory) blob(_ context.Context, d v1.Descriptor, _ int64) (io.ReadCloser, int64, error) {
	if name, err := m.ConfigName(); err == nil && name == d.Digest {
		b, err := m.RawConfigFile()
		return io.NopCloser(bytes.NewReader(b)), 0, err
	}
	layer, err := m.LayerByDigest(d.Digest)
	if err != nil {
		return nil, 0, err
	}
	if m.other != nil {
		return io.NopCloser(bytes.NewReader(m.other)), 0, nil
	}
	r, err := layer.Compressed()
	return r, 0, err
}
