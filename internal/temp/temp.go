// Package temp says where large files are kept that are not to stay: disks whose
// changes go, the memory of a compressed snapshot.
package temp

import "os"

// File makes an empty file for reading and writing, in $TMPDIR, or where that is not
// set in /var/tmp: that is on a disk, where /tmp may be memory. The name begins with
// prefix. The caller closes and removes it.
func File(prefix string) (*os.File, error) { return os.CreateTemp(dir(), prefix) }

// Dir makes an empty directory in the same place. The caller removes it.
func Dir(prefix string) (string, error) { return os.MkdirTemp(dir(), prefix) }

func dir() string {
	if d := os.Getenv("TMPDIR"); d != "" {
		return d
	}
	return "/var/tmp"
}
