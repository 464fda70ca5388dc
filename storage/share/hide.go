package share

import (
	"path/filepath"
	"strings"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// hides says which names of a directory are hidden, and which have something hidden below
// them. Nil hides nothing.
type hides struct {
	self  bool
	below map[string]*hides
}

// newHides is that of the shared directory, for Options.Hide.
func newHides(paths []string) *hides {
	root := &hides{}
	for _, p := range paths {
		at := root
		for _, name := range strings.Split(filepath.Clean(p), "/") {
			next := at.below[name]
			if next == nil {
				next = &hides{}
				if at.below == nil {
					at.below = map[string]*hides{}
				}
				at.below[name] = next
			}
			at = next
		}
		at.self = true
	}
	return root
}

// child is that of a name.
func (h *hides) child(name string) *hides {
	if h == nil {
		return nil
	}
	return h.below[name]
}

// at is that of a path.
func (h *hides) at(path string) *hides {
	for _, name := range strings.Split(path, "/") {
		if h = h.child(name); h == nil || h.self {
			break
		}
	}
	return h
}

// names reports whether the name itself is hidden.
func (h *hides) names() bool { return h != nil && h.self }

// hiddenFiles finds the files that are hidden as they are now: by whatever other name the
// guest comes to one, it is that file.
func hiddenFiles(dir string, paths []string) map[fileID]bool {
	files := map[fileID]bool{}
	for _, p := range paths {
		var st unix.Stat_t
		if unix.Lstat(filepath.Join(dir, p), &st) != nil { // most are not there
			continue
		}
		files[fileID{st.Dev, st.Ino}] = true
		if st.Mode&unix.S_IFMT == unix.S_IFLNK && unix.Stat(filepath.Join(dir, p), &st) == nil {
			files[fileID{st.Dev, st.Ino}] = true
		}
	}
	return files
}

// note notes what is hidden of a node's file and below it.
func (f *FS) note(n *node, h *hides) {
	if h.names() || f.hiddenFiles[n.file] {
		n.hidden.Store(true)
	}
	if h != nil {
		n.hides.Store(h)
	}
}

// hide takes from the attributes what a hidden file would tell.
func (n *node) hide(a *fuse.Attr) {
	if n.hidden.Load() {
		a.Mode &= unix.S_IFMT
		a.Size, a.Blocks = 0, 0
	}
}

// touches reports whether a change of the name in a directory would be one of something
// hidden.
func (n *node) touches(name string) bool {
	return n.hidden.Load() || n.hides.Load().child(name).names()
}
