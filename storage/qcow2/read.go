package qcow2

import (
	"bytes"
	"compress/flate"
	"errors"
	"io"
	"sync"

	"github.com/klauspost/compress/zstd"

	"vmm/internal/iovec"
	"vmm/storage"
)

// vectors are kept, so that a request allocates none.
var vectors = sync.Pool{New: func() any { v := make([][]byte, 0, 64); return &v }}

// errWouldWait ends a TryReadV that cannot be done at once.
var errWouldWait = errors.New("would wait")

// ReadV implements storage.Disk.
func (i *Image) ReadV(v [][]byte, off int64) error { return i.read(v, off, false) }

// TryReadV implements storage.Disk.
func (i *Image) TryReadV(v [][]byte, off int64) (bool, error) {
	err := i.read(v, off, true)
	if err == errWouldWait {
		return false, nil
	}
	return true, err
}

func (i *Image) read(v [][]byte, off int64, try bool) error {
	total := int64(iovec.Len(v))
	if err := storage.CheckRange(off, total, i.Size()); err != nil {
		return err
	}
	if try {
		if !i.io.TryRLock() {
			return errWouldWait
		}
	} else {
		i.io.RLock()
	}
	defer i.io.RUnlock()
	for done := int64(0); done < total; {
		r, err := i.mapping(off+done, total-done, try)
		if err != nil {
			return err
		}
		if r.n == total {
			err = i.readRun(r, v, off, try)
		} else {
			p := vectors.Get().(*[][]byte)
			*p = iovec.Cut((*p)[:0], v, done, r.n)
			err = i.readRun(r, *p, off+done, try)
			clear(*p)
			vectors.Put(p)
		}
		if err != nil {
			return err
		}
		done += r.n
	}
	return nil
}

// mapping is find that does not wait if try is set.
func (i *Image) mapping(off, n int64, try bool) (run, error) {
	if !try {
		return i.find(off, n)
	}
	if !i.mu.TryRLock() {
		return run{}, errWouldWait
	}
	defer i.mu.RUnlock()
	r, err := i.lookup(off, n)
	if _, ok := err.(notLoaded); ok {
		err = errWouldWait
	}
	return r, err
}

// readRun fills v, which is as long as the run, from it.
func (i *Image) readRun(r run, v [][]byte, off int64, try bool) error {
	var done bool
	var err error
	switch {
	case r.kind == kindData && try:
		done, err = i.file.TryReadV(v, r.host)
	case r.kind == kindData:
		return i.file.ReadV(v, r.host)
	case r.kind == kindCompressed && try:
	case r.kind == kindCompressed:
		return i.readCompressed(r.entry, v, off&(i.cluster-1))
	case r.kind == kindZero || i.backing == nil || off >= i.backing.Size():
		iovec.Clear(v)
		return nil
	default:
		return i.readBacking(v, off, try)
	}
	if !done && err == nil {
		return errWouldWait
	}
	return err
}

// readBacking reads what the backing disk has; it may be shorter.
func (i *Image) readBacking(v [][]byte, off int64, try bool) error {
	n := int64(iovec.Len(v))
	have := min(n, i.backing.Size()-off)
	if have < n {
		tail := iovec.Cut(nil, v, have, n-have)
		iovec.Clear(tail)
		v = iovec.Cut(nil, v, 0, have)
	}
	if !try {
		return i.backing.ReadV(v, off)
	}
	done, err := i.backing.TryReadV(v, off)
	if !done && err == nil {
		return errWouldWait
	}
	return err
}

// compressedAt decodes the entry of a compressed cluster: where it is, and in
// how many bytes.
func (i *Image) compressedAt(e uint64) (at, n int64) {
	shift := 62 - (i.bits - 8)
	at = int64(e & (1<<shift - 1))
	extra := int64(e & (entryCompressed - 1) >> shift)
	return at, (extra+1)*storage.SectorSize - at&(storage.SectorSize-1)
}

// unpackedCache holds the clusters that were unpacked last: a guest reads a
// cluster in many small pieces.
type unpackedCache struct {
	mu   sync.Mutex
	next int
	kept [8]struct {
		entry uint64
		data  []byte
	}
}

// readCompressed copies from the compressed cluster of entry, from its byte in
// on, to v.
func (i *Image) readCompressed(entry uint64, v [][]byte, in int64) error {
	c := &i.unpacked
	c.mu.Lock()
	defer c.mu.Unlock()
	for n := range c.kept {
		if k := &c.kept[n]; k.entry == entry && k.data != nil {
			iovec.Scatter(v, k.data[in:])
			return nil
		}
	}
	k := &c.kept[c.next]
	c.next = (c.next + 1) % len(c.kept)
	if k.data == nil {
		k.data = make([]byte, i.cluster)
	}
	k.entry = 0
	at, n := i.compressedAt(entry)
	packed := make([]byte, n)
	if _, err := i.file.ReadAt(packed, at); err != nil {
		return err
	}
	if err := unpack(i.hdr.compression, packed, k.data); err != nil {
		return corrupt("the compressed cluster at %#x: %v", at, err)
	}
	k.entry = entry
	iovec.Scatter(v, k.data[in:])
	return nil
}

// forgetUnpacked is for when clusters get a new meaning.
func (i *Image) forgetUnpacked() {
	i.unpacked.mu.Lock()
	defer i.unpacked.mu.Unlock()
	for n := range i.unpacked.kept {
		i.unpacked.kept[n].entry = 0
	}
}

// unpack fills to with what packed holds; what follows in packed is not its.
func unpack(compression uint8, packed, to []byte) error {
	var r io.Reader
	if compression == compressionZstd {
		d, err := zstd.NewReader(bytes.NewReader(packed), zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(64<<20))
		if err != nil {
			return err
		}
		defer d.Close()
		r = d
	} else {
		f := flate.NewReader(bytes.NewReader(packed))
		defer f.Close()
		r = f
	}
	_, err := io.ReadFull(r, to)
	return err
}
