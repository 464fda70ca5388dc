// Package decompress tells compressed streams by their first bytes and unpacks them:
// kernels, initial RAM disks, modules, archives.
package decompress

import (
	"bytes"
	"compress/bzip2"
	"encoding/binary"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/therootcompany/xz" // it alone knows the filter for x86, which kernels are packed with
	"github.com/ulikunitz/xz/lzma"
)

// Format is a way to compress.
type Format struct {
	Name  string
	magic string
	open  func(io.Reader) (io.ReadCloser, error)
}

// HeadSize is how many bytes of a stream tell its format, at the most.
const HeadSize = 6

// maxWindow bounds what a stream may have its reader keep, in bytes.
const maxWindow = 128 << 20

var formats = []*Format{
	{"gzip", "\x1f\x8b\x08", func(r io.Reader) (io.ReadCloser, error) { return gzip.NewReader(r) }},
	{"xz", "\xfd7zXZ\x00", func(r io.Reader) (io.ReadCloser, error) {
		x, err := xz.NewReader(r, maxWindow)
		return io.NopCloser(x), err
	}},
	{"zstd", "\x28\xb5\x2f\xfd", func(r io.Reader) (io.ReadCloser, error) {
		z, err := zstd.NewReader(r, zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return nil, err
		}
		return z.IOReadCloser(), nil
	}},
	{"lz4", "\x02\x21\x4c\x18", openLZ4}, // the older form, which kernels have
	{"lz4", "\x04\x22\x4d\x18", openLZ4},
	{"lzma", "\x5d\x00\x00", openLZMA},
	{"bzip2", "BZh", func(r io.Reader) (io.ReadCloser, error) { return io.NopCloser(bzip2.NewReader(r)), nil }},
}

// Detect returns the format of a stream that begins with head, nil if it is none that
// is known.
func Detect(head []byte) *Format {
	for _, f := range formats {
		if bytes.HasPrefix(head, []byte(f.magic)) {
			return f
		}
	}
	return nil
}

// NewReader unpacks r. Closing it frees what it has; r stays open.
func (f *Format) NewReader(r io.Reader) (io.ReadCloser, error) {
	out, err := f.open(r)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", f.Name, err)
	}
	return out, nil
}

func openLZ4(r io.Reader) (io.ReadCloser, error) { return io.NopCloser(lz4.NewReader(r)), nil }

// openLZMA refuses a dictionary for which the library would take the memory at once.
func openLZMA(r io.Reader) (io.ReadCloser, error) {
	const dictionaryAt, header = 1, 5
	var head [header]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	if n := binary.LittleEndian.Uint32(head[dictionaryAt:]); n > maxWindow {
		return nil, fmt.Errorf("a dictionary of %d bytes", n)
	}
	l, err := lzma.NewReader(io.MultiReader(bytes.NewReader(head[:]), r))
	if err != nil {
		return nil, err
	}
	return io.NopCloser(l), nil
}
