package snapshot

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"vmm/machine"
)

// Writer makes a snapshot: under another name, and only when it is whole, under its own. It
// is for one goroutine.
type Writer struct {
	dir, tmp string
	m        Manifest
	replace  bool
	files    []string
	// NoSync does not wait until the snapshot is on the disk.
	NoSync bool
}

// Create begins a snapshot in a directory that does not exist yet, or in the place
// of an older snapshot with replace.
func Create(dir string, replace bool) (*Writer, error) {
	if _, err := os.Lstat(dir); err == nil && !replace {
		return nil, fmt.Errorf("%s exists already: give the snapshot another directory", dir)
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	w := &Writer{dir: dir, replace: replace, m: Manifest{Format: Format, Version: Version, ID: rand.Text(), Created: time.Now()}}
	w.tmp, err = os.MkdirTemp(filepath.Dir(dir), "."+filepath.Base(dir)+".saving-")
	if err != nil {
		return nil, fmt.Errorf("saving a snapshot: %w", err)
	}
	return w, nil
}

// ID is the snapshot's.
func (w *Writer) ID() string { return w.m.ID }

// MemoryOptions say how memory is saved.
type MemoryOptions struct {
	// Parent is the snapshot since which only the pages in Dirty have changed;
	// nil saves all.
	Parent   *Snapshot
	Dirty    machine.Bitmap
	Zstd     bool                    // compress it; not with Parent
	Progress func(done, total int64) // is told how much is saved, in bytes; nil drops it
}

// Memory saves the memory of a frozen machine. It is called once, before Commit.
func (w *Writer) Memory(mem *machine.Memory, o MemoryOptions) (err error) {
	m := &memoryWriter{mem: mem, progress: o.Progress}
	for _, r := range mem.RAM() {
		m.size += int64(len(r))
	}
	m.sums = make([]byte, 4*chunks(m.size))
	w.m.Memory.Size, w.m.Memory.Parts = m.size, [][2]int64{{0, m.size}}
	name := memoryFile
	if o.Zstd {
		name = zstdFile
	}
	if m.file, err = os.OpenFile(filepath.Join(w.tmp, name), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.file.Close()) }()
	if !o.Zstd {
		if err := m.file.Truncate(m.size); err != nil {
			return err
		}
	}
	if o.Parent != nil {
		if o.Zstd {
			return errors.New("a difference is not compressed")
		}
		w.m.Memory.Parent, w.m.Memory.ParentID = o.Parent.Dir, o.Parent.ID
		if abs, err := filepath.Abs(o.Parent.Dir); err == nil {
			if w.m.Memory.Parent, err = filepath.Rel(w.dir, abs); err != nil {
				w.m.Memory.Parent = abs
			}
		}
		w.m.Memory.Parts = parts(o.Dirty, m.size)
		err = m.difference(w.m.Memory.Parts)
	} else {
		var populated []bool
		if populated, err = mem.Populated(chunk); err != nil {
			return err
		}
		if o.Zstd {
			w.m.Memory.Zstd, err = m.compressed(populated)
		} else {
			err = m.full(populated)
		}
	}
	if err != nil {
		return err
	}
	w.files = append(w.files, sumsFile)
	return os.WriteFile(filepath.Join(w.tmp, sumsFile), m.sums, 0o600)
}

// File is where to put a further file of the snapshot.
func (w *Writer) File(name string) string {
	w.files = append(w.files, name)
	return filepath.Join(w.tmp, name)
}

// Commit finishes the snapshot: it is on the disk then, under its name. vmm is the version
// of the program, and config how the VM is made, as JSON can hold it. After an error
// nothing is left of the snapshot.
func (w *Writer) Commit(vmm string, config any, state *machine.State) (err error) {
	defer func() {
		if err != nil {
			w.Abort()
		}
	}()
	if w.m.Config, err = json.Marshal(config); err != nil {
		return err
	}
	w.m.VMM, w.m.State = vmm, state
	for _, name := range w.files {
		f, err := sumFile(filepath.Join(w.tmp, name))
		if err != nil {
			return err
		}
		w.m.Files = append(w.m.Files, f)
	}
	text, err := json.Marshal(&w.m)
	if err != nil {
		return err
	}
	text = append(append(append(text, '\n'), digest(text)...), '\n')
	if err := os.WriteFile(filepath.Join(w.tmp, ManifestFile), text, 0o600); err != nil {
		return err
	}
	entries, err := os.ReadDir(w.tmp)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := w.sync(filepath.Join(w.tmp, e.Name())); err != nil {
			return err
		}
	}
	if err := w.rename(); err != nil {
		return err
	}
	s := &Snapshot{Manifest: w.m, Dir: w.dir}
	if err := s.openMemory(); err != nil {
		return err
	}
	defer s.Close()
	return errors.Join(s.stamp(), w.sync(filepath.Dir(w.dir)))
}

// rename gives the snapshot its name.
func (w *Writer) rename() error {
	err := os.Rename(w.tmp, w.dir)
	if err == nil || !w.replace || !errors.Is(err, fs.ErrExist) {
		return err
	}
	old := w.tmp + ".old"
	if err := os.Rename(w.dir, old); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Rename(w.tmp, w.dir); err != nil {
		return errors.Join(err, os.Rename(old, w.dir))
	}
	return os.RemoveAll(old)
}

// Abort leaves nothing of a snapshot that is not finished.
func (w *Writer) Abort() { os.RemoveAll(w.tmp) }

func (w *Writer) sync(path string) error {
	if w.NoSync {
		return nil
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
