package vm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"vmm/internal/output"
	"vmm/internal/paths"
	"vmm/internal/temp"
	"vmm/internal/version"
	"vmm/machine"
	"vmm/machine/snapshot"
	"vmm/network/gateway"
)

// SnapshotOptions say how a VM is saved. The zero value saves all of it.
type SnapshotOptions struct {
	Replace bool // an older snapshot in that directory; nothing else is replaced
	// Parent is the snapshot since which only what has changed is saved: the last one of
	// this VM, or what it was restored from.
	Parent   string
	Zstd     bool // compress the memory
	DiskCopy bool // copy the disks into the snapshot, which needs no other files then
	Stop     bool // end the VM when it is saved
	// Files are where the snapshot is written to, by name, in a process that makes no
	// files (see Confine): somebody else has made them with snapshot.Place, which gives
	// the snapshot its name. ParentID says then which snapshot Parent is. Nil writes to
	// the directory.
	Files    map[string]*os.File
	ParentID string
	// Overlays are for what the guest writes from then on, by the files of PinnedDisks. A
	// process that makes no files needs them; another one makes those that are missing.
	Overlays map[string]*Overlay
	// Progress is told how much of the memory is saved, in bytes, by any goroutine; nil drops it.
	Progress func(done, total int64)
	// GoesOn is called when the guest can go on while the rest is written. Such a
	// snapshot stands alone, need not survive the host's crash, and has nothing to do
	// with those that Parent names.
	GoesOn func()
}

// SnapshotResult is what became of it.
type SnapshotResult struct {
	Paused time.Duration // how long the guest stood still
	// Disks are where the VM writes now, by the files that belong to the snapshot.
	Disks map[string]string
}

// Errors that Pause, Resume, Snapshot and Migrate return.
var (
	ErrPaused    = errors.New("the VM is paused already")
	ErrNotPaused = errors.New("the VM is not paused")
	ErrNoSpace   = errors.New("the VM waits for room on the host's disk")
	ErrNotParent = errors.New("neither the last snapshot of this VM nor what it was restored from")
	// ErrDevice is that of a disk which cannot belong to a snapshot while the VM goes on.
	ErrDevice = errors.New("a block device: copy the disk into the snapshot, or stop the VM with it")
)

// saver is what a running VM knows of saving itself.
type saver struct {
	mu      sync.Mutex // one at a time
	base    string     // the snapshot since which written pages are tracked
	movedTo string     // where the VM is now; it is none here any more

	// pauseMu is its own: a VM can be looked at while it is saved.
	pauseMu sync.Mutex
	paused  bool   // by the user
	resume  func() // of a paused machine
	// released is set while another process may have the disks.
	released bool
}

// Paused reports whether the VM was paused by Pause.
func (v *VM) Paused() bool {
	v.saver.pauseMu.Lock()
	defer v.saver.pauseMu.Unlock()
	return v.saver.paused
}

// Pause stops the VM where it is. The error is ErrPaused if that was done before.
func (v *VM) Pause() error { return v.setPaused(true) }

// Resume lets a paused VM go on. The error is ErrNotPaused if it is not.
func (v *VM) Resume() error { return v.setPaused(false) }

func (v *VM) setPaused(on bool) error {
	if err := v.running(); err != nil {
		return err
	}
	s := &v.saver
	s.pauseMu.Lock()
	defer s.pauseMu.Unlock()
	switch {
	case s.paused && on:
		return ErrPaused
	case !s.paused && !on:
		return ErrNotPaused
	}
	if s.released {
		if err := v.disks.reopen(); err != nil {
			return err
		}
		s.released = false
	}
	if s.paused = on; on {
		s.resume = v.machine.Pause()
	} else {
		s.resume()
	}
	return nil
}

