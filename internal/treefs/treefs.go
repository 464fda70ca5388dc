// Package treefs is a file system of names that are known and contents that mostly are
// not: it is filled with what somebody else has listed, who is asked for a file when it is
// read.
package treefs

import (
	"bytes"
	"io"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
	"time"
)

// maxLinks bounds the symbolic links on the way to a file, as Linux does.
const maxLinks = 40

// FS is a tree. It is filled first, and then read by one goroutine at a time.
type FS struct {
	root  *node
	fetch func(name string) ([]byte, error)
}

// node is a file, a directory or a symbolic link.
type node struct {
	name    string
	entries map[string]*node // of a directory
	link    string           // of a symbolic link
	size    int64
	data    []byte
	missing bool // data is with whoever fetches it
}

// New returns an empty tree. fetch is asked for a file that Promise was told of, each
// time that it is opened.
func New(fetch func(name string) ([]byte, error)) *FS {
	return &FS{root: &node{name: ".", entries: map[string]*node{}}, fetch: fetch}
}

// Add adds a file. As Link and Promise, it adds the directories above it; a name that
// leaves the tree, or lies below a file, is left out.
func (t *FS) Add(name string, data []byte) { t.add(name, &node{data: data, size: int64(len(data))}) }

// Promise adds a file of size bytes whose data is fetched.
func (t *FS) Promise(name string, size int64) { t.add(name, &node{size: size, missing: true}) }

// Link adds a symbolic link. One that begins with a slash is of the tree's root.
func (t *FS) Link(name, target string) { t.add(name, &node{link: target}) }

func (t *FS) add(name string, n *node) {
	name = path.Clean(name)
	if name == "." || !fs.ValidPath(name) {
		return
	}
	dir, elements := t.root, strings.Split(name, "/")
	for _, e := range elements[:len(elements)-1] {
		next := dir.entries[e]
		if next == nil {
			next = &node{name: e, entries: map[string]*node{}}
			dir.entries[e] = next
		}
		if next.entries == nil {
			return
		}
		dir = next
	}
	n.name = elements[len(elements)-1]
	if old := dir.entries[n.name]; old == nil || old.entries == nil {
		dir.entries[n.name] = n
	}
}

// Open implements fs.FS.
func (t *FS) Open(name string) (fs.File, error) {
	fail := func(err error) (fs.File, error) {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	if !fs.ValidPath(name) {
		return fail(fs.ErrInvalid)
	}
	n, at, err := t.find(name)
	if err != nil {
		return fail(err)
	}
	if n.entries != nil {
		return &openDir{n: n, left: slices.SortedFunc(maps.Values(n.entries), func(a, b *node) int { return strings.Compare(a.name, b.name) })}, nil
	}
	return &openFile{t: t, n: n, at: at}, nil
}

// find follows a name to its node, and returns where that is without symbolic links.
func (t *FS) find(name string) (_ *node, at string, err error) {
	left := strings.Split(name, "/")
	stack := []*node{t.root}
	for links := 0; len(left) > 0; {
		e := left[0]
		left = left[1:]
		dir := stack[len(stack)-1]
		switch {
		case e == "" || e == ".":
			continue
		case e == "..":
			stack = stack[:max(1, len(stack)-1)]
			continue
		case dir.entries == nil:
			return nil, "", fs.ErrNotExist
		}
		n := dir.entries[e]
		if n == nil {
			return nil, "", fs.ErrNotExist
		}
		if n.link == "" {
			stack = append(stack, n)
			continue
		}
		if links++; links > maxLinks {
			return nil, "", fs.ErrInvalid
		}
		if strings.HasPrefix(n.link, "/") {
			stack = stack[:1]
		}
		left = append(strings.Split(n.link, "/"), left...)
	}
	names := make([]string, len(stack))
	for i, n := range stack {
		names[i] = n.name
	}
	return stack[len(stack)-1], path.Join(names...), nil
}

// openFile is a file that is open; its data is fetched with the first read.
type openFile struct {
	t      *FS
	n      *node
	at     string
	reader *bytes.Reader
}

// Stat implements fs.File.
func (f *openFile) Stat() (fs.FileInfo, error) { return info{f.n}, nil }

// Read implements io.Reader.
func (f *openFile) Read(p []byte) (int, error) {
	if f.reader == nil {
		data := f.n.data
		if f.n.missing {
			var err error
			if data, err = f.t.fetch(f.at); err != nil {
				return 0, &fs.PathError{Op: "read", Path: f.at, Err: err}
			}
		}
		f.reader = bytes.NewReader(data)
	}
	return f.reader.Read(p)
}

// Close implements io.Closer.
func (f *openFile) Close() error { return nil }

// openDir is a directory that is open.
type openDir struct {
	n    *node
	left []*node
}

// Stat implements fs.File.
func (d *openDir) Stat() (fs.FileInfo, error) { return info{d.n}, nil }

// Read implements io.Reader.
func (d *openDir) Read([]byte) (int, error) {
	return 0, &fs.PathError{Op: "read", Path: d.n.name, Err: fs.ErrInvalid}
}

// Close implements io.Closer.
func (d *openDir) Close() error { return nil }

// ReadDir implements fs.ReadDirFile.
func (d *openDir) ReadDir(n int) (out []fs.DirEntry, err error) {
	take := len(d.left)
	if n > 0 {
		if take == 0 {
			return nil, io.EOF
		}
		take = min(take, n)
	}
	for _, e := range d.left[:take] {
		out = append(out, fs.FileInfoToDirEntry(info{e}))
	}
	d.left = d.left[take:]
	return out, nil
}

// info is a node's fs.FileInfo.
type info struct{ n *node }

// Name implements fs.FileInfo, as what follows does.
func (i info) Name() string { return i.n.name }

// Size is in bytes.
func (i info) Size() int64 { return i.n.size }

// Mode has the type, and the permissions to read.
func (i info) Mode() fs.FileMode {
	switch {
	case i.n.entries != nil:
		return fs.ModeDir | 0o555
	case i.n.link != "":
		return fs.ModeSymlink | 0o777
	}
	return 0o444
}

// ModTime is not known.
func (i info) ModTime() time.Time { return time.Time{} }

// IsDir reports whether it is a directory.
func (i info) IsDir() bool { return i.n.entries != nil }

// Sys is nothing.
func (i info) Sys() any { return nil }
