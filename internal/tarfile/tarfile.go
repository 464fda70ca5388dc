// Package tarfile tells what files the entries of tar archives are.
package tarfile

import (
	"archive/tar"
	"strings"

	"golang.org/x/sys/unix"
)

// Types are the types of files, as st_mode has them, by those of entries. What is not among
// them is another name of a file (tar.TypeLink), or none.
var Types = map[byte]uint16{
	tar.TypeReg: unix.S_IFREG, tar.TypeCont: unix.S_IFREG, tar.TypeGNUSparse: unix.S_IFREG, tar.TypeDir: unix.S_IFDIR,
	tar.TypeSymlink: unix.S_IFLNK, tar.TypeChar: unix.S_IFCHR, tar.TypeBlock: unix.S_IFBLK, tar.TypeFifo: unix.S_IFIFO,
}

// XattrRecord is what the PAX records of extended attributes begin with.
const XattrRecord = "SCHILY.xattr."

// A record's key ends at its first '=', which an attribute's name may have. GNU tar (1.29 and
// later) writes it otherwise, and what it writes it with; it reads nothing else so.
var (
	escapeXattr   = strings.NewReplacer("%", "%25", "=", "%3D")
	unescapeXattr = strings.NewReplacer("%25", "%", "%3D", "=")
)

// XattrKey is the key of an extended attribute's record. A name is changed only if it has to be:
// most readers take it as it is.
func XattrKey(name string) string {
	if strings.Contains(name, "=") || unescapeXattr.Replace(name) != name {
		name = escapeXattr.Replace(name)
	}
	return XattrRecord + name
}

// Xattrs returns the extended attributes of an entry.
func Xattrs(h *tar.Header) map[string]string {
	out := map[string]string{}
	for key, value := range h.PAXRecords {
		if name, ok := strings.CutPrefix(key, XattrRecord); ok {
			out[unescapeXattr.Replace(name)] = value
		}
	}
	return out
}
