package jail

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// alone is the try of a process that begins in a namespace of processes.
const alone = "alone"

// beginAlone are the attributes of that process.
func beginAlone() *syscall.SysProcAttr {
	a := &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID}
	if os.Getuid() != 0 {
		a.Cloneflags |= unix.CLONE_NEWUSER
		a.UidMappings = []syscall.SysProcIDMap{{ContainerID: os.Getuid(), HostID: os.Getuid(), Size: 1}}
		a.GidMappings = []syscall.SysProcIDMap{{ContainerID: os.Getgid(), HostID: os.Getgid(), Size: 1}}
		a.AmbientCaps = []uintptr{unix.CAP_SYS_ADMIN, unix.CAP_SYS_CHROOT}
	}
	return a
}

// tryAlone looks whether no other process has a number, and the own runtime's signals arrive.
func tryAlone(dir string) error {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return err
	}
	_, rest, _ := strings.Cut(string(status), "\nPPid:\t")
	var parent int
	if _, err := fmt.Sscan(rest, &parent); err != nil || parent == 0 {
		return fmt.Errorf("the parent's number: %d, %v", parent, err)
	}
	if err := unix.Kill(parent, 0); !errors.Is(err, unix.ESRCH) { // without the filter, which refuses it too
		return fmt.Errorf("signalling process %d: %v", parent, err)
	}
	able := Able()
	allowed := len(able.Namespaces) > 1
	r := rules(dir, false)
	r.Paths = append(r.Paths, Path{Path: "/proc/self", Access: Read})
	s, err := Enforce(Full, r, violation)
	if err != nil {
		return err
	}
	if !slices.Equal(s.Namespaces, able.Namespaces) {
		return fmt.Errorf("the status: %v, of what is said to be able: %v", s, able)
	}
	if want := []string{"mnt", "ipc", "net", "pid"}; allowed && !slices.Equal(s.Namespaces, want) {
		return fmt.Errorf("the status: %v", s)
	}
	for _, path := range []string{"/proc/1", fmt.Sprintf("/proc/%d", parent)} {
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("%s: %v", path, err)
		}
	}
	if err := unix.Kill(os.Getpid(), 0); err != nil {
		return fmt.Errorf("signalling itself: %w", err)
	}
	return errors.Join(readable("/proc/self/statm"), tryRuntime())
}

// tryRoot is what root's jail has beside that of others: what is not in the rules is not
// there, its metadata neither, and the process cannot do what root can.
func tryRoot(dir string) error {
	if !privileged() {
		return nil
	}
	at := func(path string) string { return filepath.Join(dir, path) }
	if err := errors.Join(os.Symlink(at("ro"), at("link")), os.Mkdir(at("ro/inner"), 0o700)); err != nil {
		return err
	}
	r := rules(dir, false)
	r.Paths = append(r.Paths, Path{Path: at("link"), Access: Read}, Path{Path: at("ro/inner"), Access: Write}, Path{Path: "/proc/self", Access: Read},
		Path{Path: at("rw"), Access: Write, Others: true})
	deviceMade := unix.Mknod(at("rw/device"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))) == nil
	before, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return err
	}
	want := fmt.Sprintf("CapEff:\t%016x\n", changeOthers&held())
	s, err := Enforce(Full, r, violation)
	if err != nil {
		return err
	}
	if !slices.Equal(s.Namespaces, []string{"mnt", "ipc", "net"}) {
		return fmt.Errorf("the status: %v", s)
	}
	for _, path := range []string{at("secret"), "/etc/passwd", "/proc/1", "/dev/null", "/sys"} {
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("%s: %v", path, err)
		}
	}
	for _, err := range []error{readable(at("link/there")), os.WriteFile(at("ro/inner/new"), nil, 0o600), readable("/proc/self/statm")} {
		if err != nil {
			return err
		}
	}
	if err := os.WriteFile("/new", nil, 0o600); !errors.Is(err, unix.EROFS) {
		return fmt.Errorf("a file in the root: %v", err)
	}
	if err := os.Chmod(at("ro/there"), 0o777); !errors.Is(err, unix.EROFS) {
		return fmt.Errorf("the mode of what is only to be read: %v", err)
	}
	for _, kind := range []uint32{unix.S_IFCHR, unix.S_IFBLK} {
		if err := unix.Mknod(at("rw/new device"), kind|0o666, int(unix.Mkdev(1, 3))); !errors.Is(err, os.ErrPermission) {
			return fmt.Errorf("making a device of kind %o: %v", kind, err)
		}
	}
	if err := readable(at("rw/device")); deviceMade && !errors.Is(err, os.ErrPermission) {
		return fmt.Errorf("opening a device: %v", err)
	}
	if err := unix.Mknod(at("rw/mark"), unix.S_IFCHR|0o600, 0); err != nil {
		return fmt.Errorf("the mark of an overlay: %v", err)
	}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return err
	}
	if !bytes.Contains(status, []byte(want)) || bytes.Contains(before, []byte(want)) {
		return fmt.Errorf("not %s in %s", want, status)
	}
	return nil
}

