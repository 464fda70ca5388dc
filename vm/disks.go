package vm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"vmm/bootloader"
	"vmm/bootloader/disk"
	"vmm/internal/paths"
	"vmm/internal/temp"
	"vmm/storage"
	"vmm/storage/image"
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
	closed bool        // the image is, for now
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
		v.path = path
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
	if c.Root != nil && c.Root.Boot {
		root, err := rootDisk(ctx, c.Root.Path)
		if err != nil {
			return nil, of("Root.Boot", err)
		}
		s.add(Disk{Serial: "rootfs"}, root)
	} else if c.Root != nil && !isDir(c.Root.Path) {
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

func isDir(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.IsDir()
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

// close closes the images that no device has taken over.
func (s *diskSet) close() {
	if s == nil {
		return
	}
	for _, d := range s.disks {
		if d.device == nil {
			d.image.Close()
		}
	}
}

// boot reads from the first disk what it would boot: the entry of a name, or the
// default.
func (s *diskSet) boot(name string) (*booted, error) {
	img := s.disks[0].image
	fail := func(err error) (*booted, error) { return nil, fmt.Errorf("%s: %w", img.File.Name(), err) }
	entries, err := disk.Entries(storage.ReaderAt{Disk: img}, img.Size())
	if err != nil {
		return fail(err)
	}
	var e *disk.Entry
	if name != "" {
		e, err = disk.Find(entries, name)
	} else {
		e, err = disk.Default(entries)
	}
	if err != nil {
		return fail(err)
	}
	data, initrds, err := e.Load()
	if err != nil {
		return fail(err)
	}
	kernel, err := bootloader.Parse(data)
	if err != nil {
		return fail(fmt.Errorf("%s: %w", e.Kernel, err))
	}
	return &booted{kernel: kernel, initrds: initrds, args: []string{e.Args}}, nil
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

// moveOn leaves the disk's file as it is: what is written from now on goes to an
// overlay beside it, whose path it returns. The VM must stand still.
func (d *vmDisk) moveOn(path string) (string, error) {
	overlay, err := freeName(path)
	if err != nil {
		return "", err
	}
	back := func(err error) (string, error) { return "", errors.Join(err, d.reopen()) }
	// The lock on the file must go before it can be read as a backing file.
	if err := d.release(); err != nil {
		return back(err)
	}
	if err := image.Create(overlay, image.CreateOptions{Backing: path, BackingFormat: d.image.Format}); err != nil {
		return back(err)
	}
	next := d.cfg
	next.Path, next.Format, next.AnyBacking = overlay, image.Qcow2, true
	img, err := image.Open(overlay, next.options())
	if err != nil {
		return back(errors.Join(err, os.Remove(overlay)))
	}
	d.mu.Lock()
	d.image, d.cfg, d.closed = img, next, false
	d.mu.Unlock()
	d.device.Swap(img)
	return overlay, nil
}

// reopen opens the disk's file again.
func (d *vmDisk) reopen() error {
	if !d.closed {
		return nil
	}
	img, err := image.Open(d.cfg.Path, d.cfg.options())
	if err == nil {
		d.mu.Lock()
		d.image, d.closed = img, false
		d.mu.Unlock()
		d.device.Swap(img)
	}
	return err
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

// release closes the disk's file. The VM must stand still until reopen.
func (d *vmDisk) release() error {
	err := d.image.Close()
	d.closed = true
	d.device.Swap(released{d.image})
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
