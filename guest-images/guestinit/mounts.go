package guestinit

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// mountAll mounts the host's directories, those further up first, so that none hides
// another. It is an error if one cannot be seen all the same, for what is written there
// would be lost.
func mountAll(list []Mount) error {
	if len(list) == 0 {
		return nil
	}
	list = fromTop(list)
	work, err := openWorkDir()
	if err != nil {
		return err
	}
	mounted := make([]uint64, len(list)) // the devices
	for i, m := range list {
		if err := os.MkdirAll(m.Path, 0o755); err != nil {
			return noPlace(m.Path, err)
		}
		before, err := device(m.Path)
		if err == nil {
			err = mountOne(&m, work)
		}
		if err != nil {
			return err
		}
		if mounted[i], err = device(m.Path); err != nil {
			return err
		}
		if mounted[i] == before {
			return fmt.Errorf("%s is the guest's root: no directory of the host can be seen there", m.Path)
		}
	}
	for i, m := range list {
		seen, err := device(m.Path)
		if err == nil && seen == mounted[i] {
			continue
		}
		if by := slices.Index(mounted, seen); by >= 0 {
			return fmt.Errorf("%s and %s are one place in the guest: only one directory of the host can be seen there", m.Path, list[by].Path)
		}
		return fmt.Errorf("%s cannot be seen in the guest: another directory of the host hides it", m.Path)
	}
	return nil
}

// openedWorkDir is the working directory's descriptor, by which it is found also where one of
// the host's directories hides it, or a root that has a /run of its own; -1 before it is used.
var openedWorkDir = -1

// openWorkDir returns a name of the working directory, which is made if it is not there.
func openWorkDir() (string, error) {
	if openedWorkDir < 0 {
		if err := os.MkdirAll(workDir, 0o755); err != nil {
			return "", err
		}
		fd, err := unix.Open(workDir, unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			return "", fmt.Errorf("%s: %w", workDir, err)
		}
		openedWorkDir = fd
	}
	return fmt.Sprintf("/proc/self/fd/%d", openedWorkDir), nil
}

// noPlace is the error where a directory to mount on is not there and cannot be made.
func noPlace(path string, err error) error {
	if errors.Is(err, unix.EROFS) {
		return fmt.Errorf("there is no %s in the directory shared above it, which is read-only: make it on the host", path)
	}
	if errors.Is(err, unix.ENOTDIR) {
		return fmt.Errorf("%s is no directory in the guest, or leads through a file: no directory of the host can be seen there", path)
	}
	return fmt.Errorf("the place for a directory of the host: %w", err)
}

// fromTop orders mounts by how deep in the guest's root they are.
func fromTop(list []Mount) []Mount {
	list = slices.Clone(list)
	slices.SortStableFunc(list, func(a, b Mount) int { return depth(a.Path) - depth(b.Path) })
	return list
}

// depth is the number of directories above what a path leads to; the end of the path need
// not be there.
func depth(path string) int {
	path = filepath.Clean(path)
	for top, rest := path, ""; ; top, rest = filepath.Dir(top), filepath.Join(filepath.Base(top), rest) {
		if real, err := filepath.EvalSymlinks(top); err == nil {
			return strings.Count(filepath.Join(real, rest), "/")
		}
		if top == "/" {
			return strings.Count(path, "/")
		}
	}
}

// device is that of the file system at a path.
func device(path string) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return st.Dev, nil
}

// mountOne mounts a directory of the host.
func mountOne(m *Mount, work string) error {
	if m.Fill {
		return mountFilled(m, work)
	}
	if !m.Overlay {
		var flags uintptr
		if m.ReadOnly {
			flags = unix.MS_RDONLY
		}
		return mountShare(m.Tag, m.Path, flags)
	}
	below := filepath.Join(work, "share", m.Tag)
	if err := os.MkdirAll(below, 0o755); err != nil {
		return err
	}
	if err := mountShare(m.Tag, below, unix.MS_RDONLY); err != nil {
		return err
	}
	return mountOverlay(work, below, m.Path, m.Tag)
}

// mountShare mounts a directory of the host.
func mountShare(tag, to string, flags uintptr) error {
	err := unix.Mount(tag, to, "virtiofs", flags, "")
	switch {
	case errors.Is(err, unix.ENODEV):
		return errors.New("this kernel has no virtio-fs (CONFIG_VIRTIO_FS)")
	case errors.Is(err, unix.EINVAL):
		return fmt.Errorf("this kernel does not see the shared directory %s (CONFIG_VIRTIO_PCI or CONFIG_VIRTIO_MMIO)", tag)
	case err != nil:
		return fmt.Errorf("mounting %s: %w", tag, err)
	}
	return nil
}

// mountOverlay mounts a directory so that what is written goes to memory; work is the
// working directory.
func mountOverlay(work, from, to, name string) error {
	memory := filepath.Join(work, memory)
	if err := os.MkdirAll(memory, 0o755); err != nil {
		return err
	}
	var st, parent unix.Stat_t
	if unix.Stat(memory, &st) == nil && unix.Stat(work, &parent) == nil && st.Dev == parent.Dev {
		if err := unix.Mount("vmm", memory, "tmpfs", 0, "mode=0755,size=80%"); err != nil {
			return fmt.Errorf("memory for an overlay: %w (CONFIG_TMPFS)", err)
		}
	}
	return overlay(from, to, filepath.Join(memory, name), "")
}

// overlay mounts a directory so that what is written goes to another one.
func overlay(from, to, writable, options string) error {
	upper, atWork := filepath.Join(writable, "upper"), filepath.Join(writable, "work")
	for _, d := range []string{upper, atWork} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	err := unix.Mount("overlay", to, "overlay", 0, "lowerdir="+from+",upperdir="+upper+",workdir="+atWork+options)
	if errors.Is(err, unix.ENODEV) {
		return errors.New("this kernel has no overlays (CONFIG_OVERLAY_FS)")
	}
	if err != nil {
		return fmt.Errorf("overlay on %s: %w", from, err)
	}
	return nil
}
