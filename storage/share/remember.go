package share

import (
	"slices"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// The guest keeps what it has seen of a static directory. One that goes on from a saved state
// may remember what has changed since: memory is what tells.

// memory is what the guest may keep in mind of a file: how it was when the guest first heard
// of it, and for a directory, what of its names.
type memory struct {
	changed  int64 // in nanoseconds since 1970; 0 in a directory that is not static
	uid, gid uint32
	missing  []string // names that are not there; guarded by FS.mu
	whole    bool     // all its names; guarded by FS.mu
}

// maxMissing bounds the names that are remembered of one directory: a guest with more is
// taken to know all of it.
const maxMissing = 32

// remember notes how a file is that the guest hears of now; mu is held.
func (f *FS) remember(n *node, st *unix.Stat_t) {
	if f.opts.Static && n.memory.changed == 0 {
		n.memory.changed, n.memory.uid, n.memory.gid = st.Ctim.Nano(), st.Uid, st.Gid
	}
}

// missed notes that the guest was told that a name is not in a directory.
func (f *FS) missed(dir *node, name string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	m := &dir.memory
	if m.whole || slices.Contains(m.missing, name) {
		return
	}
	if len(m.missing) < maxMissing && utf8.ValidString(name) { // as the saved state keeps it
		m.missing = append(m.missing, name)
		return
	}
	m.missing, m.whole = nil, true
}

// listed notes that the guest was told all names of a directory.
func (f *FS) listed(dir *node) {
	f.mu.Lock()
	defer f.mu.Unlock()
	dir.memory.missing, dir.memory.whole = nil, true
}

// freshness is how good what the guest remembers of a file still is.
type freshness int

const (
	fresh      freshness = iota
	freshNames           // of a directory: it has changed, but not in what the guest knows of its names
	stale
	exposed // it must not be in the guest's memory
)

// uncovered is the freshness of a file that was not hidden from the guest and is now, or the
// other way round.
func (n *node) uncovered() freshness {
	if n.hidden.Load() && n.mode&unix.S_IFMT != unix.S_IFDIR {
		return exposed
	}
	return stale // with a new mount, it asks for the names in a directory again
}

// compare looks at the file of a node with a memory, which is fd.
func (n *node) compare(fd int, st *unix.Stat_t) freshness {
	m := &n.memory
	switch {
	case m.changed == 0 || m.changed == st.Ctim.Nano():
		return fresh
	case st.Mode != n.mode || st.Uid != m.uid || st.Gid != m.gid, st.Mode&unix.S_IFMT != unix.S_IFDIR, m.whole:
		return stale
	}
	var there unix.Stat_t
	for _, name := range m.missing {
		if unix.Fstatat(fd, name, &there, unix.AT_SYMLINK_NOFOLLOW) != unix.ENOENT {
			return stale
		}
	}
	return freshNames
}

// Stale is what a guest that has gone on remembers wrongly. Its kernel has to be told: it
// does not ask again by itself.
type Stale struct {
	// Path is a file below the shared directory that is another one, is no more, is hidden no more, or has
	// other content or permissions, or a directory with other names or that is hidden now; the first of them.
	// The guest needs a new mount. It is empty if there is none.
	Path string
	// Dirs are directories of which only the attributes have changed.
	Dirs []string
}

// SetStale has Load tell of what the guest remembers wrongly, where that would be an error: it
// still is for what the guest has open. It is called before Load.
func (f *FS) SetStale(tell func(Stale)) { f.tellStale = tell }

// Idle reports whether the guest has no file open.
func (f *FS) Idle() bool {
	f.handleMu.RLock()
	defer f.handleMu.RUnlock()
	return len(f.handles) == 0
}

// add takes a file that is not as the guest remembers it.
func (s *Stale) add(path string) {
	if s.Path == "" {
		s.Path = path
	}
}
