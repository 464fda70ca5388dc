package share

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"sort"
	"strconv"
	"strings"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// State is the files that a guest knows and has open.
type State struct {
	Nodes      []NodeState   `json:"nodes"`
	Handles    []HandleState `json:"handles,omitempty"`
	NextNode   uint64        `json:"nextNode"`
	NextHandle uint64        `json:"nextHandle"`
}

// NodeState is a file that the guest knows. One without a name any more is lost
// to the guest when the state is loaded: ESTALE.
type NodeState struct {
	ID      uint64 `json:"id"`
	Path    string `json:"path"` // below the shared directory
	Dev     uint64 `json:"dev"`
	Ino     uint64 `json:"ino"`
	Mode    uint32 `json:"mode"`
	Lookups uint64 `json:"lookups"`
	// Changed is when the file was, in nanoseconds since 1970, when the guest first heard
	// of it, if it may keep in mind what it has heard. So are UID and GID.
	Changed int64  `json:"changed,omitempty"`
	UID     uint32 `json:"uid,omitempty"`
	GID     uint32 `json:"gid,omitempty"`
	// Missing are names that the guest knows not to be in a directory; Whole, that it
	// knows all of them.
	Missing []string    `json:"missing,omitempty"`
	Whole   bool        `json:"whole,omitempty"`
	Hidden  bool        `json:"hidden,omitempty"` // as Options.Hide has it
	Locks   []LockState `json:"locks,omitempty"`
}

// LockState is a POSIX lock of an owner in the guest.
type LockState struct {
	Owner uint64 `json:"owner"`
	Write bool   `json:"write"`
	Start int64  `json:"start"`
	Len   int64  `json:"len"` // 0 is up to the end
}

// HandleState is an open file or directory.
type HandleState struct {
	ID    uint64 `json:"id"`
	Node  uint64 `json:"node"`
	Flags int    `json:"flags"`           // of open(2)
	Flock string `json:"flock,omitempty"` // READ or WRITE
}

// GoneError is the error of Load for a file of the guest's that is not where it
// was, or is another one now.
type GoneError struct {
	Path   string
	Hidden bool // it is hidden by now, and the guest may have read it before
}

// Error implements error.
func (e *GoneError) Error() string {
	if e.Hidden {
		return fmt.Sprintf("the guest may have read %s, which is hidden now", e.Path)
	}
	return fmt.Sprintf("the guest uses %s, which is not the file any more that it was", e.Path)
}

// deletedMark is what the kernel adds to the path of a file without a name.
const deletedMark = " (deleted)"

// Save returns the state. Nothing may use the file system meanwhile.
func (f *FS) Save() ([]byte, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.handleMu.Lock()
	defer f.handleMu.Unlock()
	s := State{NextNode: f.nextID, NextHandle: f.nextHandle}
	root, err := os.Readlink(f.nodes[fuse.FUSE_ROOT_ID].path())
	if err != nil {
		return nil, err
	}
	for id, n := range f.nodes {
		o := NodeState{ID: id, Dev: n.file.dev, Ino: n.file.ino, Mode: n.mode, Lookups: n.lookups,
			Changed: n.memory.changed, UID: n.memory.uid, GID: n.memory.gid, Missing: n.memory.missing, Whole: n.memory.whole, Hidden: n.hidden.Load()}
		if id == fuse.FUSE_ROOT_ID {
			if o.Changed != 0 {
				s.Nodes = append(s.Nodes, o)
			}
			continue
		}
		if f.again(n) != nil { // it has no name by which it was known
			s.Nodes = append(s.Nodes, o)
			continue
		}
		path, err := os.Readlink(n.path())
		if err != nil {
			return nil, err
		}
		if rest, ok := below(path, root); ok && !strings.HasSuffix(path, deletedMark) {
			o.Path = rest
		}
		if o.Locks, err = n.locks.save(); err != nil {
			return nil, err
		}
		s.Nodes = append(s.Nodes, o)
		if crowded() {
			f.evict()
		}
	}
	for id, h := range f.handles {
		o := HandleState{ID: id, Node: h.node.id}
		if o.Flags, err = unix.FcntlInt(uintptr(h.fd), unix.F_GETFL, 0); err != nil {
			return nil, err
		}
		if h.node.hidden.Load() { // what stands for it is open otherwise
			o.Flags = unix.O_RDONLY
		}
		held, err := locksOf(h.fd)
		if err != nil {
			return nil, err
		}
		for _, l := range held {
			if l.kind == "FLOCK" {
				o.Flock = l.mode
			}
		}
		s.Handles = append(s.Handles, o)
	}
	sort.Slice(s.Nodes, func(i, j int) bool { return s.Nodes[i].ID < s.Nodes[j].ID })
	sort.Slice(s.Handles, func(i, j int) bool { return s.Handles[i].ID < s.Handles[j].ID })
	return json.Marshal(&s)
}

