package jail

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"vmm/internal/mounts"
	"vmm/internal/paths"
)

// Namespaces need a privilege, which root has, and who begins in a user namespace: a program
// that has threads already, as one in Go always has, cannot enter one (user_namespaces(7)).
// A namespace of processes is not among those made here: a process has to begin in it (docs/jail.md says more).

// space is a kind of namespaces.
type space struct {
	name string // in /proc/PID/ns
	flag int    // of unshare(2) and setns(2)
	fd   int    // of one that was made
}

// spaces are namespaces that a thread has made, for all others to enter.
type spaces struct {
	list   []space
	thread int           // the thread's pidfd; -1 where the kernel has none of threads
	left   chan struct{} // closed when the thread is of no use any more
	err    error         // why there are none
}

// make makes namespaces for the calling thread, which is to be there until left is closed.
func (s *spaces) make(internet bool) error {
	s.list = []space{{name: "mnt", flag: unix.CLONE_NEWNS}, {name: "ipc", flag: unix.CLONE_NEWIPC}, {name: "net", flag: unix.CLONE_NEWNET}}
	if internet {
		s.list = s.list[:2]
	}
	for i := range s.list {
		s.list[i].fd = -1
	}
	for _, k := range s.list {
		if err := unix.Unshare(k.flag); err != nil {
			return fmt.Errorf("a %s namespace: %w", k.name, err)
		}
	}
	var err error
	if s.thread, err = unix.PidfdOpen(unix.Gettid(), pidfdThread); err == nil {
		return nil
	}
	for i, k := range s.list {
		if s.list[i].fd, err = unix.Open("/proc/thread-self/ns/"+k.name, unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
			return fmt.Errorf("the %s namespace: %w", k.name, err)
		}
	}
	return nil
}

func (s *spaces) close() {
	if s.left == nil {
		return
	}
	unix.Close(s.thread)
	for _, n := range s.list {
		unix.Close(n.fd)
	}
	close(s.left)
	s.list, s.left = nil, nil
}

// enter takes all threads there.
func (s *spaces) enter() error {
	dir, err := unix.Getwd()
	if err != nil {
		return err
	}
	if s.thread >= 0 {
		return s.enterAtOnce(dir)
	}
	return s.enterEach(dir)
}

// pidfdThread is PIDFD_THREAD (Linux 6.9), which is this flag (linux/pidfd.h). A test has one that no kernel knows.
var pidfdThread = unix.O_EXCL

// enterAtOnce takes all threads to where the one is that has made the namespaces (Linux 6.9). With more than one kind of
// namespaces, one of mounts takes along a root that is shared with others: all threads of this process, but for that one, have one root and
// one current directory, as before.
func (s *spaces) enterAtOnce(dir string) error {
	kinds := 0
	for _, n := range s.list {
		kinds |= n.flag
	}
	if _, _, errno := syscall.AllThreadsSyscall(unix.SYS_SETNS, uintptr(s.thread), uintptr(kinds), 0); errno != 0 {
		return fmt.Errorf("entering the namespaces: %w", errno)
	}
	if err := unix.Chdir(dir); err != nil {
		return fmt.Errorf("the current directory: %w", err)
	}
	return nil
}

// enterTries is how often all threads get a root of their own.
const enterTries = 10

// enterEach takes all threads to one namespace after the other, each thread with a root of its own: threads that share theirs cannot
// enter another one by itself.
func (s *spaces) enterEach(dir string) error {
	name, err := unix.BytePtrFromString(dir)
	if err != nil {
		return err
	}
	// With one place, which this goroutine has, Go's scheduler hardly begins a thread between the calls.
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	for _, n := range s.list {
		if err := n.enter(); err != nil {
			return fmt.Errorf("entering the %s namespace: %w", n.name, err)
		}
	}
	_, _, errno := syscall.AllThreadsSyscall(unix.SYS_CHDIR, uintptr(unsafe.Pointer(name)), 0, 0)
	runtime.KeepAlive(name)
	if errno != 0 {
		return fmt.Errorf("the current directory: %w", errno)
	}
	return nil
}

// enter takes all threads there. One that is begun just before shares the root of who has begun it: nothing has changed then.
func (n *space) enter() error {
	errno := syscall.EINVAL
	for try := 0; try < enterTries && errno == syscall.EINVAL; try++ {
		if n.flag == unix.CLONE_NEWNS {
			if _, _, errno := syscall.AllThreadsSyscall(unix.SYS_UNSHARE, unix.CLONE_FS, 0, 0); errno != 0 {
				return fmt.Errorf("a root for each thread: %w", errno)
			}
		}
		_, _, errno = syscall.AllThreadsSyscall(unix.SYS_SETNS, uintptr(n.fd), uintptr(n.flag), 0)
	}
	if errno != 0 {
		return errno
	}
	return nil
}

