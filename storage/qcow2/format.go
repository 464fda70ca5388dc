// Package qcow2 reads and writes QEMU's image format, versions 2 and 3
// (docs/interop/qcow2.rst of QEMU): clusters allocated on demand, backing
// files, zero clusters, compressed clusters for reading, internal snapshots
// kept intact, refcounts of every width, lazy refcounts, and extended L2
// entries for reading.
//
// Metadata is changed in memory and written by Flush, in an order that leaves a
// correct image whenever the process or the host stops: data and refcounts
// first, then the L2 tables that point to them, then the L1 table. A cluster
// that is given up is free for others only after no table on the disk points to
// it.
package qcow2

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Magic begins every image.
const Magic = "QFI\xfb"

// Feature bits of the header.
const (
	incompatDirty        = 1 << 0
	incompatCorrupt      = 1 << 1
	incompatDataFile     = 1 << 2
	incompatCompression  = 1 << 3
	incompatExtendedL2   = 1 << 4
	incompatKnown        = incompatDirty | incompatCorrupt | incompatCompression | incompatExtendedL2
	compatLazyRefcounts  = 1 << 0
	autoclearBitmaps     = 1 << 0
	compressionDeflate   = 0
	compressionZstd      = 1
	headerLengthV2       = 72
	headerLengthV3       = 112
	extensionEnd         = 0
	extensionBackingFmt  = 0xe2792aca
	extensionFeatures    = 0x6803f857
	extensionBitmaps     = 0x23852875
	defaultRefcountOrder = 4
)

// Offsets of header fields.
const (
	fieldVersion          = 4
	fieldBackingOffset    = 8
	fieldBackingSize      = 16
	fieldClusterBits      = 20
	fieldSize             = 24
	fieldCrypt            = 32
	fieldL1Size           = 36
	fieldL1Offset         = 40
	fieldRefcountOffset   = 48
	fieldRefcountClusters = 56
	fieldSnapshots        = 60
	fieldSnapshotsOffset  = 64
	fieldIncompatible     = 72
	fieldCompatible       = 80
	fieldAutoclear        = 88
	fieldRefcountOrder    = 96
	fieldHeaderLength     = 100
	fieldCompression      = 104
)

// Bits of L1 and L2 entries.
const (
	entryCopied     = 1 << 63
	entryCompressed = 1 << 62
	entryZero       = 1 << 0
	entryOffset     = 0x00fffffffffffe00
)

// Limits on what an image may ask for.
const (
	minClusterBits   = 9
	maxClusterBits   = 21
	maxL1Bytes       = 32 << 20
	maxRefTableBytes = 8 << 20
	maxBackingName   = 1023
	maxSnapshots     = 65536
	// MaxSize is the largest disk, in bytes, which is QEMU's limit for 2 MiB clusters.
	MaxSize = 1 << 61
)

// Errors of an image. They are in errors that say what exactly is wrong.
var (
	ErrCorrupt     = errors.New("the image is corrupt")
	ErrUnsupported = errors.New("the image uses what vmm does not support")
	ErrNotQcow2    = errors.New("not a qcow2 image")
	// ErrMarkedCorrupt is an ErrCorrupt too: nothing is written to such an image until it
	// is repaired.
	ErrMarkedCorrupt = fmt.Errorf("%w: it was marked so", ErrCorrupt)
)

func corrupt(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrCorrupt}, args...)...)
}

func unsupported(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrUnsupported}, args...)...)
}

// header is what an image says of itself.
type header struct {
	version       uint32
	backingOffset uint64
	backingSize   uint32
	clusterBits   uint32
	size          uint64
	l1Size        uint32
	l1Offset      uint64
	refOffset     uint64
	refClusters   uint32
	snapshots     uint32
	snapOffset    uint64
	incompatible  uint64
	compatible    uint64
	autoclear     uint64
	refcountOrder uint32
	length        uint32
	compression   uint8

	backingName   string
	backingFormat string
	bitmapsCount  uint32
	bitmapsSize   uint64
	bitmapsOffset uint64
}

