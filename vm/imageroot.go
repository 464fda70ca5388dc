package vm

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path"
	"slices"
	"strings"

	guestimages "vmm/guest-images"
	"vmm/guest-images/agent"
	"vmm/guest-images/guestinit"
	"vmm/storage"
	"vmm/storage/erofs"
	"vmm/storage/ext4"
	"vmm/virtio"
	"vmm/virtio/blk"
)

// ImageRoot is the root of a guest for commands as a container image gives it: a file system
// for reading that other VMs have too, and a layer of this VM's own for what is written. A
// store of images resolves a reference to it; package vm knows no registries.
type ImageRoot struct {
	// Name is the reference that the user gave, for messages.
	Name string `json:"name,omitempty"`
	// Digest is that of the image's manifest, by which what commits the VM finds the image; "" is not known.
	Digest string `json:"digest,omitempty"`
	// Segments are files that make an EROFS file system one behind the other, each of whole
	// blocks of ImageBlock bytes. Nobody may change them while the VM, or a snapshot of it, is there.
	Segments []string `json:"segments"`
	// Device is what the segments are in the guest; where it is empty, Start chooses.
	Device ImageDevice `json:"device,omitempty"`
	// Disk, if it is there, takes what the guest writes: an ext4 file system as NewRootDisk
	// makes it, which outlasts the VM. Without one that goes to the guest's memory.
	Disk *Disk `json:"disk,omitempty"`
	// Dir, if it is not empty, is a directory of the host that takes what the guest writes, in the place of both: the upper
	// directory of an overlay (Linux, filesystems/overlayfs.rst, "User xattr") in upper, and its work. No two VMs have it at a
	// time. Only root can have one: an overlay works in a directory without permissions, as the owner of which another fails.
	Dir string `json:"dir,omitempty"`
	// ReadOnly lets nobody write to the root. Volumes and Tmpfs can be written to all the same.
	ReadOnly bool    `json:"readOnly,omitempty"`
	Tmpfs    []Tmpfs `json:"tmpfs,omitempty"`
	// Volumes are directories, absolute, that can be written to also where the root cannot. They are
	// made, if they are not there, and have what the image has there.
	Volumes []string `json:"volumes,omitempty"`
	// Hosts are in the guest's /etc/hosts, beside itself.
	Hosts []HostName `json:"hosts,omitempty"`
	// Init hands the guest over to a system of the image's own, as its PID 1. Its agent goes on beside that, and the guest ends
	// when that system does. Nil is a guest for commands.
	Init *Init `json:"init,omitempty"`
	// Defaults are what a command of the guest has unless it says otherwise.
	Defaults Defaults `json:"defaults,omitzero"`
}

// ImageDevice is what a container image is in the guest.
type ImageDevice string

// The values of ImageDevice.
const (
	// ImageMemory is persistent memory, which the guest reads where the host has it: VMs of one
	// image share what they have read. Its kernel keeps 64 bytes of its own memory for each 4 KiB.
	ImageMemory ImageDevice = "pmem"
	ImageDisk   ImageDevice = "blk"
)

// ImageBlock is the unit of an image's segments, in bytes: a page.
const ImageBlock = erofs.BlockSize

// Defaults are the environment of a container image's commands.
type Defaults = agent.Defaults

// Init is the init of a container image: by its Argv, or the first of InitPrograms that the image has. It has the
// environment of Defaults, without "container", and is root.
type Init = guestinit.Init

// InitPrograms are where an image has its init.
var InitPrograms = guestinit.InitPrograms

// Tmpfs is a file system in the guest's memory.
type Tmpfs = guestinit.Tmpfs

// HostName is a line of the guest's /etc/hosts.
type HostName struct {
	Name    string     `json:"name"`
	Address netip.Addr `json:"address"`
}

// check finds what is wrong with an image by itself.
func (r *ImageRoot) check() error {
	if len(r.Segments) == 0 {
		return wrong("Root", "image %s: no files", r.Name)
	}
	if d := r.Device; d != "" && d != ImageMemory && d != ImageDisk {
		return wrong("Root.Image.Device", "%q: %s or %s", d, ImageMemory, ImageDisk)
	}
	if d := r.Defaults.Dir; d != "" && !path.IsAbs(d) {
		return wrong("Root", "image %s: the directory %q of its commands is not an absolute path", r.Name, d)
	}
	if i := r.Init; i != nil && len(i.Argv) > 0 && i.Argv[0] == "" {
		return wrong("Root.Image.Init", "no program")
	}
	for _, t := range r.Tmpfs {
		if !path.IsAbs(t.Guest) || path.Clean(t.Guest) == "/" {
			return wrong("Root.Image.Tmpfs", "%q: an absolute path below /", t.Guest)
		}
		if own := guestsOwnAt(path.Clean(t.Guest)); own != "" {
			return wrong("Root.Image.Tmpfs", "%s: the guest has a %s of its own", t.Guest, own)
		}
	}
	for _, dir := range r.Volumes {
		if !path.IsAbs(dir) || path.Clean(dir) == "/" {
			return wrong("Root.Image.Volumes", "%q: an absolute path below /", dir)
		}
	}
	for _, h := range r.Hosts {
		if h.Name == "" || strings.ContainsAny(h.Name, " \t\n#") || !h.Address.IsValid() {
			return wrong("Root.Image.Hosts", "%q at %v: a name and an address", h.Name, h.Address)
		}
	}
	if r.Disk != nil && r.Dir != "" {
		return wrong("Root.Image.Dir", "%s: what is written goes to a disk", r.Dir)
	}
	if r.Disk != nil {
		return of("Root.Image.Disk", r.Disk.check())
	}
	return nil
}

