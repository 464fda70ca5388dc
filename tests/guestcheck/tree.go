package main

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// tree prints all that there is to know of the files below want["tree"], a line a file, but for
// those below the paths of want["skip"]. It is the same program in the guest and on the host.
func tree(want map[string]string) error {
	root, skip := want["tree"], strings.Split(want["skip"], ",")
	out := bufio.NewWriter(os.Stdout) // each write would be a message to the host
	defer out.Flush()
	l := lister{inodes: map[uint64]string{}, buf: make([]byte, 2<<16)}
	return filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		if slices.Contains(skip, name) {
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		line, err := l.describe(path, name)
		fmt.Fprintln(out, line)
		return err
	})
}

// lister describes files.
type lister struct {
	inodes map[uint64]string // the names of those before
	buf    []byte            // for extended attributes: their names, and a value of one
}

// describe is a file in a line.
func (l *lister) describe(path, name string) (string, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return "", err
	}
	st := info.Sys().(*syscall.Stat_t)
	line := fmt.Sprintf("%q %o %d:%d", name, st.Mode, st.Uid, st.Gid)
	if !info.IsDir() {
		line += fmt.Sprintf(" links=%d size=%d modified=%d.%09d", st.Nlink, st.Size, st.Mtim.Sec, st.Mtim.Nsec)
		if first, ok := l.inodes[st.Ino]; ok {
			line += fmt.Sprintf(" is %q", first)
		} else {
			l.inodes[st.Ino] = name
		}
	}
	switch st.Mode & syscall.S_IFMT {
	case syscall.S_IFREG:
		b, err := os.ReadFile(path)
		if err != nil {
			return line, err
		}
		line += fmt.Sprintf(" %x", sha256.Sum256(b))
	case syscall.S_IFLNK:
		target, err := os.Readlink(path)
		if err != nil {
			return line, err
		}
		line += fmt.Sprintf(" -> %q", target)
	case syscall.S_IFCHR, syscall.S_IFBLK:
		line += fmt.Sprintf(" device=%x", st.Rdev)
	}
	names, value := l.buf[:len(l.buf)/2], l.buf[len(l.buf)/2:]
	n, err := unix.Llistxattr(path, names)
	if err != nil {
		return line, fmt.Errorf("%s: extended attributes: %w", path, err)
	}
	var xattrs []string
	for x := range bytes.SplitSeq(bytes.TrimSuffix(names[:n], []byte{0}), []byte{0}) {
		if len(x) == 0 {
			continue
		}
		n, err := unix.Lgetxattr(path, string(x), value)
		if err != nil {
			return line, fmt.Errorf("%s: %s: %w", path, x, err)
		}
		xattrs = append(xattrs, fmt.Sprintf(" %s=%x", x, value[:n]))
	}
	slices.Sort(xattrs)
	return line + strings.Join(xattrs, ""), nil
}
