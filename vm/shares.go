package vm

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"

	guestimages "vmm/guest-images"
	"vmm/guest-images/guestinit"
	"vmm/internal/flock"
	"vmm/internal/paths"
	"vmm/storage/share"
	"vmm/virtio"
	"vmm/virtio/fs"
)

// rootTag is the tag of the guest's root; other shares are numbered.
const rootTag = "root"

// upperTag is the tag of what is written to the root, if that goes to a directory.
const upperTag = "upper"

// shares are the host's directories that the guest has.
type shares struct {
	devices []virtio.Device
	saved   []savedShare
	held    []*share.Held // in the order of saved
	locks   []*os.File    // of what is shared
	config  guestinit.Config
	hide    []string // Config.Hide, by all names; nil leaves what options say
	root    rootMount
}

// ErrKernelFiles is in the error for a share of what is the host's kernel and not a
// directory: to read and write there is to look into processes and to set the host up.
var ErrKernelFiles = errors.New("the host's /proc, /sys and /dev are not shared with a guest, nor what is in them")

// checkShare refuses a real path that is the kernel's, wherever that is mounted.
func checkShare(dir string) error {
	for _, top := range []string{"/proc", "/sys", "/dev"} {
		if paths.Below(dir, top) {
			return fmt.Errorf("%s: %w", dir, ErrKernelFiles)
		}
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return &os.PathError{Op: "statfs", Path: dir, Err: err}
	}
	if st.Type == unix.PROC_SUPER_MAGIC || st.Type == unix.SYSFS_MAGIC {
		return fmt.Errorf("%s: %w", dir, ErrKernelFiles)
	}
	return nil
}

// rootMount is the guest's mount of its root.
type rootMount struct {
	warm  bool // it is that of another VM, and may remember what has changed
	mu    sync.Mutex
	fs    *share.FS   // nil before the guest has mounted it
	stale share.Stale // what it remembers wrongly
}

// begin is told of each mount.
func (r *rootMount) begin(f *share.FS) {
	r.mu.Lock()
	r.fs, r.stale = f, share.Stale{}
	r.mu.Unlock()
	if r.warm {
		f.SetStale(func(s share.Stale) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.stale = s
		})
	}
}

// idle reports whether the guest has no file of it open.
func (r *rootMount) idle() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.fs == nil || r.fs.Idle()
}

// remembersWrongly returns what has changed since the guest has heard of it.
func (r *rootMount) remembersWrongly() share.Stale {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.stale
}

// add shares a directory.
func (s *shares) add(tag, dir string, o share.Options, log func(error)) error {
	given := dir
	dir, err := paths.Real(dir)
	if path := (*os.PathError)(nil); errors.As(err, &path) {
		return fmt.Errorf("%s: %w", given, path.Err)
	}
	if err != nil {
		return err
	}
	if err := checkShare(dir); err != nil {
		return err
	}
	if s.hide != nil {
		o.Hide = append(slices.Clone(o.Hide), hidden(dir, s.hide)...)
	}
	first, err := share.New(dir, o) // what is wrong with it is said now
	if err != nil {
		return err
	}
	if err := first.Close(); err != nil {
		return err
	}
	held, err := share.Hold(dir, o.ReadOnly)
	if err != nil {
		return err
	}
	s.held = append(s.held, held)
	dev, err := fs.New(tag, func() (fs.FileSystem, error) {
		f, err := share.New(held.Path(), o)
		if err == nil && tag == rootTag {
			s.root.begin(f)
		}
		return f, err
	}, log)
	s.devices = append(s.devices, dev)
	s.saved = append(s.saved, savedShare{Tag: tag, Dir: dir, Options: o})
	return err
}

// close lets the directories go.
func (s *shares) close() error {
	if s == nil {
		return nil
	}
	var err error
	for _, h := range s.held {
		err = errors.Join(err, h.Close())
	}
	for _, f := range s.locks {
		err = errors.Join(err, f.Close())
	}
	return err
}

// lock locks the file that stands for a directory, if there is one, until close.
func (s *shares) lock(dir, file string) error {
	if file == "" {
		return nil
	}
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	s.locks = append(s.locks, f)
	err = flock.Current(f, unix.LOCK_SH)
	if errors.Is(err, flock.ErrBusy) || errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%s: %w", dir, ErrShareGone)
	}
	return err
}

// lockDir locks a directory that no other VM may have, until close.
func (s *shares) lockDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	s.locks = append(s.locks, f)
	err = flock.Current(f, unix.LOCK_EX)
	if errors.Is(err, flock.ErrBusy) {
		return fmt.Errorf("%s: %w", dir, ErrShareBusy)
	}
	return err
}