// Snapshot saves the VM to a directory. It stands still for a part of it, and goes on
// unless it is to stop. Its disks belong to the snapshot as they are: what the guest
// writes from then on goes to new files beside them. One goes on at a time, and while a
// Migrate does. Errors are ErrConfined, ErrDevice, ErrNoSpace, ErrNotParent and
// ErrPmemWritable, a *snapshot.Error for what Parent is, a *paths.GuestError for a directory where the guest can change
// what is written, and the system's; after one the VM goes on, and nothing is left of the snapshot.
func (v *VM) Snapshot(ctx context.Context, dir string, o SnapshotOptions) (*SnapshotResult, error) {
	end, err := v.beginSaving()
	if err != nil {
		return nil, err
	}
	defer end()
	if v.confined.Load() && o.Files == nil && o.GoesOn == nil { // a warm start has its directory still
		return nil, ErrConfined
	}
	if o.Files == nil && o.GoesOn == nil { // which what is signed must not be exchanged in
		if _, err := output.Place(dir, v.GuestWritable()); err != nil {
			return nil, err
		}
	}
	mem := snapshot.MemoryOptions{Zstd: o.Zstd, Progress: o.Progress}
	if o.Parent != "" {
		if mem.Parent, err = o.parent(); err != nil {
			return nil, err
		}
		if v.saver.base == "" || mem.Parent.ID != v.saver.base {
			return nil, fmt.Errorf("%s is %w", o.Parent, ErrNotParent)
		}
	}
	overlays, made, err := v.overlaysFor(&o)
	defer func() {
		for _, overlay := range made {
			overlay.Close()
		}
	}()
	if err != nil {
		return nil, err
	}
	o.Overlays = overlays
	w, err := o.writer(dir)
	if err != nil {
		return nil, err
	}
	result := &SnapshotResult{Disks: map[string]string{}}
	if err := v.save(w, &o, mem, result); err != nil {
		for from, to := range result.Disks { // no harm is done, but it must be known
			err = fmt.Errorf("%w; what was in %s goes on in %s", err, from, to)
		}
		v.saver.base = "" // what was written since is not known any more
		w.Abort()
		return nil, err
	}
	if o.GoesOn == nil {
		v.saver.base = w.ID()
	}
	return result, nil
}

// parent is the snapshot that this one needs.
func (o *SnapshotOptions) parent() (*snapshot.Parent, error) {
	if o.ParentID != "" {
		return &snapshot.Parent{Dir: o.Parent, ID: o.ParentID}, nil
	}
	m, err := snapshot.ReadManifest(o.Parent)
	if err != nil {
		return nil, &snapshot.Error{Dir: o.Parent, Err: err}
	}
	return &snapshot.Parent{Dir: o.Parent, ID: m.ID}, nil
}

// writer writes to the directory, or to the files that there are.
func (o *SnapshotOptions) writer(dir string) (*snapshot.Writer, error) {
	if o.Files != nil {
		return snapshot.WriteTo(dir, o.Files), nil
	}
	return snapshot.Create(dir, o.Replace)
}

// beginSaving is for who saves or moves the VM, of whom there is one at a time, until end
// is called. The VM can be stopped meanwhile, but does not go.
func (v *VM) beginSaving() (end func(), err error) {
	if err := v.running(); err != nil {
		return nil, err
	}
	if err := v.checkPmems(); err != nil {
		return nil, err
	}
	v.saver.mu.Lock()
	if v.space.holds() {
		v.saver.mu.Unlock()
		return nil, ErrNoSpace
	}
	return v.saver.mu.Unlock, nil
}

// save saves the VM. It need not stand still for all of it, unless it ends.
func (v *VM) save(w *snapshot.Writer, o *SnapshotOptions, mem snapshot.MemoryOptions, result *SnapshotResult) error {
	start := time.Now()
	var state *machine.State
	var vm *saved
	if err := v.machine.Freeze(func(f *machine.Frozen) (err error) {
		state, vm, err = v.collect(f, w, o, mem, result)
		result.Paused = time.Since(start)
		if !o.Stop {
			return err
		}
		if err == nil {
			err = w.Commit(version.String(), vm, state)
		}
		if err != nil {
			return errors.Join(err, v.disks.reopen())
		}
		v.machine.Stop()
		return nil
	}); err != nil || o.Stop {
		return err
	}
	if o.GoesOn != nil {
		o.GoesOn()
		w.Cache = true
	}
	return w.Commit(version.String(), vm, state)
}

// collect saves what needs the guest to stand still.
func (v *VM) collect(f *machine.Frozen, w *snapshot.Writer, o *SnapshotOptions, mem snapshot.MemoryOptions, result *SnapshotResult) (*machine.State, *saved, error) {
	var err error
	if mem.Dirty, err = f.TakeDirty(); err != nil {
		return nil, nil, err
	}
	if mem.Dirty == nil && o.GoesOn == nil {
		if err := f.TrackDirty(); err != nil {
			return nil, nil, err
		}
	}
	state, err := f.Save()
	if err != nil {
		return nil, nil, err
	}
	if err := w.Memory(f.Memory(), mem); err != nil {
		return nil, nil, err
	}
	vm := v.describe()
	for i, d := range v.disks.disks {
		disk, err := d.save(w, i, o, result.Disks)
		if err != nil {
			return nil, nil, err
		}
		vm.Disks = append(vm.Disks, *disk)
	}
	return state, vm, nil
}

