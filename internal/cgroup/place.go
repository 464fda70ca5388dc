package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Files of a group ("Core Interface Files" of Documentation/admin-guide/cgroup-v2.rst).
const (
	procsFile       = "cgroup.procs"
	controllersFile = "cgroup.controllers"
	subtreeFile     = "cgroup.subtree_control"
	typeFile        = "cgroup.type" // of all but the root
	eventsFile      = "memory.events"
)

// UnavailableError is that of limits which this process cannot have.
type UnavailableError struct {
	Controllers []string // those that are missing
	Why         string
	Remedy      Remedy
}

// Remedy is how limits could be had under systemd that cannot.
type Remedy int

// The remedies.
const (
	NoRemedy Remedy = iota
	Scope           // in a unit of its own, which systemd gives away if that is asked for: Delegate=yes
	Manager         // the same, of a systemd of the user's, of which none runs
	Grant           // root has to give the controllers to systemd of users
)

// Error implements error.
func (e *UnavailableError) Error() string {
	s := ""
	if len(e.Controllers) != 1 {
		s = "s"
	}
	return fmt.Sprintf("the cgroup controller%s %s cannot be had: %s", s, strings.Join(e.Controllers, ", "), e.Why)
}

// host is where groups are.
type host struct {
	root string // of its file systems
	uid  int    // of this process
	changer
}

// changer is what changes groups: the kernel, but in tests.
type changer interface {
	mkdir(dir string) error // that may be there already
	rmdir(dir string) error // that may be gone already
	write(path, text string) error
	// marked reports whether systemd has marked a group as another's to manage.
	marked(dir string) bool
}

var local = &host{"/", os.Getuid(), kernel{}}

func (h *host) path(p string) string { return filepath.Join(h.root, p) }

type kernel struct{}

func (kernel) mkdir(dir string) error {
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

func (kernel) rmdir(dir string) error {
	err := unix.Rmdir(dir)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return &os.PathError{Op: "rmdir", Path: dir, Err: err}
	}
	return nil
}

// write writes a file that is there, at once.
func (kernel) write(path, text string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}

// marked looks for the attribute by which systemd says that a unit has Delegate=yes, since
// version 236. Only root reads it; what another user may write to was given to him.
func (kernel) marked(dir string) bool {
	if os.Getuid() != 0 {
		return true
	}
	value := make([]byte, 1)
	n, err := unix.Getxattr(dir, "trusted.delegate", value)
	return err == nil && n == 1 && value[0] == '1'
}

// mount is a cgroup2 file system: the group that its root is, and where it is mounted.
type mount struct{ root, point string }

// parseMounts finds the cgroup2 file systems in /proc/self/mountinfo
// (Documentation/filesystems/proc.rst, 3.5).
func parseMounts(text string) (out []mount) {
	for line := range strings.Lines(text) {
		before, after, _ := strings.Cut(line, " - ")
		f, kind := strings.Fields(before), strings.Fields(after)
		if len(f) >= 6 && len(kind) > 0 && kind[0] == "cgroup2" {
			out = append(out, mount{unescape(f[3]), unescape(f[4])})
		}
	}
	return out
}

// unescape reads what mountinfo writes as \ and three octal digits.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// parseSelf finds this process's group of the unified hierarchy in /proc/self/cgroup; ""
// if it has none, or one outside of its namespace.
func parseSelf(text string) string {
	for line := range strings.Lines(text) {
		path, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "0::/")
		if ok && !slices.Contains(strings.Split(path, "/"), "..") {
			return filepath.Clean("/" + path)
		}
	}
	return ""
}

// own finds this process's group, and the highest that can be seen.
func (h *host) own() (dir, top string, err error) {
	info, err := os.ReadFile(h.path("/proc/self/mountinfo"))
	if err != nil {
		return "", "", err
	}
	self, err := os.ReadFile(h.path("/proc/self/cgroup"))
	if err != nil {
		return "", "", err
	}
	path := parseSelf(string(self))
	for _, m := range parseMounts(string(info)) {
		rel, err := filepath.Rel(m.root, path)
		if path == "" || err != nil || rel == ".." || strings.HasPrefix(rel, "../") {
			continue
		}
		top = h.path(m.point)
		return filepath.Join(top, rel), top, nil
	}
	return "", "", fs.ErrNotExist
}

// list reads a file with names of controllers.
func (h *host) list(dir, file string) []string {
	b, _ := os.ReadFile(filepath.Join(dir, file)) // none can be had of one that cannot be read
	return strings.Fields(string(b))
}

