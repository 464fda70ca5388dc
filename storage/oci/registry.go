package oci

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

// Registry says how registries are spoken to. The zero value is HTTPS, with what docker's
// configuration has of passwords and helpers.
type Registry struct {
	// Insecure allows HTTP, and certificates that nobody has signed who is trusted. Registries of
	// this machine may have HTTP without it.
	Insecure bool
	// Transport is what requests go through; http.DefaultTransport if nil.
	Transport http.RoundTripper
	// Silence is how long a registry may send nothing of an image before it is asked again; a
	// minute if 0.
	Silence time.Duration
}

// Pull fetches an image by its name, for this kind of machine, and returns it. What had come of
// one that was interrupted does not come again. Errors of the registry are a *transport.Error.
func (s *Store) Pull(ctx context.Context, ref string, registry Registry, progress Progress) (*Image, error) {
	whole, err := ParseName(ref)
	if err != nil {
		return nil, err
	}
	from, err := registry.open(ctx, ref, transport.PullScope, registry.retrying())
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
	ref     name.Reference
	http    http.RoundTripper // which has the right to what is asked
	silence time.Duration
}

// retries are what a registry that is asked again may answer by then.
var retries = []int{http.StatusRequestTimeout, http.StatusInternalServerError, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout}

// retrying is a transport that asks again, moments later, what a registry cannot answer now.
func (r Registry) retrying() http.RoundTripper {
	t := r.transport()
	if ordinary, ok := t.(*http.Transport); ok && ordinary.ResponseHeaderTimeout == 0 {
		ordinary = ordinary.Clone()
		ordinary.ResponseHeaderTimeout = r.silence()
		t = ordinary
	}
	return transport.NewRetry(t, transport.WithRetryStatusCodes(retries...))
}

func (r Registry) silence() time.Duration { return cmp.Or(r.Silence, time.Minute) }

// options are how names of registries are read.
func (r Registry) options() []name.Option {
	if r.Insecure {
		return []name.Option{name.Insecure}
	}
	return nil
}

func (r Registry) transport() http.RoundTripper {
	t := r.Transport
	if t == nil {
		t = http.DefaultTransport
	}
	if ordinary, ok := t.(*http.Transport); ok && r.Insecure {
		ordinary = ordinary.Clone()
		ordinary.TLSClientConfig = &tls.Config{InsecureSkipVerify: true}
		t = ordinary
	}
	return t
}

func (r Registry) open(ctx context.Context, ref, scope string, through http.RoundTripper) (*remoteImage, error) {
	parsed, err := name.ParseReference(ref, r.options()...)
	if err != nil {
		return nil, err
	}
	repo := parsed.Context()
	auth, err := authn.Resolve(ctx, authn.DefaultKeychain, repo)
	if err != nil {
		return nil, fmt.Errorf("the configuration of docker, which has the passwords of registries: %w", err)
	}
	t, err := transport.NewWithContext(ctx, repo.Registry, auth, through, []string{repo.Scope(scope)})
	if err != nil {
		return nil, explain(err)
	}
	return &remoteImage{parsed, t, r.silence()}, nil
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
	return v1.Descriptor{}, fmt.Errorf("there is no image for %s in it, but for: %s", platform, oneLine(strings.Join(others, ", ")))
}

// far implements source.
func (r *remoteImage) far() bool { return true }

// blob implements source.
func (r *remoteImage) blob(ctx context.Context, d v1.Descriptor, from int64) (io.ReadCloser, int64, error) {
	repo := r.ref.Context()
	u := url.URL{Scheme: repo.Registry.Scheme(), Host: repo.RegistryStr(), Path: fmt.Sprintf("/v2/%s/blobs/%s", repo.RepositoryStr(), d.Digest)}
	asking, end := context.WithCancelCause(ctx)
	req, err := http.NewRequestWithContext(asking, http.MethodGet, u.String(), nil)
	if err != nil {
		end(nil)
		return nil, 0, err
	}
	if from > 0 {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", from, d.Size-1))
	}
	answer, err := (&http.Client{Transport: r.http}).Do(req)
	if err != nil {
		end(nil)
		return nil, 0, explain(err)
	}
	body := &watched{answer.Body, asking, end, r.silence}
	if answer.StatusCode == http.StatusRequestedRangeNotSatisfiable && from > 0 {
		body.Close()
		return r.blob(ctx, d, 0)
	}
	err = transport.CheckError(answer, http.StatusOK, http.StatusPartialContent)
	at := rangeStart(answer)
	if err == nil && at > from {
		err = fmt.Errorf("byte %d was asked for, and what came begins at %d", from, at)
	}
	if err != nil {
		body.Close()
		return nil, 0, explain(err)
	}
	return body, at, nil
}

// errSilent is the error for a connection that is there and sends nothing.
var errSilent = errors.New("nothing has come for too long")

// watched is a body that ends with errSilent when a read of it takes too long.
type watched struct {
	io.ReadCloser
	ctx     context.Context // of the request
	end     context.CancelCauseFunc
	silence time.Duration
}

// Read implements io.Reader.
func (w *watched) Read(p []byte) (int, error) {
	silent := time.AfterFunc(w.silence, func() { w.end(errSilent) })
	defer silent.Stop()
	n, err := w.ReadCloser.Read(p)
	if err != nil && w.ctx.Err() != nil {
		err = context.Cause(w.ctx)
	}
	return n, err
}

// Close implements io.Closer.
func (w *watched) Close() error {
	w.end(nil)
	return w.ReadCloser.Close()
}

// rangeStart is where in a blob an answer begins: at 0 if the registry knows no ranges.
func rangeStart(answer *http.Response) (at int64) {
	if answer.StatusCode == http.StatusPartialContent {
		fmt.Sscanf(answer.Header.Get("Content-Range"), "bytes %d-", &at)
	}
	return at
}

// ErrInsecure is in the error for a registry that only Registry.Insecure allows.
var ErrInsecure = errors.New("the registry is not secure")

// explain says what to do about an error of a registry.
func explain(err error) error {
	if err == nil {
		return nil
	}
	var answer *transport.Error
	var unknown x509.UnknownAuthorityError
	var network *net.OpError
	known := errors.As(err, &answer)
	unsigned := errors.As(err, &unknown)
	unreachable := errors.As(err, &network)
	plain := errors.Is(err, http.ErrSchemeMismatch)
	err = &brief{err}
	switch {
	case unsigned:
		return fmt.Errorf("%w: no authority that this machine trusts has signed its certificate; the authority's own can be among the system's, or in the file that SSL_CERT_FILE names (%w)", ErrInsecure, err)
	case plain:
		return fmt.Errorf("%w: it speaks HTTP without TLS (%w)", ErrInsecure, err)
	case unreachable:
		return fmt.Errorf("the registry cannot be reached: %w", err)
	case !known:
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

// brief is an error of a registry, whose text may be a page of HTML, in one line.
type brief struct{ error }

// Error implements error.
func (b *brief) Error() string { return oneLine(b.error.Error()) }

// Unwrap implements what errors.As follows.
func (b *brief) Unwrap() error { return b.error }
