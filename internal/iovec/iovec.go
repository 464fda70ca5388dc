// Package iovec works on vectors of bytes: memory in pieces, as guests' buffers and
// system calls have it. Nothing here allocates but what it returns.
package iovec

import (
	"math"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Len returns how many bytes a vector has.
func Len(v [][]byte) int {
	n := 0
	for _, b := range v {
		n += len(b)
	}
	return n
}

// Gather copies a vector's first bytes into one piece, as far as either goes, and
// returns how many there were.
func Gather(to []byte, v [][]byte) int {
	n := 0
	for _, b := range v {
		if n == len(to) {
			break
		}
		n += copy(to[n:], b)
	}
	return n
}

// Scatter copies one piece to a vector's first bytes, as far as either goes, and
// returns how many there were.
func Scatter(v [][]byte, from []byte) int {
	n := 0
	for _, b := range v {
		if n == len(from) {
			break
		}
		n += copy(b, from[n:])
	}
	return n
}

// Cut appends to dst the part of a vector that begins at off and has n bytes, or as
// many as there are. It may be cut in place, with dst v[:0].
func Cut(dst, v [][]byte, off, n int64) [][]byte {
	for _, b := range v {
		if n == 0 {
			break
		}
		if off >= int64(len(b)) {
			off -= int64(len(b))
			continue
		}
		b = b[off:]
		b = b[:min(int64(len(b)), n)]
		off, n = 0, n-int64(len(b))
		dst = append(dst, b)
	}
	return dst
}

// Skip appends to dst what comes after a vector's first n bytes.
func Skip(dst, v [][]byte, n int) [][]byte { return Cut(dst, v, int64(n), math.MaxInt64) }

// Clear fills a vector with zeros.
func Clear(v [][]byte) {
	for _, b := range v {
		clear(b)
	}
}

// Append appends to dst what system calls take for a vector.
func Append(dst []unix.Iovec, v ...[]byte) []unix.Iovec {
	for _, b := range v {
		if len(b) > 0 {
			dst = append(dst, unix.Iovec{Base: unsafe.SliceData(b), Len: uint64(len(b))})
		}
	}
	return dst
}
