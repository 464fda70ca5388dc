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
	Sort    string // what systemd-boot sorts by, of .osrel: which system, and its version
	Version string
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
	common, all, err := parse(b)
	if err != nil {
		return nil, err
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

// ParseAddon reads an addon: an image without a kernel, whose arguments and initial RAM disks
// are for the images that it lies beside (systemd-stub(7)).
func ParseAddon(b []byte) (Profile, error) {
	p, _, err := parse(b)
	if err == nil && (len(p.Linux) > 0 || p.size() > len(b)) {
		err = ErrNot
	}
	return p, err
}

// parse reads the sections. What stands before the first .profile is common to all profiles,
// and there are none where there is no such section.
func parse(b []byte) (common Profile, all []Profile, err error) {
	le := binary.LittleEndian
	if len(b) < peHeaderAt+4 || b[0] != 'M' || b[1] != 'Z' {
		return common, nil, ErrNot
	}
	at := uint64(le.Uint32(b[peHeaderAt:]))
	if at+peHeaderSize > uint64(len(b)) || string(b[at:at+4]) != "PE\x00\x00" {
		return common, nil, ErrNot
	}
	count := int(le.Uint16(b[at+peSections:]))
	at += peHeaderSize + uint64(le.Uint16(b[at+peOptionalSize:]))
	for range min(count, maxSections) {
		if at+sectionSize > uint64(len(b)) {
			return common, nil, ErrNot
		}
		h := b[at : at+sectionSize]
		at += sectionSize
		name := strings.TrimRight(string(h[:8]), "\x00")
		size, from := min(uint64(le.Uint32(h[8:])), uint64(le.Uint32(h[16:]))), uint64(le.Uint32(h[20:]))
		if from+size > uint64(len(b)) {
			return common, nil, ErrNot
		}
		data := b[from : from+size]
		if name == ".profile" {
			p := common
			p.Initrds = common.Initrds[:len(common.Initrds):len(common.Initrds)]
			p.Title = variable(data, "TITLE", "ID")
			all = append(all, p)
			continue
		}
		p := &common
		if len(all) > 0 {
			p = &all[len(all)-1]
		}
		p.section(name, data)
	}
	return common, all, nil
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
	case ".osrel":
		p.OS = variable(data, "PRETTY_NAME")
		p.Sort = variable(data, "IMAGE_ID", "ID")
		p.Version = variable(data, "IMAGE_VERSION", "VERSION", "VERSION_ID", "BUILD_ID")
	}
}

// line makes one line of a text, which ends at a zero.
func line(data []byte) string {
	data = data[:min(len(data), maxText)]
	data, _, _ = bytes.Cut(data, []byte{0})
	return strings.Join(strings.Fields(string(data)), " ")
}

// variable is the value of the first of some names that has one, in the form of os-release(5).
func variable(data []byte, names ...string) string {
	data = data[:min(len(data), maxText)]
	data, _, _ = bytes.Cut(data, []byte{0})
	values := map[string]string{}
	for _, l := range strings.Split(string(data), "\n") {
		if k, v, ok := strings.Cut(strings.TrimSpace(l), "="); ok {
			values[k] = strings.Trim(v, `"'`)
		}
	}
	for _, name := range names {
		if v := values[name]; v != "" {
			return v
		}
	}
	return ""
}
