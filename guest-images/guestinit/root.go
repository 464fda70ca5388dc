package guestinit

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"vmm/guest-images/agent"
)

// Where the parts of the guest's file systems are; /run goes into the new root.
const (
	newRoot = "/newroot"
	workDir = "/run/vmm"
	lower   = workDir + "/root"
	memory  = "memory" // in workDir, a tmpfs for what is written
)

// enterRoot makes the configured root the root of this process and of all that it
// starts.
func enterRoot(r *Root) error {
	for _, d := range []string{newRoot, lower} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	_, err := openWorkDir()
	if err != nil {
		return err
	}
	switch {
	case r.Image != nil:
		err = mountImage(r)
	case r.Tag != "":
		err = mountShare(r.Tag, lower, unix.MS_RDONLY)
	default:
		err = mountDisk(r.Disk, lower)
	}
	if err != nil {
		return err
	}
	if !r.keeps() {
		if err := mountOverlay(workDir, lower, newRoot, "root"); err != nil {
			return err
		}
	}
	for _, m := range mounts {
		takes := r.takes(&m)
		if !takes && !r.renews(&m) {
			continue
		}
		to := newRoot + m.target
		err := os.MkdirAll(to, 0o755)
		switch {
		case err != nil:
			return err
		case takes:
			err = unix.Mount(m.target, to, "", unix.MS_MOVE, "")
		default:
			err = unix.Mount(m.source, to, m.fstype, m.flags, m.data)
		}
		if err != nil {
			warn("mounting %s: %v", to, err)
		}
	}
	if err := ownFiles(r); err != nil {
		warn("%v", err)
	}
	if r.Image != nil {
		if err := r.Image.complete(); err != nil {
			return err
		}
		return switchRoot()
	}
	// The host's user may not look into the home of the host's root, which the
	// guest's root would have. Its entries are not read: the guest would keep them.
	home, err := os.Open(newRoot + "/root")
	if err == nil {
		home.Close()
	} else if errors.Is(err, unix.EACCES) {
		if err := unix.Mount("vmm", newRoot+"/root", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0700"); err != nil {
			warn("/root: %v", err)
		}
	}
	return switchRoot()
}

// bootRoot hands over to the system on a disk. It returns only if it cannot.
func bootRoot(cfg *Config) error {
	if err := os.MkdirAll(newRoot, 0o755); err != nil {
		return err
	}
	if err := mountDisk(cfg.Root.Disk, newRoot); err != nil {
		return err
	}
	if err := unix.Mount("", newRoot, "", unix.MS_REMOUNT, ""); err != nil {
		return fmt.Errorf("%s for writing: %w", cfg.Root.Disk, err)
	}
	for _, dir := range []string{"/proc", "/sys", "/dev", "/run"} {
		if err := os.MkdirAll(newRoot+dir, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(dir, newRoot+dir, "", unix.MS_MOVE, ""); err != nil {
			return fmt.Errorf("moving %s: %w", dir, err)
		}
	}
	if err := switchRoot(); err != nil {
		return err
	}
	if err := mountAll(cfg.Mounts); err != nil {
		warn("%v", err)
	}
	programs := []string{"/sbin/init", "/etc/init", "/bin/init", "/bin/sh"}
	args, _ := os.ReadFile("/proc/cmdline")
	for _, a := range strings.Fields(string(args)) {
		if v, ok := strings.CutPrefix(a, "init="); ok {
			programs = []string{v}
		}
	}
	var errs []error
	for _, p := range programs {
		errs = append(errs, fmt.Errorf("%s: %w", p, unix.Exec(p, []string{p}, os.Environ())))
	}
	return errors.Join(errs...)
}

// oldRoot is the initial RAM disk, below the new root; -1 while that is the root.
var oldRoot = -1

// renewRoot mounts a root anew that enterRoot has entered, so that the kernel remembers
// nothing of it. What was written to it is gone: no command has run.
func renewRoot(r *Root) error {
	if oldRoot < 0 {
		return errors.New("there is no other root")
	}
	// The working directory is outside of the root, and what is there is found by it.
	if err := unix.Fchdir(oldRoot); err != nil {
		return err
	}
	for _, m := range mounts {
		if r.takes(&m) {
			if err := unix.Mount(m.target, "."+m.target, "", unix.MS_MOVE, ""); err != nil {
				return fmt.Errorf("moving %s: %w", m.target, err)
			}
		}
	}
	if err := unix.Unmount("/", unix.MNT_DETACH); err != nil {
		return err
	}
	if err := unix.Chroot("."); err != nil {
		return err
	}
	if err := unix.Unmount(lower, 0); err != nil { // fails if somebody still has something of it
		return fmt.Errorf("%s: %w", lower, err)
	}
	if err := os.RemoveAll(filepath.Join(workDir, memory, "root")); err != nil {
		return err
	}
	return enterRoot(r)
}

// inOldRoot has a program of the initial RAM disk run there, whatever the root is by now.
func inOldRoot(c *exec.Cmd) {
	if oldRoot >= 0 {
		c.Dir, c.SysProcAttr = "/", &unix.SysProcAttr{Chroot: fmt.Sprintf("/proc/self/fd/%d", oldRoot)}
	}
}

// switchRoot makes newRoot the root.
func switchRoot() error {
	if oldRoot < 0 {
		var err error
		if oldRoot, err = unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
			return err
		}
	}
	if err := os.Chdir(newRoot); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("the new root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return err
	}
	return os.Chdir("/")
}

