package jail

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"vmm/internal/hostpid"
)

// A jail is for good, so each test is a process of its own: this one again, which finds
// in its environment what it is to try and in which directory.
const (
	tryVariable  = "VMM_JAIL_TEST"
	costVariable = "VMM_JAIL_COST"
	violated     = "violation: "
)

func TestMain(m *testing.M) {
	if number := os.Getenv(costVariable); number != "" {
		if err := cost(number, os.Args[1]); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if name := os.Getenv(tryVariable); name != "" {
		err := tries[name].do(os.Args[1])
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println("done")
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// enter makes the jail, whose rules are those of the test's directory.
func enter(dir string, internet bool) error {
	_, err := Enforce(Full, rules(dir, internet), violation)
	return err
}

func rules(dir string, internet bool) Rules {
	r := Rules{Internet: internet}
	for name, access := range map[string]Access{"ro": Read, "rw": Write, "entries": Unlink, "entries/own": Files, "file": Write, "nowhere": Read} {
		r.Paths = append(r.Paths, Path{Path: filepath.Join(dir, name), Access: access})
	}
	return r
}

func violation(call string) {
	fmt.Println(violated + call)
	os.Exit(2)
}

// tries are what a process tries in a jail, and what comes of it: "done", an error, or
// the system call that ends it.
var tries = map[string]struct {
	do   func(dir string) error
	want string
}{
	"files":     {tryFiles, "done"},
	"narrow":    {tryNarrow, "done"},
	"threads":   {tryThreads, "done"},
	"loopback":  {inside(true, tryLoopback), "done"},
	"connect":   {tryConnect, "done"},
	"collect":   {inside(false, tryRuntime), "done"},
	"clone3":    {inside(false, tryClone3), "done"},
	"relative":  {tryRelative, "done"},
	"each":      {tryEach(tryThreads), "done"},
	"each way":  {tryEach(tryRelative), "done"},
	"each busy": {tryEach(tryBusy), "done"},
	"root":      {tryRoot, "done"},
	"busy":      {tryBusy, "done"},
	"begun":     {tryBegun(false), "done"},
	"other":     {tryBegun(true), "done"},                      // was begun
	"paths":     {tryBegun(false, Path{Path: "/tmp"}), "done"}, // are others
	"user":      {tryUser, "done"},
	alone:       {tryAlone, "done"},
	"no right":  {tryUnprivileged, "done"},
	"main":      {tryMain, "done"},

	onlyPlace: {inside(false, func() error {
		unix.RawSyscall(unix.SYS_PTRACE, unix.PTRACE_ATTACH, uintptr(os.Getppid()), 0)
		return nil
	}), violated + "ptrace"},
	"exec":         {inside(false, call(unix.SYS_EXECVE)), violated + "execve"}, // unix.Exec lets no thread begin meanwhile, to tell of it
	"fork":         {inside(false, call(unix.SYS_FORK)), violated + "fork"},
	"thread apart": {inside(false, call(unix.SYS_CLONE, unix.CLONE_THREAD|unix.CLONE_VM|unix.CLONE_SIGHAND|unix.CLONE_NEWNS)), violated + "clone"},
	"vfork":        {inside(false, call(unix.SYS_CLONE, unix.CLONE_VM|unix.CLONE_VFORK|uintptr(unix.SIGCHLD))), violated + "clone"},
	"ptrace":       {inside(false, call(unix.SYS_PTRACE, unix.PTRACE_ATTACH, uintptr(os.Getppid()))), violated + "ptrace"},
	"peek":         {inside(false, call(unix.SYS_PROCESS_VM_READV, uintptr(os.Getppid()))), violated + "process_vm_readv"},
	"mount":        {inside(false, func() error { return unix.Mount("none", "/mnt", "tmpfs", 0, "") }), violated + "mount"},
	"namespace":    {inside(false, func() error { return unix.Unshare(unix.CLONE_NEWUSER) }), violated + "unshare"},
	"bpf":          {inside(false, call(unix.SYS_BPF)), violated + "bpf"},
	"keyring":      {inside(false, call(unix.SYS_KEYCTL)), violated + "keyctl"},
	"uring":        {inside(false, call(unix.SYS_IO_URING_SETUP, 8)), violated + "io_uring_setup"},
	"handle":       {inside(false, call(unix.SYS_OPEN_BY_HANDLE_AT)), violated + "open_by_handle_at"},
	"unknown":      {inside(false, call(0xfff)), violated + "number 4095"},
	"kill":         {inside(false, func() error { return unix.Kill(os.Getppid(), 0) }), violated + "kill"},
	"code":         {inside(false, call(unix.SYS_MMAP, 0, 4096, unix.PROT_READ|unix.PROT_EXEC, unix.MAP_PRIVATE|unix.MAP_ANON)), violated + "mmap"},
	"executable":   {inside(false, tryProtect), violated + "mprotect"},
	"internet":     {inside(false, func() error { _, err := net.Dial("tcp", "127.0.0.1:9"); return err }), violated + "socket"},
	"agent":        {inside(false, func() error { _, err := net.Dial("unix", "/run/agent"); return err }), violated + "socket"},
	"pair":         {inside(true, call(unix.SYS_SOCKETPAIR, unix.AF_UNIX, unix.SOCK_DGRAM)), violated + "socketpair"}, // which can send elsewhere
	"diagnosis":    {inside(true, call(unix.SYS_SOCKET, unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_SOCK_DIAG)), violated + "socket"},
	"owner":        {inside(false, call(unix.SYS_FCNTL, 0, unix.F_SETOWN, uintptr(os.Getppid()))), violated + "fcntl"}, // whom F_SETSIG signals
	"lease":        {inside(false, call(unix.SYS_FCNTL, 0, unix.F_SETLEASE, unix.F_WRLCK)), violated + "fcntl"},
	"group":        {inside(true, call(unix.SYS_IOCTL, 0, 0x8901)), violated + "ioctl"}, // FIOSETOWN
	"discipline":   {inside(false, call(unix.SYS_IOCTL, 0, unix.TIOCSETD)), violated + "ioctl"},
	"raw packets":  {inside(true, call(unix.SYS_SOCKET, unix.AF_PACKET, unix.SOCK_RAW)), violated + "socket"},
	"terminal":     {inside(false, call(unix.SYS_IOCTL, 0, unix.TIOCSTI)), violated + "ioctl"},
	"let go":       {inside(false, call(unix.SYS_IOCTL, 0, 0xc0182101)), violated + "ioctl"}, // SECCOMP_IOCTL_NOTIF_SEND
	"filter":       {inside(false, call(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER)), violated + "seccomp"},
	"other device": {inside(false, call(unix.SYS_IOCTL, 0, 0x4c00)), violated + "ioctl"}, // LOOP_SET_FD
}

// onlyPlace is the try of a call of which Go's scheduler does not know, where that has place for one goroutine.
const onlyPlace = "only place"

// inside tries something in a jail.
func inside(internet bool, do func() error) func(string) error {
	return func(dir string) error {
		if err := enter(dir, internet); err != nil {
			return err
		}
		return do()
	}
}

// call makes a system call.
func call(number uintptr, args ...uintptr) func() error {
	var a [6]uintptr
	copy(a[:], args)
	return func() error {
		if _, _, errno := unix.Syscall6(number, a[0], a[1], a[2], a[3], a[4], a[5]); errno != 0 {
			return errno
		}
		return nil
	}
}

func tryFiles(dir string) error {
	at := func(path string) string { return filepath.Join(dir, path) }
	if err := enter(dir, false); err != nil {
		return err
	}
	read := func(path string) error { _, err := os.ReadFile(at(path)); return err }
	write := func(path string) error { return os.WriteFile(at(path), []byte("x"), 0o600) }
	for _, c := range []struct {
		what  string
		err   error
		fails bool
	}{
		{"read of what is shared", read("ro/there"), false},
		{"write of what is shared", write("ro/there"), true},
		{"create in what is shared", write("ro/new"), true},
		{"remove in what is shared", os.Remove(at("ro/there")), true},
		{"write where that is allowed", write("rw/there"), false},
		{"create where that is allowed", write("rw/new"), false},
		{"directory where that is allowed", os.Mkdir(at("rw/dir"), 0o700), false},
		{"rename across directories", os.Rename(at("rw/new"), at("rw/dir/new")), false},
		{"rename out", os.Rename(at("rw/there"), at("there")), true},
		{"link to a secret", os.Link(at("secret"), at("rw/secret")), true},
		{"symbolic link to a secret", os.Symlink(at("secret"), at("rw/link")), false},
		{"read through that", read("rw/link"), true},
		{"read of a file", read("file"), false},
		{"write of a file", write("file"), false},
		{"a file beside it", read("secret"), true},
		{"write beside it", write("secret"), true},
		{"a file in the own entry", write("entries/own/new"), false},
		{"a rename in the own entry", os.Rename(at("entries/own/new"), at("entries/own/renamed")), false},
		{"a symbolic link in the own entry", os.Symlink(at("secret"), at("entries/own/link")), true},
		{"a symbolic link moved to the own entry", os.Rename(at("rw/link"), at("entries/own/link")), true},
		{"a pipe in the own entry", unix.Mkfifo(at("entries/own/pipe"), 0o600), true},
		{"a directory in the own entry", os.Mkdir(at("entries/own/dir"), 0o700), true},
		{"remove of an entry", os.RemoveAll(at("entries/dir")), false},
		{"remove of the own entry", os.RemoveAll(at("entries/own")), false},
		{"read of an entry", read("entries/other"), true},
		{"a system file", readable("/etc/passwd"), true},
		{"this process's memory", readable("/proc/self/mem"), true},
	} {
		if failed := c.err != nil; failed != c.fails {
			return fmt.Errorf("%s: %v", c.what, c.err)
		}
	}
	return nil
}

func readable(path string) error {
	f, err := os.Open(path)
	if err == nil {
		f.Close()
	}
	return err
}

func tryNarrow(dir string) error {
	if err := enter(dir, false); err != nil {
		return err
	}
	rw, ro := filepath.Join(dir, "rw/there"), filepath.Join(dir, "ro/there")
	if err := errors.Join(readable(rw), readable(ro)); err != nil {
		return err
	}
	if err := Narrow(Rules{Paths: []Path{{Path: filepath.Join(dir, "ro"), Access: Read}}}); err != nil {
		return err
	}
	if readable(rw) == nil {
		return errors.New("what Narrow took away can be read")
	}
	return readable(ro)
}

// tryThreads looks whether threads that were there before the jail are in it, and that no other is outside.
func tryThreads(dir string) error {
	const threads = 4
	there, begin, result := make(chan bool), make(chan bool), make(chan error)
	for range threads {
		go func() {
			runtime.LockOSThread()
			there <- true
			<-begin
			result <- readable(filepath.Join(dir, "secret"))
		}()
		<-there
	}
	r := rules(dir, false)
	r.Paths = append(r.Paths, Path{Path: "/proc/self", Access: Read})
	if _, err := Enforce(Full, r, violation); err != nil {
		return err
	}
	for range threads {
		begin <- true
		if err := <-result; err == nil {
			return fmt.Errorf("on another thread: %v", err)
		}
	}
	return sameThreads()
}

// sameThreads looks whether all threads are in the same namespaces, with the same rights.
func sameThreads() error {
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return err
	}
	seen := map[string]bool{}
	for _, t := range tasks {
		is, err := confined("/proc/self/task/" + t.Name())
		switch {
		case errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH): // it has just ended
			continue
		case err != nil:
			return err
		case !strings.Contains(is, "NoNewPrivs:\t1\nSeccomp:\t2\n"):
			return fmt.Errorf("thread %s: %s", t.Name(), is)
		}
		seen[is] = true
	}
	if len(seen) != 1 {
		return fmt.Errorf("threads differ: %v", seen)
	}
	return nil
}

// confined says what a thread is confined to, by its directory in /proc.
func confined(thread string) (string, error) {
	status, err := os.ReadFile(filepath.Join(thread, "status"))
	if err != nil {
		return "", err
	}
	var is strings.Builder
	for line := range strings.Lines(string(status)) {
		if name, _, _ := strings.Cut(line, ":"); strings.HasPrefix(name, "Cap") || slices.Contains([]string{"NoNewPrivs", "Seccomp", "Seccomp_filters"}, name) {
			is.WriteString(line)
		}
	}
	for _, name := range []string{"ns/mnt", "ns/ipc", "ns/net", "root"} {
		link, err := os.Readlink(filepath.Join(thread, name))
		if err != nil {
			return "", err
		}
		fmt.Fprintln(&is, name, link)
	}
	return is.String(), nil
}

func tryLoopback() error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		return err
	}
	return errors.Join(c.Close(), l.Close())
}

