package share

import (
	"math"
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// A guest remembers more files than a process may have open. Of those that it does not use,
// the descriptors that were not needed for longest are closed when there are many; one that is
// needed again is opened by its name below the shared directory, and must be the file that it
// was: else the guest is told ESTALE, and looks its name up anew.

// descriptors are those of all shares of the process, which guests decide on.
var descriptors atomic.Int64

// maxDescriptors leaves the process a quarter of its open files for itself.
var maxDescriptors = sync.OnceValue(func() int64 {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		return 256
	}
	return int64(min(l.Cur, math.MaxInt32) / 4 * 3)
})

// known are the files that guests know, each some hundred bytes, and maxKnown is how many
// these may be: a guest could make files, remove them, and not forget them.
var known atomic.Int64

const maxKnown = 2 << 20

// full reports whether guests have as many open files, or know as many, as they may.
func full() bool { return descriptors.Load() >= maxDescriptors() || known.Load() >= maxKnown }

// From crowded on descriptors are closed, until there are fewer than roomy.
func crowded() bool { return descriptors.Load() >= maxDescriptors()/4*3 }
func roomy() bool   { return descriptors.Load() < maxDescriptors()/8*5 }

// shared are the file systems of the process, which share the descriptors.
var shared struct {
	sync.Mutex
	list []*FS
}

// noRoom makes room if descriptors are scarce, and reports whether there is none. No lock may
// be held.
func noRoom() bool {
	if !crowded() {
		return full()
	}
	shared.Lock()
	list := slices.Clone(shared.list)
	shared.Unlock()
	for _, f := range list {
		f.mu.Lock()
		f.evict()
		f.mu.Unlock()
	}
	return full()
}

// evict closes descriptors of nodes that nothing uses now, until there is room again; mu is
// held. One that was used since it was last looked at gets another chance.
func (f *FS) evict() {
	for range 2 * f.open.Len() {
		e := f.open.Front()
		if e == nil || roomy() {
			return
		}
		n := e.Value.(*node)
		if n.uses.Load() > 1 || n.used.Swap(false) {
			f.open.MoveToBack(e)
			continue
		}
		f.closed(n)
		unix.Close(n.fd)
		descriptors.Add(-1)
		n.fd = -1
	}
}

// opened takes a node among those that can be closed; mu is held.
func (f *FS) opened(n *node, fd int) {
	n.fd = fd
	n.at = f.open.PushBack(n)
	descriptors.Add(1)
}

// closed takes it out again; mu is held.
func (f *FS) closed(n *node) {
	if n.at != nil {
		f.open.Remove(n.at)
		n.at = nil
	}
}

// again opens the file of a node whose descriptor was closed; mu is held. The error is ESTALE
// where its name does not lead to it any more.
func (f *FS) again(n *node) error {
	if n.fd >= 0 {
		return nil
	}
	var names []string
	top := n
	for ; top.fd < 0; top = top.parent {
		names = append(names, top.name)
		// What the guest has forgotten may be closing; a loop is made of mounts of the host.
		if top.parent == nil || f.nodes[top.parent.id] != top.parent || len(names) > unix.PathMax {
			return unix.ESTALE
		}
	}
	dir := top.fd
	for i, name := range slices.Backward(names) {
		fd, err := openAt(dir, name, unix.O_PATH, 0)
		if i < len(names)-1 {
			unix.Close(dir)
		}
		if err == unix.EMFILE || err == unix.ENFILE {
			return err
		}
		if err != nil {
			return unix.ESTALE
		}
		dir = fd
	}
	var st unix.Stat_t
	if err := unix.Fstat(dir, &st); err != nil || (fileID{st.Dev, st.Ino}) != n.file || st.Mode&unix.S_IFMT != n.mode&unix.S_IFMT {
		unix.Close(dir)
		return unix.ESTALE
	}
	f.opened(n, dir)
	return nil
}

// node returns a node for use until put; nil if the guest should not know it, or its file is
// not where it was.
func (f *FS) node(id uint64) *node {
	f.mu.RLock()
	n := f.nodes[id]
	here := n != nil && n.fd >= 0
	if here {
		n.use()
	}
	f.mu.RUnlock()
	if here || n == nil {
		return n
	}
	noRoom()
	f.mu.Lock()
	defer f.mu.Unlock()
	if n = f.nodes[id]; n == nil || f.again(n) != nil {
		return nil
	}
	n.use()
	return n
}

func (n *node) use() {
	n.uses.Add(1)
	if !n.used.Load() {
		n.used.Store(true)
	}
}

// moved notes that a name is now that of a file which may be known; mu is not held.
func (f *FS) moved(dir *node, name string) {
	var st unix.Stat_t
	if unix.Fstatat(dir.fd, name, &st, unix.AT_SYMLINK_NOFOLLOW) != nil {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if n := f.byFile[fileID{st.Dev, st.Ino}]; n != nil && n.parent != nil {
		n.parent, n.name = dir, name
	}
}
