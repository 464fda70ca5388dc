package image

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"vmm/internal/paths"
	"vmm/storage"
	"vmm/storage/qcow2"
)

// Node is an image in a tree of backing files.
type Node struct {
	Path        string  `json:"path"`
	Format      string  `json:"format"`
	VirtualSize int64   `json:"virtual-size"`    // bytes, of the disk
	OwnSize     int64   `json:"own-size"`        // bytes that the file takes
	Error       string  `json:"error,omitempty"` // why no more is known of it
	Overlays    []*Node `json:"overlays,omitempty"`

	below string // the backing file's path, "" is none
}

// Tree finds the images in a directory, or one image, and those outside that they are over, and
// returns those without a backing file, or whose backing file is not there, each with its overlays.
// Of a loop one is returned, with an error that names it.
func Tree(path string) ([]*Node, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	t := &tree{byPath: map[string]*Node{}, backing: map[*Node]*Node{}}
	if st.IsDir() {
		entries, err := os.ReadDir(path)
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			t.add(filepath.Join(path, e.Name()))
		}
	} else if t.add(path) == nil {
		return nil, fmt.Errorf("%s: neither a directory nor an image with a name that says so: %s", path, strings.Join(slices.Sorted(maps.Keys(rawNames)), ", "))
	}
	var roots []*Node
	for i := 0; i < len(t.nodes); i++ { //nolint:intrange // more come to be
		n := t.nodes[i]
		if n.below == "" {
			roots = append(roots, n)
			continue
		}
		base := t.byPath[realPath(n.below)]
		if base == nil { // outside of the directory, or a file of another name's format
			if base = t.add(n.below); base == nil {
				base = &Node{Path: n.below, Error: "missing, or not readable"}
				t.byPath[realPath(n.below)] = base
				roots = append(roots, base)
			}
		}
		t.backing[n] = base
		if loop := t.loop(n); loop != nil {
			delete(t.backing, n)
			n.Error = loop.Error()
			roots = append(roots, n)
			continue
		}
		base.Overlays = append(base.Overlays, n)
	}
	return roots, nil
}

// tree is what Tree knows.
type tree struct {
	nodes   []*Node
	byPath  map[string]*Node // by real ones
	backing map[*Node]*Node
}

// add takes a file; nil is no image.
func (t *tree) add(path string) *Node {
	n := describe(path)
	if n == nil {
		return nil
	}
	t.nodes = append(t.nodes, n)
	if real := realPath(path); t.byPath[real] == nil { // a file may have several names
		t.byPath[real] = n
	}
	return n
}

// realPath is a path without symbolic links, if it leads to something.
func realPath(path string) string {
	if real, err := paths.Real(path); err == nil {
		return real
	}
	return path
}

// loop is the way from an image down to itself; nil is none.
func (t *tree) loop(n *Node) *LoopError {
	e := &LoopError{Paths: []string{n.Path}}
	for base := t.backing[n]; base != nil; base = t.backing[base] {
		if base == n {
			return e
		}
		e.Paths = append(e.Paths, base.Path)
	}
	return nil
}

// rawNames are the endings of files that are taken for raw images.
var rawNames = map[string]bool{".raw": true, ".img": true, ".ext4": true}

// describe looks at a file; nil is no image.
func describe(path string) *Node {
	st, err := os.Stat(path)
	if err != nil || !st.Mode().IsRegular() {
		return nil
	}
	n := &Node{Path: path, Format: Raw, VirtualSize: st.Size()}
	f, err := storage.Inspect(path)
	if err != nil {
		n.Error = err.Error()
		return n
	}
	defer f.Close()
	n.OwnSize = f.Allocated()
	n.Format, err = format(f, "")
	var known *ForeignFormatError
	if errors.As(err, &known) {
		n.Format, n.Error = known.Format, "of the format "+known.Format+", which is not read"
		return n
	}
	if err != nil || n.Format == Raw {
		if !rawNames[filepath.Ext(path)] {
			return nil
		}
		return n
	}
	q, err := qcow2.OpenForCheck(f)
	if err != nil {
		n.Error = err.Error()
		return n
	}
	n.VirtualSize = q.Size()
	if name, format := q.BackingFile(); name != "" {
		below, err := findBacking(f, name, format)
		if err != nil {
			n.Error = err.Error()
			return n
		}
		n.below = filepath.Clean(below.path)
	}
	return n
}
