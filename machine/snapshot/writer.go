package snapshot

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"vmm/internal/paths"
	"vmm/machine"
)

// Writer writes the files of a snapshot. Commit or Abort ends it. It is for one goroutine.
type Writer struct {
	dir   string // where the snapshot will be
	place *Place // nil if another process has it
	given map[string]*os.File
	m     Manifest
	open  []*os.File // all that were made
	kept  []keptFile // those that are in Manifest.Files
	// Cache is a snapshot that can be made again: it is not waited for until it is on
	// the disk, and not signed.
	Cache bool
}

type keptFile struct {
	name string
	file *os.File
}

// Create begins a snapshot in a directory that does not exist yet, or in the place
// of an older snapshot with replace.
func Create(dir string, replace bool) (*Writer, error) {
	p, err := NewPlace(dir, replace)
	if err != nil {
		return nil, err
	}
	w := newWriter(p.dir)
	w.place = p
	return w, nil
}

// WriteTo writes a snapshot to files that another process has made with Place.CreateAll,
// which then gives it its name, dir. The Writer closes them.
func WriteTo(dir string, files map[string]*os.File) *Writer {
	w := newWriter(dir)
	w.given = files
	return w
}

func newWriter(dir string) *Writer {
	return &Writer{dir: dir, m: Manifest{Format: Format, Version: Version, ID: rand.Text(), Created: time.Now()}}
}

// ID is the snapshot's.
func (w *Writer) ID() string { return w.m.ID }

// File makes a further file of the snapshot. The Writer closes it.
func (w *Writer) File(name string) (*os.File, error) {
	f, err := w.create(name)
	if err == nil {
		w.kept = append(w.kept, keptFile{name, f})
	}
	return f, err
}

func (w *Writer) create(name string) (f *os.File, err error) {
	if w.place != nil {
		f, err = w.place.Create(name)
	} else if f = w.given[name]; f == nil {
		err = fmt.Errorf("there is no descriptor for the snapshot's file %s", name)
	}
	if err == nil {
		w.open = append(w.open, f)
	}
	return f, err
}

// Parent is the snapshot since which only some pages have changed.
type Parent struct {
	Dir string
	ID  string // Manifest.ID
}

// MemoryOptions say how memory is saved.
type MemoryOptions struct {
	// Parent is the snapshot since which only the pages in Dirty have changed;
	// nil saves all.
	Parent   *Parent
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
	if m.file, err = w.create(name); err != nil {
		return err
	}
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
		if abs, err := paths.Abs(o.Parent.Dir); err == nil {
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
	sums, err := w.File(sumsFile)
	if err != nil {
		return err
	}
	_, err = sums.Write(m.sums)
	return err
}

// Commit finishes the snapshot: it is on the disk then, under its name unless that is
// another process's to give. vmm is the version of the program, and config how the VM is
// made, as JSON can hold it. After an error nothing is left of the snapshot.
func (w *Writer) Commit(vmm string, config any, state *machine.State) (err error) {
	defer func() {
		err = errors.Join(err, w.close())
		if err == nil && w.place != nil {
			w.place.Cache = w.Cache
			err = w.place.publish(&w.m)
		}
		if err != nil {
			w.Abort()
		}
	}()
	if w.m.Config, err = json.Marshal(config); err != nil {
		return err
	}
	w.m.VMM, w.m.State = vmm, state
	for _, k := range w.kept {
		f, err := sumFile(k.file, k.name)
		if err != nil {
			return err
		}
		w.m.Files = append(w.m.Files, f)
	}
	text, err := json.Marshal(&w.m)
	if err != nil {
		return err
	}
	f, err := w.create(ManifestFile)
	if err != nil {
		return err
	}
	if _, err := io.WriteString(f, string(text)+"\n"+digest(text)+"\n"); err != nil {
		return err
	}
	if w.Cache {
		return nil
	}
	for _, f := range w.open {
		if err := f.Sync(); err != nil {
			return err
		}
	}
	return nil
}

// close closes all files.
func (w *Writer) close() error {
	var errs []error
	for _, f := range w.open {
		errs = append(errs, f.Close())
	}
	for name, f := range w.given {
		if !slices.Contains(w.open, f) {
			errs = append(errs, f.Close())
		}
		delete(w.given, name)
	}
	w.open = nil
	return errors.Join(errs...)
}

// Abort leaves nothing of a snapshot that is not finished.
func (w *Writer) Abort() {
	w.close()
	if w.place != nil {
		w.place.Abort()
	}
}
