package bootloader

import (
	"bytes"
	"strconv"
)

// UnpackInitrd decompresses the parts of an initial RAM disk that are packed,
// as the kernel would: archives one after another, packed or not, with zeros
// between them. What it does not know, or would become larger than limit bytes
// in all, stays as it is.
func UnpackInitrd(initrd []byte, limit int64) []byte {
	var out []byte
	for rest := initrd; len(rest) > 0; {
		if n := archiveLen(rest); n > 0 {
			out, rest = append(out, rest[:n]...), rest[n:]
			continue
		}
		if rest[0] == 0 {
			rest = rest[1:]
			continue
		}
		// A packed part is the last: where it ends, only unpacking tells.
		plain, err := expand(rest, limit-int64(len(out)), false)
		if err != nil || archiveLen(plain) == 0 {
			return initrd
		}
		return append(align(out), plain...)
	}
	return out
}

// align pads an archive to where the next may begin.
func align(b []byte) []byte { return append(b, make([]byte, -len(b)&3)...) }

// The newc format of cpio: a header in hexadecimal digits.
const (
	cpioMagic    = "07070" // "070701", or "070702" with checksums
	cpioHeader   = 110
	cpioFileSize = 54
	cpioNameSize = 94
	cpioTrailer  = "TRAILER!!!"
)

// archiveLen returns the length of the cpio archive that b begins with, 0 if
// there is none.
func archiveLen(b []byte) int {
	for at := 0; at+cpioHeader <= len(b) && bytes.HasPrefix(b[at:], []byte(cpioMagic)); {
		field := func(offset int) int {
			v, err := strconv.ParseUint(string(b[at+offset:at+offset+8]), 16, 32)
			if err != nil {
				return len(b) // ends the archive
			}
			return int(v)
		}
		name, size := field(cpioNameSize), field(cpioFileSize)
		data := align4(at + cpioHeader + name)
		end := align4(data + size)
		if data > len(b) || end > len(b)+3 {
			return 0
		}
		end = min(end, len(b))
		if bytes.HasPrefix(b[at+cpioHeader:], []byte(cpioTrailer)) {
			return end
		}
		at = end
	}
	return 0
}
