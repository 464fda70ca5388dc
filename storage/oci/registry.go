package oci

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

// Registry says how registries are spoken to. The zero value is HTTPS, with what docker's
// configuration has of passwords and helpers.
type Registry struct {
	// Insecure allows HTTP. Registries of this machine may have that without it.
	Insecure bool
	// Transport is what requests go through; http.DefaultTransport if nil.
	Transport http.RoundTripper
}

// Pull fetches an image by its name, for this kind of machine, and returns it. What had come of
// one that was interrupted does not come again. Errors of the registry are a *transport.Error.
func (s *Store) Pull(ctx context.Context, ref string, registry Registry, progress Progress) (*Image, error) {
	whole, err := ParseName(ref)
	if err != nil {
		return nil, err
	}
	from, err := registry.open(ctx, ref, transport.PullScope)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", ShortName(whole), err)
	}
	image, err := s.add(ctx, from, whole, progress)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", ShortName(whole), err)
	}
	return image, nil
}

// remoteImage is an image of a registry.
type remoteImage struct {
	ref  name.Reference
	http http.RoundTripper // which has the right to what is asked
}

// options are how names of registries are read.
func (r Registry) options() []name.Option {
	if r.Insecure {
		return []name.Option{name.Insecure}
	}
	return nil
}

func (r Registry) transport() http.RoundTripper {
	if r.Transport == nil {
		return http.DefaultTransport
	}
	return r.Transport
}

func (r Registry) open(ctx context.Context, ref, scope string) (*remoteImage, error) {
	parsed, err := name.ParseReference(ref, r.options()...)
	if err != nil {
		return nil, err
	}
	repo := parsed.Context()
	auth, err := authn.Resolve(ctx, authn.DefaultKeychain, repo)
	if err != nil {
		return nil, fmt.Errorf("the configuration of docker, which has the passwords of registries: %w", err)
	}
	t, err := transport.NewWithContext(ctx, repo.Registry, auth, r.transport(), []string{repo.Scope(scope)})
	if err != nil {
		return nil, explain(err)
	}
	return &remoteImage{parsed, t}, nil
}

// manifest implements source.
func (r *remoteImage) manifest(ctx context.Context) (v1.Descriptor, []byte, error) {
	got, err := remote.Get(r.ref, remote.WithContext(ctx), remote.WithTransport(r.http), remote.WithPlatform(*platform))
	if err != nil {
		return v1.Descriptor{}, nil, explain(err)
	}
	d := got.Descriptor
	if !d.MediaType.IsIndex() {
		return d, got.Manifest, nil
	}
	index, err := got.ImageIndex()
	if err != nil {
		return d, nil, explain(err)
	}
	m, err := index.IndexManifest()
	if err != nil {
		return d, nil, explain(err)
	}
	if d, err = choose(m); err != nil {
		return d, nil, err
	}
	image, err := index.Image(d.Digest)
	if err != nil {
		return d, nil, explain(err)
	}
	raw, err := image.RawManifest()
	return d, raw, explain(err)
}

// choose finds the image for this machine in an index.
func choose(index *v1.IndexManifest) (v1.Descriptor, error) {
	var others []string
	for _, d := range index.Manifests {
		switch p := d.Platform; {
		case !d.MediaType.IsImage():
		case p == nil && len(index.Manifests) == 1:
			return d, nil // what it is for is in its configuration
		case p == nil:
		case p.OS == platform.OS && p.Architecture == platform.Architecture && (p.Variant == "" || p.Variant == "v1"):
			return d, nil
		case p.OS != "unknown": // as what is no image but says something of one has it
			others = append(others, p.String())
		}
	}
	slices.Sort(others)
	return v1.Descriptor{}, fmt.Errorf("there is no image for %s in it, but for: %s", platform, strings.Join(others, ", "))
}

// far implements source.
func (r *remoteImage) far() bool { return true }

// blob implements source.
func (r *remoteImage) blob(ctx context.Context, d v1.Descriptor, from int64) (io.ReadCloser, int64, error) {
	repo := r.ref.Context()
	u := url.URL{Scheme: repo.Registry.Scheme(), Host: repo.RegistryStr(), Path: fmt.Sprintf("/v2/%s/blobs/%s", repo.RepositoryStr(), d.Digest)}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, 0, err
	}
	if from > 0 {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", from, d.Size-1))
	}
	answer, err := (&http.Client{Transport: r.http}).Do(req)
	if err != nil {
		return nil, 0, explain(err)
	}
	if answer.StatusCode == http.StatusRequestedRangeNotSatisfiable && from > 0 {
		answer.Body.Close()
		return r.blob(ctx, d, 0)
	}
	if err := transport.CheckError(answer, http.StatusOK, http.StatusPartialContent); err != nil {
		answer.Body.Close()
		return nil, 0, explain(err)
	}
	if answer.StatusCode == http.StatusOK {
		from = 0 // a registry need not know ranges
	}
	return answer.Body, from, nil
}

// explain says what to do about an error of a registry.
func explain(err error) error {
	var answer *transport.Error
	if !errors.As(err, &answer) {
		return err
	}
	switch answer.StatusCode {
	case http.StatusUnauthorized, http.StatusForbidden:
		return fmt.Errorf("the registry does not allow it: there may be no such image, or a login is needed (%w)", err)
	case http.StatusNotFound:
		return fmt.Errorf("the registry has %w: %w", ErrNotFound, err)
	case http.StatusTooManyRequests:
		return fmt.Errorf("the registry has had too many requests: wait, or log in (%w)", err)
	}
	return err
}
