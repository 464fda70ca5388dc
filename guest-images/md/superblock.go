// Package md finds the arrays of Linux's software RAID on a guest's disks and has the kernel
// start them for reading, as mdadm --assemble --scan --readonly does: those whose superblock,
// of version 0.90, 1.0, 1.1 or 1.2, is on their members. It runs in the guest, and only reads.
package md

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode"
)

// Where superblocks are, and what they begin with (md(4), SUB-DEVICES; <linux/raid/md_p.h>).
const (
	// Magic is the first word of each, in little-endian.
	Magic = 0xa92b4efc
	// PlaceAt is where one of version 1 says its place on the device, in sectors.
	PlaceAt = 144

	superSize  = 4096 // of all versions at most
	reserved90 = 64 << 10
	tail10     = 8 << 10
	at12       = 4 << 10
	minDevice  = 2 * reserved90
)

// Version 0.90, in words of 32 bits (mdp_super_t).
const (
	words90      = superSize / 4
	minor90      = 90
	uuid90       = 5
	created90    = 6
	number90     = 11
	uuidRest90   = 13
	checksum90   = 38
	events90     = 39 // its lower half, then its upper
	disks90      = 128
	diskWords90  = 32
	maxDisks90   = 27
	diskState90  = 4 // in a disk's words
	diskFaulty90 = 1 << 0
	this90       = words90 - diskWords90 // the disk whose superblock it is
)

// Version 1, in bytes (struct mdp_superblock_1).
const (
	uuid1      = 16
	name1      = 32
	nameSize1  = 32
	created1   = 64
	device1    = 160
	events1    = 200
	checksum1  = 216
	maxDevice1 = 220
	roles1     = 256
	maxRoles1  = (superSize - roles1) / 2
	faulty1    = 0xfffe
	secondsOf1 = 1<<40 - 1 // above them are microseconds
)

const sector = 512

var (
	errNone    = errors.New("not a member of an array")
	errDamaged = errors.New("the superblock is damaged")
)

// superblock is what a member of an array says.
type superblock struct {
	at      int64  // where it is on the device, in bytes
	version string // as md_version of sysfs has it, such as 1.2
	uuid    string // the array's, 32 hexadecimal digits as mdadm has them without colons
	label   string // the array's name, without its host's; "" if it has none
	minor   int    // the array's number as a device of Linux, such as 0 of md0; -1 if it has none
	created uint64 // when the array was, in seconds
	events  uint64 // how often the array has changed: a member that was missing has fewer
	index   uint32 // which of the array's devices this is
	faulty  map[uint32]bool
}

// Place is where a device may have a superblock.
type Place struct {
	Version string // as md_version of sysfs has it, such as 1.2
	Major   uint32 // its beginning, 0 or 1, which is behind Magic
	At      int64  // in bytes; it may be none of the device's
}

// Places returns those of a device of size bytes.
func Places(size int64) []Place {
	return []Place{
		{"0.90", 0, size/reserved90*reserved90 - reserved90},
		{"1.0", 1, (size - tail10) / superSize * superSize},
		{"1.1", 1, 0},
		{"1.2", 1, at12},
	}
}

// readSuperblock finds the superblock of a device of size bytes: of several the one of the
// array that was made last. The error is errNone where there is none.
func readSuperblock(r io.ReaderAt, size int64) (*superblock, error) {
	if size < minDevice {
		return nil, errNone
	}
	var found *superblock
	failed := errNone
	for _, v := range Places(size) {
		b := make([]byte, superSize)
		if _, err := r.ReadAt(b, v.At); err != nil || binary.LittleEndian.Uint32(b) != Magic {
			continue
		}
		parse := parse1
		if v.Major == 0 {
			parse = parse90
		}
		s, err := parse(b)
		if err == nil && v.Major == 1 && binary.LittleEndian.Uint64(b[PlaceAt:]) != uint64(v.At/sector) {
			err = errNone // of another device, which ends or begins elsewhere
		}
		switch {
		case errors.Is(err, errDamaged):
			failed = fmt.Errorf("version %s: %w", v.Version, err)
		case err == nil && (found == nil || s.created > found.created):
			found = s
			found.at, found.version = v.At, v.Version
		}
	}
	if found == nil {
		return nil, failed
	}
	return found, nil
}

