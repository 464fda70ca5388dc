package image

import (
	"errors"
	"io/fs"
	"slices"

	"vmm/storage"
	"vmm/storage/qcow2"
)

// Held keeps the files of a closed image and of its chain open, without locks: others can
// have them, and they can be opened again without their names.
type Held struct{ files []*storage.Held } // the top one first

// Release closes the image, and holds its files. They are held after an error too, unless
// the result is nil: then the image is as it was.
func (i *Image) Release() (*Held, error) {
	h := &Held{}
	for _, above := range i.Chain() {
		f, err := above.File.Hold()
		if err != nil {
			return nil, errors.Join(err, h.Close())
		}
		h.files = append(h.files, f)
	}
	return h, errors.Join(i.Close(), h.unlock())
}

// Open opens the image again, as Open does. The files stay held, until Close.
func (h *Held) Open(o Options) (*Image, error) {
	i, err := h.open(h.files[0].Name, o, nil)
	if err != nil {
		return nil, errors.Join(err, h.unlock())
	}
	return i, nil
}

// Extend makes an overlay of the image in top, which is empty, and opens that. The overlay
// calls the image as below says. The files stay held; top belongs to the caller, and is
// empty after an error. One that has no name any more is an error.
func (h *Held) Extend(top *storage.Held, below qcow2.Options, o Options) (_ *Image, err error) {
	all := &Held{append([]*storage.Held{top}, h.files...)}
	h.files[0].Name = below.BackingFile
	f, err := top.Open(false)
	if err != nil {
		return nil, errors.Join(err, all.unlock())
	}
	defer f.Close()
	if f.Unlinked() { // by who has made it, and waits for it no longer
		return nil, errors.Join(&fs.PathError{Op: "open", Path: top.Name, Err: fs.ErrNotExist}, all.unlock())
	}
	var i *Image
	if err = qcow2.Create(f, below); err == nil {
		i, err = all.Open(o)
	}
	if err != nil {
		return nil, errors.Join(err, f.Truncate(0), all.unlock())
	}
	return i, nil
}

// Top is the image's own file.
func (h *Held) Top() *storage.Held { return h.files[0] }

// Close lets go of the files.
func (h *Held) Close() error { return h.each((*storage.Held).Close) }

func (h *Held) unlock() error { return h.each((*storage.Held).Unlock) }

func (h *Held) each(do func(*storage.Held) error) error {
	var errs []error
	for _, f := range h.files {
		errs = append(errs, do(f))
	}
	return errors.Join(errs...)
}

// file opens one that is held, or else by its name; h may be nil.
func (h *Held) file(path string, o *Options) (*storage.File, error) {
	if h != nil {
		if at := slices.IndexFunc(h.files, func(f *storage.Held) bool { return f.Name == path }); at >= 0 {
			return h.files[at].Open(o.ReadOnly)
		}
	}
	return storage.OpenFile(path, o.ReadOnly, o.Cache)
}
