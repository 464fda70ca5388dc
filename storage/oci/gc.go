package oci

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"vmm/internal/flock"
)

// Prune removes what no image of the store needs, and what has come of interrupted ones. It
// returns how many bytes that took on the disk. A VM that runs keeps what it has. Where
// something is being made in the store, Prune waits until it is.
func (s *Store) Prune(ctx context.Context) (freed int64, err error) {
	err = s.locked(ctx, usersLock, unix.LOCK_EX, func() error {
		freed, err = s.prune("blobs", layersDir, treesDir, partialsDir)
		return err
	})
	return freed, err
}

// Tidy does the same, but keeps what has come of interrupted ones. It does nothing while
// something is being made in the store.
func (s *Store) Tidy(ctx context.Context) (freed int64, err error) {
	err = s.locked(ctx, usersLock, unix.LOCK_EX|unix.LOCK_NB, func() error {
		freed, err = s.prune("blobs", layersDir, treesDir)
		return err
	})
	if errors.Is(err, flock.ErrBusy) {
		return 0, nil
	}
	return freed, err
}

// prune removes what is not needed of some kinds, and what was being made.
func (s *Store) prune(kinds ...string) (freed int64, err error) {
	images, err := s.List()
	if err != nil {
		return 0, err
	}
	needed := map[string]bool{}
	for _, i := range images {
		needed[s.blob(i.Digest)], needed[s.blob(i.ID())] = true, true
		needed[s.hashed(treesDir, i.chain())] = true
		for n, d := range i.Manifest.Layers {
			needed[s.blob(d.Digest)], needed[s.hashed(layersDir, i.Config.RootFS.DiffIDs[n])] = true, true
		}
	}
	var all []string
	for _, kind := range kinds {
		names, err := os.ReadDir(s.path(kind, "sha256"))
		if err != nil {
			return 0, err
		}
		for _, e := range names {
			all = append(all, s.hashed(kind, v1.Hash{Algorithm: "sha256", Hex: e.Name()}))
		}
	}
	made, err := os.ReadDir(s.dir)
	if err != nil {
		return 0, err
	}
	for _, e := range made {
		if strings.HasPrefix(e.Name(), makingName) {
			all = append(all, filepath.Join(s.dir, e.Name()))
		}
	}
	for _, path := range all {
		if needed[path] {
			continue
		}
		n, err := diskUse(path)
		if err == nil {
			err = s.discard(path)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return freed, err
		}
		freed += n
	}
	return freed, nil
}

// discard removes something, which nobody takes for whole while it goes. It needs no room on the
// disk, and that nobody else does it.
func (s *Store) discard(path string) error {
	base := filepath.Base(path)
	if strings.HasPrefix(base, makingName) {
		return os.RemoveAll(path)
	}
	gone := s.path(makingName + base)
	if err := os.RemoveAll(gone); err != nil { // of one that was killed here
		return err
	}
	if err := os.Rename(path, gone); err != nil {
		return err
	}
	return os.RemoveAll(gone)
}
