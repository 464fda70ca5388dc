// Package holes finds the data of sparse files (lseek(2), SEEK_DATA).
package holes

import (
	"errors"

	"golang.org/x/sys/unix"
)

// Next returns the first data of a file that lies between two offsets, in bytes; both
// results are end where there is none. Files that know of no holes are all data, and
// devices have an error. It moves the file's offset.
func Next(fd int, off, end int64) (from, to int64, err error) {
	from, err = unix.Seek(fd, off, unix.SEEK_DATA)
	if errors.Is(err, unix.ENXIO) || err == nil && from >= end {
		return end, end, nil
	}
	if err == nil {
		to, err = unix.Seek(fd, from, unix.SEEK_HOLE)
	}
	return from, min(to, end), err
}
