package bootloader

import (
	"bytes"
	"compress/bzip2"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/therootcompany/xz"
	"github.com/ulikunitz/xz/lzma"
)

// format is a compression of kernel payloads, told by its first bytes.
type format struct {
	name  string
	magic string
	// sized payloads end with the unpacked size in four bytes of their own
	// (linux scripts/Makefile.lib, size_append).
	sized bool
	open  func(io.Reader) (io.Reader, error)
}

var formats = []format{
	{"gzip", "\x1f\x8b\x08", false, func(r io.Reader) (io.Reader, error) { return gzip.NewReader(r) }},
	{"xz", "\xfd7zXZ\x00", true, func(r io.Reader) (io.Reader, error) { return xz.NewReader(r, xz.DefaultDictMax) }},
	{"zstd", "\x28\xb5\x2f\xfd", true, func(r io.Reader) (io.Reader, error) {
		return zstd.NewReader(r, zstd.WithDecoderMaxWindow(1<<28))
	}},
	{"lz4", "\x02\x21\x4c\x18", true, func(r io.Reader) (io.Reader, error) { return lz4.NewReader(r), nil }},
	{"lzma", "\x5d\x00\x00", true, openLZMA},
	{"bzip2", "BZh", true, func(r io.Reader) (io.Reader, error) { return bzip2.NewReader(r), nil }},
}

// openLZMA refuses a dictionary that no kernel has, for which the library would
// take the memory at once.
func openLZMA(r io.Reader) (io.Reader, error) {
	const dictionaryAt, header, limit = 1, 5, 128 << 20
	var head [header]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	if n := binary.LittleEndian.Uint32(head[dictionaryAt:]); n > limit {
		return nil, fmt.Errorf("a dictionary of %d bytes", n)
	}
	return lzma.NewReader(io.MultiReader(bytes.NewReader(head[:]), r))
}

var errUnpacked = errors.New("the unpacked kernel is larger than its header says")

// unpack decompresses a kernel payload of at most limit bytes.
func unpack(payload []byte, limit int64) ([]byte, error) {
	if bytes.HasPrefix(payload, []byte("\x7fELF")) {
		return payload, nil // CONFIG_KERNEL_UNCOMPRESSED
	}
	return decompress(payload, limit, true)
}

// decompress unpacks what becomes at most limit bytes; sized tells that it has
// the size behind it, where its format does.
func decompress(payload []byte, limit int64, sized bool) ([]byte, error) {
	for _, f := range formats {
		if !bytes.HasPrefix(payload, []byte(f.magic)) {
			continue
		}
		if f.sized && sized {
			if len(payload) < 4 {
				return nil, ErrCutOff
			}
			payload = payload[:len(payload)-4]
		}
		r, err := f.open(bytes.NewReader(payload))
		if err != nil {
			return nil, fmt.Errorf("%s payload: %w", f.name, err)
		}
		if c, ok := r.(interface{ Close() }); ok {
			defer c.Close() // zstd's goroutines
		}
		var out bytes.Buffer
		out.Grow(int(min(limit, 8*int64(len(payload)))))
		n, err := io.Copy(&out, io.LimitReader(r, limit+1))
		switch {
		case n > limit:
			return nil, errUnpacked
		case err != nil:
			return nil, fmt.Errorf("%s payload: %w: %v", f.name, ErrCutOff, err)
		}
		return out.Bytes(), nil
	}
	return nil, fmt.Errorf("unknown compression %x of the kernel: unpack it yourself and give its vmlinux", payload[:min(4, len(payload))])
}
