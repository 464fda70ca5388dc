package image

import (
	"errors"
	"os"

	"vmm/internal/paths"
	"vmm/storage"
	"vmm/storage/qcow2"
)

// SaveChanges makes of an empty file a qcow2 image that has what the top image of the
// chain has of its own, over the same backing file. It is for a top image in a file
// without a name.
func (i *Image) SaveChanges(f *os.File) error {
	backing, err := paths.Abs(i.Backing.File.Name())
	if err != nil {
		return err
	}
	to, err := fill(f, qcow2.Options{Size: i.Size(), BackingFile: backing, BackingFormat: i.Backing.Format})
	if err != nil {
		return err
	}
	to.SetBacking(unclosed{i.Backing.Disk})
	err = i.own(func(off, n int64, e storage.Extent) error {
		if !e.Data {
			return to.WriteZeroes(off, n, true)
		}
		return copyRange(i.Qcow2, to, off, n)
	})
	return errors.Join(err, to.Close())
}

// SaveCopy makes of an empty file a qcow2 image, without a backing file, of all that the
// chain has.
func (i *Image) SaveCopy(f *os.File) error {
	to, err := fill(f, qcow2.Options{Size: i.Size()})
	if err != nil {
		return err
	}
	return errors.Join(Copy(i.Disk, to, nil), to.Close())
}

// fill makes an image of an empty file.
func fill(f *os.File, o qcow2.Options) (*qcow2.Image, error) {
	file, err := storage.Adopt(f)
	if err != nil {
		return nil, err
	}
	if err := qcow2.Create(file, o); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	to, err := qcow2.Open(file)
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return to, nil
}

// unclosed is a backing disk that somebody else has open.
type unclosed struct{ storage.Disk }

// Close implements storage.Disk.
func (unclosed) Close() error { return nil }
