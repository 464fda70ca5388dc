package oci

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"vmm/internal/flock"
)

// download is a blob that is read while it comes. What has come is kept in a file, so that the
// rest is enough after a connection that broke, or another day.
type download struct {
	ctx      context.Context
	store    *Store
	from     source
	d        v1.Descriptor
	progress Progress

	kept   *os.File // what has come, locked
	at     int64    // of the next byte that is read
	size   int64    // of kept
	sum    hash.Hash
	rest   io.ReadCloser // behind kept, nil until it is needed
	fails  int           // connections that broke with nothing new
	copied bool          // kept is the blob of the store
}

// maxFails is how often a connection may break with nothing new before that is an error.
const maxFails = 3

// download begins to fetch a blob, or to read the one that the store has.
func (s *Store) download(ctx context.Context, from source, d v1.Descriptor, progress Progress) (*download, error) {
	b := &download{ctx: ctx, store: s, from: from, d: d, progress: progress, sum: sha256.New()}
	partial := s.hashed(partialsDir, d.Digest)
	f, err := lockedFile(ctx, partial)
	if err != nil {
		return nil, err
	}
	if whole, err := os.Open(s.blob(d.Digest)); err == nil { // only its files are missing
		if st, err := f.Stat(); err == nil && st.Size() == 0 {
			os.Remove(partial)
		}
		f.Close()
		f, b.copied = whole, true
	}
	st, err := f.Stat()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	b.kept, b.size = f, min(st.Size(), d.Size)
	return b, nil
}

// lockedFile opens a file, or makes it, with a lock that another process may have first. Who
// had it may have removed the file, or given it another name: what is locked then is not the file of
// this name, which another process can open and lock too.
func lockedFile(ctx context.Context, path string) (*os.File, error) {
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return nil, err
		}
		if err := flock.Lock(ctx, f, unix.LOCK_EX, nil); err != nil {
			return nil, errors.Join(err, f.Close())
		}
		if err = flock.Named(f); err == nil {
			return f, nil
		}
		if bad := f.Close(); bad != nil || !errors.Is(err, os.ErrNotExist) {
			return nil, errors.Join(err, bad)
		}
	}
}

// Read implements io.Reader.
func (b *download) Read(p []byte) (n int, err error) {
	if err := context.Cause(b.ctx); err != nil {
		return 0, err
	}
	switch {
	case b.at < b.size:
		n, err = b.kept.ReadAt(p[:min(int64(len(p)), b.size-b.at)], b.at)
	case b.at == b.d.Size:
		return 0, io.EOF
	case b.copied:
		return 0, io.ErrUnexpectedEOF
	default:
		n, err = b.fetch(p)
	}
	b.sum.Write(p[:n])
	b.at += int64(n)
	b.progress(b.d.Digest, b.at, b.d.Size)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return n, err
}

// fetch reads what has not come yet, and keeps it.
func (b *download) fetch(p []byte) (int, error) {
	for {
		if b.rest == nil {
			if err := b.connect(); err != nil {
				return 0, err
			}
		}
		n, err := b.rest.Read(p[:min(int64(len(p)), b.d.Size-b.at)])
		if n > 0 {
			b.fails = 0
			if _, err := b.kept.WriteAt(p[:n], b.at); err != nil {
				return 0, err
			}
			b.size = b.at + int64(n)
			return n, nil
		}
		if err == nil {
			continue
		}
		if b.fails++; b.fails == maxFails || b.ctx.Err() != nil {
			if errors.Is(err, io.EOF) {
				err = fmt.Errorf("it ends after %d of %d bytes: %w", b.at, b.d.Size, io.ErrUnexpectedEOF)
			}
			return 0, err
		}
		b.rest.Close()
		b.rest = nil
	}
}

// connect has rest begin at the next byte.
func (b *download) connect() error {
	r, at, err := b.from.blob(b.ctx, b.d, b.at)
	if err != nil {
		return err
	}
	if _, err := io.CopyN(io.Discard, r, b.at-at); err != nil {
		return errors.Join(err, r.Close())
	}
	b.rest = r
	return nil
}

// done ends with the error that its reader had, if it had one. A blob that has come whole is in
// the store then; what has come of another from far is kept for the next time, unless it is wrong.
func (b *download) done(err error) error {
	if b.rest != nil {
		b.rest.Close()
	}
	defer b.kept.Close()
	damaged := b.at == b.d.Size && hashOf(b.sum) != b.d.Digest
	if damaged {
		err = &DigestError{b.d.Digest, hashOf(b.sum)} // which is why it could not be unpacked, too
	}
	var wrong *DigestError
	switch {
	case damaged, !b.copied && (errors.As(err, &wrong) || err != nil && !b.from.far()):
		os.Remove(b.kept.Name())
	case err == nil && !b.copied:
		// Another manifest may have had more come.
		err = errors.Join(b.kept.Truncate(b.d.Size), b.kept.Sync(), os.Rename(b.kept.Name(), b.store.blob(b.d.Digest)))
	}
	return err
}
