package cli

import (
	"errors"
	"fmt"
	"os"

	"vmm/storage/image"
	"vmm/vm"
	"vmm/vm/api"
	"vmm/vm/registry"
	"vmm/vm/rootdisk"
)

// rootDisk is the disk for what a session's guest writes to the root that an image gave it.
type rootDisk struct {
	path    string
	made    bool // by this session
	scratch bool // it is nobody's when it was opened
}

// keepsRoot reports whether the disk outlasts the VM: where that has a name that the user knows.
func (s *session) keepsRoot() bool { return (s.Named || s.Detach) && !s.Remove }

// takeRootDisk gives the VM, which has its name, its disk.
func (s *session) takeRootDisk(c *vm.Config) error {
	if s.RootSize == 0 {
		return nil
	}
	store, err := rootdisk.Open()
	if err != nil {
		return err
	}
	root := *c.Root.Image
	d := &rootDisk{scratch: !s.keepsRoot()}
	if d.scratch {
		d.path, err = store.Scratch(c.Name, root.Digest, s.RootSize)
	} else {
		d.path, d.made, err = store.Take(c.Name, root.Digest, s.RootSize)
	}
	if err != nil {
		return fmt.Errorf("--root-size: %w", err)
	}
	s.rootDisk, root.Disk = d, &vm.Disk{Path: d.path, Format: image.Raw}
	c.Root = &vm.Root{Image: &root}
	return nil
}

// opened is told that the VM has opened its disk, or that it has not.
func (d *rootDisk) opened(err error) error {
	if d == nil || !d.scratch && !(d.made && err != nil) {
		return nil
	}
	return os.Remove(d.path)
}

// claimAgain claims a name for a VM that goes on with the disk of one which has ended, in whose place it is
// listed.
func claimAgain(info api.VM) (*registry.Entry, error) {
	e, err := registry.User().Claim(info)
	var taken *registry.TakenError
	if !errors.As(err, &taken) || !taken.Ended {
		return e, err
	}
	if store, bad := rootdisk.Open(); bad != nil || !store.Has(info.Name) {
		return e, err
	}
	if err := registry.User().Remove(info.Name); err != nil {
		return nil, err
	}
	return registry.User().Claim(info)
}

// removeVM takes a VM that has ended from the list, and removes its disk.
func removeVM(name string) error {
	err := registry.User().Remove(name)
	if err != nil && !errors.Is(err, registry.ErrNotFound) {
		return err
	}
	store, bad := rootdisk.Open()
	if bad != nil { // then there is none
		return err
	}
	was, bad := store.Remove(name)
	if bad != nil {
		return bad
	}
	if was {
		return nil
	}
	return err
}