// parse90 reads a superblock of version 0.90.
func parse90(b []byte) (*superblock, error) {
	word := func(i int) uint32 { return binary.LittleEndian.Uint32(b[4*i:]) }
	if word(1) != 0 || word(2) != minor90 {
		return nil, errNone
	}
	if sum90(b) != word(checksum90) {
		return nil, errDamaged
	}
	s := &superblock{
		uuid:  fmt.Sprintf("%08x%08x%08x%08x", word(uuid90), word(uuidRest90), word(uuidRest90+1), word(uuidRest90+2)),
		minor: minorOf(uint64(word(number90))), created: uint64(word(created90)),
		events: uint64(word(events90+1))<<32 | uint64(word(events90)), index: word(this90), faulty: map[uint32]bool{},
	}
	for i := range uint32(maxDisks90) {
		disk := disks90 + int(i)*diskWords90
		s.faulty[i] = word(disk+diskState90)&diskFaulty90 != 0
	}
	return s, nil
}

// sum90 is the checksum of version 0.90.
func sum90(b []byte) uint32 {
	var sum uint64
	for i := range words90 {
		if i != checksum90 {
			sum += uint64(binary.LittleEndian.Uint32(b[4*i:]))
		}
	}
	return uint32(sum) + uint32(sum>>32)
}

// parse1 reads a superblock of a version that begins with 1.
func parse1(b []byte) (*superblock, error) {
	le := binary.LittleEndian
	if le.Uint32(b[4:]) != 1 {
		return nil, errNone
	}
	roles := le.Uint32(b[maxDevice1:])
	if roles > maxRoles1 || sum1(b, roles) != le.Uint32(b[checksum1:]) {
		return nil, errDamaged
	}
	s := &superblock{uuid: hex.EncodeToString(b[uuid1 : uuid1+16]), minor: -1, created: le.Uint64(b[created1:]) & secondsOf1,
		events: le.Uint64(b[events1:]), index: le.Uint32(b[device1:]), faulty: map[uint32]bool{}}
	for i := range roles {
		s.faulty[i] = le.Uint16(b[roles1+2*i:]) == faulty1
	}
	name, _, _ := bytes.Cut(b[name1:name1+nameSize1], []byte{0})
	s.label = plain(string(name[bytes.IndexByte(name, ':')+1:]))
	if n, err := strconv.ParseUint(s.label, 10, 32); err == nil {
		s.minor = minorOf(n)
	}
	return s, nil
}

// sum1 is the checksum of version 1, of a superblock with so many roles.
func sum1(b []byte, roles uint32) uint32 {
	var sum uint64
	b = b[:roles1+2*roles]
	for i := 0; i+4 <= len(b); i += 4 {
		if i != checksum1 {
			sum += uint64(binary.LittleEndian.Uint32(b[i:]))
		}
	}
	if roles%2 != 0 {
		sum += uint64(binary.LittleEndian.Uint16(b[len(b)-2:]))
	}
	return uint32(sum) + uint32(sum>>32)
}

// maxMinor is the highest minor number of a device.
const maxMinor = 1<<20 - 1

// minorOf is an array's number, -1 if no device can have it.
func minorOf(n uint64) int {
	if n > maxMinor {
		return -1
	}
	return int(n)
}

// plain is a name if it has nothing but what can be seen in it, else "".
func plain(name string) string {
	if strings.ContainsFunc(name, func(r rune) bool { return !unicode.IsGraphic(r) || r == unicode.ReplacementChar }) {
		return ""
	}
	return name
}
