// Package warm keeps snapshots for warm starts: a VM for commands need not boot if one
// of its kind was saved when it was just about to run its first.
//
// A Store is a directory, of the user's cache, that any number of processes use.
package warm

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	guestimages "vmm/guest-images"
	"vmm/internal/elf"
	"vmm/machine/snapshot"
	"vmm/vm"
)

// DefaultLimit is how much of the disk the snapshots may take, in bytes.
const DefaultLimit = 4 << 30

// Store is the snapshots in a directory.
type Store struct{ dir string }

// Open returns the store in the user's cache.
func Open() (*Store, error) {
	cache, err := guestimages.CacheDir()
	if err != nil {
		return nil, err
	}
	return &Store{filepath.Join(cache, "warm")}, nil
}

// kind is all that makes one warm start another one's.
type kind struct {
	Build    string // of vmm, which carries the guest's init
	Kernel   fileIdentity
	Config   vm.Config // without what the guest is told with its first command
	Shares   int
	Root     fileIdentity
	Segments []fileIdentity // of an image
	Resolver string         // the host's configuration, of which the guest has heard
}

// fileIdentity changes when a file is another one.
type fileIdentity struct {
	Path          string
	Dev, Ino      uint64
	Size, Changed int64
}

func identify(path string, content bool) (id fileIdentity, err error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return id, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	id = fileIdentity{Path: path, Dev: st.Dev, Ino: st.Ino}
	if content {
		id.Size, id.Changed = st.Size, st.Mtim.Nano()
	}
	return id, nil
}

// identifyAll identifies files by their content.
func identifyAll(paths []string) (ids []fileIdentity, err error) {
	for _, path := range paths {
		id, err := identify(path, true)
		if err != nil {
			return nil, err
		}
		ids = append(ids, id)
	}
	return ids, nil
}

// buildID names the program, by what it is made of.
func buildID() (string, error) {
	self, err := os.Open("/proc/self/exe")
	if err != nil {
		return "", err
	}
	defer self.Close()
	f, err := elf.Read(self)
	if err != nil {
		return "", err
	}
	const goBuildID = 4
	id := f.Note("Go", goBuildID)
	if id == nil {
		return "", errors.New("the program has no build ID")
	}
	return string(id), nil
}

// possible finds out whether a VM is of a kind that can start warm: nothing in it is this
// one's alone before its first command. The error is what is.
func possible(c *vm.Config) error {
	if !c.ForCommands() {
		return errors.New("it is not one for commands")
	}
	for _, own := range []struct {
		is   bool
		what string
	}{
		{len(c.Disks) > 0, "a disk"}, {len(c.Pmems) > 0, "persistent memory"}, {len(c.Boot.Initrds) > 0, "an initial RAM disk"}, {len(c.Ports) > 0, "a port"},
		{c.Boot.Modules != "", "modules of its kernel"}, {c.HugePages, "huge pages"}, {c.Nested, "nested virtualization"},
		{c.ConsoleDevice == vm.VirtioConsole, "a virtio console"}, {c.Root.Image == nil && !c.Root.IsDir(), "a root that is no directory"},
		{c.Root.Image != nil && c.Root.Image.Disk != nil, "a disk for what is written to its root"},
		{c.Root.Image != nil && c.Root.Image.Dir != "", "a directory for what is written to its root"},
		{slices.ContainsFunc(c.Nets, leadsOut), "a network beside the gateway's"},
	} {
		if own.is {
			return fmt.Errorf("a VM with %s always boots", own.what)
		}
	}
	return nil
}

// leadsOut reports whether somebody else is in a network.
func leadsOut(n vm.Net) bool {
	switch n.(type) {
	case vm.User, vm.None:
		return false
	}
	return true
}

// kernelOf is the file of the kernel that the VM boots; "" if it is not there yet.
func kernelOf(c *vm.Config) string {
	if k := c.Boot.Kernel; k != "" && k != vm.DefaultKernel {
		return k
	}
	path, ok := guestimages.HasSlimKernel()
	if !ok {
		path, _ = guestimages.HasStockKernel()
	}
	return path
}

// key names the kind of a VM.
func key(c *vm.Config) (string, error) {
	k := kind{Config: *c, Shares: len(c.Shares)}
	k.Config.Name, k.Config.Shares, k.Config.Publish, k.Config.Vsock, k.Config.Console = "", nil, nil, "", vm.Endpoint{}
	k.Config.Limits, k.Config.Hostname, k.Config.Labels, k.Config.Health = vm.Limits{}, "", nil, nil
	k.Config.Hide = nil // the root that the guest goes on with hides what it is to hide now
	var err error
	// The CPU is the engine's. Where none is to be had no VM will be made either.
	if e, err := c.Engine.Choose(vm.HostNotes()); err == nil {
		k.Config.Engine = e
	}
	if k.Build, err = buildID(); err != nil {
		return "", err
	}
	if k.Kernel, err = identify(kernelOf(c), true); err != nil {
		return "", err
	}
	if i := c.Root.Image; i == nil {
		k.Root, err = identify(c.Root.Path, false)
	} else {
		image := *i
		image.Name, image.Segments = "", nil
		k.Config.Root = &vm.Root{Image: &image}
		k.Segments, err = identifyAll(i.Segments)
	}
	if err != nil {
		return "", err
	}
	resolver, _ := os.ReadFile("/etc/resolv.conf") // none is as good as any
	k.Resolver = string(resolver)
	b, err := json.Marshal(k)
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:12]), err
}

