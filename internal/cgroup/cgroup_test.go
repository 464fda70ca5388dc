package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// fake is a tree of groups that does what the kernel does with what is written to it.
type fake struct {
	t      *testing.T
	marks  []string
	change []string // what was done, by group
}

// threaded is the type of a group that gives controllers to threads only.
const threaded = "domain threaded\n"

// here is the text of this process in a cgroup.procs of the tree.
const here = "here"

func (f *fake) mkdir(dir string) error {
	if err := os.Mkdir(dir, 0o755); errors.Is(err, fs.ErrExist) {
		return nil
	} else if err != nil {
		return err
	}
	put(f.t, dir, typeFile, "domain\n")
	put(f.t, dir, procsFile, "")
	put(f.t, dir, subtreeFile, "")
	f.offer(dir)
	return nil
}

// offer gives a group what the one above it gives.
func (f *fake) offer(dir string) {
	have := get(filepath.Dir(dir), subtreeFile)
	put(f.t, dir, controllersFile, have)
	for controller, files := range map[string][]string{cpu: {"cpu.max"}, memory: {"memory.max"}, pids: {"pids.max"}, io: {"io.max"}} {
		for _, file := range files {
			if slices.Contains(strings.Fields(have), controller) {
				put(f.t, dir, file, "max\n")
			}
		}
	}
}

func (f *fake) rmdir(dir string) error {
	if get(dir, procsFile) != "" {
		return unix.EBUSY
	}
	return os.RemoveAll(dir)
}

func (f *fake) write(path, text string) error {
	dir, file := filepath.Split(path)
	dir = filepath.Clean(dir)
	if _, err := os.Stat(path); err != nil {
		return err
	}
	f.change = append(f.change, filepath.Base(dir)+"/"+file+" "+text)
	switch file {
	case subtreeFile:
		name := strings.TrimPrefix(text, "+")
		threads := name == cpu || name == pids // which these controllers can tell apart
		switch kind := get(dir, typeFile); {
		case kind == threaded && !threads:
			return unix.EOPNOTSUPP
		case kind != "" && get(dir, procsFile) != "" && threads:
			put(f.t, dir, typeFile, threaded)
		case kind != "" && get(dir, procsFile) != "":
			return unix.EBUSY
		}
		if !slices.Contains(strings.Fields(get(dir, controllersFile)), name) {
			return unix.ENOENT
		}
		put(f.t, dir, file, get(dir, file)+" "+name)
		below, _ := filepath.Glob(filepath.Join(dir, "*", procsFile))
		for _, b := range below {
			f.offer(filepath.Dir(b))
		}
	case procsFile:
		if text == thisProcess {
			text = here
		}
		if get(filepath.Dir(dir), typeFile) == threaded {
			return unix.EOPNOTSUPP // "domain invalid"
		}
		root := dir
		for filepath.Base(root) != "cgroup" {
			root = filepath.Dir(root)
		}
		filepath.WalkDir(root, func(p string, _ fs.DirEntry, _ error) error {
			if filepath.Base(p) == procsFile {
				put(f.t, filepath.Dir(p), procsFile, strings.ReplaceAll(get(filepath.Dir(p), procsFile), text+"\n", ""))
			}
			return nil
		})
		put(f.t, dir, file, get(dir, file)+text+"\n")
	default:
		put(f.t, dir, file, text)
	}
	return nil
}

func (f *fake) marked(dir string) bool {
	return slices.ContainsFunc(f.marks, func(m string) bool { return strings.HasSuffix(dir, m) })
}

func put(t *testing.T, dir, file, text string) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(filepath.Join(dir, file), []byte(text), 0o644)); err != nil {
		t.Fatal(err)
	}
}

func get(dir, file string) string {
	b, _ := os.ReadFile(filepath.Join(dir, file))
	return string(b)
}

