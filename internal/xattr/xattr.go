// Package xattr reads the extended attributes of files whole: xattr(7).
package xattr

import (
	"bytes"
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// Of returns the extended attributes of what is at a path, by their names; a symbolic link is not
// followed. It is none where the file system has none. The error is an *os.PathError.
func Of(path string) (map[string]string, error) {
	out, err := read(func(b []byte) (int, error) { return unix.Llistxattr(path, b) },
		func(name string, b []byte) (int, error) { return unix.Lgetxattr(path, name, b) })
	if err != nil {
		err = &os.PathError{Op: "reading the extended attributes", Path: path, Err: err}
	}
	return out, err
}

// OfFile is Of for a file that is open, whose errors are those of the system calls.
func OfFile(fd int) (map[string]string, error) {
	return read(func(b []byte) (int, error) { return unix.Flistxattr(fd, b) },
		func(name string, b []byte) (int, error) { return unix.Fgetxattr(fd, name, b) })
}

func read(list func([]byte) (int, error), get func(string, []byte) (int, error)) (map[string]string, error) {
	names, err := whole(list)
	if err != nil || len(names) == 0 {
		return nil, none(err)
	}
	out := map[string]string{}
	for name := range bytes.SplitSeq(bytes.TrimRight(names, "\x00"), []byte{0}) {
		value, err := whole(func(b []byte) (int, error) { return get(string(name), b) })
		if err == nil {
			out[string(name)] = string(value)
		} else if err = none(err); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// most is XATTR_SIZE_MAX and XATTR_LIST_MAX, in bytes.
const most = 64 << 10

// whole returns what a system call puts into a buffer.
func whole(call func([]byte) (int, error)) ([]byte, error) {
	b := make([]byte, 256) // which nearly always is enough
	n, err := call(b)
	if errors.Is(err, unix.ERANGE) {
		b = make([]byte, most)
		n, err = call(b)
	}
	return b[:max(n, 0)], err
}

// none is an error, but for those that say that there are no attributes, or that one has just gone.
func none(err error) error {
	if errors.Is(err, unix.ENOTSUP) || errors.Is(err, unix.ENODATA) {
		return nil
	}
	return err
}
