package cli

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"vmm/internal/version"
	"vmm/machine"
	"vmm/machine/snapshot"
	"vmm/storage/image"
	"vmm/virtio/blk"
	"vmm/vm/api"
)

// saver saves a running VM.
type saver struct {
	flags   *runFlags
	parts   *parts
	machine *machine.Machine

	mu     sync.Mutex // one at a time
	base   string     // the snapshot since which written pages are tracked
	paused bool       // by the user; pauseMu
	resume func()     // of a paused machine; pauseMu
	// released is set while another process may have the disks; pauseMu.
	released bool
	movedTo  string // where the VM is now; it is none here any more
	// pauseMu is its own: a VM can be looked at while it is saved.
	pauseMu sync.Mutex
}

// snapshotRequest is one of this process's.
type snapshotRequest struct {
	api.SnapshotRequest
	// warm is called when the guest can go on, for a warm start's snapshot: nobody
	// asks for a difference to it, nor that it survives the host's crash.
	warm func()
}

// hasMoved returns where the VM is that is not here any more; "" if it is.
func (s *saver) hasMoved() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.movedTo
}

func (s *saver) isPaused() bool {
	s.pauseMu.Lock()
	defer s.pauseMu.Unlock()
	return s.paused
}

// setPaused pauses the VM or lets it go on.
func (s *saver) setPaused(on bool) error {
	s.pauseMu.Lock()
	defer s.pauseMu.Unlock()
	if s.paused == on {
		if on {
			return api.ErrPaused
		}
		return api.ErrNotPaused
	}
	if s.released {
		if err := s.parts.disks.reopen(); err != nil {
			return err
		}
		s.released = false
	}
	if s.paused = on; on {
		s.resume = s.machine.Pause()
	} else {
		s.resume()
	}
	return nil
}

// snapshot saves the VM, which goes on after that unless it is to stop.
func (s *saver) snapshot(req *snapshotRequest, progress func(done, total int64)) (_ *api.SnapshotResult, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.parts.space.holds() {
		return nil, api.ErrNoRoom
	}
	o := snapshot.MemoryOptions{Zstd: req.Zstd, Progress: progress}
	if req.Parent != "" {
		if o.Parent, err = snapshot.Open(req.Parent, snapshot.Options{}); err != nil {
			return nil, err
		}
		defer o.Parent.Close()
		if s.base == "" || o.Parent.ID != s.base {
			return nil, api.ErrNotParent.With("%s is neither the last snapshot of this VM nor what it was restored from", req.Parent)
		}
	}
	w, err := snapshot.Create(req.Dir, req.Replace)
	if err != nil {
		return nil, err
	}
	result := &api.SnapshotResult{Disks: map[string]string{}}
	if err := s.save(w, req, o, result); err != nil {
		for from, to := range result.Disks { // no harm is done, but it must be known
			err = fmt.Errorf("%w; what was in %s goes on in %s", err, from, to)
		}
		s.base = "" // what was written since is not known any more
		w.Abort()
		return nil, err
	}
	if req.warm == nil {
		s.base = w.ID()
	}
	return result, nil
}

// save saves the VM. It need not stand still for all of it, unless it ends.
func (s *saver) save(w *snapshot.Writer, req *snapshotRequest, o snapshot.MemoryOptions, result *api.SnapshotResult) error {
	start := time.Now()
	var state *machine.State
	var vm *savedVM
	if err := s.machine.Freeze(func(f *machine.Frozen) (err error) {
		state, vm, err = s.collect(f, w, req, o, result)
		result.Paused = time.Since(start)
		if !req.Stop {
			return err
		}
		if err == nil {
			err = w.Commit(version.String(), vm, state)
		}
		if err != nil {
			return errors.Join(err, s.parts.disks.reopen())
		}
		s.machine.Stop()
		return nil
	}); err != nil || req.Stop {
		return err
	}
	if req.warm != nil {
		req.warm()
		w.NoSync = true
	}
	return w.Commit(version.String(), vm, state)
}

// collect saves what needs the guest to stand still.
func (s *saver) collect(f *machine.Frozen, w *snapshot.Writer, req *snapshotRequest, o snapshot.MemoryOptions, result *api.SnapshotResult) (*machine.State, *savedVM, error) {
	var err error
	if o.Dirty, err = f.TakeDirty(); err != nil {
		return nil, nil, err
	}
	if o.Dirty == nil && req.warm == nil {
		if err := f.TrackDirty(); err != nil {
			return nil, nil, err
		}
	}
	state, err := f.Save()
	if err != nil {
		return nil, nil, err
	}
	if err := w.Memory(f.Memory(), o); err != nil {
		return nil, nil, err
	}
	vm := s.flags.describe(s.parts)
	for i, d := range s.parts.disks.disks {
		saved, err := d.save(w, i, req, result.Disks)
		if err != nil {
			return nil, nil, err
		}
		vm.Disks = append(vm.Disks, *saved)
	}
	return state, vm, nil
}