// tree makes a host. Each line of groups is PATH:CONTROLLERS:SUBTREE:PROCESSES, from the
// root on, which is one of a namespace if :ns follows; self is what /proc/self/cgroup says.
func tree(t *testing.T, self, groups string, marks ...string) (*host, *fake) {
	t.Helper()
	root := t.TempDir()
	put(t, filepath.Join(root, "proc/self"), "mountinfo", "25 1 0:20 / /proc rw - proc proc rw\n"+
		"31 23 0:28 / /sys/fs/cgroup ro shared:9 - cgroup2 cgroup2 rw,nsdelegate\n")
	put(t, filepath.Join(root, "proc/self"), "cgroup", self)
	for line := range strings.Lines(groups) {
		f := strings.Split(strings.TrimSpace(line), ":")
		dir := filepath.Join(root, "sys/fs/cgroup", f[0])
		put(t, dir, controllersFile, f[1])
		put(t, dir, subtreeFile, f[2])
		put(t, dir, procsFile, strings.ReplaceAll(f[3], ",", "\n"))
		if f[0] != "/" || len(f) > 4 {
			put(t, dir, typeFile, "domain\n")
		}
	}
	k := &fake{t: t, marks: marks}
	return &host{root, 1000, k}, k
}

const everything = "cpu memory pids io"

