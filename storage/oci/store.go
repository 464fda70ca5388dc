// Package oci keeps container images: an OCI image layout whose layers are also unpacked, each
// once, to files that a guest reads. An image is then one read-only file system, EROFS, whose
// metadata are the image's own and whose contents are those files, which all images share that
// have the layer. Nothing of it needs root, or a process that serves it.
//
// An image that is asked for and not in the store is an ErrNotFound, what goes beyond the
// Limits an ErrLimit, bytes that are not what they are to be a *DigestError. What takes a
// context returns the cause of its end. A Store may be used by any number of goroutines and
// processes.
//
// Sources: OCI image specification 1.1, OCI distribution specification 1.1.
package oci

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"vmm/internal/flock"
	"vmm/internal/paths"
)

// Store is a directory of images. Its methods may be used from several goroutines, and several
// processes may use the same directory.
type Store struct {
	dir    string
	limits Limits
}

// What is in a store. Beside these there is what an OCI image layout has.
const (
	layersDir   = "layers"   // unpacked layers, by the digests of their archives
	treesDir    = "trees"    // metadata of whole images, by their layers
	partialsDir = "partials" // blobs that have not come whole yet
	usersLock   = "lock"     // shared while something is made, exclusive while it is cleaned up
	indexLock   = "index.lock"
	makingName  = "making-"
)

// layoutVersion is what oci-layout holds (OCI image specification, image-layout.md).
const layoutVersion = `{"imageLayoutVersion":"1.0.0"}`

// DefaultDir is where a user's images are, in paths.Data.
func DefaultDir() (string, error) {
	data, err := paths.Data()
	if err != nil {
		return "", fmt.Errorf("no directory for images: %w", err)
	}
	return filepath.Join(data, "images"), nil
}

// Open opens the store of a directory, which is made if it is not there. A limit of 0 is that of
// DefaultLimits.
func Open(dir string, limits Limits) (*Store, error) {
	limits = Limits{
		Bytes:   cmp.Or(limits.Bytes, DefaultLimits.Bytes),
		Entries: cmp.Or(limits.Entries, DefaultLimits.Entries),
		Names:   cmp.Or(limits.Names, DefaultLimits.Names),
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	for _, d := range []string{layersDir, treesDir, partialsDir, "blobs"} {
		if err := os.MkdirAll(filepath.Join(dir, d, "sha256"), 0o700); err != nil {
			return nil, fmt.Errorf("store of images: %w", err)
		}
	}
	s := &Store{dir: dir, limits: limits}
	layout := s.path("oci-layout")
	if _, err := os.Stat(layout); errors.Is(err, fs.ErrNotExist) {
		return s, s.write(layout, []byte(layoutVersion))
	}
	return s, nil
}

func (s *Store) path(names ...string) string {
	return filepath.Join(append([]string{s.dir}, names...)...)
}

// hashed is where something of a digest is.
func (s *Store) hashed(kind string, h v1.Hash) string { return s.path(kind, h.Algorithm, h.Hex) }

func (s *Store) blob(h v1.Hash) string { return s.hashed("blobs", h) }

// write makes a file whole or not at all.
func (s *Store) write(path string, b []byte) error {
	f, err := os.CreateTemp(s.dir, makingName)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return s.place(f, err, path)
}

// place gives a file that was made its name, or removes it if it was not.
func (s *Store) place(f *os.File, err error, path string) error {
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return err
}

// make has a directory of the store made by a function, whole or not at all. It does nothing
// where the directory is.
func (s *Store) make(path string, fill func(dir string) error) error {
	if isThere(path) {
		return nil
	}
	return s.makeNamed(func(dir string) (string, error) { return path, fill(dir) })
}

// makeNamed does the same with one whose path is known only when it has been made.
func (s *Store) makeNamed(fill func(dir string) (path string, err error)) error {
	dir, err := os.MkdirTemp(s.dir, makingName)
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	path, err := fill(dir)
	if err != nil {
		return err
	}
	if err := syncAll(dir); err != nil {
		return err
	}
	err = os.Rename(dir, path)
	if errors.Is(err, fs.ErrExist) || errors.Is(err, unix.ENOTEMPTY) {
		return nil // another process was faster
	}
	return err
}

// syncAll has the disk hold the files of a directory, before it gets the name by which it is
// taken for whole.
func syncAll(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		f, err := os.Open(filepath.Join(dir, e.Name()))
		if err != nil {
			return err
		}
		if err := errors.Join(f.Sync(), f.Close()); err != nil {
			return err
		}
	}
	return nil
}

// locked runs a function with one of the store's locks; how is LOCK_SH or LOCK_EX, with LOCK_NB
// for a flock.ErrBusy rather than a wait.
func (s *Store) locked(ctx context.Context, file string, how int, run func() error) error {
	f, err := os.OpenFile(s.path(file), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if how&unix.LOCK_NB != 0 {
		err = flock.Try(f, how)
	} else {
		err = flock.Lock(ctx, f, how, nil)
	}
	if err != nil {
		return err
	}
	return run()
}