// guestRoot is what the guest's init is told of an image. Its Disk is the first one that is
// not the image.
func (r *ImageRoot) guestRoot() *guestinit.Root {
	image := &guestinit.Image{ReadOnly: r.ReadOnly, Tmpfs: r.Tmpfs, Volumes: r.Volumes, Init: r.Init, Defaults: r.Defaults}
	of, upper := rootDevice, "/dev/vdb"
	if r.Device == ImageMemory {
		of, upper = "/dev/pmem0", rootDevice
	}
	switch {
	case r.Disk != nil:
		image.Upper = upper
	case r.Dir != "":
		image.UpperTag = upperTag
	}
	for _, h := range r.Hosts {
		image.Hosts = append(image.Hosts, h.Address.String()+" "+h.Name)
	}
	return &guestinit.Root{Disk: of, Image: image}
}

// memoryShare is how much of the guest's memory its kernel may need for the page
// structures of persistent memory: a 16th.
const (
	memoryShare    = 16
	pageStructSize = 64
)

// chooseDevice decides what an image of so many bytes is in the guest. Only of a kernel that
// comes with vmm, or with its modules, is it known that it has the drivers.
func (k *kernelChoice) chooseDevice(size int64, memory Size) ImageDevice {
	known := k.image == "" || k.modules != "" && guestimages.HasModules(k.modules, guestimages.PmemModules...)
	if known && size/ImageBlock*pageStructSize <= int64(memory)/memoryShare {
		return ImageMemory
	}
	return ImageDisk
}

// imageDisk is the guest's device of an image's segments; nil is none.
type imageDisk struct {
	memory *memory // or
	disk   *storage.Concat
	owned  bool        // the disk, by a device
	saved  []savedDisk // the segments, as they were when they were opened
}

// openImage opens the segments of a root, which were as saved says when the VM was saved, and
// decides what they are in the guest.
func (v *VM) openImage(saved []savedDisk) (err error) {
	if v.cfg.Root == nil || v.cfg.Root.Image == nil {
		return nil
	}
	root := *v.cfg.Root.Image
	defer func() {
		if err != nil {
			err = of("Root", fmt.Errorf("image %s: %w", root.Name, err))
		}
	}()
	i := &imageDisk{}
	if i.saved, err = noteFiles(root.Segments, saved); err != nil {
		return err
	}
	if root.Device == "" {
		var size int64
		for _, s := range i.saved {
			size += s.Size
		}
		root.Device = v.kernel.chooseDevice(size, v.cfg.Memory)
		v.cfg.Root = &Root{Image: &root}
	}
	if root.Device == ImageMemory {
		i.memory = &memory{}
		i.memory.mapped, err = storage.OpenMapped(root.Segments...)
	} else {
		i.disk, err = storage.OpenConcat(ImageBlock, root.Segments...)
	}
	if err == nil {
		v.image = i
	}
	return err
}

// makeDevice makes the guest's device.
func (i *imageDisk) makeDevice(cpus int, warn func(error)) (_ virtio.Device, err error) {
	if i.memory != nil {
		return i.memory.device(), nil
	}
	d, err := blk.New(i.disk, blk.Options{Serial: "image", Queues: min(cpus, maxQueues), Log: warn})
	i.owned = err == nil
	return d, err
}

// segments are the files as a saved VM names them.
func (i *imageDisk) segments() []savedDisk {
	if i == nil {
		return nil
	}
	return i.saved
}

// close closes the files that no device has taken over.
func (i *imageDisk) close() error {
	switch {
	case i == nil || i.owned:
		return nil
	case i.memory != nil:
		return i.memory.close()
	}
	return i.disk.Close()
}

// describe is the root as a saved VM has it, whose Disk is one of its disks.
func (r *Root) describe() *Root {
	if r == nil || r.Image == nil {
		return r
	}
	image := *r.Image
	image.Disk, image.Segments = nil, slices.Clone(image.Segments)
	for n := range image.Segments {
		image.Segments[n] = absolute(image.Segments[n])
	}
	return &Root{Image: &image}
}

// NewRootDisk makes a file for ImageRoot.Disk, raw and sparse: an empty file system with free
// bytes of room. It is an error if there is one of that name, and nothing is left of one that
// cannot be made. The file system has no journal: a guest that was killed while it wrote may leave it
// in need of e2fsck.
func NewRootDisk(path string, free int64) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	w, err := ext4.NewWriter(f)
	if err == nil {
		err = w.AddJournal()
	}
	if err == nil {
		err = w.Close(free)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		os.Remove(path)
	}
	return err
}
