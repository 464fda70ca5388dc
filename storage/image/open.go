// Package image is what one does with disk images as files: it opens them with
// their backing chains, whatever their format, and copies, compares, commits
// and rebases them.
package image

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"vmm/internal/paths"
	"vmm/internal/temp"
	"vmm/storage"
	"vmm/storage/qcow2"
)

// The formats.
const (
	Raw   = "raw"
	Qcow2 = "qcow2"
)

// Formats lists them all.
var Formats = []string{Raw, Qcow2}

// maxDepth bounds a backing chain.
const maxDepth = 64

// Options say how to open an image. The zero values are good.
type Options struct {
	Format   string // one of Formats; "" finds out
	ReadOnly bool
	Cache    storage.Cache // storage.Writeback if empty
	// Ephemeral keeps all changes in a temporary file, which is gone with the
	// process; the image itself is opened for reading.
	Ephemeral bool
	// AnyBacking allows a backing file of raw format anywhere. Without it a
	// hostile image can show only files beside itself, or such that are qcow2
	// images.
	AnyBacking bool
	// WriteBacking opens the first backing file for writing too.
	WriteBacking bool
}

// ErrForeignBacking is in the error for an image that needs Options.AnyBacking.
var ErrForeignBacking = errors.New("a raw file outside of its directory, which a hostile image could use to show any file")

// Image is an open image with its chain.
type Image struct {
	storage.Disk
	// File is the image's own file, and Format what is in it.
	File   *storage.File
	Format string
	// Qcow2 is nil for a raw image; Backing is nil without a backing file.
	Qcow2   *qcow2.Image
	Backing *Image
}

// Open opens an image and its backing chain, of at most 64 files. The error is
// ErrForeignBacking, a *storage.LockError, an error of package qcow2, or of the host:
// os.ErrNotExist is also one that is missing of the chain.
func Open(path string, o Options) (*Image, error) {
	if o.Ephemeral {
		return openEphemeral(path, o)
	}
	return open(path, o, nil)
}

// open opens an image whose overlays are given, the nearest one last.
func open(path string, o Options, overlays []*storage.File) (_ *Image, err error) {
	if len(overlays) > maxDepth {
		return nil, fmt.Errorf("%s: more than %d backing files", overlays[0].Name(), maxDepth)
	}
	f, err := storage.OpenFile(path, o.ReadOnly, o.Cache)
	if err != nil {
		return nil, err
	}
	i := &Image{File: f}
	defer func() {
		if err != nil && i.Disk == nil {
			f.Close()
		} else if err != nil {
			i.Disk.Close()
		}
	}()
	for _, above := range overlays {
		if f.Same(above) {
			return nil, fmt.Errorf("%s: is its own backing file", f.Name())
		}
	}
	if i.Format, err = format(f, o.Format); err != nil {
		return nil, err
	}
	if len(overlays) > 0 && i.Format == Raw && !o.AnyBacking {
		if err := allowed(overlays[len(overlays)-1], f); err != nil {
			return nil, err
		}
	}
	if i.Format == Raw {
		i.Disk = storage.NewRaw(f, o.Format == "")
		return i, nil
	}
	q, err := qcow2.Open(f)
	if err != nil {
		return nil, err
	}
	i.Disk, i.Qcow2 = q, q
	name, backingFormat := q.BackingFile()
	if name == "" {
		return i, nil
	}
	path, err = backingPath(f, name)
	if err != nil {
		return nil, err
	}
	below := Options{Format: backingFormat, ReadOnly: !o.WriteBacking, AnyBacking: o.AnyBacking, Cache: o.Cache}
	i.Backing, err = open(path, below, append(overlays, f))
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%s: its backing file is missing: %w", f.Name(), err)
	}
	if err != nil {
		return nil, err
	}
	q.SetBacking(i.Backing.Disk)
	return i, nil
}

// format checks a format, or finds out.
func format(f *storage.File, given string) (string, error) {
	switch given {
	case Raw, Qcow2:
		return given, nil
	case "":
	default:
		return "", fmt.Errorf("%s: format %s: only raw and qcow2 are known", f.Name(), given)
	}
	var head [len(qcow2.Magic)]byte
	if _, err := f.ReadAt(head[:], 0); err != nil {
		return "", err
	}
	if string(head[:]) == qcow2.Magic {
		return Qcow2, nil
	}
	return Raw, nil
}

// backingPath is where an image's backing file is: relative to the image.
func backingPath(f *storage.File, name string) (string, error) {
	if rest, ok := strings.CutPrefix(name, "file:"); ok {
		name = rest
	} else if colon := strings.IndexByte(name, ':'); colon > 0 && !strings.Contains(name[:colon], "/") {
		return "", fmt.Errorf("%s: its backing file is %q: only files are possible", f.Name(), name)
	}
	if filepath.IsAbs(name) {
		return name, nil
	}
	return filepath.Join(f.Dir(), name), nil
}

// allowed refuses a raw backing file that does not lie beside the image that
// names it, or below.
func allowed(f, backing *storage.File) error {
	dir, err := paths.Real(f.Dir())
	if err != nil {
		return err
	}
	path, err := paths.Real(backing.Name())
	if err != nil {
		return err
	}
	if rel, err := filepath.Rel(dir, path); err == nil && filepath.IsLocal(rel) {
		return nil
	}
	return fmt.Errorf("%s: its backing file %s is %w", f.Name(), backing.Name(), ErrForeignBacking)
}

// openEphemeral opens an image under a temporary overlay.
func openEphemeral(path string, o Options) (*Image, error) {
	o.ReadOnly, o.Ephemeral = true, false
	base, err := open(path, o, nil)
	if err != nil {
		return nil, err
	}
	top, err := temporary(base.Size())
	if err != nil {
		return nil, errors.Join(fmt.Errorf("a file for what is written to %s: %w", path, err), base.Close())
	}
	top.SetBacking(base.Disk)
	return &Image{Disk: top, File: base.File, Format: Qcow2, Qcow2: top, Backing: base}, nil
}

// temporary makes an empty image in a file that has no name.
func temporary(size int64) (*qcow2.Image, error) {
	t, err := temp.File("vmm-snapshot-")
	if err != nil {
		return nil, err
	}
	defer os.Remove(t.Name())
	defer t.Close()
	f, err := storage.OpenFile(t.Name(), false, storage.Unsafe)
	if err != nil {
		return nil, err
	}
	if err := qcow2.Create(f, qcow2.Options{Size: size}); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	i, err := qcow2.Open(f)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return i, nil
}

// Chain returns the images of the chain, the top one first.
func (i *Image) Chain() []*Image {
	var out []*Image
	for ; i != nil; i = i.Backing {
		out = append(out, i)
	}
	return out
}
