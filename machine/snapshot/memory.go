package snapshot

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/klauspost/compress/zstd"

	"vmm/internal/holes"
	"vmm/internal/temp"
	"vmm/machine"
)

var zeroPage [pageSize]byte

// castagnoli returns the table of the checksums, which is made when it is first asked for: most
// starts need none.
func castagnoli() *crc32.Table { return crc32.MakeTable(crc32.Castagnoli) }

// zeroSum is the checksum of a chunk of zeros.
var zeroSum = sync.OnceValue(func() uint32 { return crc32.Checksum(make([]byte, chunk), castagnoli()) })

// chunks is how many chunks a memory has.
func chunks(size int64) int { return int((size + chunk - 1) / chunk) }

// each calls do for the numbers below n, on all processors, until one fails.
func each(n int, do func(i int) error) error {
	var next atomic.Int64
	var group sync.WaitGroup
	errs := make([]error, min(runtime.NumCPU(), n))
	for w := range errs {
		group.Go(func() {
			for {
				i := int(next.Add(1) - 1)
				if i >= n {
					return
				}
				if errs[w] = do(i); errs[w] != nil {
					next.Store(int64(n))
					return
				}
			}
		})
	}
	group.Wait()
	for _, err := range errs {
		if err != nil {
			return err // the others' are of the same kind
		}
	}
	return nil
}

// memoryWriter writes a memory's file and its checksums.
type memoryWriter struct {
	file     *os.File
	mem      *machine.Memory
	size     int64
	sums     []byte // 4 bytes a chunk, little-endian
	progress func(done, total int64)
	done     atomic.Int64
}

func (w *memoryWriter) sum(i int, v uint32) {
	binary.LittleEndian.PutUint32(w.sums[4*i:], v)
	if w.progress != nil {
		w.progress(min(w.done.Add(chunk), w.size), w.size)
	}
}

// full writes all of RAM but the pages that are zero.
func (w *memoryWriter) full(populated []bool) error {
	return each(chunks(w.size), func(i int) error {
		off := int64(i) * chunk
		n := min(chunk, w.size-off)
		sum := uint32(0)
		if !populated[i] && n == chunk {
			w.sum(i, zeroSum())
			return nil
		}
		at := off
		for _, p := range w.mem.Range(off, n) {
			sum = crc32.Update(sum, castagnoli(), p)
			if err := w.write(p, at); err != nil {
				return err
			}
			at += int64(len(p))
		}
		w.sum(i, sum)
		return nil
	})
}

// write writes pages, and leaves holes for those that are zero.
func (w *memoryWriter) write(p []byte, at int64) error {
	for from := 0; from < len(p); {
		if bytes.Equal(p[from:from+pageSize], zeroPage[:]) {
			from += pageSize
			continue
		}
		to := from + pageSize
		for to < len(p) && !bytes.Equal(p[to:to+pageSize], zeroPage[:]) {
			to += pageSize
		}
		if _, err := w.file.WriteAt(p[from:to], at+int64(from)); err != nil {
			return err
		}
		from = to
	}
	return nil
}

// joinGap is how many clean pages between dirty ones are written too: each part is
// a mapping of its own when it is restored.
const joinGap = 16

// maxParts bounds the parts: the kernel allows 65530 mappings.
const maxParts = 16384

// parts joins the pages of a set to parts.
func parts(dirty machine.Bitmap, size int64) [][2]int64 {
	for gap := joinGap; ; gap *= 2 {
		var out [][2]int64
		for p := range int(size / pageSize) {
			if !dirty.Has(p) {
				continue
			}
			at := int64(p) * pageSize
			if n := len(out); n > 0 && at-(out[n-1][0]+out[n-1][1]) <= int64(gap)*pageSize {
				out[n-1][1] = at + pageSize - out[n-1][0]
			} else {
				out = append(out, [2]int64{at, pageSize})
			}
		}
		if len(out) <= maxParts {
			return out
		}
	}
}

// difference writes some parts of RAM, with their zeros.
func (w *memoryWriter) difference(parts [][2]int64) error {
	if err := each(len(parts), func(i int) error {
		at := parts[i][0]
		for _, p := range w.mem.Range(at, parts[i][1]) {
			if _, err := w.file.WriteAt(p, at); err != nil {
				return err
			}
			at += int64(len(p))
		}
		return nil
	}); err != nil {
		return err
	}
	return sumChunks(w.file, w.size, func(i int, sum uint32) error {
		w.sum(i, sum)
		return nil
	})
}

