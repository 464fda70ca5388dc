package vm

import (
	"context"
	"errors"
	"os"
	"sync"

	"vmm/internal/paths"
	"vmm/internal/temp"
	"vmm/storage"
	"vmm/storage/image"
	"vmm/storage/qcow2"
	"vmm/storage/rootfs"
	"vmm/virtio"
	"vmm/virtio/blk"
)

// maxQueues bounds the queues of a disk or network that are made for a VM's CPUs.
const maxQueues = 8

// vmDisk is a disk with its image and, once it has one, its device.
type vmDisk struct {
	mu     sync.Mutex // of cfg and image, which whoever saves the VM changes
	cfg    Disk       // as it is open now
	image  *image.Image
	device *blk.Device // which owns the image; nil at first
	path   string      // of the image when the VM began, without symbolic links; "" for a file without a name
	file   string      // of the image now, in the same way
	held   *image.Held // the image's files, while it is closed; else nil
}

// diskSet is the disks of a VM.
type diskSet struct{ disks []*vmDisk }

// open adds a disk.
func (s *diskSet) open(d Disk) error {
	img, err := image.Open(d.Path, d.options())
	if err != nil {
		return err
	}
	s.add(d, img)
	return nil
}

func (s *diskSet) add(d Disk, img *image.Image) {
	v := &vmDisk{cfg: d, image: img}
	if path, err := paths.Real(img.File.Name()); err == nil {
		v.path, v.file = path, path
	}
	s.disks = append(s.disks, v)
}