// save has the snapshot keep the disk as it is now.
func (d *vmDisk) save(w *snapshot.Writer, i int, req *snapshotRequest, moved map[string]string) (*savedDisk, error) {
	o := d.flag.image
	s := &savedDisk{Options: image.Options{Format: d.image.Format, ReadOnly: o.ReadOnly, Cache: o.Cache},
		Serial: d.flag.serial, Queues: d.flag.queues, Limit: d.flag.limit, Temp: o.Snapshot}
	if err := d.image.Flush(); err != nil && !o.ReadOnly {
		return nil, err
	}
	name := fmt.Sprintf("disk-%d.qcow2", i)
	_, gone := os.Stat(d.image.File.Name()) // of a file without a name
	switch {
	case req.DiskCopy || gone != nil:
		s.Path, s.Options.Format = name, image.Qcow2
		return s, d.keep(s, w.File(name), d.image.SaveCopy)
	case o.Snapshot:
		s.Path, s.Options.Format = name, image.Qcow2
		return s, d.keep(s, w.File(name), d.image.SaveChanges)
	}
	path, err := realPath(d.image.File.Name())
	if err != nil {
		return nil, err
	}
	s.Path = path
	switch {
	case o.ReadOnly:
	case req.Stop:
		err = d.release() // its last word
	default:
		var overlay string
		if overlay, err = d.moveOn(path); err == nil {
			moved[path] = overlay
		}
	}
	if err != nil {
		return nil, err
	}
	return s, s.note()
}

// keep writes an image into the snapshot.
func (d *vmDisk) keep(s *savedDisk, path string, write func(path string) error) error {
	if err := write(path); err != nil {
		return err
	}
	st, err := os.Stat(path)
	if err == nil {
		s.Size = st.Size()
	}
	return err
}

// moveOn leaves the disk's file as it is: what is written from now on goes to an
// overlay beside it, whose path it returns.
func (d *vmDisk) moveOn(path string) (string, error) {
	overlay, err := freeName(path)
	if err != nil {
		return "", err
	}
	o := d.flag.image
	back := func(err error) (string, error) { return "", errors.Join(err, d.reopen()) }
	// The lock on the file must go before it can be read as a backing file.
	if err := d.release(); err != nil {
		return back(err)
	}
	if err := image.Create(overlay, image.CreateOptions{Backing: path, BackingFormat: d.image.Format}); err != nil {
		return back(err)
	}
	next := o
	next.Format, next.AnyBacking = image.Qcow2, true
	img, err := image.Open(overlay, next)
	if err != nil {
		return back(errors.Join(err, os.Remove(overlay)))
	}
	d.image, d.flag.image, d.flag.path, d.closed = img, next, overlay, false
	d.device.Swap(img)
	return overlay, nil
}

// reopen opens the disk's file again.
func (d *vmDisk) reopen() error {
	if !d.closed {
		return nil
	}
	img, err := image.Open(d.flag.path, d.flag.image)
	if err == nil {
		d.image, d.closed = img, false
		d.device.Swap(img)
	}
	return err
}

// released is a disk whose file is closed.
type released struct{ blk.Backend }

// Close implements blk.Backend.
func (released) Close() error { return nil }

// release closes the disk's file. The VM must stand still until reopen.
func (d *vmDisk) release() error {
	err := d.image.Close()
	d.closed = true
	d.device.Swap(released{d.image})
	return err
}

// release closes the files of the disks that are kept, so that another process can
// have them; the VM must stand still. reopen opens them again.
func (s *diskSet) release() error {
	var errs []error
	for _, d := range s.disks {
		if !d.temporary() {
			errs = append(errs, d.release())
		}
	}
	return errors.Join(errs...)
}

func (s *diskSet) reopen() error {
	var errs []error
	for _, d := range s.disks {
		if !d.temporary() {
			errs = append(errs, d.reopen())
		}
	}
	return errors.Join(errs...)
}

// temporary tells whether what the guest writes goes with the VM.
func (d *vmDisk) temporary() bool { return d.flag.image.Snapshot || d.flag.path == "" }

// freeName finds a name for an overlay beside an image.
func freeName(path string) (string, error) {
	base := strings.TrimSuffix(path, filepath.Ext(path))
	for n := 1; n < 10000; n++ {
		name := fmt.Sprintf("%s-%d.qcow2", base, n)
		if _, err := os.Lstat(name); errors.Is(err, os.ErrNotExist) {
			return name, nil
		}
	}
	return "", fmt.Errorf("%s: too many overlays beside it", path)
}

// diskPaths are the files that the disks are in now.
func (s *saver) diskPaths() []string {
	if s.flags.restored == nil && s.base == "" {
		return s.flags.disks
	}
	var out []string
	for _, d := range s.parts.disks.disks {
		out = append(out, d.image.File.Name())
	}
	return out
}
