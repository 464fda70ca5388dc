// Package cgroup bounds what this process takes of its host, by a control group of its
// own in the unified hierarchy (version 2; Linux Documentation/admin-guide/cgroup-v2.rst).
//
// Groups are made in one called "vmm", below the group that this process is in, or above
// it as far as it may write there and what systemd has given away reaches:
//
//	PLACE/vmm/NAME-PID    a process with limits
//	PLACE/vmm/others      what was in PLACE, if it had to be moved
//
// The kernel gives controllers only to groups below one that has no processes itself ("No
// Internal Process Constraint"): where PLACE has some and is not the root, they are moved
// to a leaf.
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
	"time"

	"golang.org/x/sys/unix"

	"vmm/internal/hostpid"
)

// The names of groups that several processes share.
const (
	poolName   = "vmm"
	othersName = "others"
)

// Group is a group for this process. Its methods are called one after the other.
type Group struct {
	host     *host
	place    *place
	path     string
	settings []setting
	home     *os.File // cgroup.procs of where the process goes back to; nil if it is not in the group
}

// New finds out whether this process can have limits, and where; it makes nothing yet.
// name is of letters, digits and dashes. The error is an *UnavailableError, or says what is
// wrong with a path of the limits.
func New(name string, l Limits) (*Group, error) { return local.group(name, &l) }

// Divide makes room for groups with limits where others have to be moved for that, which takes one who knows their
// numbers: a process in a namespace of its own, that this one is about to start, does not. Where nobody
// is in the way it does nothing.
func Divide(l Limits) error { return local.divide(l.controllers()) }

func (h *host) divide(needed []string) error {
	if len(needed) == 0 {
		return nil
	}
	p, err := h.place(needed)
	if err != nil || !h.crowded(p) {
		return err
	}
	if err := h.mkdir(p.pool()); err != nil {
		return err
	}
	_, err = h.claim(p)
	return err
}

// Crowded reports whether some limits can be had only where others have been moved.
func Crowded() bool { return local.anyCrowded() }

func (h *host) anyCrowded() bool {
	return slices.ContainsFunc(all, func(c string) bool {
		p, err := h.place([]string{c})
		return err == nil && h.crowded(p)
	})
}

func (h *host) crowded(p *place) bool { return p.claim && !h.isRoot(p.dir) }

func (h *host) group(name string, l *Limits) (*Group, error) {
	settings, err := h.settings(l)
	if err != nil {
		return nil, err
	}
	p, err := h.place(l.controllers())
	if err != nil {
		return nil, err
	}
	g := &Group{host: h, place: p, settings: settings}
	g.path = filepath.Join(p.pool(), fmt.Sprintf("%s-%d", name, hostpid.Self()))
	return g, nil
}

// pool is the group that others are made in.
func (p *place) pool() string {
	if filepath.Base(p.dir) == poolName {
		return p.dir
	}
	return filepath.Join(p.dir, poolName)
}

// Path is the group's directory.
func (g *Group) Path() string { return g.path }

// Dir is the directory that the group's is in. Leave removes only what is in it.
func (g *Group) Dir() string { return g.place.pool() }

// Enter makes the group, with its limits, and moves this whole process there. It removes
// what other processes have left that are no more. In the group it does nothing.
func (g *Group) Enter() error {
	if g.home != nil {
		return nil
	}
	if err := g.enter(); err != nil {
		return errors.Join(fmt.Errorf("the cgroup %s: %w", g.path, err), g.Leave())
	}
	return nil
}