func (h *header) clusterSize() int64   { return 1 << h.clusterBits }
func (h *header) extended() bool       { return h.incompatible&incompatExtendedL2 != 0 }
func (h *header) refcountBits() uint   { return 1 << h.refcountOrder }
func (h *header) l2EntrySize() int64   { return 8 << (h.incompatible & incompatExtendedL2 >> 4) }
func (h *header) l2Entries() int64     { return h.clusterSize() / h.l2EntrySize() }
func (h *header) perRefBlock() int64   { return h.clusterSize() * 8 / int64(h.refcountBits()) }
func (h *header) clusterCount() int64  { return (int64(h.size) + h.clusterSize() - 1) >> h.clusterBits }
func (h *header) l1Needed() int64      { return (h.clusterCount() + h.l2Entries() - 1) / h.l2Entries() }
func (h *header) lazyRefcounts() bool  { return h.compatible&compatLazyRefcounts != 0 }
func (h *header) subclusterBits() uint { return uint(h.clusterBits) - 5 }

// parseHeader reads the header from the first bytes of an image, as many as
// there are, at most the first cluster, and checks all but what is in other
// clusters.
func parseHeader(b []byte, fileSize int64) (*header, error) {
	be := binary.BigEndian
	if len(b) < headerLengthV2 || string(b[:4]) != Magic {
		return nil, ErrNotQcow2
	}
	h := &header{
		version:       be.Uint32(b[fieldVersion:]),
		backingOffset: be.Uint64(b[fieldBackingOffset:]),
		backingSize:   be.Uint32(b[fieldBackingSize:]),
		clusterBits:   be.Uint32(b[fieldClusterBits:]),
		size:          be.Uint64(b[fieldSize:]),
		l1Size:        be.Uint32(b[fieldL1Size:]),
		l1Offset:      be.Uint64(b[fieldL1Offset:]),
		refOffset:     be.Uint64(b[fieldRefcountOffset:]),
		refClusters:   be.Uint32(b[fieldRefcountClusters:]),
		snapshots:     be.Uint32(b[fieldSnapshots:]),
		snapOffset:    be.Uint64(b[fieldSnapshotsOffset:]),
		refcountOrder: defaultRefcountOrder,
		length:        headerLengthV2,
	}
	switch h.version {
	case 2:
	case 3:
		if len(b) < fieldCompression {
			return nil, corrupt("its header is cut off")
		}
		h.incompatible, h.compatible = be.Uint64(b[fieldIncompatible:]), be.Uint64(b[fieldCompatible:])
		h.autoclear, h.refcountOrder = be.Uint64(b[fieldAutoclear:]), be.Uint32(b[fieldRefcountOrder:])
		h.length = be.Uint32(b[fieldHeaderLength:])
		if h.length > fieldCompression && len(b) > fieldCompression {
			h.compression = b[fieldCompression]
		}
	default:
		return nil, unsupported("version %d", h.version)
	}
	if err := h.check(be.Uint32(b[fieldCrypt:]), fileSize); err != nil {
		return nil, err
	}
	return h, h.parseRest(b)
}

// check looks for what cannot be.
func (h *header) check(crypt uint32, fileSize int64) error {
	if h.clusterBits < minClusterBits || h.clusterBits > maxClusterBits {
		return corrupt("clusters of 2^%d bytes", h.clusterBits)
	}
	cs := uint64(h.clusterSize())
	inFile := func(what string, offset, size uint64) error {
		if offset == 0 || offset%cs != 0 || offset > uint64(fileSize) || size > uint64(fileSize)-offset {
			return corrupt("its %s, %d bytes at %#x, is not in the file of %d bytes: is it cut off?", what, size, offset, fileSize)
		}
		return nil
	}
	switch {
	case crypt != 0:
		return unsupported("encryption")
	case h.incompatible&incompatDataFile != 0:
		return unsupported("an external data file")
	case h.incompatible&^incompatKnown != 0:
		return unsupported("incompatible features %#x", h.incompatible&^incompatKnown)
	case h.compression > compressionZstd:
		return unsupported("compression type %d", h.compression)
	case h.compression != compressionDeflate && h.incompatible&incompatCompression == 0:
		return corrupt("a compression type without its feature bit")
	case h.extended() && h.clusterBits < 14:
		return corrupt("extended L2 entries with clusters of 2^%d bytes", h.clusterBits)
	case h.refcountOrder > 6:
		return corrupt("refcounts of 2^%d bits", h.refcountOrder)
	case h.size > MaxSize:
		return corrupt("a disk of %d bytes", h.size)
	case uint64(h.l1Size)*8 > maxL1Bytes:
		return corrupt("an L1 table of %d entries", h.l1Size)
	case int64(h.l1Size) < h.l1Needed():
		return corrupt("an L1 table of %d entries for a disk of %d bytes", h.l1Size, h.size)
	case h.refClusters == 0 || uint64(h.refClusters)*cs > maxRefTableBytes:
		return corrupt("a refcount table of %d clusters", h.refClusters)
	case h.snapshots > maxSnapshots:
		return corrupt("%d internal snapshots", h.snapshots)
	case h.version == 3 && (h.length < fieldCompression || uint64(h.length) > cs):
		return corrupt("a header of %d bytes", h.length)
	case h.backingSize > maxBackingName || h.backingOffset != 0 && h.backingOffset+uint64(h.backingSize) > cs:
		return corrupt("the name of its backing file, %d bytes at %#x", h.backingSize, h.backingOffset)
	}
	if err := inFile("refcount table", h.refOffset, uint64(h.refClusters)*cs); err != nil {
		return err
	}
	if h.l1Size > 0 {
		return inFile("L1 table", h.l1Offset, uint64(h.l1Size)*8)
	}
	return nil
}

