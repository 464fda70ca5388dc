package guestinit

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"vmm/guest-images/agent"
)

// upperDir is where a disk for what is written is mounted.
const upperDir = workDir + "/upper"

// takes reports whether a file system of the default guest goes on in the root: a container
// image has a /tmp and a /run of its own, with files in them.
func (r *Root) takes(m *mount) bool { return m.moves && !(m.scratch && r.Image != nil) }

// keeps reports whether what is written to the root goes elsewhere than to memory.
func (r *Root) keeps() bool { return r.Image != nil && (r.Image.Upper != "" || r.Image.UpperTag != "") }

// mountImage mounts a container image below the root, and what takes that which is written, if
// it is not memory, with both as the new root.
func mountImage(r *Root) error {
	if err := mountLayers(r.Disk); err != nil {
		return err
	}
	if !r.keeps() {
		return nil
	}
	if err := os.MkdirAll(upperDir, 0o755); err != nil {
		return err
	}
	if tag := r.Image.UpperTag; tag != "" {
		if err := mountShare(tag, upperDir, 0); err != nil {
			return err
		}
		return overlay(lower, newRoot, upperDir, ",userxattr") // only the host's root could set others there
	}
	if err := mountDevice(r.Image.Upper, upperDir, "ext4", "CONFIG_EXT4_FS", 0, ""); err != nil {
		return err
	}
	return overlay(lower, newRoot, upperDir, "")
}

// appears bounds how long the kernel may take to find persistent memory, which it looks for
// beside the start of init.
const appears = 20 * time.Second

// mountLayers mounts the image's own file system. Of persistent memory the guest reads files
// where they are, as far as its kernel can.
func mountLayers(device string) error {
	mount := func(data string) error {
		return mountDevice(device, lower, "erofs", "CONFIG_EROFS_FS", unix.MS_RDONLY, data)
	}
	if !strings.HasPrefix(device, "/dev/pmem") {
		return mount("")
	}
	for end := time.Now().Add(appears); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if _, err := os.Stat(device); err == nil {
			break
		}
	}
	err := mount("dax=always")
	if errors.Is(err, unix.EINVAL) {
		err = mount("")
	}
	return err
}

// mountDevice mounts a disk whose file system is known.
func mountDevice(disk, to, kind, option string, flags uintptr, data string) error {
	err := unix.Mount(disk, to, kind, flags, data)
	switch {
	case errors.Is(err, unix.ENODEV):
		return fmt.Errorf("this kernel has no %s (%s)", kind, option)
	case errors.Is(err, unix.ENOENT) && strings.HasPrefix(disk, "/dev/pmem"):
		return fmt.Errorf("this kernel does not see the persistent memory %s (CONFIG_VIRTIO_PMEM, CONFIG_BLK_DEV_PMEM)", disk)
	case errors.Is(err, unix.ENOENT):
		return fmt.Errorf("this kernel does not see the disk %s (CONFIG_VIRTIO_BLK, and CONFIG_VIRTIO_PCI or CONFIG_VIRTIO_MMIO)", disk)
	case err != nil:
		return fmt.Errorf("mounting %s, which should be %s: %w", disk, kind, err)
	}
	return nil
}

// complete makes in the new root what the image is run with.
func (i *Image) complete() error {
	dirs := append([]string{i.Defaults.Directory()}, i.Volumes...)
	for _, t := range i.Tmpfs {
		dirs = append(dirs, t.Guest)
	}
	root, err := os.OpenRoot(newRoot) // a link of the image's leads nowhere else
	if err != nil {
		return err
	}
	defer root.Close()
	for _, d := range dirs {
		if d = filepath.Clean(d); d == "/" {
			continue
		}
		if err := root.MkdirAll(d[1:], 0o755); err != nil {
			return fmt.Errorf("%s: %w", d, err)
		}
	}
	for _, t := range i.Tmpfs {
		if err := unix.Mount("tmpfs", filepath.Join(newRoot, t.Guest), "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, t.Options); err != nil {
			return fmt.Errorf("a tmpfs at %s (%s): %w", t.Guest, t.Options, err)
		}
	}
	if i.Init != nil {
		if err := i.Init.complete(root); err != nil {
			return err
		}
	}
	if i.ReadOnly {
		for _, d := range i.Volumes {
			d = filepath.Join(newRoot, d) // a mount of its own is not concerned by what protects the root
			if err := unix.Mount(d, d, "", unix.MS_BIND, ""); err != nil {
				return fmt.Errorf("%s: %w", d, err)
			}
		}
	}
	protected = i.ReadOnly
	return nil
}

// protected is whether nobody is to write to the root.
var protected bool

// protectRoot has nobody write to the root from now on, if that is not to be; allowRoot
// takes it back. What is mounted in the root is not concerned.
func protectRoot() error { return remountRoot(unix.MS_RDONLY) }

func allowRoot() error { return remountRoot(0) }

func remountRoot(flags uintptr) error {
	if !protected {
		return nil
	}
	if err := unix.Mount("", "/", "", unix.MS_REMOUNT|unix.MS_BIND|flags, ""); err != nil {
		return fmt.Errorf("the root for reading: %w", err)
	}
	return nil
}

// container are the defaults of a container image's commands; nil where there is none.
func container(c *Config) *agent.Defaults {
	if c.Root == nil || c.Root.Image == nil {
		return nil
	}
	return &c.Root.Image.Defaults
}