// hidden are those of the paths that lie below a directory, which is free of symbolic
// links, from there. One that the directory itself is in is not: who shares that wants it.
func hidden(dir string, list []string) []string {
	var out []string
	for _, p := range list {
		rest, err := filepath.Rel(dir, p)
		if err == nil && rest != "." && filepath.IsLocal(rest) {
			out = append(out, rest)
		}
	}
	return out
}

// writable are the host's directories that the guest can write to.
func (s *shares) writable() (dirs []string) {
	for _, d := range s.saved {
		if !d.Options.ReadOnly {
			dirs = append(dirs, d.Dir)
		}
	}
	return dirs
}

// GuestWritable returns the host's directories that the guest can write to, absolute and
// free of symbolic links; none before Prepare. What the host's programs write there, the
// guest can lead elsewhere by a link.
func (v *VM) GuestWritable() []string {
	if !v.made() {
		return nil
	}
	return v.shares.writable()
}

// mount shares a directory and has the guest mount it.
func (s *shares) mount(dir string, m guestinit.Mount, o share.Options, log func(error)) error {
	m.Tag = "share" + strconv.Itoa(len(s.config.Mounts))
	s.config.Mounts = append(s.config.Mounts, m)
	return s.add(m.Tag, dir, o, log)
}

// restoreShares shares what a saved VM shared. They are to be closed also with an error.
func restoreShares(saved []savedShare, log func(error)) (*shares, error) {
	s := &shares{}
	for _, o := range saved {
		err := s.lock(o.Dir, o.Lock)
		if o.Tag == upperTag {
			err = s.lockDir(o.Dir)
		}
		if err == nil {
			err = s.add(o.Tag, o.Dir, o.Options, log)
		}
		if err != nil {
			return s, of("Shares", fmt.Errorf("the shared directory %s: %w", o.Dir, err))
		}
		s.saved[len(s.saved)-1].Lock = o.Lock
	}
	return s, nil
}

// ownDirs are where a guest that runs commands has file systems of its own over those of the
// root (guestinit). As it can look below them, what the root has there is hidden.
var ownDirs = []string{"dev", "proc", "run", "sys", "tmp"}

// openShares makes the shares of a VM that boots, to be closed also with an error; modules is the tree of its kernel's.
func openShares(c *Config, modules string, log func(error)) (*shares, error) {
	s := &shares{hide: paths.Names(c.Hide)}
	options := share.Options{GuestUID: c.ShareOwner.UID, GuestGID: c.ShareOwner.GID}
	if c.Root != nil && c.Root.Image != nil {
		s.config.Root = c.Root.Image.guestRoot()
		if dir := c.Root.Image.Dir; dir != "" {
			// The files are the guest's root's, whoever runs the commands.
			if os.Geteuid() != 0 {
				return s, of("Root.Image.Dir", ErrNeedsRoot)
			}
			if err := errors.Join(s.lockDir(dir), s.add(upperTag, dir, share.Options{}, log)); err != nil {
				return s, of("Root.Image.Dir", err)
			}
		}
	} else if c.ForCommands() {
		if _, err := os.Stat(c.Root.Path); err != nil {
			return s, of("Root", err)
		}
		if s.config.Root = (&guestinit.Root{Disk: rootDevice}); c.Root.IsDir() {
			o := options
			o.ReadOnly, o.Static, o.System, o.Hide = true, true, true, ownDirs
			if err := s.add(rootTag, c.Root.Path, o, log); err != nil {
				return s, of("Root", err)
			}
			s.config.Root = &guestinit.Root{Tag: rootTag}
		}
	}
	if modules != "" {
		tree, err := guestimages.ModuleTree(modules)
		if err == nil {
			err = s.mount(tree, guestinit.Mount{Path: "/lib/modules/" + filepath.Base(tree), ReadOnly: true},
				share.Options{ReadOnly: true, Static: true}, log)
		}
		if err != nil {
			return s, of("Boot.Modules", err)
		}
	}
	for _, m := range c.Shares {
		o := options
		o.ReadOnly = m.ReadOnly || m.Overlay
		err := s.lock(m.Host, m.Lock)
		if err == nil {
			err = s.mount(m.Host, guestinit.Mount{Path: m.Guest, ReadOnly: m.ReadOnly && !m.Overlay, Overlay: m.Overlay, Fill: m.Fill && !o.ReadOnly}, o, log)
		}
		if err != nil {
			return s, of("Shares", err)
		}
		s.saved[len(s.saved)-1].Lock = m.Lock
	}
	return s, nil
}
