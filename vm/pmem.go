package vm

import (
	"errors"
	"fmt"
	"os"

	"vmm/storage"
	"vmm/virtio"
	"vmm/virtio/pmem"
)

// Pmem is a file of the host that is the guest's memory: /dev/pmem0 and on, behind an
// image's. What the guest stores there is in the file, once it has flushed it for good.
type Pmem struct {
	// Path is a file whose length is a multiple of 2 MiB, unless it is ReadOnly. Nobody may
	// make it shorter while the VM runs. Holes of a writable one are filled.
	Path     string `json:"path"`
	ReadOnly bool   `json:"readOnly,omitempty"`
}

// ErrPmemWritable is in the error for saving or moving a VM that can write to a Pmem: what it
// has written is in the file, which goes on changing.
var ErrPmemWritable = errors.New("the guest can write to persistent memory, which a snapshot or another host has no copy of")

// memory is files that a guest has as its memory.
type memory struct {
	mapped *storage.Mapped
	owned  bool        // by a device
	saved  []savedDisk // the files, as they were when they were opened, of those for reading
}

// noteFiles keeps how files look that nobody may change, which were as saved says when the
// VM was saved, unless that is empty.
func noteFiles(paths []string, saved []savedDisk) (now []savedDisk, err error) {
	for n, path := range paths {
		path = absolute(path)
		if n < len(saved) {
			if err := saved[n].check(path); err != nil {
				return nil, err
			}
		}
		st, err := os.Stat(path)
		if err != nil {
			return nil, err
		}
		d := savedDisk{Disk: Disk{Path: path, ReadOnly: true}}
		d.note(st.Size(), st.ModTime(), nil)
		now = append(now, d)
	}
	return now, nil
}

// device makes the guest's device, which owns the memory.
func (m *memory) device() virtio.Device {
	m.owned = true
	return pmem.New(m.mapped)
}

// close frees memory that no device has taken over.
func (m *memory) close() error {
	if m.owned {
		return nil
	}
	return m.mapped.Close()
}

// openPmems opens the Config's persistent memory, which was as saved says.
func (v *VM) openPmems(saved []savedDisk) error {
	for n, p := range v.cfg.Pmems {
		m := &memory{}
		var err error
		if !p.ReadOnly {
			m.mapped, err = storage.OpenMappedWritable(p.Path)
		} else if m.saved, err = noteFiles([]string{p.Path}, saved[min(n, len(saved)):]); err == nil {
			m.mapped, err = storage.OpenMapped(p.Path)
		}
		if err != nil {
			return of("Pmems", err)
		}
		v.pmems = append(v.pmems, m)
	}
	return nil
}

// savedPmems are the files as a saved VM names them, all of them for reading.
func (v *VM) savedPmems() (out []savedDisk) {
	for _, m := range v.pmems {
		out = append(out, m.saved...)
	}
	return out
}

// checkPmems returns ErrPmemWritable if the guest has any that keeps the VM from being saved.
func (v *VM) checkPmems() error {
	for _, p := range v.cfg.Pmems {
		if !p.ReadOnly {
			return fmt.Errorf("%s: %w", p.Path, ErrPmemWritable)
		}
	}
	return nil
}
