// Package share is a directory of the host as a FUSE file system: what is behind
// a virtio-fs device. It asks for no rights that its process does not have.
//
// A guest cannot leave the directory. Every file that it uses is held by a
// descriptor, names are looked up one part at a time below such a descriptor with
// openat2 and RESOLVE_BENEATH, and symbolic links are the guest's to follow. Of
// other files than regular ones and directories, only the attributes are shown.
package share

import (
	"container/list"
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Options say how a directory is shared.
type Options struct {
	ReadOnly bool
	// Static takes the directory for one that does not change while it is shared:
	// the guest keeps what it has seen, and asks less.
	Static bool
	// System leaves out the file systems of the host's kernel, such as /proc, and
	// extended attributes: for the root of a guest.
	System bool
	// Hide are paths below the directory that the guest sees as empty, without a permission,
	// and cannot make, change, or move: whether they are there yet or not.
	Hide []string `json:",omitempty"`
	// GuestUID and GuestGID are who the process's own user and group are in the
	// guest. They count where the process is not root, who can have files of all.
	GuestUID, GuestGID uint32
}

// How long a guest may use what it knows of a name, and of attributes.
const (
	namesFor  = time.Second
	staticFor = 24 * time.Hour
)

// FS is a shared directory, for one mount of the guest. It implements fuse.RawFileSystem,
// whose methods come from any goroutine.
type FS struct {
	fuse.RawFileSystem // what is not supported
	opts               Options
	uid, gid           uint32 // the process's
	rootDev            uint64
	tellStale          func(Stale) // nil where Load fails instead
	hiddenFiles        map[fileID]bool
	names, attrs       time.Duration
	done               chan struct{} // closed by Close

	interruptMu sync.Mutex
	interrupted bool
	interrupt   chan struct{} // closed while nothing may wait for a lock

	mu     sync.RWMutex
	nodes  map[uint64]*node
	byFile map[fileID]*node
	nextID uint64
	open   *list.List // of *node: those whose descriptors may be closed, the one not used for longest first

	handleMu   sync.RWMutex
	handles    map[uint64]*handle
	nextHandle uint64
}

// fileID names a file of the host.
type fileID struct{ dev, ino uint64 }

// node is a file that the guest knows. While it is in use its descriptor lives, whatever the
// guest says: its number may be another file's afterwards.
type node struct {
	id      uint64
	file    fileID
	mode    uint32
	fd      int           // -1 while it is closed; changes under FS.mu, when nothing uses the node
	at      *list.Element // of FS.open; guarded by FS.mu
	parent  *node         // where it was last found, by which name; nil for the root; guarded by FS.mu
	name    string
	used    atomic.Bool // since evict has last seen it
	lookups uint64      // guarded by FS.mu
	memory  memory
	uses    atomic.Int64
	hidden  atomic.Bool
	hides   atomic.Pointer[hides] // below it; nil for none

	locks lockTable
}

// handle is an open file or directory.
type handle struct {
	node *node
	fd   int
	uses atomic.Int64

	mu      sync.Mutex // of what follows: a directory being read
	entries []byte
	buffer  []byte
	next    uint64
}

// New shares a directory, which this process must be able to read and to search. The error
// is the host's, such as unix.ENOENT or unix.EACCES.
func New(dir string, o Options) (*FS, error) {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", dir, err)
	}
	var st unix.Stat_t
	err = unix.Fstat(fd, &st)
	if err == nil { // else the guest would find out, file by file
		err = unix.Faccessat(unix.AT_FDCWD, dir, unix.R_OK|unix.X_OK, unix.AT_EACCESS)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", dir, err), unix.Close(fd))
	}
	f := &FS{
		RawFileSystem: fuse.NewDefaultRawFileSystem(), opts: o, rootDev: st.Dev,
		uid: uint32(os.Geteuid()), gid: uint32(os.Getegid()), names: namesFor,
		done: make(chan struct{}), interrupt: make(chan struct{}), nodes: map[uint64]*node{}, byFile: map[fileID]*node{},
		hiddenFiles: hiddenFiles(dir, o.Hide), handles: map[uint64]*handle{}, open: list.New(), nextID: fuse.FUSE_ROOT_ID + 1, nextHandle: 1,
	}
	if o.Static {
		f.names, f.attrs = staticFor, staticFor
	}
	root := &node{id: fuse.FUSE_ROOT_ID, file: fileID{st.Dev, st.Ino}, mode: st.Mode, fd: fd, lookups: math.MaxUint64 / 2}
	root.uses.Store(1)
	f.remember(root, &st)
	known.Add(1)
	root.hides.Store(newHides(o.Hide))
	descriptors.Add(1)
	f.nodes[root.id], f.byFile[root.file] = root, root
	shared.Lock()
	defer shared.Unlock()
	shared.list = append(shared.list, f)
	return f, nil
}

// Interrupt ends what waits for a lock with EINTR, and lets nothing wait, until
// Continue.
func (f *FS) Interrupt() {
	f.interruptMu.Lock()
	defer f.interruptMu.Unlock()
	if !f.interrupted {
		close(f.interrupt)
	}
	f.interrupted = true
}