// tree is a part of the host's files that is to be seen in the new root.
type tree struct {
	path, real string // as it is named, and without symbolic links
	access     Access
	dir        bool
	fd         int // of a detached mount of it
}

// newRoot makes the calling thread's root one in which there are the paths of the rules
// and nothing else, and no device that could be opened.
func newRoot(r *Rules) error {
	cwd, err := unix.Getwd()
	if err != nil {
		return err
	}
	// Nothing done here is seen outside; what the host unmounts later goes here too.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("mounts of its own: %w", err)
	}
	trees, err := detach(r.Paths)
	defer func() {
		for _, t := range trees {
			unix.Close(t.fd)
		}
	}()
	if err != nil {
		return err
	}
	root, err := empty()
	if err != nil {
		return err
	}
	defer unix.Close(root)
	// A root has to be mounted somewhere first: /proc is a directory that there is.
	if err := unix.MoveMount(root, "", unix.AT_FDCWD, "/proc", unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("mounting a root: %w", err)
	}
	if err := errors.Join(unix.Fchdir(root), unix.PivotRoot(".", "."), unix.Unmount(".", unix.MNT_DETACH), unix.Chdir("/")); err != nil {
		return fmt.Errorf("changing the root: %w", err)
	}
	for _, t := range trees {
		if err := t.attach(); err != nil {
			return fmt.Errorf("%s in a new root: %w", t.path, err)
		}
	}
	// Relative paths lead where they led.
	if err := os.MkdirAll(cwd, 0o755); err != nil {
		return err
	}
	return unix.MountSetattr(root, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
}

// detach clones what is at the paths, those above others first. What is inside of another
// that can be written is there with that: as a mount of its own it could not be removed.
func detach(list []Path) (trees []tree, err error) {
	for _, p := range list {
		if p.Held {
			continue
		}
		path, err := paths.Abs(p.Path)
		if err != nil {
			return trees, err
		}
		real, err := filepath.EvalSymlinks(path)
		if err != nil || real == "/" {
			continue // not there, or all that there is: it stays closed
		}
		trees = append(trees, tree{path: path, real: real, access: p.Access, fd: -1})
	}
	slices.SortStableFunc(trees, func(a, b tree) int { return strings.Compare(a.real, b.real) })
	kept := trees[:0]
	for _, t := range trees {
		covered := slices.ContainsFunc(kept, func(k tree) bool {
			return paths.Below(t.real, k.real) && (k.access != Read || t.access == Read)
		})
		if !covered {
			if err := t.detach(); err != nil {
				return kept, fmt.Errorf("%s for a new root: %w", t.path, err)
			}
		} else if t.path == t.real {
			continue
		}
		kept = append(kept, t)
	}
	return kept, nil
}

// detach makes a mount of the tree that is nowhere yet.
func (t *tree) detach() error {
	st, err := os.Stat(t.real)
	if err != nil {
		return err
	}
	t.dir = st.IsDir()
	var attr uint64
	if t.access == Read {
		attr = unix.MOUNT_ATTR_RDONLY
	}
	if t.dir { // a file is a disk, perhaps a device
		attr |= unix.MOUNT_ATTR_NODEV
	}
	t.fd, err = mounts.Detach(t.real, attr)
	return err
}

// empty is an empty file system.
func empty() (fd int, err error) {
	fsfd, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("a tmpfs: %w", err)
	}
	defer unix.Close(fsfd)
	err = errors.Join(unix.FsconfigSetString(fsfd, "mode", "0755"), unix.FsconfigCreate(fsfd))
	if err != nil {
		return -1, fmt.Errorf("a tmpfs: %w", err)
	}
	return unix.Fsmount(fsfd, unix.FSMOUNT_CLOEXEC, mounts.Base|unix.MOUNT_ATTR_NODEV)
}

// attach puts the tree into the calling thread's root, by both of its names.
func (t *tree) attach() error {
	if t.fd >= 0 {
		if err := t.mountPoint(); err != nil {
			return err
		}
		if err := unix.MoveMount(t.fd, "", unix.AT_FDCWD, t.real, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
			return err
		}
	}
	if _, err := os.Stat(t.path); err == nil {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(t.path), 0o755); err != nil {
		return err
	}
	return os.Symlink(t.real, t.path)
}

// mountPoint makes what the tree is mounted on, if it is not there.
func (t *tree) mountPoint() error {
	if _, err := os.Lstat(t.real); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if t.dir {
		return os.MkdirAll(t.real, 0o755)
	}
	if err := os.MkdirAll(filepath.Dir(t.real), 0o755); err != nil {
		return err
	}
	return unix.Mknod(t.real, unix.S_IFREG|0o600, 0)
}
