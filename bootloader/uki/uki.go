// Package uki reads unified kernel images: PE files whose sections hold a kernel, its
// initial RAM disk and its arguments (UAPI Group, Unified Kernel Image).
package uki

import (
	"bytes"
	"encoding/binary"
	"errors"
	"strings"
)

// Profile is one of the ways that an image may be booted in; most have one. Its bytes
// are parts of the image.
type Profile struct {
	Title   string // of a profile that has a name of its own
	OS      string // PRETTY_NAME of .osrel
	Uname   string // the kernel's version
	Linux   []byte
	Initrds [][]byte // .ucode, then .initrd
	Cmdline string
}

// ErrNot is returned for what is not a unified kernel image.
var ErrNot = errors.New("not a unified kernel image: no PE file with a kernel in a section .linux")

// Offsets in the headers (Microsoft, PE Format), and limits.
const (
	peHeaderAt     = 0x3c
	peSections     = 6
	peOptionalSize = 20
	peHeaderSize   = 24
	sectionSize    = 40
	maxSections    = 256 // Windows loads 96
	maxText        = 64 << 10
)

// Parse returns the profiles of an image, the default first.
func Parse(b []byte) ([]Profile, error) {
	le := binary.LittleEndian
	if len(b) < peHeaderAt+4 || b[0] != 'M' || b[1] != 'Z' {
		return nil, ErrNot
	}
	at := uint64(le.Uint32(b[peHeaderAt:]))
	if at+peHeaderSize > uint64(len(b)) || string(b[at:at+4]) != "PE\x00\x00" {
		return nil, ErrNot
	}
	count := int(le.Uint16(b[at+peSections:]))
	at += peHeaderSize + uint64(le.Uint16(b[at+peOptionalSize:]))
	// What stands before the first .profile is common to all.
	var common Profile
	var all []Profile
	for range min(count, maxSections) {
		if at+sectionSize > uint64(len(b)) {
			return nil, ErrNot
		}
		h := b[at : at+sectionSize]
		at += sectionSize
		name := strings.TrimRight(string(h[:8]), "\x00")
		size, from := min(uint64(le.Uint32(h[8:])), uint64(le.Uint32(h[16:]))), uint64(le.Uint32(h[20:]))
		if from+size > uint64(len(b)) {
			return nil, ErrNot
		}
		data := b[from : from+size]
		if name == ".profile" {
			p := common
			p.Initrds = common.Initrds[:len(common.Initrds):len(common.Initrds)]
			p.Title = variable(data, "TITLE")
			if p.Title == "" {
				p.Title = variable(data, "ID")
			}
			all = append(all, p)
			continue
		}
		p := &common
		if len(all) > 0 {
			p = &all[len(all)-1]
		}
		p.section(name, data)
	}
	if len(all) == 0 {
		all = []Profile{common}
	}
	var out []Profile
	for _, p := range all {
		if len(p.Linux) > 0 && p.size() <= len(b) {
			out = append(out, p)
		}
	}
	if len(out) == 0 {
		return nil, ErrNot
	}
	return out, nil
}

// size is how many bytes an image's parts have: more than it has itself where they overlap,
// and then they could be any number of times as many.
func (p *Profile) size() int {
	n := len(p.Linux)
	for _, i := range p.Initrds {
		n += len(i)
	}
	return n
}

// section takes a section that the stub hands to the kernel; others are for firmware.
func (p *Profile) section(name string, data []byte) {
	switch name {
	case ".linux":
		p.Linux = data
	case ".ucode", ".initrd":
		p.Initrds = append(p.Initrds, data)
	case ".cmdline":
		p.Cmdline = line(data)
	case ".uname":
		p.Uname = line(data)
	case ".osrel":
		p.OS = variable(data, "PRETTY_NAME")
	}
}

// line makes one line of a text, which ends at a zero.
func line(data []byte) string {
	data = data[:min(len(data), maxText)]
	data, _, _ = bytes.Cut(data, []byte{0})
	return strings.Join(strings.Fields(string(data)), " ")
}

// variable is the value of a name in the form of os-release(5).
func variable(data []byte, name string) string {
	data = data[:min(len(data), maxText)]
	data, _, _ = bytes.Cut(data, []byte{0})
	for _, l := range strings.Split(string(data), "\n") {
		if k, v, ok := strings.Cut(strings.TrimSpace(l), "="); ok && k == name {
			return strings.Trim(v, `"'`)
		}
	}
	return ""
}