// describe returns how the VM is made again. Its disks follow.
func (v *VM) describe() *saved {
	c := v.cfg
	c.Disks, c.Shares, c.Console, c.Root = nil, nil, Endpoint{}, c.Root.describe()
	c.Engine = ""             // the next host's matter
	if v.kernel.image != "" { // what has booted, where the Config left that open
		c.Boot.Kernel = v.kernel.image
	}
	c.Vsock = absolute(c.Vsock)
	c.Pmems = slices.Clone(c.Pmems)
	for i := range c.Pmems {
		c.Pmems[i].Path = absolute(c.Pmems[i].Path)
	}
	c.Ports = slices.Clone(c.Ports)
	for i := range c.Ports {
		to := &c.Ports[i].To
		to.File, to.Socket = absolute(to.File), absolute(to.Socket)
	}
	s := &saved{Version: savedVersion, Config: c, Segments: v.image.segments(), Pmems: v.savedPmems(), Shares: v.shares.saved, CID: v.guest.device.CID(),
		Agent: !c.NoAgent && v.guest.greeted(), Untold: v.untold()}
	for _, n := range v.nets.nics {
		nic := savedNIC{MAC: n.device.MAC()}
		if g := n.gateway.Load(); g != nil {
			nic.TCP = g.TCP()
		}
		s.NICs = append(s.NICs, nic)
	}
	return s
}

// absolute is a path from wherever; the empty one stays empty.
func absolute(path string) string {
	if a, err := paths.Abs(path); err == nil && path != "" {
		return a
	}
	return path
}

// RestoreOptions say what is other than in the snapshot. The zero value makes the VM
// that was saved.
// They are JSON too, but for the functions.
type RestoreOptions struct {
	// Name of another VM makes a copy, whose guest gets a name, a machine ID, addresses
	// and random numbers of its own; so does Copy, whatever the name.
	Name string `json:"name,omitempty"`
	Copy bool   `json:"copy,omitempty"`
	// Trust believes what the saved VM says of the host's files and networks, also if this
	// user has not saved it; without it that is an *UntrustedError.
	Trust bool `json:"trust,omitempty"`
	// Configure is told what VM it will be. It may give it another name, such as one that
	// is free here, and returns what else the VM has of this process; nil leaves it.
	Configure func(c *Config) ([]Option, error) `json:"-"`
	// Overlays is a directory that keeps what the guest writes to its disks; without
	// one it goes with the VM.
	Overlays string `json:"overlays,omitempty"`
	Verify   bool   `json:"verify,omitempty"`   // compare all checksums, also of files that look as they did
	Prefetch bool   `json:"prefetch,omitempty"` // read the memory ahead that the last such restore has used
	// Nets are in the place of the saved ones, as many as there were.
	Nets Nets `json:"nets,omitempty"`
	// Publish and Vsock are in the place of the saved ones; a copy has only these.
	Publish []gateway.Publication `json:"publish,omitempty"`
	Vsock   string                `json:"vsock,omitempty"`
	Ports   []Port                `json:"ports,omitempty"`  // in the place of the saved ones of their names
	Console Endpoint              `json:"console,omitzero"` // as Config.Console
	Limits  *Limits               `json:"limits,omitempty"` // in the place of the saved ones, unless nil
	// Engine executes the guest, whatever did before, as Config.Engine. Its CPU has to be the saved one's.
	Engine machine.Engine `json:"engine,omitempty"`
	// Progress is told how much of a compressed snapshot's memory is unpacked, in bytes.
	Progress func(done, total int64) `json:"-"`
}

// Restore makes a VM that goes on where the one was that Snapshot has saved to dir,
// once it is started. Neither the snapshot nor its disks are changed. The error is an
// *UntrustedError, ErrOldSnapshot, a *ConfigError of what the options say, or a
// *snapshot.Error if the snapshot is what is wrong (snapshot.ErrNotExist, snapshot.ErrCorrupt).
func Restore(dir string, o RestoreOptions, list ...Option) (*VM, error) {
	return restore(dir, &o, newOptions(list))
}

