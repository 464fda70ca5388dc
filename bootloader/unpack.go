package bootloader

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"vmm/internal/decompress"
)

var errUnpacked = errors.New("the unpacked kernel is larger than its header says")

// unpack decompresses a kernel payload of at most limit bytes.
func unpack(payload []byte, limit int64) ([]byte, error) {
	if bytes.HasPrefix(payload, []byte("\x7fELF")) {
		return payload, nil // CONFIG_KERNEL_UNCOMPRESSED
	}
	return expand(payload, limit, true)
}

// expand unpacks what becomes at most limit bytes; sized tells that it has
// the size behind it, where its format does.
func expand(payload []byte, limit int64, sized bool) ([]byte, error) {
	f := decompress.Detect(payload)
	if f == nil {
		return nil, fmt.Errorf("unknown compression %x of the kernel: unpack it yourself and give its vmlinux", payload[:min(4, len(payload))])
	}
	// All but gzip's, which ends so anyway, have the unpacked size behind them (linux
	// scripts/Makefile.lib, size_append).
	if sized && f.Name != "gzip" {
		if len(payload) < 4 {
			return nil, ErrCutOff
		}
		payload = payload[:len(payload)-4]
	}
	r, err := f.NewReader(bytes.NewReader(payload))
	if err != nil {
		return nil, fmt.Errorf("payload: %w", err)
	}
	defer r.Close()
	var out bytes.Buffer
	out.Grow(int(min(limit, 8*int64(len(payload)))))
	n, err := io.Copy(&out, io.LimitReader(r, limit+1))
	switch {
	case n > limit:
		return nil, errUnpacked
	case err != nil:
		return nil, fmt.Errorf("%s payload: %w: %v", f.Name, ErrCutOff, err)
	}
	return out.Bytes(), nil
}
