package cli

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"vmm/guest-images"
	"vmm/guest-images/agent"
	"vmm/guest-images/guestinit"
	"vmm/internal/elf"
	"vmm/machine/snapshot"
	"vmm/vm/api"
	"vmm/vm/registry"
)

// A warm start: a VM that runs a command goes on from a snapshot of one that was
// just about to, if there is one of its kind. The first of a kind makes it.

// warmDir is where the snapshots are, in the cache.
func warmDir() (string, error) {
	cache, err := guestimages.CacheDir()
	return filepath.Join(cache, "warm"), err
}

// maxWarm is how much of the disk the snapshots may take, in bytes.
const maxWarm = 4 << 30

// kind is all that makes one warm start another one's.
type kind struct {
	Build     string // of vmm, which carries the guest's init
	Kernel    fileIdentity
	Args      []string
	CPUs      int
	Memory    uint64
	Transport string
	OnENOSPC  string
	Nets      []string
	Resolver  string // the host's configuration, of which the guest has heard
	Shares    int
	Root      string
	RootFile  fileIdentity
	GuestUID  uint32
	GuestGID  uint32
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
		return "", errors.New("vmm has no build ID")
	}
	return string(id), nil
}

// canWarm tells whether the VM is of a kind that can start warm: nothing in it is
// this one's alone before the command runs.
func (f *runFlags) canWarm() bool {
	switch {
	case !f.sandbox(), f.cold, f.rootDisk, f.consoleGiven && !f.warmConsole: // who wants the console wants the boot's messages
		return false
	case len(f.disks)+len(f.initrds)+len(f.ports) > 0, f.modules != "" && !f.stock, f.gdb != "", f.profile != "", f.hugePages, f.nested, f.terminal != "serial":
		return false
	}
	return !slices.ContainsFunc(f.nets, func(n string) bool {
		mode, _, _ := strings.Cut(n, ",")
		return mode != "user" && mode != "none"
	})
}

// warmKey names the kind of the VM; shares is how many directories it has.
func (f *runFlags) warmKey(shares int) (string, error) {
	uid, gid := f.guestIDs()
	k := kind{Args: f.args, CPUs: f.cpus, Memory: uint64(f.memory), Transport: f.transport, OnENOSPC: f.onENOSPC, Nets: f.nets,
		Shares: shares, Root: f.rootDir, GuestUID: uid, GuestGID: gid}
	var err error
	if k.Build, err = buildID(); err != nil {
		return "", err
	}
	kernel := f.kernel
	if kernel == "" || kernel == defaultKernel {
		kernel, _ = guestimages.HasSlimKernel()
	}
	if k.Kernel, err = identify(kernel, true); err != nil {
		return "", err
	}
	if k.RootFile, err = identify(f.rootDir, false); err != nil {
		return "", err
	}
	resolver, _ := os.ReadFile("/etc/resolv.conf") // none is as good as any
	k.Resolver = string(resolver)
	b, err := json.Marshal(k)
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:12]), err
}

// warmStart is what a VM needs for it.
type warmStart struct{ dir string }

// unusable is the file in the place of a snapshot that this host could not go on
// from: its content is why. The next try would be no better.
const unusable = "unusable"

// unusableFor is how long such a file counts: what was wrong may have been the moment.
const unusableFor = 24 * time.Hour

// giveUp puts a reason in the place of the snapshot.
func (w *warmStart) giveUp(why error) {
	os.RemoveAll(w.dir)
	os.MkdirAll(w.dir, 0o700)
	os.WriteFile(filepath.Join(w.dir, unusable), []byte(why.Error()+"\n"), 0o600)
}

// givenUp returns the reason why no snapshot is to be tried or made.
func (w *warmStart) givenUp() (why string, ok bool) {
	path := filepath.Join(w.dir, unusable)
	st, err := os.Stat(path)
	if err != nil {
		return "", false
	}
	if age := time.Since(st.ModTime()); age > unusableFor || age < 0 {
		os.RemoveAll(w.dir)
		return "", false
	}
	b, err := os.ReadFile(path)
	return strings.TrimSpace(string(b)), err == nil
}

// ofThisBoot reports whether the snapshot was made since the host has booted. One
// from before may only be too old: CPUs get new microcode, and clocks another speed.
func (w *warmStart) ofThisBoot() bool {
	st, err := os.Stat(filepath.Join(w.dir, snapshot.ManifestFile))
	var host unix.Sysinfo_t
	if bad := unix.Sysinfo(&host); err != nil || bad != nil {
		return false
	}
	return time.Since(st.ModTime()) < time.Duration(host.Uptime)*time.Second
}

// findWarm looks for a snapshot of the VM's kind.
func (f *runFlags) findWarm() *warmStart {
	if !f.canWarm() {
		return nil
	}
	shares, err := f.countShares()
	if err != nil {
		return nil // which is said when they are opened
	}
	key, err := f.warmKey(shares)
	if err != nil {
		return nil
	}
	dir, err := warmDir()
	if err != nil {
		return nil
	}
	return &warmStart{filepath.Join(dir, key)}
}

// open makes the flags those of a VM that goes on from the snapshot; false if there
// is none. One that cannot be used is removed.
func (w *warmStart) open(f *runFlags) bool {
	r, err := openSnapshot(w.dir, snapshot.Options{})
	if err != nil {
		os.RemoveAll(w.dir)
		return false
	}
	now := time.Now()
	os.Chtimes(w.dir, now, now) // which the pruning goes by
	r.warm = true
	f.restored = r
	return true
}