// parseRest reads the extensions and the backing file's name.
func (h *header) parseRest(b []byte) error {
	be := binary.BigEndian
	end := uint64(len(b))
	if h.backingOffset != 0 {
		if h.backingOffset+uint64(h.backingSize) > end {
			return corrupt("its backing file's name is cut off")
		}
		h.backingName = string(b[h.backingOffset : h.backingOffset+uint64(h.backingSize)])
		end = h.backingOffset
	}
	for at := uint64(h.length); at+8 <= end; {
		kind, size := be.Uint32(b[at:]), uint64(be.Uint32(b[at+4:]))
		at += 8
		if kind == extensionEnd {
			return nil
		}
		if size > end-at {
			return corrupt("header extension %#x of %d bytes", kind, size)
		}
		body := b[at : at+size]
		switch {
		case kind == extensionBackingFmt:
			h.backingFormat = string(body)
		case kind == extensionBitmaps && size >= 24:
			h.bitmapsCount = be.Uint32(body)
			h.bitmapsSize, h.bitmapsOffset = be.Uint64(body[8:]), be.Uint64(body[16:])
		}
		at += (size + 7) &^ 7
	}
	return nil
}

// encode writes the header cluster anew; extensions that are not known here
// are lost, so it is for images that were made here, or just had their backing
// file changed.
func (h *header) encode() ([]byte, error) {
	be := binary.BigEndian
	b := make([]byte, h.length)
	copy(b, Magic)
	be.PutUint32(b[fieldVersion:], h.version)
	be.PutUint32(b[fieldClusterBits:], h.clusterBits)
	be.PutUint64(b[fieldSize:], h.size)
	be.PutUint32(b[fieldL1Size:], h.l1Size)
	be.PutUint64(b[fieldL1Offset:], h.l1Offset)
	be.PutUint64(b[fieldRefcountOffset:], h.refOffset)
	be.PutUint32(b[fieldRefcountClusters:], h.refClusters)
	be.PutUint32(b[fieldSnapshots:], h.snapshots)
	be.PutUint64(b[fieldSnapshotsOffset:], h.snapOffset)
	if h.version >= 3 {
		be.PutUint64(b[fieldIncompatible:], h.incompatible)
		be.PutUint64(b[fieldCompatible:], h.compatible)
		be.PutUint64(b[fieldAutoclear:], h.autoclear)
		be.PutUint32(b[fieldRefcountOrder:], h.refcountOrder)
		be.PutUint32(b[fieldHeaderLength:], h.length)
		if h.length > fieldCompression {
			b[fieldCompression] = h.compression
		}
	}
	extension := func(kind uint32, body []byte) {
		b = be.AppendUint32(be.AppendUint32(b, kind), uint32(len(body)))
		b = append(b, body...)
		b = append(b, make([]byte, -len(body)&7)...)
	}
	if h.backingName != "" && h.backingFormat != "" {
		extension(extensionBackingFmt, []byte(h.backingFormat))
	}
	if h.bitmapsCount > 0 {
		body := be.AppendUint64(be.AppendUint32(nil, h.bitmapsCount), 0)[:8]
		body = be.AppendUint64(be.AppendUint64(body, h.bitmapsSize), h.bitmapsOffset)
		extension(extensionBitmaps, body)
	}
	extension(extensionEnd, nil)
	if h.backingName != "" {
		be.PutUint64(b[fieldBackingOffset:], uint64(len(b)))
		be.PutUint32(b[fieldBackingSize:], uint32(len(h.backingName)))
		b = append(b, h.backingName...)
	}
	if int64(len(b)) > h.clusterSize() {
		return nil, fmt.Errorf("the backing file's name is too long for clusters of %d bytes", h.clusterSize())
	}
	return append(b, make([]byte, h.clusterSize()-int64(len(b)))...), nil
}
