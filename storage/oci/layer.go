package oci

import (
	"archive/tar"
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/klauspost/compress/zstd"

	"vmm/internal/tarfile"
	"vmm/storage/erofs"
)

// A layer in the store is a directory of two files.
const (
	// dataName has the contents of all its files, each at the beginning of a block of EROFS.
	dataName = "data"
	// treeName is the layer's archive without the contents of files, packed with zstd: where
	// those are is in records of its own.
	treeName = "tree.tar.zst"
)

// The records of treeName for a file that has contents, in decimal.
const (
	recordSize  = "VMM.size"  // bytes
	recordBlock = "VMM.block" // of dataName
)

// Limits bound what a layer may be unpacked to. What is beyond them is an ErrLimit.
type Limits struct {
	Bytes   int64 // contents of files, those of holes among them
	Entries int   // files, of all layers of an image together too
	Names   int64 // bytes of names, links and extended attributes, of all layers together too: they are kept in memory
}

// DefaultLimits are those of a Store that has no others.
var DefaultLimits = Limits{Bytes: 256 << 30, Entries: 4 << 20, Names: 512 << 20}

// counter counts what there is of a layer's or an image's entries, up to the limits.
type counter struct {
	limits  Limits
	entries int
	names   int64 // bytes
}

// count counts an entry.
func (c *counter) count(h *tar.Header) error {
	if c.entries++; c.entries > c.limits.Entries {
		return fmt.Errorf("over %d files: %w", c.limits.Entries, ErrLimit)
	}
	c.names += int64(len(h.Name) + len(h.Linkname))
	for key, value := range h.PAXRecords {
		c.names += int64(len(key) + len(value))
	}
	if c.names > c.limits.Names {
		return fmt.Errorf("over %d bytes of names and extended attributes: %w", c.limits.Names, ErrLimit)
	}
	return nil
}

// ErrLimit is in the error for an image that is larger than it may be.
var ErrLimit = errors.New("more than an image may have")

// maxPath is the longest name of an entry in bytes, as Linux's PATH_MAX has it.
const maxPath = 4095

// unpackLayer writes the archive of a layer to the two files of a directory, which is there and
// empty. It reads r to its end.
func unpackLayer(r io.Reader, dir string, limits Limits) (err error) {
	data, err := os.Create(filepath.Join(dir, dataName))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, data.Close()) }()
	tree, err := os.Create(filepath.Join(dir, treeName))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, tree.Close()) }()
	packer, err := zstd.NewWriter(tree, zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(1<<20))
	if err != nil {
		return err
	}
	u := unpacker{from: tar.NewReader(r), to: tar.NewWriter(packer), data: newBlocks(data), counter: counter{limits: limits}}
	if err := u.run(); err != nil {
		packer.Close() // which fails for the same reason, if it does
		return err
	}
	if err := errors.Join(u.to.Close(), packer.Close(), u.data.finish()); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, r) // what follows the archive belongs to the layer's digest
	return err
}

// unpacker takes the contents out of an archive.
type unpacker struct {
	counter
	from *tar.Reader
	to   *tar.Writer
	data *blocks
}

func (u *unpacker) run() error {
	for {
		h, err := u.from.Next()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return fmt.Errorf("not a layer: %w", err)
		}
		if err = u.count(h); err == nil {
			err = u.entry(h)
		}
		if err != nil {
			return fmt.Errorf("%.200q: %w", h.Name, err)
		}
	}
}

// entry takes over one file.
func (u *unpacker) entry(h *tar.Header) error {
	kept := &tar.Header{Format: tar.FormatPAX, Typeflag: h.Typeflag, Name: h.Name, Linkname: h.Linkname, Mode: h.Mode & 0o7777,
		Uid: h.Uid, Gid: h.Gid, ModTime: h.ModTime, Devmajor: h.Devmajor, Devminor: h.Devminor, PAXRecords: map[string]string{}}
	for key, value := range h.PAXRecords {
		if strings.HasPrefix(key, tarfile.XattrRecord) {
			kept.PAXRecords[key] = value
		}
	}
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse:
		kept.Typeflag = tar.TypeReg
		if h.Size == 0 {
			break
		}
		if h.Size > u.limits.Bytes-u.data.size {
			return fmt.Errorf("over %d bytes in one layer: %w", u.limits.Bytes, ErrLimit)
		}
		kept.PAXRecords[recordSize] = strconv.FormatInt(h.Size, 10)
		kept.PAXRecords[recordBlock] = strconv.FormatInt(u.data.size/erofs.BlockSize, 10)
		if err := u.data.add(u.from, h.Size); err != nil {
			return err
		}
	case tar.TypeDir, tar.TypeSymlink, tar.TypeLink, tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
	default:
		return nil // what else there is in archives is no file
	}
	if len(h.Name) > maxPath || len(h.Linkname) > maxPath {
		return fmt.Errorf("a name of %d bytes: %w", max(len(h.Name), len(h.Linkname)), ErrLimit)
	}
	return u.to.WriteHeader(kept)
}

// readTree calls each for the entries of a layer in the store.
func readTree(dir string, each func(*tar.Header) error) error {
	f, err := os.Open(filepath.Join(dir, treeName))
	if err != nil {
		return err
	}
	defer f.Close()
	z, err := zstd.NewReader(bufio.NewReader(f), zstd.WithDecoderConcurrency(1))
	if err != nil {
		return err
	}
	defer z.Close()
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%s: %w", f.Name(), err)
		}
		if err := each(h); err != nil {
			return err
		}
	}
}

// contents returns the size of a file and its first block, as the unpacker has written them.
func contents(h *tar.Header) (size int64, block uint32, err error) {
	if h.PAXRecords[recordSize] == "" {
		return 0, 0, nil
	}
	if size, err = strconv.ParseInt(h.PAXRecords[recordSize], 10, 64); err != nil {
		return 0, 0, err
	}
	b, err := strconv.ParseUint(h.PAXRecords[recordBlock], 10, 32)
	return size, uint32(b), err
}