// below returns a path relative to a directory that it is in.
func below(path, dir string) (string, bool) {
	rest, ok := strings.CutPrefix(path, strings.TrimSuffix(dir, "/")+"/")
	return rest, ok
}

// Load makes files known again, to a file system that knows none. Locks that
// somebody else has by now are lost to the guest. It is a GoneError if the guest remembers or
// uses what has changed, but see SetStale.
func (f *FS) Load(state []byte) error {
	var s State
	if err := json.Unmarshal(state, &s); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.handleMu.Lock()
	defer f.handleMu.Unlock()
	var wrong Stale
	for i := range s.Nodes {
		o := &s.Nodes[i]
		how, err := f.loadNode(o)
		var gone *GoneError
		switch {
		case errors.As(err, &gone) && f.tellStale != nil:
			wrong.add(gone.Path)
		case err != nil:
			return err
		case how == exposed:
			return &GoneError{Path: o.shown(), Hidden: true}
		case how == stale && f.tellStale == nil:
			return &GoneError{Path: o.Path}
		case how == stale:
			wrong.add(o.shown())
		case how == freshNames:
			wrong.Dirs = append(wrong.Dirs, o.Path)
		}
	}
	for _, o := range s.Handles {
		if wrong.Path != "" { // with an open file, the guest cannot give up its mount
			return &GoneError{Path: wrong.Path}
		}
		if err := f.loadHandle(&o, &s); err != nil {
			return err
		}
	}
	f.nextID, f.nextHandle = s.NextNode, s.NextHandle
	if f.tellStale != nil {
		f.tellStale(wrong)
	}
	return nil
}

// shown is a node's path for messages.
func (o *NodeState) shown() string {
	switch {
	case o.ID == fuse.FUSE_ROOT_ID:
		return "."
	case o.Path == "":
		return "a file that was removed"
	}
	return o.Path
}

// loadNode makes a file known again, and compares it with what the guest remembers of it.
func (f *FS) loadNode(o *NodeState) (freshness, error) {
	root := f.nodes[fuse.FUSE_ROOT_ID]
	remembered := memory{changed: o.Changed, uid: o.UID, gid: o.GID, missing: o.Missing, whole: o.Whole}
	var st unix.Stat_t
	if o.ID == fuse.FUSE_ROOT_ID {
		if err := unix.Fstat(root.fd, &st); err != nil {
			return stale, err
		}
		root.memory, root.mode = remembered, o.Mode
		return root.compare(root.fd, &st), nil
	}
	if o.Path == "" {
		if o.Changed != 0 {
			return stale, nil
		}
		return fresh, nil // it is lost to the guest
	}
	if o.ID < fuse.FUSE_ROOT_ID || f.nodes[o.ID] != nil {
		return stale, errors.New("a file that is known twice")
	}
	if crowded() {
		if f.evict(); full() {
			return stale, unix.ENFILE
		}
	}
	fd, err := openAt(root.fd, o.Path, unix.O_PATH, 0)
	if err != nil {
		return stale, fmt.Errorf("%w: %w", &GoneError{Path: o.Path}, err)
	}
	err = unix.Fstat(fd, &st)
	if err == nil && ((fileID{st.Dev, st.Ino}) != fileID{o.Dev, o.Ino} || st.Mode&unix.S_IFMT != o.Mode&unix.S_IFMT) {
		err = &GoneError{Path: o.Path}
	}
	if err != nil {
		return stale, errors.Join(err, unix.Close(fd))
	}
	n := &node{id: o.ID, file: fileID{o.Dev, o.Ino}, mode: o.Mode, lookups: o.Lookups, parent: root, name: o.Path, memory: remembered}
	n.uses.Store(1)
	known.Add(1)
	f.opened(n, fd)
	f.note(n, root.hides.Load().at(o.Path))
	f.nodes[n.id] = n
	if f.byFile[n.file] == nil {
		f.byFile[n.file] = n
	}
	if f.Locks() {
		for _, l := range o.Locks {
			n.locks.load(n, l)
		}
	}
	if f.tellStale != nil && n.hidden.Load() != o.Hidden {
		return n.uncovered(), nil
	}
	return n.compare(fd, &st), nil
}