// Continue ends an Interrupt.
func (f *FS) Continue() {
	f.interruptMu.Lock()
	defer f.interruptMu.Unlock()
	if f.interrupted {
		f.interrupt, f.interrupted = make(chan struct{}), false
	}
}

// waiting is a channel that is closed while nothing may wait for a lock.
func (f *FS) waiting() <-chan struct{} {
	f.interruptMu.Lock()
	defer f.interruptMu.Unlock()
	return f.interrupt
}

// Locks reports whether the guest may lock files: in a directory that is its own to
// change. Elsewhere its locks would hold up the host's programs.
func (f *FS) Locks() bool { return !f.opts.ReadOnly }

// String implements fuse.RawFileSystem.
func (f *FS) String() string { return "share" }

// Close ends what waits for a lock and forgets all files. It is called once.
func (f *FS) Close() error {
	close(f.done)
	shared.Lock()
	shared.list = slices.DeleteFunc(shared.list, func(g *FS) bool { return g == f })
	shared.Unlock()
	f.handleMu.Lock()
	for id, h := range f.handles {
		delete(f.handles, id)
		h.put()
	}
	f.handleMu.Unlock()
	f.mu.Lock()
	defer f.mu.Unlock()
	for id, n := range f.nodes {
		delete(f.nodes, id)
		f.closed(n)
		n.put()
	}
	clear(f.byFile)
	return nil
}

func (n *node) put() {
	if n.uses.Add(-1) == 0 {
		n.locks.close()
		known.Add(-1)
		if n.fd >= 0 {
			unix.Close(n.fd)
			descriptors.Add(-1)
		}
	}
}

// path is by which what needs a path finds the node's file.
func (n *node) path() string { return "/proc/self/fd/" + strconv.Itoa(n.fd) }

// handle returns an open file for use until put; nil if there is none.
func (f *FS) handle(id uint64) *handle {
	f.handleMu.RLock()
	defer f.handleMu.RUnlock()
	h := f.handles[id]
	if h != nil {
		h.uses.Add(1)
	}
	return h
}

func (h *handle) put() {
	if h.uses.Add(-1) == 0 {
		unix.Close(h.fd)
		descriptors.Add(-1)
		h.node.put()
	}
}

// addHandle takes over fd and a use of n.
func (f *FS) addHandle(n *node, fd int) (uint64, fuse.Status) {
	h := &handle{node: n, fd: fd}
	h.uses.Store(1)
	if descriptors.Add(1); noRoom() {
		h.put()
		return 0, fuse.Status(unix.ENFILE)
	}
	f.handleMu.Lock()
	defer f.handleMu.Unlock()
	id := f.nextHandle
	f.nextHandle++
	f.handles[id] = h
	return id, fuse.OK
}

// release closes an open file.
func (f *FS) release(id uint64) {
	f.handleMu.Lock()
	h := f.handles[id]
	delete(f.handles, id)
	f.handleMu.Unlock()
	if h != nil {
		h.put()
	}
}

// status is the guest's view of an error.
func status(err error) fuse.Status {
	if err == nil {
		return fuse.OK
	}
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return fuse.Status(errno)
	}
	return fuse.EIO
}

// badName reports whether a name is not one part of a path.
func badName(name string) bool {
	return name == "" || name == "." || name == ".." || strings.Contains(name, "/")
}

// openAt opens a name below a directory without leaving it.
func openAt(dir int, name string, flags int, mode uint32) (int, error) {
	how := &unix.OpenHow{Flags: uint64(flags) | unix.O_CLOEXEC | unix.O_NOFOLLOW, Mode: uint64(mode),
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS}
	for {
		fd, err := unix.Openat2(dir, name, how)
		if err != unix.EAGAIN && err != unix.EINTR { // a rename was under way
			return fd, err
		}
	}
}