// tryConnect connects to a unix socket, where the rules have that.
func tryConnect(dir string) error {
	path := filepath.Join(dir, "rw/socket")
	l, err := net.Listen("unix", path)
	if err != nil {
		return err
	}
	defer l.Close()
	r := rules(dir, false)
	r.Connect = true
	if _, err := Enforce(Full, r, violation); err != nil {
		return err
	}
	c, err := net.Dial("unix", path)
	if err != nil {
		return err
	}
	return c.Close()
}

// tryRuntime has Go's runtime do what it does in a long life: collect, start threads,
// and preempt by signals.
func tryRuntime() error {
	done := make(chan bool)
	for range 8 {
		go func() {
			runtime.LockOSThread() // whose thread ends with it
			var keep [][]byte
			for range 2000 {
				keep = append(keep[max(0, len(keep)-10):], make([]byte, 64<<10))
			}
			done <- len(keep) > 0
		}()
	}
	for range 8 {
		<-done
	}
	runtime.GC()
	return nil
}

func tryClone3() error {
	if err := call(unix.SYS_CLONE3)(); err != unix.ENOSYS {
		return fmt.Errorf("clone3: %v", err)
	}
	return nil
}

func tryProtect() error {
	page, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return err
	}
	return call(unix.SYS_MPROTECT, uintptr(unsafe.Pointer(&page[0])), 4096, unix.PROT_READ|unix.PROT_EXEC)()
}