// Find returns the place of the snapshot of a VM's kind, whether there is one or not;
// the error is why a VM cannot start warm.
func (s *Store) Find(c *vm.Config) (*Snapshot, error) {
	if err := possible(c); err != nil {
		return nil, err
	}
	name, err := key(c)
	if err != nil {
		return nil, err
	}
	return &Snapshot{Name: name, Dir: filepath.Join(s.dir, name)}, nil
}

// Snapshot is a place in the store.
type Snapshot struct {
	Name string // of the kind
	Dir  string
	// Of List: how much of the disk it takes, in bytes, when it was used last, and of
	// what; nil if it is damaged, or says why it could not be used.
	Size   int64
	Used   time.Time
	Config *vm.Config
}

// unusable is the file in the place of a snapshot that this host could not go on from:
// its content is why. The next try would be no better.
const unusable = "unusable"

// unusableFor is how long such a file counts: what was wrong may have been the moment.
const unusableFor = 24 * time.Hour

// New makes a VM that goes on from the snapshot. The error is os.ErrNotExist if there is
// none; one that is damaged is removed.
func (s *Snapshot) New(c vm.Config, options ...vm.Option) (*vm.VM, error) {
	if _, err := os.Stat(s.Dir); err != nil {
		return nil, err
	}
	v, err := vm.NewWarm(c, s.Dir, options...)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(s.Dir))
	}
	now := time.Now()
	os.Chtimes(s.Dir, now, now) // which Prune goes by
	return v, nil
}

// settled is how old a snapshot is before it is worth a new one. A root that changes faster
// is rather mounted anew each time.
const settled = time.Minute

// Outgrown reports whether a VM that goes on from the snapshot is to be saved in its place:
// its guest mounts a changed root anew, as that of every further one would.
func (s *Snapshot) Outgrown(v *vm.VM) bool {
	st, err := os.Stat(filepath.Join(s.Dir, snapshot.ManifestFile))
	return v.Outdated() != "" && err == nil && time.Since(st.ModTime()) >= settled
}

// Reserve makes the directory that Save writes in and returns it: a process that opens
// no others by then needs it before.
func (s *Snapshot) Reserve() (string, error) {
	dir := filepath.Dir(s.Dir)
	return dir, os.MkdirAll(dir, 0o700)
}

// Save makes the snapshot, in the place of an older one, of a VM whose agent has said hello
// and has run nothing. It calls goesOn as soon as the guest can go on, in any case, and returns when the
// snapshot is there. An error only means that the next start is cold.
func (s *Snapshot) Save(ctx context.Context, v *vm.VM, goesOn func()) error {
	defer goesOn()
	dir, err := s.Reserve()
	if err != nil {
		return err
	}
	err = v.SaveWarm(ctx, s.Dir, goesOn)
	goesOn()
	_, bad := (&Store{dir}).Prune(DefaultLimit)
	return errors.Join(err, bad)
}

// GiveUp puts a reason in the place of the snapshot, after which none is tried or made
// for a day. One from before the host has booted may only be too old, since CPUs get new
// microcode: it is just removed, and GiveUp reports false.
func (s *Snapshot) GiveUp(why error) bool {
	old := s.old()
	os.RemoveAll(s.Dir)
	if old {
		return false
	}
	os.MkdirAll(s.Dir, 0o700)
	os.WriteFile(filepath.Join(s.Dir, unusable), []byte(why.Error()+"\n"), 0o600)
	return true
}

// GivenUp returns the reason why no snapshot is to be tried or made.
func (s *Snapshot) GivenUp() (why string, ok bool) {
	path := filepath.Join(s.Dir, unusable)
	st, err := os.Stat(path)
	if err != nil {
		return "", false
	}
	if age := time.Since(st.ModTime()); age > unusableFor || age < 0 {
		os.RemoveAll(s.Dir)
		return "", false
	}
	b, err := os.ReadFile(path)
	return strings.TrimSpace(string(b)), err == nil
}

// old reports whether the snapshot was made before the host has booted.
func (s *Snapshot) old() bool {
	st, err := os.Stat(filepath.Join(s.Dir, snapshot.ManifestFile))
	var host unix.Sysinfo_t
	if bad := unix.Sysinfo(&host); err != nil || bad != nil {
		return false
	}
	return time.Since(st.ModTime()) >= time.Duration(host.Uptime)*time.Second
}

// List returns the snapshots, the ones that were used last first.
func (s *Store) List() ([]Snapshot, error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	var out []Snapshot
	for _, e := range entries {
		w := Snapshot{Name: e.Name(), Dir: filepath.Join(s.dir, e.Name())}
		if st, err := e.Info(); err == nil {
			w.Used = st.ModTime()
		}
		// One that is being made is somebody's.
		if strings.HasPrefix(w.Name, ".") && time.Since(w.Used) < time.Hour {
			continue
		}
		files, _ := os.ReadDir(w.Dir)
		for _, f := range files {
			var st unix.Stat_t
			if unix.Stat(filepath.Join(w.Dir, f.Name()), &st) == nil {
				w.Size += st.Blocks * 512
			}
		}
		w.Config, _ = vm.SavedConfig(w.Dir)
		out = append(out, w)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Used.After(out[j].Used) })
	return out, nil
}

// Prune removes what was not used for longest until the rest takes at most so many
// bytes. It returns what it has removed.
func (s *Store) Prune(most int64) (removed []Snapshot, err error) {
	all, err := s.List()
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, w := range all {
		if most -= w.Size; most >= 0 {
			continue
		}
		if err := w.Remove(); err != nil {
			errs = append(errs, err)
			continue
		}
		removed = append(removed, w)
	}
	return removed, errors.Join(errs...)
}

// Remove removes the snapshot.
func (s *Snapshot) Remove() error { return os.RemoveAll(s.Dir) }