// ownFiles puts into the root what this guest has of its own: its names, and the
// name servers that the DHCP client, which stays in the old root, finds.
func ownFiles(r *Root) error {
	etc := newRoot + "/etc"
	if err := os.MkdirAll(etc, 0o755); err != nil {
		return err
	}
	name, _ := os.Hostname()
	hosts := agent.HostsLine(name) + "::1 localhost\n"
	if r.Image != nil {
		for _, line := range r.Image.Hosts {
			hosts += line + "\n"
		}
	}
	for file, content := range map[string]string{"hostname": name + "\n", "hosts": hosts, "resolv.conf": ""} {
		path := filepath.Join(etc, file)
		os.Remove(path) // it may be a link into what is not there
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			return err
		}
	}
	f, err := os.OpenFile("/etc/resolv.conf", os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	f.Close()
	return unix.Mount("/etc/resolv.conf", etc+"/resolv.conf", "", unix.MS_BIND, "")
}

// upper is where what is written to the root goes; nil where that is no overlay.
func upper(r *Root) *agent.Upper {
	if r == nil || r.Boot {
		return nil
	}
	work, err := openWorkDir()
	if err != nil {
		return nil // and enterRoot has failed
	}
	writable := filepath.Join(work, memory, "root")
	if r.keeps() {
		writable = filepath.Join(work, filepath.Base(upperDir))
	}
	u := &agent.Upper{Dir: filepath.Join(writable, "upper"), Lower: filepath.Join(work, filepath.Base(lower)),
		Own: []string{"etc", "etc/hostname", "etc/hosts", "etc/resolv.conf"}}
	if r.handsOver() {
		u.Own = append(u.Own, machineID)
	}
	if r.Image != nil && r.Image.UpperTag != "" {
		u.Xattrs = agent.UserXattrs
	}
	for _, m := range mounts {
		if r.takes(&m) || r.renews(&m) {
			u.Own = append(u.Own, m.target[1:])
		}
	}
	return u
}

// rootTypes are the file systems that a root disk may have.
var rootTypes = []string{"ext4", "xfs", "btrfs", "squashfs", "erofs", "vfat"}

// mountDisk mounts a disk, or the first of its partitions that has a system.
func mountDisk(disk, to string) error {
	candidates := []string{disk}
	for n := 1; n <= 16; n++ {
		candidates = append(candidates, disk+strconv.Itoa(n))
	}
	for _, dev := range candidates {
		if _, err := os.Stat(dev); err != nil {
			continue
		}
		for _, fs := range rootTypes {
			if unix.Mount(dev, to, fs, unix.MS_RDONLY, "") != nil {
				continue
			}
			for _, sign := range []string{"/usr/bin", "/bin", "/sbin/init"} {
				if _, err := os.Lstat(to + sign); err == nil {
					return nil
				}
			}
			unix.Unmount(to, 0)
			break
		}
	}
	return fmt.Errorf("%s has no system that this kernel can mount", disk)
}

// loadModules loads the kernel modules that the initial RAM disk has. One whose device
// is not there is not needed.
func loadModules(paths []string) error {
	for _, p := range paths {
		f, err := os.Open(p)
		if err != nil {
			return err
		}
		err = unix.FinitModule(int(f.Fd()), "", 0)
		f.Close()
		if err != nil && !errors.Is(err, unix.EEXIST) && !errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("module %s: %w", filepath.Base(p), err)
		}
	}
	return nil
}