// openDisks opens the disks of a VM that boots: its root, if that is one, comes first.
func openDisks(ctx context.Context, c *Config) (_ *diskSet, err error) {
	s := &diskSet{}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	if c.Root != nil && c.Root.Image != nil {
		if d := c.Root.Image.Disk; d != nil {
			if err := s.open(*d); err != nil {
				return nil, of("Root.Image.Disk", err)
			}
		}
	} else if c.Root != nil && c.Root.Boot {
		root, err := rootDisk(ctx, c.Root.Path)
		if err != nil {
			return nil, of("Root.Boot", err)
		}
		s.add(Disk{Serial: "rootfs"}, root)
	} else if c.Root != nil && !c.Root.IsDir() {
		root, err := openRoot(ctx, c.Root.Path)
		if err != nil {
			return nil, of("Root", err)
		}
		s.add(Disk{Serial: "root"}, root)
	}
	for _, d := range c.Disks {
		if err := s.open(d); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// devices makes the guest's disks. After an error it returns those that there are.
func (s *diskSet) devices(cpus int, space *spaceWatch, warn func(error)) ([]virtio.Device, error) {
	var out []virtio.Device
	for _, d := range s.disks {
		o := blk.Options{Serial: d.cfg.Serial, Queues: d.cfg.Queues, Limit: d.cfg.limit(), Log: warn,
			Writethrough: d.cfg.Cache == storage.Writethrough}
		if o.Queues == 0 {
			o.Queues = min(cpus, maxQueues)
		}
		if space != nil {
			o.NoSpace = space.hold
		}
		var err error
		if d.device, err = blk.New(d.image, o); err != nil {
			return out, err
		}
		out = append(out, d.device)
	}
	return out, nil
}

// close closes the images that no device has taken over, and files that are held.
func (s *diskSet) close() {
	if s == nil {
		return
	}
	for _, d := range s.disks {
		switch {
		case d.held != nil:
			d.held.Close()
		case d.device == nil:
			d.image.Close()
		}
	}
}

// rootDevice is the first disk, which is rootDisk's, and rootArgs boots from it.
const (
	rootDevice = "/dev/vda"
	rootArgs   = "root=" + rootDevice + " rootfstype=ext4 rw"
)

// rootFree is the room in a root disk beside its files, in bytes.
const rootFree = 8 << 30

// rootDisk makes a disk of a directory or tar archive, in a file without a name.
func rootDisk(ctx context.Context, source string) (*image.Image, error) {
	f, err := temp.File("vmm-rootfs-")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	defer os.Remove(f.Name())
	if err := rootfs.Build(ctx, source, f, rootFree); err != nil {
		return nil, err
	}
	return image.Open(f.Name(), image.Options{Format: image.Raw, Cache: storage.Unsafe})
}

// openRoot opens the root of a guest that runs commands: an image, whose changes are
// not kept, or a tar archive.
func openRoot(ctx context.Context, path string) (*image.Image, error) {
	if tar, err := rootfs.IsTar(path); err != nil || tar {
		if err != nil {
			return nil, err
		}
		return rootDisk(ctx, path)
	}
	return image.Open(path, image.Options{ReadOnly: true})
}

// temporary reports whether what the guest writes goes with the VM.
func (d *vmDisk) temporary() bool { return d.cfg.Ephemeral || d.cfg.Path == "" }

// pinned reports whether the disk's file belongs to a snapshot from then on, and the guest
// writes to an overlay beside it.
func (d *vmDisk) pinned() bool {
	return !d.temporary() && !d.image.ReadOnly() && !d.image.File.Device() && !d.image.File.Unlinked()
}

// moveOn leaves the disk's file as it is: what is written from now on goes to the overlay.
// The VM must stand still.
func (d *vmDisk) moveOn(to *Overlay) (err error) {
	next := d.cfg
	next.Path, next.Format, next.AnyBacking = to.Path, image.Qcow2, true
	top, err := storage.HoldOpen(to.Path, next.Cache, to.File, to.Direct)
	if err != nil {
		return err
	}
	defer top.Close()
	// The lock on the file must go before it can be read as a backing file.
	err = d.release()
	if d.held == nil {
		return err
	}
	below := qcow2.Options{Size: d.image.Size(), BackingFile: d.file, BackingFormat: d.image.Format}
	var img *image.Image
	if err == nil {
		img, err = d.held.Extend(top, below, next.options())
	}
	if err != nil {
		return errors.Join(err, d.reopen())
	}
	d.use(img, next, to.Path)
	return nil
}

// reopen opens the disk's file again.
func (d *vmDisk) reopen() error {
	if d.held == nil {
		return nil
	}
	o := d.cfg.options()
	o.AnyBacking = true // it was allowed
	img, err := d.held.Open(o)
	if err == nil {
		d.use(img, d.cfg, d.file)
	}
	return err
}

// use has the guest use an image, which is opened of the files that were held.
func (d *vmDisk) use(img *image.Image, cfg Disk, file string) {
	d.held.Close()
	d.mu.Lock()
	d.image, d.cfg, d.file, d.held = img, cfg, file, nil
	d.mu.Unlock()
	d.device.Swap(img)
}

// now is the file that the disk is in; "" for a root.
func (d *vmDisk) now() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.cfg.Path == "" {
		return ""
	}
	return d.image.File.Name()
}

// released is a disk whose file is closed.
type released struct{ blk.Backend }

// Close implements blk.Backend.
func (released) Close() error { return nil }

// release closes the disk's file, whose descriptors are held: in a jail it could not be
// opened again by its name. The VM must stand still until reopen.
func (d *vmDisk) release() error {
	held, err := d.image.Release()
	if held != nil {
		d.held = held
		d.device.Swap(released{d.image})
	}
	return err
}

// release closes the files of the disks that are kept, so that another process can
// have them; the VM must stand still. reopen opens them again.
func (s *diskSet) release() error { return s.kept((*vmDisk).release) }

func (s *diskSet) reopen() error { return s.kept((*vmDisk).reopen) }

// kept does something with each disk whose file is kept.
func (s *diskSet) kept(do func(*vmDisk) error) error {
	var errs []error
	for _, d := range s.disks {
		if !d.temporary() {
			errs = append(errs, do(d))
		}
	}
	return errors.Join(errs...)
}
