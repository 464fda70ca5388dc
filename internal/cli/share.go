package cli

import (
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"

	guestimages "vmm/guest-images"
	"vmm/guest-images/guestinit"
	"vmm/storage/share"
	"vmm/virtio"
	"vmm/virtio/fs"
)

const shareUsage = "a directory of the host in the guest: `HOST:GUEST[:ro]`; several are possible"

// rootTag is the tag of the guest's root; other shares are numbered.
const rootTag = "root"

// shares are the host's directories that the guest has.
type shares struct {
	devices []virtio.Device
	saved   []savedShare
	config  guestinit.Config
}

// add shares a directory.
func (s *shares) add(tag, dir string, o share.Options, log func(error)) error {
	dir, err := realPath(dir)
	if err != nil {
		return err
	}
	first, err := share.New(dir, o) // what is wrong with it is said now
	if err != nil {
		return err
	}
	if err := first.Close(); err != nil {
		return err
	}
	dev, err := fs.New(tag, func() (fs.FileSystem, error) { return share.New(dir, o) }, log)
	s.devices = append(s.devices, dev)
	s.saved = append(s.saved, savedShare{tag, dir, o})
	return err
}

// restore shares what a saved VM shared.
func (s *shares) restore(saved []savedShare, log func(error)) error {
	for _, o := range saved {
		if err := s.add(o.Tag, o.Dir, o.Options, log); err != nil {
			return fmt.Errorf("the shared directory %s: %w", o.Dir, err)
		}
	}
	return nil
}

// mount shares a directory and has the guest mount it.
func (s *shares) mount(dir string, m guestinit.Mount, o share.Options, log func(error)) error {
	m.Tag = "share" + strconv.Itoa(len(s.config.Mounts))
	s.config.Mounts = append(s.config.Mounts, m)
	return s.add(m.Tag, dir, o, log)
}

// openShares makes the shares that the flags ask for.
func (f *runFlags) openShares(log func(error)) (*shares, error) {
	s := &shares{}
	if f.restored != nil && !f.restored.warm {
		return s, s.restore(f.restored.vm.Shares, log)
	}
	uid, gid := f.guestIDs()
	options := share.Options{GuestUID: uid, GuestGID: gid}
	if f.rootDir != "" {
		o := options
		o.ReadOnly, o.Static, o.System = true, true, true
		if err := s.add(rootTag, f.rootDir, o, log); err != nil {
			return nil, fmt.Errorf("--root: %w", err)
		}
		s.config.Root = &guestinit.Root{Tag: rootTag}
	} else if f.rootDisk {
		s.config.Root = &guestinit.Root{Disk: rootDevice}
	}
	if f.modules != "" {
		var err error
		if f.modules, err = guestimages.ModuleTree(f.modules); err == nil {
			o := share.Options{ReadOnly: true, Static: true}
			err = s.mount(f.modules, guestinit.Mount{Path: "/lib/modules/" + filepath.Base(f.modules), ReadOnly: true}, o, log)
		}
		if err != nil {
			return nil, fmt.Errorf("--modules: %w", err)
		}
	}
	for _, spec := range f.shares {
		parts := strings.Split(spec, ":")
		ro := len(parts) == 3 && parts[2] == "ro"
		if len(parts) < 2 || len(parts) > 3 || len(parts) == 3 && !ro && parts[2] != "rw" || parts[0] == "" || !filepath.IsAbs(parts[1]) {
			return nil, &exitError{statusUsage, fmt.Errorf("--share %q: HOST:GUEST[:ro], with an absolute path in the guest", spec)}
		}
		o := options
		o.ReadOnly = ro
		if err := s.mount(parts[0], guestinit.Mount{Path: parts[1], ReadOnly: ro}, o, log); err != nil {
			return nil, fmt.Errorf("--share: %w", err)
		}
	}
	for _, dir := range f.rw {
		path, err := realPath(dir)
		if err == nil {
			err = s.mount(path, guestinit.Mount{Path: path}, options, log)
		}
		if err != nil {
			return nil, fmt.Errorf("--rw: %w", err)
		}
	}
	return s, f.shareCwd(s, options, log)
}

// countShares is how many directories the guest will have.
func (f *runFlags) countShares() (int, error) {
	g := *f
	s, err := g.openShares(func(error) {})
	if err != nil {
		return 0, err
	}
	return len(s.devices), nil
}

// hidden are the directories in which the guest has file systems of its own, so
// that what the root has there is not seen.
var hidden = []string{"/tmp", "/run", "/dev", "/proc", "/sys"}

// shareCwd lets a guest with the host's root see the current directory also where
// its own file systems hide it. What it writes goes to its memory.
func (f *runFlags) shareCwd(s *shares, o share.Options, log func(error)) error {
	if f.rootDir != "/" || f.cwd != "" {
		return nil
	}
	cwd, err := os.Getwd()
	if err != nil {
		return err
	}
	f.cwd = cwd
	for _, m := range s.config.Mounts {
		if below(cwd, m.Path) {
			return nil
		}
	}
	for _, h := range hidden {
		if below(cwd, h) {
			o.ReadOnly = true
			return s.mount(cwd, guestinit.Mount{Path: cwd, Overlay: true}, o, log)
		}
	}
	return nil
}

// below tells whether a path is a directory or in it.
func below(path, dir string) bool {
	return path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}

// guestIDs are who the user of vmm is in the guest: the one who runs the command.
func (f *runFlags) guestIDs() (uid, gid uint32) {
	name, group, _ := strings.Cut(f.user, ":")
	if name == "" {
		return 0, 0
	}
	id := func(s string) uint32 {
		n, _ := strconv.ParseUint(s, 10, 32)
		return uint32(n)
	}
	uid, gid = id(name), id(name)
	if u, err := user.Lookup(name); err == nil { // the guest's users are the host's, or nobody knows
		uid, gid = id(u.Uid), id(u.Gid)
	}
	if group != "" {
		gid = id(group)
		if g, err := user.LookupGroup(group); err == nil {
			gid = id(g.Gid)
		}
	}
	return uid, gid
}