// tryBegun finishes what was begun for such rules, and for others.
func tryBegun(internet bool, begun ...Path) func(string) error {
	return func(dir string) error {
		could := privileged()
		Begin(Full, false).Close()
		r := rules(dir, false)
		r.Begun = Begin(Full, internet)
		if begun != nil {
			r.Begun.Root(Rules{Paths: begun})
		}
		s, err := Enforce(Full, r, violation)
		if err != nil {
			return err
		}
		if could && !slices.Equal(s.Namespaces, []string{"mnt", "ipc", "net"}) {
			return fmt.Errorf("the status: %v", s)
		}
		if err := readable(filepath.Join(dir, "secret")); err == nil {
			return errors.New("the secret can be read")
		}
		return readable(filepath.Join(dir, "ro/there"))
	}
}

// tryMain looks whether the main thread, whose namespaces are those in /proc/self, stays where it is when it is the
// one that has nothing to do.
func tryMain(string) error {
	before, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		return err
	}
	for range 20 {
		Able()
		if now, err := os.Readlink("/proc/self/ns/mnt"); now != before {
			return fmt.Errorf("it is in %s and not in %s any more: %v", now, before, err)
		}
	}
	return nil
}

// tryEach tries something as on a kernel that takes threads to one namespace after the other.
func tryEach(try func(string) error) func(string) error {
	return func(dir string) error {
		pidfdThread = 1 << 30
		return try(dir)
	}
}

// tryBusy enters a jail while Go's scheduler wants threads: all are in system calls or have
// something to execute.
func tryBusy(dir string) error {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(8))
	done := make(chan struct{})
	var group sync.WaitGroup
	for i := range 16 {
		group.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				if i%2 == 0 {
					unix.Nanosleep(&unix.Timespec{Nsec: 50_000}, nil)
				} else {
					runtime.Gosched()
				}
			}
		})
	}
	time.Sleep(time.Millisecond)
	err := enter(dir, false)
	close(done)
	group.Wait()
	if err != nil {
		return err
	}
	return readable(filepath.Join(dir, "ro/there"))
}

// tryRelative looks whether relative paths lead where they led before.
func tryRelative(dir string) error {
	// A shell may have come there by a link.
	link := filepath.Join(dir, "link")
	if err := errors.Join(os.Symlink(dir, link), os.Setenv("PWD", link), os.Chdir(link)); err != nil {
		return err
	}
	_, err := Enforce(Full, Rules{Paths: []Path{{Path: "ro", Access: Read}}}, violation)
	if err != nil {
		return err
	}
	if err := readable("secret"); err == nil {
		return errors.New("the secret can be read")
	}
	return readable("ro/there")
}

// tryUser becomes somebody else, who owns a directory of the rules.
func tryUser(dir string) error {
	if !privileged() {
		return nil
	}
	const id = 54321
	for d := dir; d != "/" && d != os.TempDir(); d = filepath.Dir(d) { // who it becomes can get there
		if err := os.Chmod(d, 0o755); err != nil {
			return err
		}
	}
	if err := errors.Join(os.Chown(filepath.Join(dir, "rw"), id, id), os.Chmod(filepath.Join(dir, "ro"), 0o700)); err != nil {
		return err
	}
	r := rules(dir, false)
	r.User = &User{id, id}
	r.Paths = append(r.Paths, Path{Path: "/proc/self", Access: Read})
	if _, err := Enforce(Full, r, violation); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "rw/new"), nil, 0o600); err != nil {
		return err
	}
	if err := readable(filepath.Join(dir, "ro/there")); !errors.Is(err, os.ErrPermission) {
		return fmt.Errorf("another's file: %v", err)
	}
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return err
	}
	for _, t := range tasks {
		b, err := os.ReadFile("/proc/self/task/" + t.Name() + "/status")
		if err == nil && !(strings.Contains(string(b), "Uid:\t54321\t54321\t54321\t54321\nGid:\t54321\t54321\t54321\t54321\n") &&
			strings.Contains(string(b), "Groups:\t \n") && strings.Contains(string(b), "CapPrm:\t0000000000000000\n")) {
			return fmt.Errorf("thread %s: %s", t.Name(), b)
		}
	}
	return nil
}

// tryUnprivileged has a process without rights told why it has no namespaces.
func tryUnprivileged(dir string) error {
	if !cgo {
		if err := keepOnly(0); err != nil {
			return err
		}
	}
	able := Able()
	files, err := Enforce(Landlock, rules(dir, false), violation)
	if err != nil {
		return err
	}
	if strings.Contains(files.Missing, "namespaces") {
		return fmt.Errorf("for files alone, which need none: %v", files)
	}
	full, err := Enforce(Full, rules(dir, false), violation)
	if err != nil {
		return err
	}
	for _, s := range []Status{able, full} {
		if want := "no namespaces (" + errUnprivileged().Error() + ")"; len(s.Namespaces) > 0 || !strings.HasSuffix(s.String(), "; "+want) {
			return fmt.Errorf("the status: %v", s)
		}
	}
	return nil
}