// sumChunks calls do with the checksum of every chunk of a file.
func sumChunks(f *os.File, size int64, do func(i int, sum uint32) error) error {
	buffers := sync.Pool{New: func() any { b := make([]byte, chunk); return &b }}
	return each(chunks(size), func(i int) error {
		off := int64(i) * chunk
		n := min(chunk, size-off)
		// A chunk that is a hole needs no reading.
		if from, _, err := holes.Next(int(f.Fd()), off, off+n); n == chunk && err == nil && from == off+n {
			return do(i, zeroSum())
		}
		b := buffers.Get().(*[]byte)
		defer buffers.Put(b)
		if _, err := f.ReadAt((*b)[:n], off); err != nil {
			return err
		}
		return do(i, crc32.Checksum((*b)[:n], castagnoli()))
	})
}

// verifyMemory compares the memory's checksums. Those of a compressed one are
// compared when it is unpacked.
func (s *Snapshot) verifyMemory() error {
	sums, err := s.sums()
	if err != nil || s.Memory.Zstd != nil {
		return err
	}
	return sumChunks(s.memory, s.Memory.Size, func(i int, sum uint32) error {
		if binary.LittleEndian.Uint32(sums[4*i:]) != sum {
			return corrupt("%s does not match its checksum, in the MiB from %#x", memoryFile, i*chunk)
		}
		return nil
	})
}

func (s *Snapshot) sums() ([]byte, error) {
	b, err := readFile(s.Path(sumsFile))
	if err == nil && len(b) != 4*chunks(s.Memory.Size) {
		err = corrupt("%s has %d bytes", sumsFile, len(b))
	}
	return b, err
}

// compressed writes all of RAM, each chunk for itself, and returns where they are.
func (w *memoryWriter) compressed(populated []bool) ([]int64, error) {
	encoder, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderCRC(false))
	if err != nil {
		return nil, err
	}
	n := chunks(w.size)
	index := make([]int64, 0, n+1)
	at := int64(0)
	const batch = 64
	for first := 0; first < n; first += batch {
		out := make([][]byte, min(batch, n-first))
		if err := each(len(out), func(k int) error {
			i := first + k
			off := int64(i) * chunk
			if !populated[i] && w.size-off >= chunk {
				w.sum(i, zeroSum())
				return nil
			}
			var b []byte
			for _, p := range w.mem.Range(off, min(chunk, w.size-off)) {
				b = append(b, p...)
			}
			sum := crc32.Checksum(b, castagnoli())
			if sum != zeroSum() || len(b) != chunk {
				out[k] = encoder.EncodeAll(b, nil)
			}
			w.sum(i, sum)
			return nil
		}); err != nil {
			return nil, err
		}
		for _, b := range out {
			if _, err := w.file.WriteAt(b, at); err != nil {
				return nil, err
			}
			index = append(index, at)
			at += int64(len(b))
		}
	}
	return append(index, at), nil
}

// unpack makes a memory's file, without a name, of a compressed one.
func (s *Snapshot) unpack(progress func(done, total int64)) (err error) {
	sums, err := s.sums()
	if err != nil {
		return err
	}
	to, err := temp.File("vmm-memory-")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			to.Close()
		}
	}()
	if err := errors.Join(os.Remove(to.Name()), to.Truncate(s.Memory.Size)); err != nil {
		return err
	}
	decoder, err := zstd.NewReader(nil, zstd.WithDecoderMaxMemory(2*chunk))
	if err != nil {
		return err
	}
	defer decoder.Close()
	var done atomic.Int64
	w := &memoryWriter{file: to}
	if err := each(chunks(s.Memory.Size), func(i int) error {
		from, end := s.Memory.Zstd[i], s.Memory.Zstd[i+1]
		size := min(chunk, s.Memory.Size-int64(i)*chunk)
		sum := zeroSum()
		if from < 0 || end < from || end-from > 2*chunk {
			return corrupt("the compressed memory's index")
		}
		if end > from {
			b := make([]byte, end-from)
			if _, err := s.memory.ReadAt(b, from); err != nil && err != io.EOF {
				return err
			}
			plain, err := decoder.DecodeAll(b, nil)
			if err != nil || int64(len(plain)) != size {
				return corrupt("%s, in the MiB from %#x: %v", zstdFile, i*chunk, err)
			}
			if err := w.write(plain, int64(i)*chunk); err != nil {
				return err
			}
			sum = crc32.Checksum(plain, castagnoli())
		}
		if binary.LittleEndian.Uint32(sums[4*i:]) != sum {
			return corrupt("%s does not match its checksum, in the MiB from %#x", zstdFile, i*chunk)
		}
		if progress != nil {
			progress(min(done.Add(chunk), s.Memory.Size), s.Memory.Size)
		}
		return nil
	}); err != nil {
		return fmt.Errorf("unpacking the memory: %w", err)
	}
	s.memory.Close()
	s.memory = to
	return nil
}
