// Package elf reads of ELF files what it takes to load them: the header, the segments
// and the notes of 64-bit little-endian ones (System V ABI, chapters 4 and 5). Files may
// come from anywhere: what is wrong with one is an error, never a panic.
package elf

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Magic begins an ELF file.
const Magic = "\x7fELF"

// MachineX86_64 is the File.Machine of x86-64.
const MachineX86_64 = 62

// Types of segments.
const (
	Load        = 1
	Interpreter = 3
	Note        = 4
)

// Errors of Read, for errors.Is.
var (
	ErrFormat = errors.New("not an ELF file, or a damaged one")
	Err32Bit  = errors.New("a 32-bit ELF file")
)

// File is an ELF file.
type File struct {
	Machine  uint16
	Entry    uint64
	Segments []Segment

	r io.ReaderAt
}

// Segment is a part of the file that is to be in memory, or says something about it.
// Offset and FileSize are where it is in the file, in bytes, and not checked.
type Segment struct {
	Type                                uint32
	Offset, Paddr, FileSize, MemorySize uint64
}

const (
	headerSize  = 64
	segmentSize = 56
	maxNotes    = 1 << 20 // bytes of a segment
)

var le = binary.LittleEndian

// Read reads a file's header and segments.
func Read(r io.ReaderAt) (*File, error) {
	var h [headerSize]byte
	n, err := r.ReadAt(h[:], 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if n < 5 || string(h[:4]) != Magic {
		return nil, ErrFormat
	}
	if h[4] == 1 {
		return nil, Err32Bit
	}
	size, count := le.Uint16(h[54:]), le.Uint16(h[56:])
	if n < headerSize || h[4] != 2 || h[5] != 1 || size != segmentSize && count > 0 {
		return nil, ErrFormat
	}
	f := &File{Machine: le.Uint16(h[18:]), Entry: le.Uint64(h[24:]), r: r}
	table := make([]byte, int(count)*segmentSize)
	if err := readAt(r, table, le.Uint64(h[32:])); err != nil {
		return nil, err
	}
	for ; len(table) > 0; table = table[segmentSize:] {
		f.Segments = append(f.Segments, Segment{le.Uint32(table), le.Uint64(table[8:]), le.Uint64(table[24:]), le.Uint64(table[32:]), le.Uint64(table[40:])})
	}
	return f, nil
}

// readAt fills b; a file that has not as much is damaged.
func readAt(r io.ReaderAt, b []byte, off uint64) error {
	if len(b) == 0 {
		return nil
	}
	if off > 1<<62 {
		return ErrFormat
	}
	if _, err := r.ReadAt(b, int64(off)); errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: it is cut off", ErrFormat)
	} else if err != nil {
		return err
	}
	return nil
}

// Note returns the content of the first note of a name and a type, nil if there is none.
func (f *File) Note(name string, kind uint32) []byte {
	for _, s := range f.Segments {
		if s.Type != Note || s.FileSize > maxNotes {
			continue
		}
		b := make([]byte, s.FileSize)
		if readAt(f.r, b, s.Offset) != nil {
			continue
		}
		for len(b) >= 12 {
			nameSize, size, k := uint64(le.Uint32(b)), uint64(le.Uint32(b[4:])), le.Uint32(b[8:])
			b = b[12:]
			at, end := align(nameSize), align(nameSize)+align(size)
			if at+size > uint64(len(b)) {
				break
			}
			if k == kind && string(bytes.TrimRight(b[:nameSize], "\x00")) == name {
				return b[at : at+size]
			}
			b = b[min(end, uint64(len(b))):]
		}
	}
	return nil
}

func align(n uint64) uint64 { return (n + 3) &^ 3 }