// TestPlaces puts a process with limits into hosts of all kinds.
func TestPlaces(t *testing.T) {
	limits := Limits{CPUs: 1.5, Memory: 1 << 30}
	for name, c := range map[string]struct {
		self, groups string
		marks        []string
		in, home     string // the group's parent, and where the process goes in the end
		refused      string
		remedy       Remedy
	}{
		"root, without systemd":  {self: "0::/\n", groups: "/:cpuset " + everything + "::here,", in: "vmm", home: "/"},
		"some controllers given": {self: "0::/\n", groups: "/:" + everything + ":cpu:here,", in: "vmm", home: "/"},
		"root, in a group":       {self: "0::/sshd\n", groups: "/:" + everything + "::1,\n/sshd:::here,", in: "vmm", home: "/sshd"},
		"hybrid":                 {self: "8:pids:/\n4:memory:/x\n0::/\n", groups: "/:::here,", refused: "on this host cgroup v1 has them"},
		"hybrid, one of them":    {self: "4:memory:/x\n0::/\n", groups: "/:cpu pids::here,", refused: "controller memory cannot"},
		"no version 2":           {self: "8:pids:/\n", groups: "/:::", refused: "no cgroup v2 file system"},
		"outside of a namespace": {self: "0::/../../x\n", groups: "/:" + everything + "::", refused: "no cgroup v2 file system"},
		"a container":            {self: "0::/\n", groups: "/:" + everything + "::1,here,:ns", in: "vmm", home: "/vmm/others"},
		"a container, its second": {self: "0::/vmm/others\n", groups: "/:" + everything + ":" + everything + "::ns\n/vmm:" + everything + ":" + everything + ":\n/vmm/others:" + everything + "::1,here,",
			in: "vmm", home: "/vmm/others"},
		"a session": {self: "0::/user.slice/session-3.scope\n", groups: "/:" + everything + ":" + everything + ":\n/user.slice:" + everything + ":" + everything + ":\n/user.slice/session-3.scope:" + everything + "::here,",
			refused: "systemd has not delegated", remedy: Manager},
		"a scope of a user": {self: "0::/u.service/app.slice/run-1.scope\n", groups: "/:" + everything + ":" + everything + ":\n/u.service:" + everything + ":" + everything + ":\n/u.service/app.slice:" + everything + ":" + everything + ":\n/u.service/app.slice/run-1.scope:" + everything + "::7,here,",
			marks: []string{"u.service"}, in: "u.service/app.slice/run-1.scope/vmm", home: "/u.service/app.slice/run-1.scope/vmm/others"},
		"a scope with less": {self: "0::/app.slice/run-1.scope\n", groups: "/:" + everything + ":memory pids:\n/app.slice:memory pids:memory pids:\n/app.slice/run-1.scope:memory pids::here,",
			marks: []string{"run-1.scope"}, refused: "controller cpu cannot be had: not delegated to ", remedy: Manager},
	} {
		t.Run(name, func(t *testing.T) {
			h, k := tree(t, c.self, c.groups, c.marks...)
			g, err := h.group("dev", &limits)
			if c.refused != "" {
				var cannot *UnavailableError
				if !errors.As(err, &cannot) || !strings.Contains(err.Error(), c.refused) || cannot.Remedy != c.remedy || k.change != nil {
					t.Errorf("%v, %+v, and %q done; want %q", err, cannot, k.change, c.refused)
				}
				if able, lacks := h.able(); !strings.Contains(able, ": ") || !errors.As(lacks, &cannot) || cannot.Remedy != c.remedy {
					t.Errorf("it can have %q, %v", able, lacks)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			top := filepath.Join(h.root, "sys/fs/cgroup")
			want := filepath.Join(top, c.in, fmt.Sprintf("dev-%d", os.Getpid()))
			if able, lacks := h.able(); g.Path() != want || lacks != nil || able != strings.ReplaceAll(everything, " ", ", ") || k.change != nil {
				t.Fatalf("%s, want %s; able: %s; done: %q", g.Path(), want, able, k.change)
			}
			if err := g.Enter(); err != nil {
				t.Fatalf("%v: %q", err, k.change)
			}
			if cpus, mem, procs := get(want, "cpu.max"), get(want, "memory.max"), get(want, procsFile); cpus != "150000 100000" || mem != "1073741824" || procs != "here\n" {
				t.Errorf("cpu.max %q, memory.max %q, processes %q", cpus, mem, procs)
			}
			if err := g.Enter(); err != nil {
				t.Errorf("again: %v", err)
			}
			put(t, want, procsFile, "") // as the kernel does when the process goes
			if err := errors.Join(g.Leave(), g.Leave()); err != nil {
				t.Error(err)
			}
			if b := get(filepath.Join(top, c.home), procsFile); !strings.HasPrefix(b, thisProcess) {
				t.Errorf("home: %q", b)
			}
			if _, err := os.Stat(want); err == nil {
				t.Error("the group is left")
			}
		})
	}
}

// TestRemedies says what would help a user under systemd, by what this one and the user's own have.
func TestRemedies(t *testing.T) {
	const (
		given   = "/:" + everything + ":" + everything + ":\n/user.slice/user-1000.slice:" + everything + ":cpu memory pids:\n"
		manager = "/user.slice/user-1000.slice/user@1000.service"
		session = "/user.slice/user-1000.slice/session-1.scope"
		scope   = manager + "/app.slice/run-1.scope"
	)
	user := given + manager + ":cpu memory pids:cpu memory pids:\n"
	for name, c := range map[string]struct {
		self, groups string
		uid          int
		limits       Limits
		want         Remedy
	}{
		"a session":                 {session, user + session + ":cpu memory pids::here,", 1000, Limits{CPUs: 1}, Scope},
		"root's session":            {session, user + session + ":cpu memory pids::here,", 0, Limits{CPUs: 1}, Scope},
		"a session, what none has":  {session, user + session + ":cpu memory pids::here,", 1000, Limits{IO: []IO{{Path: "/", ReadBPS: 1}}}, Grant},
		"a scope, what none has":    {scope, user + scope + ":cpu memory pids::here,", 1000, Limits{IO: []IO{{Path: "/", ReadBPS: 1}}}, Grant},
		"a service of the user's":   {manager + "/app.slice/x.service", user + manager + "/app.slice/x.service:::here,", 1000, Limits{CPUs: 1}, Scope},
		"a service of the system's": {"/system.slice/x.service", given + "/system.slice/x.service:::here,", 1000, Limits{CPUs: 1}, Manager},
		"another user's service":    {"/system.slice/x.service", user + "/system.slice/x.service:::here,", 1001, Limits{CPUs: 1}, Manager},
		"no unit":                   {"/x", "/:::\n/x:::here,", 1000, Limits{CPUs: 1}, NoRemedy},
	} {
		t.Run(name, func(t *testing.T) {
			h, _ := tree(t, "0::"+c.self+"\n", c.groups)
			h.uid = c.uid
			_, err := h.place(c.limits.controllers())
			var cannot *UnavailableError
			if !errors.As(err, &cannot) || cannot.Remedy != c.want {
				t.Errorf("%v, %+v; want remedy %d", err, cannot, c.want)
			}
		})
	}
}

// TestDivide moves others out of the way for a process that will not know their numbers, and only where they are in it.
func TestDivide(t *testing.T) {
	const unit = "/app.slice/run-1.scope"
	groups := "/:" + everything + ":" + everything + ":\n/app.slice:" + everything + ":" + everything + ":\n" + unit + ":" + everything + "::7,here,"
	h, _ := tree(t, "0::"+unit+"\n", groups, "run-1.scope")
	limits := Limits{CPUs: 1}
	if err := h.divide(new(Limits).controllers()); err != nil || !h.anyCrowded() {
		t.Errorf("without limits: %v, crowded: %t", err, h.anyCrowded())
	}
	if err := h.divide(limits.controllers()); err != nil || h.anyCrowded() {
		t.Errorf("%v, crowded: %t", err, h.anyCrowded())
	}
	top := filepath.Join(h.root, "sys/fs/cgroup")
	if there, left := get(filepath.Join(top, unit, poolName, othersName), procsFile), get(filepath.Join(top, unit), procsFile); there != "7\nhere\n" || left != "" {
		t.Errorf("moved %q, left %q", there, left)
	}
	if p, err := h.place(limits.controllers()); err != nil || p.claim {
		t.Errorf("who comes later: %+v, %v", p, err)
	}
	h, k := tree(t, "0::/\n", "/:"+everything+"::here,")
	if err := h.divide(limits.controllers()); err != nil || h.anyCrowded() || k.change != nil {
		t.Errorf("in the root: %v, crowded: %t, done %q", err, h.anyCrowded(), k.change)
	}
}

// TestFailures leaves nothing where the kernel refuses something on the way.
func TestFailures(t *testing.T) {
	h, _ := tree(t, "0::/\n", "/:"+everything+"::here,")
	g, err := h.group("dev", &Limits{CPUs: 1})
	if err != nil {
		t.Fatal(err)
	}
	g.settings = append(g.settings, setting{file: "memory.swap.max", text: "0", optional: true}, setting{file: "new.max", text: "1"})
	if err := g.Enter(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file that is not there: %v", err)
	}
	if left, _ := os.ReadDir(g.Dir()); slices.ContainsFunc(left, fs.DirEntry.IsDir) {
		t.Errorf("left: %v", left)
	}
}

// TestSweep removes what is left of processes that are no more, and nothing else.
func TestSweep(t *testing.T) {
	h, _ := tree(t, "0::/\n", "/:"+everything+"::here,")
	pool := filepath.Join(h.root, "sys/fs/cgroup", poolName)
	gone := 1 << 30 // above any PID_MAX_LIMIT
	names := map[string]bool{fmt.Sprintf("dev-%d", gone): false, fmt.Sprintf("a-b-%d", gone): false, fmt.Sprintf("busy-%d", gone): true,
		fmt.Sprintf("dev-%d", os.Getpid()): true, othersName: true, "x-y": true, "x--": true}
	for name := range names {
		put(t, filepath.Join(pool, name), procsFile, "")
		if strings.HasPrefix(name, "busy") {
			put(t, filepath.Join(pool, name), procsFile, "1\n")
		}
	}
	h.sweep(pool)
	for name, stays := range names {
		if _, err := os.Stat(filepath.Join(pool, name)); (err == nil) != stays {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestReap takes no directory for a group that is none.
func TestReap(t *testing.T) {
	dir := t.TempDir()
	put(t, dir, eventsFile, "oom_kill 1\n")
	empty := filepath.Join(dir, "empty")
	put(t, empty, "x", "")
	os.Remove(filepath.Join(empty, "x"))
	for _, path := range []string{dir, empty, filepath.Join(dir, "none")} {
		if why := Reap(path, new(uint64)); why != No {
			t.Errorf("%s: %d", path, why)
		}
	}
	if _, err := os.Stat(empty); err != nil {
		t.Error(err)
	}
}

// TestReapGone asks what stays when systemd has removed a unit with all that was in it.
func TestReapGone(t *testing.T) {
	manager := filepath.Join(t.TempDir(), "user@1000.service")
	group := filepath.Join(manager, "app.slice/run-1.scope/vmm/dev-7")
	put(t, manager, eventsFile, "max 5\noom_kill 3\noom_group_kill 0\n")
	for kills, want := range map[uint64]OutOfMemory{2: Perhaps, 3: No, 4: No} {
		if why := Reap(group, &kills); Kills(group) != 3 || why != want {
			t.Errorf("%d kills of %d: %d, want %d", Kills(group), kills, why, want)
		}
	}
	if why := Reap(group, nil); why != No {
		t.Errorf("without a limit: %d", why)
	}
	for path, want := range map[string]string{
		"/u.slice/user@1.service/app.slice/x.scope/vmm/a-1": "/u.slice/user@1.service",
		"/system.slice/x.service/vmm/a-1":                   "/system.slice",
		"/vmm/a-1":                                          "",
		"":                                                  "",
	} {
		if got := around(path); got != want {
			t.Errorf("around %q is %q, want %q", path, got, want)
		}
	}
}
