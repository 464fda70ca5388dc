// Package vmem reserves ranges of this process's addresses whose place matters to KVM.
package vmem

import (
	"errors"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Sizes of pages, in bytes.
const (
	Page      = 4 << 10
	HugePage  = 2 << 20
	GiantPage = 1 << 30
)

// Reserve maps size bytes of memory, whole pages, privately and without a promise of the
// host's, at an address that is a multiple of the largest size of page that fits in: KVM maps
// a huge page only where the guest's address and the host's agree below its size. What
// is not touched costs nothing. Release frees it.
func Reserve(size uint64, prot int) ([]byte, error) {
	align := uintptr(Page)
	for _, page := range []uint64{HugePage, GiantPage} {
		if size >= page {
			align = uintptr(page)
		}
	}
	// More than is needed, of which the ends are given back.
	start, err := unix.MmapPtr(-1, 0, nil, uintptr(size)+align, prot, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return nil, err
	}
	before := -uintptr(start) & (align - 1)
	at := unsafe.Add(start, before)
	if before > 0 {
		err = unix.MunmapPtr(start, before)
	}
	if err := errors.Join(err, unix.MunmapPtr(unsafe.Add(at, size), align-before)); err != nil {
		return nil, errors.Join(err, unix.MunmapPtr(start, uintptr(size)+align))
	}
	return unsafe.Slice((*byte)(at), size), nil
}

// Map puts n bytes of a file, from off on, over the beginning of b, which Reserve has made:
// b and n are whole pages, but for the file's last one.
func Map(b []byte, fd int, off, n int64, prot, flags int) error {
	_, err := unix.MmapPtr(fd, off, unsafe.Pointer(&b[0]), uintptr(n), prot, flags|unix.MAP_FIXED|unix.MAP_NORESERVE)
	return err
}

// Release frees what Reserve has returned.
func Release(b []byte) error { return unix.MunmapPtr(unsafe.Pointer(&b[0]), uintptr(len(b))) }