func restore(dir string, o *RestoreOptions, opts *options) (_ *VM, err error) {
	defer opts.abandon(&err)
	opening := o.Engine.Begin(opts.notes)
	defer func() {
		if err != nil {
			opening.Close()
		}
	}()
	r, err := openSnapshot(dir, snapshot.Options{Verify: o.Verify, Progress: o.Progress})
	if err != nil {
		return nil, err
	}
	r.overlays, r.prefetch, r.copies = o.Overlays, o.Prefetch, o.Copy
	r.trusted = r.snapshot.Signed()
	v, err := r.make("snapshot "+dir, o, opts)
	if err != nil {
		return nil, errors.Join(err, r.close())
	}
	v.opening = opening
	return v, nil
}

// Clone makes a copy of the running VM, of another name, that goes on from now once it is
// started; this one goes on too. They share the memory that they do not write to. What
// the copy writes to its disks goes with it. Errors are those of Snapshot and of Restore.
func (v *VM) Clone(ctx context.Context, name string, list ...Option) (_ *VM, err error) {
	opts := newOptions(list)
	defer opts.abandon(&err)
	parent, err := temp.Dir("vmm-clone-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(parent) // the copy holds the files open
	dir := filepath.Join(parent, "snapshot")
	if _, err := v.Snapshot(ctx, dir, SnapshotOptions{}); err != nil {
		return nil, err
	}
	c, err := restore(dir, &RestoreOptions{Name: name, Copy: true, Trust: true, Engine: v.Engine()}, opts)
	if err == nil {
		err = c.Prepare(ctx)
	}
	if err != nil {
		return nil, err
	}
	return c, nil
}

// SavedConfig returns the Config of a saved VM, without its disks and shares.
func SavedConfig(dir string) (*Config, error) {
	s, err := readSaved(dir)
	if err != nil {
		return nil, err
	}
	return &s.Config, nil
}

// SavedShares returns the directories of the host's that a saved VM shares with its guest.
func SavedShares(dir string) (list []string, err error) {
	s, err := readSaved(dir)
	if err != nil {
		return nil, err
	}
	for _, m := range s.Shares {
		list = append(list, m.Dir)
	}
	return list, nil
}

// readSaved reads what a snapshot says of its VM.
func readSaved(dir string) (*saved, error) {
	m, err := snapshot.ReadManifest(dir)
	if err != nil {
		return nil, &snapshot.Error{Dir: dir, Err: err}
	}
	s := &saved{}
	if err := s.unmarshal(m.Config); err != nil {
		return nil, &snapshot.Error{Dir: dir, Err: err}
	}
	return s, nil
}

// make makes the VM that goes on from r, which errors call what.
func (r *source) make(what string, o *RestoreOptions, opts *options) (*VM, error) {
	if err := r.checkTrust(what, o); err != nil {
		return nil, err
	}
	c := r.vm.Config
	if o.Overlays != "" {
		if err := os.MkdirAll(o.Overlays, 0o755); err != nil {
			return nil, err
		}
	}
	if len(o.Nets) > 0 {
		if len(o.Nets) != len(c.Nets) {
			return nil, wrong("Nets", "the saved VM has %d networks, and %d are given", len(c.Nets), len(o.Nets))
		}
		c.Nets = o.Nets
	}
	if o.Name != "" {
		c.Name = o.Name
	}
	if o.Limits != nil {
		c.Limits = *o.Limits
	}
	if o.Configure != nil {
		more, err := o.Configure(&c)
		if err != nil {
			return nil, err
		}
		opts.set(more)
	}
	if c.Name != r.vm.Config.Name {
		r.copies = r.copies || !r.moved // what has moved is there only once
		c.Hostname = ""
	}
	c.Ports = slices.Clone(c.Ports)
	for i := range c.Ports {
		p := &c.Ports[i]
		if r.copies { // which must not write to the same file
			p.To = Endpoint{}
		}
		for _, given := range o.Ports {
			if given.Name == p.Name {
				p.To = given.To
			}
		}
	}
	if r.copies {
		c.Publish, c.Vsock = nil, ""
	}
	if len(o.Publish) > 0 {
		c.Publish = o.Publish
	}
	if o.Vsock != "" {
		c.Vsock = o.Vsock
	}
	c.Console, c.Engine = o.Console, o.Engine
	v, err := newVM(c, opts)
	if err == nil {
		v.from = r
	}
	return v, err
}