// lacking is which of some names a list lacks.
func lacking(names, list []string) []string {
	return slices.DeleteFunc(slices.Clone(names), func(n string) bool { return slices.Contains(list, n) })
}

// writable reports whether this process may make groups in one, and move itself there.
func (h *host) writable(dir string) bool {
	for _, f := range []string{"", procsFile, subtreeFile} {
		if unix.Access(filepath.Join(dir, f), unix.W_OK) != nil {
			return false
		}
	}
	return true
}

// isRoot reports whether a group is the root of all, which may have processes beside the
// groups in it.
func (h *host) isRoot(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, typeFile))
	return errors.Is(err, fs.ErrNotExist)
}

// isUnit reports whether a group is one that systemd has given to a unit: what lies above
// it is systemd's alone to change.
func isUnit(dir string) bool {
	return strings.HasSuffix(dir, ".scope") || strings.HasSuffix(dir, ".service")
}

// delegated reports whether systemd leaves a unit's group alone, or what is above it: a
// user's own systemd has the whole of its group, and marks nothing there.
func (h *host) delegated(unit, top string) bool {
	for dir := unit; dir != top; dir = filepath.Dir(dir) {
		if h.marked(dir) {
			return true
		}
	}
	return false
}

// remedy is how controllers can be had that a process lacks in a unit. Those of a user's are in the units of the systemd that
// user@.service is (systemd.special(7)).
func (h *host) remedy(unit, top string, lack []string) Remedy {
	if !isUnit(unit) {
		return NoRemedy
	}
	if h.uid == 0 {
		return Scope
	}
	manager := filepath.Join(top, "user.slice", fmt.Sprintf("user-%d.slice", h.uid), fmt.Sprintf("user@%d.service", h.uid))
	if _, err := os.Stat(manager); err != nil {
		return Manager
	}
	if len(lacking(lack, h.list(manager, controllersFile))) > 0 {
		return Grant
	}
	return Scope
}

// place is where a group can be made.
type place struct {
	needed []string // controllers
	dir    string   // the group that it is made in
	own    string   // that of this process
	claim  bool     // dir does not offer the controllers yet
}

// place finds a group that can give those in it some controllers. The error is an
// *UnavailableError.
func (h *host) place(needed []string) (*place, error) {
	own, top, err := h.own()
	if err != nil {
		return nil, &UnavailableError{Controllers: needed, Why: "this process has no cgroup v2 file system (mount -t cgroup2)"}
	}
	limit := own // the highest group that may be changed
	for limit != top && !isUnit(limit) {
		limit = filepath.Dir(limit)
	}
	refuse := func(why string, names []string) error {
		return &UnavailableError{Controllers: names, Why: why, Remedy: h.remedy(limit, top, names)}
	}
	if isUnit(limit) && !h.delegated(limit, top) {
		return nil, refuse("systemd has not delegated "+limit, needed)
	}
	for dir := own; ; dir = filepath.Dir(dir) {
		if len(lacking(needed, h.list(dir, subtreeFile))) == 0 && h.writable(dir) {
			return &place{needed: needed, dir: dir, own: own}, nil
		}
		if dir == limit {
			break
		}
	}
	p := &place{needed: needed, dir: own, own: own, claim: true}
	if h.isRoot(limit) { // where no process is in the way
		p.dir = limit
	}
	if lack := lacking(needed, h.list(p.dir, controllersFile)); len(lack) > 0 {
		if h.isRoot(p.dir) {
			return nil, refuse("on this host cgroup v1 has them, or the kernel none (booted with cgroup_no_v1=all, version 2 has all)", lack)
		}
		return nil, refuse("not delegated to "+p.dir, lack)
	}
	if !h.writable(p.dir) {
		return nil, refuse("this user may not write to "+p.dir, needed)
	}
	return p, nil
}

// Able tells in words which limits this process could have. The error is the *UnavailableError of those that it cannot, if there
// are any, for the first of them.
func Able() (string, error) { return local.able() }

func (h *host) able() (text string, lacks error) {
	var have, lack []string
	var why *UnavailableError
	for _, c := range all {
		_, err := h.place([]string{c})
		var cannot *UnavailableError
		if !errors.As(err, &cannot) {
			have = append(have, c)
			continue
		}
		lack = append(lack, c)
		if why == nil {
			why = cannot
		}
	}
	switch text = strings.Join(have, ", "); {
	case why == nil:
		return text, nil
	case len(have) == 0:
		return "none: " + why.Why, why
	}
	return fmt.Sprintf("%s; not %s: %s", text, strings.Join(lack, ", "), why.Why), why
}
