package cli

import (
	"errors"
	"fmt"

	"vmm/bootloader/disk"
	guestimages "vmm/guest-images"
	"vmm/guest-images/agent"
	"vmm/kvm"
	"vmm/network/lan"
	"vmm/storage"
	"vmm/storage/image"
	"vmm/storage/oci"
	"vmm/storage/qcow2"
	"vmm/vm"
)

// hints are what to do about errors of the library, which knows no flag.
var hints = []struct {
	err  error
	hint string
}{
	{disk.ErrUnclear, "--boot-entry takes one all the same, vmm image boot-entries lists them, and --kernel default boots the default guest"},
	{image.ErrForeignBacking, "if you trust the image, say backing=any (vmm run) or --backing-any (vmm image)"},
	{qcow2.ErrMarkedCorrupt, "try vmm image check --repair, or open it read-only"},
	{storage.ErrNoDirectIO, "use cache=writeback"},
	{storage.ErrMasquerade, "give format=raw to allow it"},
	{oci.ErrInsecure, "--insecure (vmm run: --insecure-registry) allows it all the same"},
	{vm.ErrNeedsRoot, "--root-size has a disk for that"},
	{agent.ErrNotAlone, "--pause=false lets them run meanwhile"},
	{lan.ErrAddressTaken, "give this VM another --name, or mac="},
}

// withHint adds to an error what to do about it.
func withHint(err error) error {
	for _, h := range hints {
		if errors.Is(err, h.err) {
			return fmt.Errorf("%w: %s", err, h.hint)
		}
	}
	var old *agent.MismatchError
	var foreign *image.ForeignFormatError
	switch {
	case errors.As(err, &foreign):
		return fmt.Errorf("%w; if it is a raw disk all the same, say format=raw (vmm run) or --format raw (vmm image)", err)
	case errors.Is(err, kvm.ErrDenied):
		return fmt.Errorf("%w; or --engine software, which is slower and needs no KVM", err)
	case errors.As(err, &old):
		return fmt.Errorf("%w: vmm agent --install there", err)
	case errors.Is(err, guestimages.ErrNoApt), errors.Is(err, guestimages.ErrNoCloudKernel):
		return fmt.Errorf("%w: boot a kernel of this host's, with %s", err, hostKernel("/"))
	}
	return err
}

// hostKernel returns the flags that boot the host's own kernel, if it is below root; else
// what such flags look like.
func hostKernel(root string) string {
	k, ok := guestimages.HostKernel(root)
	if !ok {
		k = guestimages.Kernel{Image: "/boot/vmlinuz-VERSION", Modules: "/lib/modules/VERSION"}
	}
	return "--kernel " + k.Image + " --modules " + k.Modules
}