// loadHandle opens a file again.
func (f *FS) loadHandle(o *HandleState, s *State) error {
	n := f.nodes[o.Node]
	if n == nil {
		return nil // of a file without a name: EBADF
	}
	if crowded() {
		f.evict()
	}
	if err := f.again(n); err != nil {
		return fmt.Errorf("%s: %w", o.path(s), err)
	}
	if f.opts.ReadOnly && writes(uint32(o.Flags)) {
		return fmt.Errorf("%s: it was open for writing, and the directory is shared read-only: %w", o.path(s), unix.EROFS)
	}
	open := n.reopen
	if n.mode&unix.S_IFMT == unix.S_IFDIR {
		open = n.openDir
	}
	fd, err := open(o.Flags &^ (unix.O_TRUNC | unix.O_CREAT | unix.O_EXCL))
	if err != nil {
		return fmt.Errorf("%s: %w", o.path(s), err)
	}
	n.uses.Add(1)
	h := &handle{node: n, fd: fd}
	h.uses.Store(1)
	descriptors.Add(1)
	f.handles[o.ID] = h
	if how := map[string]int{"READ": unix.LOCK_SH, "WRITE": unix.LOCK_EX}[o.Flock]; how != 0 && f.Locks() {
		unix.Flock(fd, how|unix.LOCK_NB)
	}
	return nil
}

// path is that of a handle's file, for messages.
func (o *HandleState) path(s *State) string {
	for _, n := range s.Nodes {
		if n.ID == o.Node {
			return n.Path
		}
	}
	return "the shared directory"
}

// heldLock is a lock as /proc shows it.
type heldLock struct {
	kind, mode string // OFDLCK or FLOCK, READ or WRITE
	start, n   int64  // n is 0 up to the end
}

// locksOf are the locks that an open file has (proc_pid_fdinfo(5)).
func locksOf(fd int) ([]heldLock, error) {
	info, err := os.Open("/proc/self/fdinfo/" + strconv.Itoa(fd))
	if err != nil {
		return nil, err
	}
	defer info.Close()
	var out []heldLock
	for lines := bufio.NewScanner(info); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) != 9 || fields[0] != "lock:" {
			continue
		}
		l := heldLock{kind: fields[2], mode: fields[4]}
		l.start, _ = strconv.ParseInt(fields[7], 10, 64)
		if end, err := strconv.ParseInt(fields[8], 10, 64); err == nil && end < math.MaxInt64 { // else EOF
			l.n = end - l.start + 1
		}
		out = append(out, l)
	}
	return out, nil
}

// save returns the locks of all owners.
func (t *lockTable) save() ([]LockState, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []LockState
	for owner, fd := range t.owners {
		held, err := locksOf(fd)
		if err != nil {
			return nil, err
		}
		for _, l := range held {
			out = append(out, LockState{owner, l.mode == "WRITE", l.start, l.n})
		}
	}
	return out, nil
}

// load takes a lock again, if it is free.
func (t *lockTable) load(n *node, s LockState) {
	t.mu.Lock()
	defer t.mu.Unlock()
	fd, err := t.descriptor(n, s.Owner)
	if err != nil {
		return
	}
	l := unix.Flock_t{Type: unix.F_RDLCK, Whence: io.SeekStart, Start: s.Start, Len: s.Len}
	if s.Write {
		l.Type = unix.F_WRLCK
	}
	unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &l)
}