func (g *Group) enter() (err error) {
	h, pool, home := g.host, g.place.pool(), g.place.own
	if err := h.mkdir(pool); err != nil {
		return err
	}
	if g.place.claim {
		if home, err = h.claim(g.place); err != nil {
			return err
		}
	}
	if err := h.enable(pool, g.place.needed); err != nil {
		return err
	}
	h.sweep(pool)
	if err := h.mkdir(g.path); err != nil {
		return err
	}
	for _, s := range g.settings {
		err := h.write(filepath.Join(g.path, s.file), s.text)
		if err != nil && !(s.optional && errors.Is(err, fs.ErrNotExist)) {
			return fmt.Errorf("this kernel does not take %s for it: %w", s.text, err)
		}
	}
	// Open now: a jail lets nothing be opened there later.
	back, err := os.OpenFile(filepath.Join(home, procsFile), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	if err := h.write(filepath.Join(g.path, procsFile), thisProcess); err != nil {
		return errors.Join(err, back.Close())
	}
	g.home = back
	return nil
}

// thisProcess is written to cgroup.procs by a process that moves itself.
const thisProcess = "0"

// enable has a group give all controllers that it can to those in it, so that the next
// process need not; only those that are needed must be.
func (h *host) enable(dir string, needed []string) error {
	for _, n := range h.list(dir, controllersFile) {
		if !slices.Contains(all, n) {
			continue
		}
		err := h.write(filepath.Join(dir, subtreeFile), "+"+n)
		if err != nil && slices.Contains(needed, n) {
			return err
		}
	}
	return nil
}

// claimTries is how often processes are moved out of the way: others may come meanwhile.
const claimTries = 10

// claim has a group give what it can to those in it. It returns where this process is at
// home then. Processes go first: with some in it, a group could give cpu and pids, but to
// threads only, and nothing else any more ("Threads").
func (h *host) claim(p *place) (home string, err error) {
	if h.isRoot(p.dir) {
		return p.own, h.enable(p.dir, p.needed)
	}
	others := filepath.Join(p.pool(), othersName)
	if err := h.mkdir(others); err != nil {
		return "", err
	}
	err = unix.EBUSY
	for try := 0; try < claimTries && errors.Is(err, unix.EBUSY); try++ {
		for _, pid := range h.list(p.dir, procsFile) {
			err := h.write(filepath.Join(others, procsFile), pid)
			if err != nil && !errors.Is(err, unix.ESRCH) { // it has just ended
				return "", err
			}
		}
		err = h.enable(p.dir, p.needed)
	}
	return others, err
}

// sweep removes the groups of processes that are no more. The kernel keeps those that have
// any.
func (h *host) sweep(pool string) {
	entries, _ := os.ReadDir(pool) // what cannot be read can wait
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name()[strings.LastIndexByte(e.Name(), '-')+1:])
		if err == nil && pid > 0 && !hostpid.Exists(pid) {
			h.rmdir(filepath.Join(pool, e.Name())) // unless it is in use
		}
	}
}

// Leave moves the process back to where it was, or beside what was with it there, and
// removes the group. A process that may not any more, for it has become another user's,
// leaves it empty, for the next Enter to remove. It can be called more than once, and of a nil Group.
func (g *Group) Leave() error {
	if g == nil {
		return nil
	}
	if g.home != nil {
		_, err := g.home.WriteString(thisProcess)
		err = errors.Join(err, g.home.Close())
		g.home = nil
		if err != nil {
			return fmt.Errorf("leaving the cgroup %s: %w", g.path, err)
		}
	}
	err := g.host.rmdir(g.path)
	for end := time.Now().Add(endingTime); errors.Is(err, unix.EBUSY) && time.Now().Before(end); err = g.host.rmdir(g.path) {
		time.Sleep(endingTime / 200)
	}
	if errors.Is(err, fs.ErrPermission) {
		return nil
	}
	return err
}

// endingTime is how long what has ended may be in a group still: threads of this process, which
// do not move with it when they are about to end, and the one that KVM has for a VM.
const endingTime = time.Second

// OutOfMemory is whether the kernel has killed a process for the limit of its memory.
type OutOfMemory int

// The values of OutOfMemory.
const (
	No      OutOfMemory = iota
	Perhaps             // it has killed one there, and the group is gone
	Yes
)

// Reap removes the group of a process that was killed, if there is one, and says why that was. kills is what Kills was
// when the group was made; nil if its memory has no limit.
func Reap(path string, kills *uint64) OutOfMemory {
	var st unix.Statfs_t
	switch err := unix.Statfs(path, &st); {
	case errors.Is(err, unix.ENOENT) && kills != nil && Kills(path) > *kills:
		return Perhaps
	case err != nil || st.Type != unix.CGROUP2_SUPER_MAGIC:
		return No // or gone, and something else is there
	}
	killed := outOfMemory(path)
	local.rmdir(path) // an empty directory is in nobody's way
	if killed > 0 {
		return Yes
	}
	return No
}

// Kills is how often the kernel has killed for memory in what stays when systemd removes the unit that a group is in, with all below it:
// as soon as no process is there any more, and so before anybody looks. It counts what happens in the unit too.
func Kills(path string) uint64 {
	if dir := around(path); dir != "" {
		return outOfMemory(dir)
	}
	return 0
}

// around is the unit of systemd's around the one that a group is in, or if there is none, as for root, the slice; "" for a group
// that is in no unit.
func around(group string) string {
	above := func(dir string) string {
		for dir != "/" && dir != "." && !isUnit(dir) {
			dir = filepath.Dir(dir)
		}
		return dir
	}
	unit := above(group)
	if !isUnit(unit) {
		return ""
	}
	if manager := above(filepath.Dir(unit)); isUnit(manager) {
		return manager
	}
	return filepath.Dir(unit)
}

// outOfMemory is how often the kernel has killed for memory in a group, or below it.
func outOfMemory(group string) uint64 {
	b, _ := os.ReadFile(filepath.Join(group, eventsFile)) // of none, nothing is known
	return parseEvents(string(b))["oom_kill"]
}

// parseEvents reads a flat keyed file ("Format").
func parseEvents(text string) map[string]uint64 {
	out := map[string]uint64{}
	for line := range strings.Lines(text) {
		if f := strings.Fields(line); len(f) == 2 {
			if n, err := strconv.ParseUint(f[1], 10, 64); err == nil {
				out[f[0]] = n
			}
		}
	}
	return out
}