// exercise has the guest run a command that does nothing: what every command needs
// is in the guest's memory then.
func (w *warmStart) exercise(ctx context.Context, p *parts) {
	ctx, cancel := context.WithTimeout(ctx, exerciseTime) // whatever it is that is called so there
	defer cancel()
	client := p.guest.client()
	client.Before = &agent.Setup{Now: time.Now(), Entropy: make([]byte, 1)}
	for range exercises {
		client.Exec(ctx, agent.Exec{Argv: []string{"true"}}, agent.Streams{Out: io.Discard, Err: io.Discard}) // a root may have none
	}
}

// exercises is how often: some things are kept only when they are used again.
const exercises = 2

// exerciseTime bounds them.
const exerciseTime = 2 * time.Second

// save makes the snapshot of a VM whose command is about to run, and calls then as
// soon as that can go on. It returns when the snapshot is there.
func (w *warmStart) save(s *saver, then func()) {
	os.MkdirAll(filepath.Dir(w.dir), 0o700)
	// No time is spent on waiting for the disk: after a crash the checksums count.
	s.snapshot(&snapshotRequest{SnapshotRequest: api.SnapshotRequest{Dir: w.dir, Replace: true}, warm: then}, nil) // an error only means that the next start is cold
	then()
	if caches, err := listWarm(); err == nil {
		prune(caches, maxWarm)
	}
}

// warmSetup is what the guest is told before the command.
func (f *runFlags) warmSetup(p *parts) *agent.Setup {
	s := &agent.Setup{Now: time.Now()}
	if len(p.shares.config.Mounts) > 0 {
		s.Config, _ = json.Marshal(&guestinit.Config{Mounts: p.shares.config.Mounts})
	}
	if r := f.restored; r != nil {
		s.Entropy = make([]byte, 32)
		rand.Read(s.Entropy)
		if r.vm.Name != f.name {
			s.Hostname = f.name
		}
	} else if s.Config == nil {
		return nil
	}
	return s
}

// warmSnapshot is one in the cache.
type warmSnapshot struct {
	name  string
	dir   string
	size  int64 // bytes of the disk
	used  time.Time
	vm    savedVM
	valid bool
}

// listWarm are the snapshots in the cache, the ones that were used last first.
func listWarm() ([]warmSnapshot, error) {
	dir, err := warmDir()
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	var out []warmSnapshot
	for _, e := range entries {
		s := warmSnapshot{name: e.Name(), dir: filepath.Join(dir, e.Name())}
		if st, err := e.Info(); err == nil {
			s.used = st.ModTime()
		}
		// One that is being made is somebody's.
		if strings.HasPrefix(s.name, ".") && time.Since(s.used) < time.Hour {
			continue
		}
		files, _ := os.ReadDir(s.dir)
		for _, f := range files {
			var st unix.Stat_t
			if unix.Stat(filepath.Join(s.dir, f.Name()), &st) == nil {
				s.size += st.Blocks * 512
			}
		}
		if m, err := snapshot.ReadManifest(s.dir); err == nil {
			s.valid = json.Unmarshal(m.Config, &s.vm) == nil
		}
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b warmSnapshot) int { return b.used.Compare(a.used) })
	return out, nil
}

// prune removes what was not used for longest until the rest takes at most so many
// bytes. It returns what it has removed.
func prune(all []warmSnapshot, most int64) (removed []warmSnapshot, err error) {
	var errs []error
	for _, s := range all {
		if most -= s.size; most >= 0 {
			continue
		}
		if err := os.RemoveAll(s.dir); err != nil {
			errs = append(errs, err)
			continue
		}
		removed = append(removed, s)
	}
	return removed, errors.Join(errs...)
}

// runWarm runs the VM from a snapshot of its kind, or as ever, and then makes one.
func (f *runFlags) runWarm(ctx context.Context, dir *registry.Entry, ready *bool) error {
	if f.sandbox() {
		if err := f.chooseRoot(); err != nil {
			return failed(err)
		}
	}
	plain := *f
	if f.warm = f.findWarm(); f.warm == nil {
		return f.run(ctx, dir, ready)
	}
	if why, ok := f.warm.givenUp(); ok {
		f.sayCold(f.warm, why)
		f.warm = nil
	} else if f.warm.open(f) {
		err := f.run(ctx, dir, ready)
		f.restored.close()
		var cold *coldError
		if !errors.As(err, &cold) {
			return err
		}
		warm := f.warm
		*f = plain
		f.sayCold(warm, cold.err.Error())
		if warm.ofThisBoot() {
			warm.giveUp(cold.err)
		} else { // a new one will do
			os.RemoveAll(warm.dir)
			f.warm = warm
		}
	}
	return f.run(ctx, dir, ready)
}

// sayCold tells who wants to know why the VM does not start from a snapshot.
func (f *runFlags) sayCold(w *warmStart, why string) {
	if f.verbose {
		fmt.Fprintf(os.Stderr, "vmm: this VM boots, for a snapshot of its kind could not be used: %s (vmm cache rm %s has it tried again)\n", why, filepath.Base(w.dir))
	}
}

// coldError is the error for a snapshot that the VM cannot go on from: it has to boot.
type coldError struct{ err error }

func (e *coldError) Error() string { return "the warm start does not fit: " + e.err.Error() }
func (e *coldError) Unwrap() error { return e.err }
