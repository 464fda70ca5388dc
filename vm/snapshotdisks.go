package vm

import (
	"fmt"
	"os"

	"vmm/machine/snapshot"
	"vmm/storage/image"
)

// overlaysFor are the overlays of all disks that need one for a snapshot, by their files:
// those that are given, or new ones.
func (v *VM) overlaysFor(o *SnapshotOptions) (given, made map[string]*Overlay, err error) {
	if o.DiskCopy || o.Stop {
		return nil, nil, nil
	}
	given, made = map[string]*Overlay{}, map[string]*Overlay{}
	for _, file := range v.PinnedDisks() {
		if given[file] = o.Overlays[file]; given[file] != nil {
			continue
		}
		if v.confined.Load() {
			return nil, made, fmt.Errorf("an overlay of %s: %w", file, ErrConfined)
		}
		overlay, err := NewOverlay(file)
		if err != nil {
			return nil, made, fmt.Errorf("an overlay of %s: %w", file, err)
		}
		given[file], made[file] = overlay, overlay
	}
	return given, made, nil
}

// save has the snapshot keep the disk as it is now.
func (d *vmDisk) save(w *snapshot.Writer, i int, o *SnapshotOptions, moved map[string]string) (*savedDisk, error) {
	s := &savedDisk{Disk: d.cfg, Temp: d.cfg.Ephemeral}
	s.Format, s.Ephemeral, s.AnyBacking, s.ReadOnly = d.image.Format, false, false, d.image.ReadOnly()
	if err := d.image.Flush(); err != nil && !d.cfg.ReadOnly {
		return nil, err
	}
	name := snapshot.DiskFile(i)
	switch {
	case o.DiskCopy || d.image.File.Unlinked():
		s.Path, s.Format = name, image.Qcow2
		return s, s.keep(w, name, d.image.SaveCopy)
	case d.cfg.Ephemeral:
		s.Path, s.Format = name, image.Qcow2
		return s, s.keep(w, name, d.image.SaveChanges)
	}
	s.Path = d.file
	var err error
	stat := d.image.File.Stat
	switch {
	case s.ReadOnly: // also a root that is an image
	case o.Stop:
		if err = d.release(); d.held != nil { // its last word
			stat = d.held.Top().Stat
		}
	case d.image.File.Device(): // in /dev is no room for what follows
		err = &os.PathError{Op: "snapshot of", Path: d.file, Err: ErrDevice}
	default:
		overlay := o.Overlays[d.file]
		if err = d.moveOn(overlay); err == nil {
			moved[s.Path] = overlay.Path
			stat = d.image.Backing.File.Stat
		}
	}
	if err != nil {
		return nil, err
	}
	return s, s.note(stat())
}

// keep writes an image into the snapshot.
func (d *savedDisk) keep(w *snapshot.Writer, name string, write func(*os.File) error) error {
	f, err := w.File(name)
	if err != nil {
		return err
	}
	if err := write(f); err != nil {
		return err
	}
	st, err := f.Stat()
	if err == nil {
		d.Size = st.Size()
	}
	return err
}
