package oci

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"sync"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"vmm/internal/decompress"
)

// source is where an image comes from: a registry, a layout, an archive.
type source interface {
	// manifest returns the descriptor of the manifest for this machine, and its bytes.
	manifest(ctx context.Context) (v1.Descriptor, []byte, error)
	// blob opens a blob, from a byte on if it can: at is where what it returns begins.
	blob(ctx context.Context, d v1.Descriptor, from int64) (r io.ReadCloser, at int64, err error)
	// far reports whether what has come of a blob is worth keeping when the rest does not.
	far() bool
}

// Progress is told how much of a layer has come, in bytes of the blob. done is -1 for one that
// the store has. It is called from several goroutines.
type Progress func(layer v1.Hash, done, total int64)

// How many layers come and are unpacked at once, and how many with those of which only the disk
// does not have all yet: it takes many files in little more time than one.
const (
	parallelLayers = 3
	unsyncedLayers = 32
)

// making has something made in the store, in which nobody cleans up meanwhile.
func (s *Store) making(ctx context.Context, run func() (*Image, error)) (image *Image, err error) {
	err = s.locked(ctx, usersLock, unix.LOCK_SH, func() error {
		image, err = run()
		return err
	})
	if errors.Is(err, unix.ENOSPC) {
		err = fmt.Errorf("there is no room for it in %s: %w", s.dir, err)
	}
	return image, err
}

// add takes an image into the store under a name.
func (s *Store) add(ctx context.Context, from source, whole string, progress Progress) (*Image, error) {
	return s.making(ctx, func() (*Image, error) { return s.addNamed(ctx, from, whole, progress) })
}

// addNamed is add within making.
func (s *Store) addNamed(ctx context.Context, from source, whole string, progress Progress) (*Image, error) {
	if progress == nil {
		progress = func(v1.Hash, int64, int64) {}
	}
	d, err := s.addContents(ctx, from, progress)
	if err != nil {
		return nil, err
	}
	d.Annotations = map[string]string{refName: whole}
	image, err := s.open(d)
	if err != nil {
		return nil, err
	}
	if _, err := image.Segments(); err != nil { // layers may not fit upon each other
		return nil, err
	}
	return image, s.setName(ctx, whole, d)
}

func (s *Store) addContents(ctx context.Context, from source, progress Progress) (v1.Descriptor, error) {
	d, raw, err := from.manifest(ctx)
	if err != nil {
		return d, err
	}
	if !d.MediaType.IsImage() {
		return d, fmt.Errorf("%s: not an image", oneLine(string(d.MediaType)))
	}
	if err := checkDigest(d.Digest); err != nil {
		return d, err
	}
	if _, err := readDescribed(bytes.NewReader(raw), d, maxManifest); err != nil {
		return d, err
	}
	m, err := parseManifest(raw)
	if err != nil {
		return d, err
	}
	r, _, err := from.blob(ctx, m.Config, 0)
	if err != nil {
		return d, fmt.Errorf("configuration: %w", err)
	}
	b, err := readDescribed(r, m.Config, maxConfig)
	if err = errors.Join(err, r.Close()); err != nil {
		return d, fmt.Errorf("configuration: %w", err)
	}
	c, err := parseConfig(b, len(m.Layers))
	if err != nil {
		return d, err
	}
	if err := runsHere(c); err != nil {
		return d, err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(unsyncedLayers)
	coming := make(chan struct{}, parallelLayers)
	seen := map[v1.Hash]bool{}
	for n, layer := range m.Layers {
		if diffID := c.RootFS.DiffIDs[n]; !seen[diffID] {
			seen[diffID] = true
			coming <- struct{}{}
			g.Go(func() error {
				return s.addLayer(ctx, from, layer, diffID, progress, sync.OnceFunc(func() { <-coming }))
			})
		}
	}
	if err := g.Wait(); err != nil {
		return d, err
	}
	return d, errors.Join(s.write(s.blob(m.Config.Digest), b), s.write(s.blob(d.Digest), raw))
}

// runsHere refuses an image for another kind of machine.
func runsHere(c *v1.ConfigFile) error {
	if c.OS != platform.OS && c.OS != "" || c.Architecture != platform.Architecture && c.Architecture != "" {
		return fmt.Errorf("an image for %s: only %s can run here", oneLine(c.OS+"/"+c.Architecture), platform)
	}
	return nil
}

// platform is what images are for.
var platform = &v1.Platform{OS: "linux", Architecture: "amd64"}

// addLayer has the blob and the files of a layer in the store. It calls came when all of it has
// come, or nothing more will.
func (s *Store) addLayer(ctx context.Context, from source, d v1.Descriptor, diffID v1.Hash, progress Progress, came func()) error {
	defer came()
	if !d.MediaType.IsDistributable() {
		return fmt.Errorf("%v: a layer that may not be passed on (%s)", d.Digest, d.MediaType)
	}
	if d.Size > s.limits.Bytes {
		return fmt.Errorf("layer %v: %d bytes: %w", d.Digest, d.Size, ErrLimit)
	}
	dir := s.hashed(layersDir, diffID)
	if isThere(dir) && isThere(s.blob(d.Digest)) {
		progress(d.Digest, -1, d.Size)
		return nil
	}
	blob, err := s.download(ctx, from, d, progress)
	if err != nil {
		return fmt.Errorf("layer %v: %w", d.Digest, err)
	}
	err = s.make(dir, func(dir string) error {
		defer came()
		return unpackBlob(blob, dir, diffID, s.limits)
	})
	if err == nil {
		_, err = io.Copy(io.Discard, blob) // where the files were there already
	}
	if err = blob.done(err); err != nil {
		return fmt.Errorf("layer %v: %w", d.Digest, err)
	}
	return nil
}

func isThere(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// unpackBlob unpacks a layer, which is compressed or not, and checks its digest.
func unpackBlob(r io.Reader, dir string, diffID v1.Hash, limits Limits) error {
	b := bufio.NewReaderSize(r, 256<<10)
	head, _ := b.Peek(decompress.HeadSize)
	var plain io.Reader = b
	if format := decompress.Detect(head); format != nil {
		unpacked, err := format.NewReader(b)
		if err != nil {
			return err
		}
		defer unpacked.Close()
		plain = unpacked
	}
	sum := sha256.New()
	archive := &bounded{r: io.TeeReader(plain, sum), left: limits.Bytes}
	if err := unpackLayer(archive, dir, limits); err != nil {
		return err
	}
	if got := hashOf(sum); got != diffID {
		return &DigestError{diffID, got}
	}
	_, err := io.Copy(io.Discard, b) // what follows the compressed stream
	return err
}

// bounded reads at most so many bytes, and then ends with an ErrLimit.
type bounded struct {
	r    io.Reader
	left int64
}

// Read implements io.Reader.
func (b *bounded) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	if b.left -= int64(n); b.left < 0 {
		return 0, fmt.Errorf("an archive too large: %w", ErrLimit)
	}
	return n, err
}

func hashOf(h hash.Hash) v1.Hash {
	return v1.Hash{Algorithm: "sha256", Hex: fmt.Sprintf("%x", h.Sum(nil))}
}