func TestJail(t *testing.T) {
	able := Able()
	if able.Landlock == 0 || !able.Seccomp {
		t.Skipf("this host has only: %v", able)
	}
	for name, try := range tries {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if name == "narrow" && cgo {
				t.Skip("Narrow does nothing where there is a C library; vmm is built without one")
			}
			dir := t.TempDir()
			for _, f := range []string{"ro/there", "rw/there", "entries/dir/there", "entries/own/there", "entries/other", "file", "secret"} {
				path := filepath.Join(dir, f)
				if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte("text"), 0o600)); err != nil {
					t.Fatal(err)
				}
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute) // a call of Go's runtime would stand still
			defer cancel()
			c := exec.CommandContext(ctx, "/proc/self/exe", dir)
			c.Env = append(os.Environ(), tryVariable+"="+name)
			if name == onlyPlace {
				c.Env = append(c.Env, "GOMAXPROCS=1")
			}
			if name == alone {
				if cgo || !hostpid.Tells() {
					t.Skip("a program with a C library, or where /proc is of another namespace, does not begin in one")
				}
				c.SysProcAttr = beginAlone()
			}
			out, err := c.CombinedOutput()
			if name == alone && c.Process == nil {
				t.Skipf("this host allows no such namespaces: %v", err)
			}
			first, _, _ := strings.Cut(string(bytes.TrimSpace(out)), "\n")
			if first != try.want {
				t.Errorf("%s, %v; want %s", out, err, try.want)
			}
		})
	}
}

