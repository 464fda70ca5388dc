// Package lvm finds the logical volumes of a guest's disks and makes devices of them, as
// lvm2's vgchange --activate does: those of linear and striped segments, whose physical
// volumes are all there. It runs in the guest, and only reads.
package lvm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
)

// The format of a physical volume ("LVM2 001", lvm2's lib/format_text/layout.h).
const (
	sector      = 512
	labelSpan   = 4 // sectors in which the label is
	labelID     = "LABELONE"
	labelType   = "LVM2 001"
	typeAt      = 24
	headerAt    = 20 // where the label says that the header is, from the label
	areasAt     = 40 // in the header: after the UUID and the size
	areaSize    = 16
	maxAreas    = 16
	metadataID  = " LVM2 x[5A%r0N*>"
	magicAt     = 4
	areaStartAt = 24
	areaSizeAt  = 32
	rawAt       = 40 // offset, size, checksum, flags
	metaHeader  = 512
	maxMetadata = 16 << 20
	uuidSize    = 32
)

// ErrNotPV is returned for a device that is not a physical volume.
var ErrNotPV = errors.New("not a physical volume of LVM2")

// physical is a physical volume: its UUID, and the text that describes its group.
type physical struct {
	uuid string
	text string
}

// readPhysical reads the label of a device and the newest metadata that it points to.
func readPhysical(r io.ReaderAt) (*physical, error) {
	head := make([]byte, labelSpan*sector)
	if _, err := r.ReadAt(head, 0); err != nil {
		return nil, ErrNotPV
	}
	var label []byte
	for i := range labelSpan {
		if l := head[i*sector:]; string(l[:len(labelID)]) == labelID && string(l[typeAt:typeAt+len(labelType)]) == labelType {
			label = l
			break
		}
	}
	if label == nil {
		return nil, ErrNotPV
	}
	header := binary.LittleEndian.Uint32(label[headerAt:])
	if int(header) > sector-areasAt {
		return nil, ErrNotPV
	}
	h := label[header:]
	p := &physical{uuid: string(h[:uuidSize])}
	areas, at := h[areasAt:], 0
	area := func() (offset, size uint64, ok bool) {
		if at+areaSize > len(areas) || at >= maxAreas*areaSize {
			return 0, 0, false
		}
		offset, size = binary.LittleEndian.Uint64(areas[at:]), binary.LittleEndian.Uint64(areas[at+8:])
		at += areaSize
		return offset, size, offset != 0
	}
	for { // those of data come first, and end with an empty one
		if _, _, ok := area(); !ok {
			break
		}
	}
	for {
		offset, size, ok := area()
		if !ok {
			return p, nil // its group is described on another one
		}
		if text, err := readMetadata(r, int64(offset), int64(size)); err == nil {
			p.text = text
			return p, nil
		}
	}
}

// readMetadata reads the text of a metadata area, which is a ring.
func readMetadata(r io.ReaderAt, offset, size int64) (string, error) {
	var h [metaHeader]byte
	if _, err := r.ReadAt(h[:], offset); err != nil {
		return "", err
	}
	if string(h[magicAt:magicAt+len(metadataID)]) != metadataID {
		return "", ErrNotPV
	}
	at, n := int64(binary.LittleEndian.Uint64(h[rawAt:])), int64(binary.LittleEndian.Uint64(h[rawAt+8:]))
	if n <= 0 || n > maxMetadata || at < metaHeader || at >= size || n > size-metaHeader {
		return "", ErrNotPV
	}
	text := make([]byte, n)
	first := min(n, size-at)
	if _, err := r.ReadAt(text[:first], offset+at); err != nil {
		return "", err
	}
	if first < n {
		if _, err := r.ReadAt(text[first:], offset+metaHeader); err != nil {
			return "", err
		}
	}
	return string(bytes.TrimRight(text, "\x00")), nil
}

// section is a section of the text: its values, and the sections in it.
type section struct {
	name     string
	values   map[string][]string // without quotes; a value that is no list has one
	sections []*section
}

func (s *section) sub(name string) *section {
	if i := slices.IndexFunc(s.sections, func(x *section) bool { return x.name == name }); i >= 0 {
		return s.sections[i]
	}
	return &section{}
}

func (s *section) text(name string) string {
	if v := s.values[name]; len(v) > 0 {
		return v[0]
	}
	return ""
}

func (s *section) number(name string) (uint64, error) {
	n, err := strconv.ParseUint(s.text(name), 10, 40)
	if err != nil {
		return 0, fmt.Errorf("%s: no %s", s.name, name)
	}
	return n, nil
}

// maxDepth bounds the sections in sections.
const maxDepth = 8

// errSyntax is what is said of a text that is not metadata.
var errSyntax = errors.New("the metadata is damaged")

// parse reads metadata.
func parse(text string) (*section, error) {
	words, err := split(text)
	if err != nil {
		return nil, err
	}
	root, rest, err := parseSection("", words, 0)
	if err == nil && len(rest) > 0 {
		err = errSyntax
	}
	return root, err
}

// parseSection reads what is in a section, up to its brace or the end.
func parseSection(name string, words []string, depth int) (s *section, rest []string, err error) {
	if depth > maxDepth {
		return nil, nil, errSyntax
	}
	s = &section{name: name, values: map[string][]string{}}
	for len(words) > 0 {
		if words[0] == "}" && depth > 0 {
			return s, words[1:], nil
		}
		if len(words) < 3 {
			return nil, nil, errSyntax
		}
		key, what := words[0], words[1]
		switch {
		case what == "{":
			var in *section
			if in, words, err = parseSection(key, words[2:], depth+1); err != nil {
				return nil, nil, err
			}
			s.sections = append(s.sections, in)
		case what == "=" && words[2] == "[":
			end := slices.Index(words, "]")
			if end < 3 {
				return nil, nil, errSyntax
			}
			for _, w := range words[3:end] {
				s.values[key] = append(s.values[key], unquote(w))
			}
			words = words[end+1:]
		case what == "=":
			s.values[key], words = []string{unquote(words[2])}, words[3:]
		default:
			return nil, nil, errSyntax
		}
	}
	if depth > 0 {
		return nil, nil, errSyntax
	}
	return s, nil, nil
}

// split makes words of a text: braces, brackets, equals signs, quoted strings with their
// quotes, and what else stands together. Commas and comments are left out.
func split(text string) (words []string, err error) {
	for i := 0; i < len(text); {
		switch c := text[i]; {
		case strings.IndexByte(" \t\r\n,", c) >= 0:
			i++
		case c == '#':
			n := strings.IndexByte(text[i:], '\n')
			if n < 0 {
				return words, nil
			}
			i += n
		case strings.IndexByte("{}[]=", c) >= 0:
			words, i = append(words, text[i:i+1]), i+1
		case c == '"':
			end := i + 1
			for end < len(text) && text[end] != '"' {
				if text[end] == '\\' {
					end++
				}
				end++
			}
			if end >= len(text) {
				return nil, errSyntax
			}
			words, i = append(words, text[i:end+1]), end+1
		default:
			n := strings.IndexAny(text[i:], " \t\r\n,#{}[]=\"")
			if n < 0 {
				n = len(text) - i
			}
			words, i = append(words, text[i:i+n]), i+n
		}
	}
	return words, nil
}

// unquote takes the quotes off a string.
func unquote(w string) string {
	if len(w) < 2 || w[0] != '"' {
		return w
	}
	return strings.NewReplacer(`\"`, `"`, `\\`, `\`).Replace(w[1 : len(w)-1])
}