// reopen opens a node's file with other flags; only what can be opened without
// an effect is. A hidden file is empty.
func (n *node) reopen(flags int) (int, error) {
	if n.hidden.Load() {
		if n.mode&unix.S_IFMT != unix.S_IFREG || writes(uint32(flags)) {
			return -1, unix.EACCES
		}
		return unix.MemfdCreate("hidden", unix.MFD_CLOEXEC)
	}
	switch n.mode & unix.S_IFMT {
	case unix.S_IFREG, unix.S_IFDIR:
	default:
		return -1, unix.EACCES
	}
	for {
		fd, err := unix.Open(n.path(), flags&^unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
		if err != unix.EINTR {
			return fd, err
		}
	}
}

// openDir opens a node's directory; of a hidden one there is nothing to read.
func (n *node) openDir(flags int) (int, error) {
	if n.hidden.Load() && n.mode&unix.S_IFMT == unix.S_IFDIR {
		return unix.FcntlInt(uintptr(n.fd), unix.F_DUPFD_CLOEXEC, 0)
	}
	return n.reopen(flags | unix.O_DIRECTORY)
}

// kernelFS are the magic numbers of file systems whose files are the host's kernel.
var kernelFS = map[int64]bool{
	unix.PROC_SUPER_MAGIC: true, unix.SYSFS_MAGIC: true, unix.DEVPTS_SUPER_MAGIC: true,
	unix.CGROUP_SUPER_MAGIC: true, unix.CGROUP2_SUPER_MAGIC: true, unix.DEBUGFS_MAGIC: true,
	unix.TRACEFS_MAGIC: true, unix.SECURITYFS_MAGIC: true, unix.BPF_FS_MAGIC: true,
	unix.EFIVARFS_MAGIC: true, unix.PSTOREFS_MAGIC: true, unix.BINFMTFS_MAGIC: true,
	unix.HUGETLBFS_MAGIC: true, unix.AUTOFS_SUPER_MAGIC: true, unix.NSFS_MAGIC: true,
	0x62656570: true, // configfs
	0x19800202: true, // mqueue
}

// lookup finds a name and counts it as known to the guest.
func (f *FS) lookup(dir *node, name string, out *fuse.EntryOut) fuse.Status {
	switch {
	case badName(name):
		return fuse.EINVAL
	case noRoom():
		return fuse.Status(unix.ENFILE)
	case dir.hidden.Load():
		return fuse.ENOENT
	}
	fd, err := openAt(dir.fd, name, unix.O_PATH, 0)
	if err != nil {
		return status(err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return status(err)
	}
	if f.opts.System && st.Dev != dir.file.dev {
		var s unix.Statfs_t
		if unix.Fstatfs(fd, &s) == nil && kernelFS[s.Type] {
			unix.Close(fd)
			return fuse.ENOENT
		}
	}
	f.know(dir, name, fd, &st, out)
	return fuse.OK
}

// know makes a node of a directory's file, or finds the one there is, and fills in out.
// It takes over fd.
func (f *FS) know(dir *node, name string, fd int, st *unix.Stat_t, out *fuse.EntryOut) {
	file := fileID{st.Dev, st.Ino}
	f.mu.Lock()
	n := f.byFile[file]
	switch {
	case n == nil || n.mode&unix.S_IFMT != st.Mode&unix.S_IFMT:
		n = &node{id: f.nextID, file: file, mode: st.Mode}
		f.remember(n, st)
		known.Add(1)
		n.uses.Store(1)
		f.opened(n, fd)
		f.nextID++
		f.nodes[n.id], f.byFile[file] = n, n
	case n.fd < 0:
		f.opened(n, fd)
	default:
		unix.Close(fd)
	}
	if n.id != fuse.FUSE_ROOT_ID {
		n.parent, n.name = dir, name
	}
	n.lookups++
	f.note(n, dir.hides.Load().child(name))
	f.mu.Unlock()
	out.NodeId = n.id
	out.SetEntryTimeout(f.names)
	out.SetAttrTimeout(f.attrs)
	f.attr(st, &out.Attr)
	n.hide(&out.Attr)
}

// attr is what the guest sees of a file's attributes.
func (f *FS) attr(st *unix.Stat_t, out *fuse.Attr) {
	*out = fuse.Attr{
		Ino: st.Ino, Size: uint64(st.Size), Blocks: uint64(st.Blocks), Mode: st.Mode, Nlink: uint32(st.Nlink),
		Atime: uint64(st.Atim.Sec), Atimensec: uint32(st.Atim.Nsec),
		Mtime: uint64(st.Mtim.Sec), Mtimensec: uint32(st.Mtim.Nsec),
		Ctime: uint64(st.Ctim.Sec), Ctimensec: uint32(st.Ctim.Nsec),
		Owner: fuse.Owner{Uid: st.Uid, Gid: st.Gid}, Rdev: uint32(st.Rdev), Blksize: uint32(st.Blksize),
	}
	// The guest sees one file system, in which a number is one file's.
	if st.Dev != f.rootDev {
		out.Ino ^= (st.Dev*0x9e3779b97f4a7c15)<<40 | 1<<62
	}
	if f.uid != 0 {
		if st.Uid == f.uid {
			out.Uid = f.opts.GuestUID
		}
		if st.Gid == f.gid {
			out.Gid = f.opts.GuestGID
		}
	}
}

// owner translates a user and a group of the guest's; -1 is no change.
func (f *FS) owner(uid, gid int) (int, int) {
	if f.uid != 0 {
		if uid == int(f.opts.GuestUID) {
			uid = int(f.uid)
		}
		if gid == int(f.opts.GuestGID) {
			gid = int(f.gid)
		}
	}
	return uid, gid
}

// Forget implements fuse.RawFileSystem.
func (f *FS) Forget(id, lookups uint64) {
	f.mu.Lock()
	n := f.nodes[id]
	if n == nil || n.id == fuse.FUSE_ROOT_ID {
		f.mu.Unlock()
		return
	}
	n.lookups -= min(n.lookups, lookups)
	gone := n.lookups == 0
	if gone {
		f.closed(n)
		n.parent = nil // what is below does not keep all that was above
		delete(f.nodes, id)
		if f.byFile[n.file] == n {
			delete(f.byFile, n.file)
		}
	}
	f.mu.Unlock()
	if gone {
		n.put()
	}
}