// TestHarden holds what another process may do with this one.
func TestHarden(t *testing.T) {
	if err := Harden(); err != nil {
		t.Fatal(err)
	}
	if n, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0); n != 0 || err != nil {
		t.Errorf("dumpable: %d, %v", n, err)
	}
	var core syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_CORE, &core); err != nil || core.Cur != 0 || core.Max != 0 {
		t.Errorf("core files: %+v, %v", core, err)
	}
}

func TestCloseInherited(t *testing.T) {
	own, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	given, err := unix.FcntlInt(own.Fd(), unix.F_DUPFD, 100) // without FD_CLOEXEC
	if err != nil {
		t.Fatal(err)
	}
	if err := CloseInherited(); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(given, &st); err != unix.EBADF {
		t.Errorf("a descriptor that was inherited: %v", err)
	}
	if _, err := own.Stat(); err != nil {
		t.Errorf("a file that Go has opened: %v", err)
	}
}

// TestNames holds the names to numbers that package unix has too.
func TestNames(t *testing.T) {
	for name, number := range map[string]int{
		"read": unix.SYS_READ, "ioctl": unix.SYS_IOCTL, "execve": unix.SYS_EXECVE, "seccomp": unix.SYS_SECCOMP, "rseq": unix.SYS_RSEQ,
		"pidfd_send_signal": unix.SYS_PIDFD_SEND_SIGNAL, "landlock_restrict_self": unix.SYS_LANDLOCK_RESTRICT_SELF, "fchmodat2": unix.SYS_FCHMODAT2,
		"number 4095": 4095, "number -1": -1,
	} {
		if got := callName(number); got != name {
			t.Errorf("%d is %s, want %s", number, got, name)
		}
	}
}
