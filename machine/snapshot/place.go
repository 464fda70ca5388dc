package snapshot

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"vmm/internal/paths"
)

// Place is where a snapshot comes to be: a directory under another name, which it gets
// only when the snapshot is whole. It is for one goroutine.
type Place struct {
	dir, tmp string
	replace  bool
	// Cache is as in Writer.
	Cache bool
}

// NewPlace begins a snapshot in a directory that does not exist yet, or in the place of
// an older snapshot with replace.
func NewPlace(dir string, replace bool) (*Place, error) {
	if _, err := os.Lstat(dir); err == nil && !replace {
		return nil, fmt.Errorf("%s exists already: give the snapshot another directory", dir)
	}
	dir, err := paths.Abs(dir)
	if err != nil {
		return nil, err
	}
	tmp, err := os.MkdirTemp(filepath.Dir(dir), "."+filepath.Base(dir)+".saving-")
	if err != nil {
		return nil, fmt.Errorf("saving a snapshot: %w", err)
	}
	return &Place{dir: dir, tmp: tmp, replace: replace}, nil
}

// Create makes a file of the snapshot.
func (p *Place) Create(name string) (*os.File, error) {
	return os.OpenFile(filepath.Join(p.tmp, name), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
}

// DiskFile is the name of the file for a disk that is kept in the snapshot.
func DiskFile(i int) string { return fmt.Sprintf("disk-%d.qcow2", i) }

// CreateAll makes the files that a Writer of another process may want, for a VM with so
// many disks. Publish removes those that it has not used. The caller closes them.
func (p *Place) CreateAll(disks int, zstd bool) (map[string]*os.File, error) {
	names := []string{ManifestFile, sumsFile, memoryFile}
	if zstd {
		names[2] = zstdFile
	}
	for i := range disks {
		names = append(names, DiskFile(i))
	}
	files := map[string]*os.File{}
	for _, name := range names {
		f, err := p.Create(name)
		if err != nil {
			for _, f := range files {
				f.Close()
			}
			return nil, err
		}
		files[name] = f
	}
	return files, nil
}

// Publish gives the snapshot its name, once another process has written it, and signs it
// with the user's key. It is gone if there is an error.
func (p *Place) Publish() error {
	m, err := ReadManifest(p.tmp)
	if err == nil {
		err = p.tidy(m)
	}
	if err != nil {
		p.Abort()
		return err
	}
	return p.publish(m)
}

// publish is Publish for files that are as the manifest says.
func (p *Place) publish(m *Manifest) (err error) {
	defer func() {
		if err != nil {
			p.Abort()
		}
	}()
	if !p.Cache {
		if err := sign(p.tmp); err != nil {
			return err
		}
		if err := p.sync(filepath.Join(p.tmp, signatureFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if err := p.sync(p.tmp); err != nil {
		return err
	}
	if err := p.rename(); err != nil {
		return err
	}
	s := &Snapshot{Manifest: *m, Dir: p.dir}
	if err := s.openMemory(); err != nil {
		return err
	}
	defer s.Close()
	return errors.Join(s.stamp(p.Cache), p.sync(filepath.Dir(p.dir)))
}

// tidy removes the disks' files that were not used.
func (p *Place) tidy(m *Manifest) error {
	used := map[string]bool{ManifestFile: true, memoryFile: true, zstdFile: true}
	for _, f := range m.Files {
		used[f.Name] = true
	}
	entries, err := os.ReadDir(p.tmp)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !used[e.Name()] {
			if err := os.Remove(filepath.Join(p.tmp, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// rename gives the snapshot its name.
func (p *Place) rename() error {
	err := os.Rename(p.tmp, p.dir)
	if err == nil || !p.replace || !errors.Is(err, fs.ErrExist) {
		return err
	}
	old := p.tmp + ".old"
	if err := os.Rename(p.dir, old); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Rename(p.tmp, p.dir); err != nil {
		return errors.Join(err, os.Rename(old, p.dir))
	}
	return os.RemoveAll(old)
}

// Abort leaves nothing of a snapshot that is not finished.
func (p *Place) Abort() { os.RemoveAll(p.tmp) }

// sync has a file or directory on the host's disk, unless the snapshot need not survive it.
func (p *Place) sync(path string) error {
	if p.Cache {
		return nil
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
