package disk

import (
	"errors"
	"io"
)

// meter reads a disk, and bounds how much of it: what is read depends on what was read
// before, so that a small disk can lead to more than there is time for. All of a disk's
// file systems have the same.
type meter struct {
	r    io.ReaderAt
	left int64
	over bool // something was not read
}

// The bounds of what is read, in bytes.
const (
	maxSearch = 2 << 30 // to find the entries
	maxLoad   = 8 << 30 // and to load one
	perRead   = 1024    // what a read costs at least
)

var errMeter = errors.New("the disk leads to more than is read of one, so there may be other entries")

// spend takes n bytes.
func (m *meter) spend(n int) error {
	if m.left -= int64(max(n, perRead)); m.left < 0 {
		m.left, m.over = 0, true
		return errMeter
	}
	return nil
}

// ReadAt implements io.ReaderAt.
func (m *meter) ReadAt(p []byte, off int64) (int, error) {
	if err := m.spend(len(p)); err != nil {
		return 0, err
	}
	return m.r.ReadAt(p, off)
}
