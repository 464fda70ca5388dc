// Package image is what one does with disk images as files: it opens them with
// their backing chains, whatever their format, and copies, compares, commits
// and rebases them.
package image

import (
	"errors"
	"fmt"
	"os"
	"slices"

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
// ErrForeignBacking, a *ForeignFormatError, a *LoopError, a *storage.LockError, an error of
// package qcow2, or of the host: os.ErrNotExist is also one that is missing of the chain.
func Open(path string, o Options) (*Image, error) {
	if o.Ephemeral {
		return openEphemeral(path, o)
	}
	return (*Held)(nil).open(path, o, nil)
}

// open opens an image whose overlays are given, the nearest one last. Its files are those
// that are held, and others by their names.
func (h *Held) open(path string, o Options, overlays []*storage.File) (_ *Image, err error) {
	if len(overlays) > maxDepth {
		return nil, fmt.Errorf("%s: more than %d backing files", overlays[0].Name(), maxDepth)
	}
	// Before it is opened, for it is locked by what is above.
	if at := slices.IndexFunc(overlays, func(above *storage.File) bool { return above.At(path) }); at >= 0 {
		return nil, newLoop(overlays[at:])
	}
	f, err := h.file(path, &o)
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
	at, err := findBacking(f, name, backingFormat)
	if err != nil {
		return nil, err
	}
	below := Options{Format: at.format, ReadOnly: !o.WriteBacking, AnyBacking: o.AnyBacking, Cache: o.Cache}
	i.Backing, err = h.open(at.path, below, append(overlays, f))
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%s: its backing file is missing: %w", f.Name(), err)
	}
	if err != nil {
		return nil, err
	}
	q.SetBacking(i.Backing.Disk)
	return i, nil
}

// openEphemeral opens an image under a temporary overlay.
func openEphemeral(path string, o Options) (*Image, error) {
	o.ReadOnly, o.Ephemeral = true, false
	base, err := (*Held)(nil).open(path, o, nil)
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
