package guestinit

import (
	"path/filepath"

	"vmm/guest-images/lvm"
)

// findVolumes makes devices of the logical volumes on the guest's virtio disks.
func findVolumes() error {
	devices, err := filepath.Glob("/dev/vd*")
	if err != nil {
		return err
	}
	return lvm.Activate(devices...)
}
