package tests

import (
	"bufio"
	"context"
	"crypto/sha256"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	guestimages "vmm/guest-images"
)

// installScript runs in a guest with the host's programs: LAYOUT DISK IMAGE [DISK] puts the Debian
// of an image on a disk or two, as an installer would have laid it out.
//
//go:embed install.sh
var installScript string

// debianPackages are what boots from the layouts, and writes their boot configurations.
const debianPackages = "linux-image-cloud-amd64,initramfs-tools,systemd-sysv,dbus,libpam-systemd,udev,zstd,grub2-common,lvm2,mdadm,xfsprogs,btrfs-progs,systemd-boot,systemd-boot-efi"

// notForBoots is what of a Debian no boot needs; notForUse is what only dpkg needs.
var (
	notForBoots = []string{
		"var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/locale", "usr/share/man", "usr/share/i18n", "usr/share/zoneinfo",
		"usr/share/bug", "usr/share/python3", "usr/lib/python3*", "usr/lib/*/gconv",
	}
	notForUse = []string{"var/lib/dpkg/info", "usr/share/perl5", "usr/lib/*/perl-base"}
)

// debianRecipe changes when what debian does changes its result.
const debianRecipe = 2

// debian is a directory of the cache with this machine's Debian, as root.tar and as images of
// file systems: root.ext4, root.xfs, root.btrfs, and root.md, which is ext4 too. It is made once.
func debian(t *testing.T) string {
	t.Helper()
	release, err := os.ReadFile("/etc/os-release")
	if err != nil {
		t.Fatal(err)
	}
	suite := "stable"
	for line := range strings.Lines(string(release)) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "VERSION_CODENAME="); ok {
			suite = name
		}
	}
	recipe := sha256.Sum256(fmt.Append(nil, debianRecipe, suite, debianPackages, notForBoots, notForUse))
	dir, err := (&guestimages.Builder{Log: os.Stderr}).Once(t.Context(), fmt.Sprintf("debian-%.6x", recipe), func(_ context.Context, dir string) error {
		return makeDebian(t, suite, dir)
	})
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func makeDebian(t *testing.T, suite, dir string) error {
	root := filepath.Join(t.TempDir(), "root")
	must(t, "debootstrap", "--variant=minbase", "--include="+debianPackages, suite, root)
	removeFrom(t, root, notForBoots)
	image := filepath.Join(dir, "root.")
	must(t, "truncate", "-s", "1536M", image+"ext4", image+"btrfs", image+"xfs", image+"md")
	must(t, "mke2fs", "-q", "-t", "ext4", "-d", root, image+"md")
	must(t, "chroot", root, "dpkg", "--purge", "mdadm")
	must(t, "mkfs.btrfs", "-q", "--rootdir", root, image+"btrfs")
	// The others boot without the drivers of these two, which try all vector instructions out: a
	// minute where kernel mode is interpreted.
	must(t, "chroot", root, "dpkg", "--purge", "btrfs-progs")
	removeFrom(t, root, notForUse)
	must(t, "tar", "-C", root, "-cf", filepath.Join(dir, "root.tar"), ".")
	must(t, "mke2fs", "-q", "-t", "ext4", "-d", root, image+"ext4")
	prototype := filepath.Join(t.TempDir(), "prototype")
	if err := writePrototype(prototype, root); err != nil {
		return err
	}
	must(t, "mkfs.xfs", "-q", "-p", prototype, image+"xfs")
	return nil
}

// removeFrom removes what matches patterns in a directory.
func removeFrom(t *testing.T, root string, patterns []string) {
	t.Helper()
	for _, pattern := range patterns {
		names, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			if err := os.RemoveAll(name); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// writePrototype writes the list of a directory's files that mkfs.xfs makes its own of
// (mkfs.xfs(8), -p). It knows no sticky bit, which the installation sets.
func writePrototype(name, root string) (err error) {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	w := bufio.NewWriter(f)
	fmt.Fprint(w, "/dev/null\n0 0\n") // neither a boot block nor sizes
	st, err := os.Lstat(root)
	if err != nil {
		return err
	}
	if err := prototypeOf(w, "", root, st); err != nil {
		return err
	}
	return w.Flush()
}

// prototypeOf writes a file's line, and of a directory those of all that is in it.
func prototypeOf(w io.Writer, name, path string, st fs.FileInfo) error {
	owner := st.Sys().(*syscall.Stat_t)
	line := func(kind, rest string) {
		setuid, setgid := "-", "-"
		if st.Mode()&fs.ModeSetuid != 0 {
			setuid = "u"
		}
		if st.Mode()&fs.ModeSetgid != 0 {
			setgid = "g"
		}
		fmt.Fprintf(w, "%s %s%s%s%03o %d %d %s\n", name, kind, setuid, setgid, st.Mode().Perm(), owner.Uid, owner.Gid, rest)
	}
	switch st.Mode().Type() {
	case fs.ModeDir:
		line("d", "")
		names, err := os.ReadDir(path)
		if err != nil {
			return err
		}
		for _, e := range names {
			st, err := e.Info()
			if err != nil {
				return err
			}
			if err := prototypeOf(w, e.Name(), filepath.Join(path, e.Name()), st); err != nil {
				return err
			}
		}
		fmt.Fprintln(w, "$")
	case fs.ModeSymlink:
		to, err := os.Readlink(path)
		if err != nil {
			return err
		}
		line("l", to)
	case fs.ModeDevice | fs.ModeCharDevice:
		line("c", fmt.Sprint(unix.Major(owner.Rdev), " ", unix.Minor(owner.Rdev)))
	case 0:
		line("-", path)
	default:
		return fmt.Errorf("%s: %v", path, st.Mode())
	}
	return nil
}

// layouts installs a Debian on a disk of each layout, or on two for a mirror, where Debian's own
// programs write the boot configuration, and boots it to its login by its own entry, with no more
// flags than the disks'.
func layouts(t *testing.T, images string) {
	runtimeDirFor(t)
	made := t.TempDir()
	if err := os.WriteFile(filepath.Join(made, "install.sh"), []byte(installScript), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ layout, root string }{
		{"ext4", "ext4"}, {"uki", "ext4"}, {"systemd-boot", "ext4"}, {"btrfs", "btrfs"}, {"lvm", "ext4"}, {"separate-boot", "xfs"}, {"logical", "ext4"}, {"xfs", "xfs"}, {"md", "md"},
	} {
		t.Run(c.layout, func(t *testing.T) {
			disks := []string{filepath.Join(t.TempDir(), c.layout+".qcow2")}
			install := []string{"--share", made + ":/made", "--timeout", "30m", "--", "sh", "/made/install.sh", c.layout, "/dev/vda", "/dev/vdb"}
			if c.layout == "md" {
				disks = append(disks, filepath.Join(t.TempDir(), "second.qcow2"))
				install = append([]string{"--disk", disks[1]}, append(install, "/dev/vdc")...)
			}
			boot := []string{"run", "-d", "--name", c.layout, "-m", "1G"}
			for _, disk := range disks {
				ok(t, "image", "create", "-s", "3G", disk)
				boot = append(boot, "--disk", disk)
			}
			start := time.Now()
			out := ok(t, append([]string{"run", "-m", "1G", "--disk", disks[0], "--disk", filepath.Join(images, "root."+c.root) + ",ro,format=raw"}, install...)...)
			t.Logf("installed in %v:\n%s", time.Since(start), out)
			t.Logf("boots:\n%s", ok(t, append([]string{"image", "boot-entries"}, disks...)...))
			start = time.Now()
			ok(t, boot...)
			defer vmm(t, "rm", "-f", c.layout)
			prompt := c.layout + " login:"
			for limit := time.Now().Add(patience(t, 10*time.Minute)); ; time.Sleep(time.Second) {
				out, _ := vmm(t, "logs", c.layout)
				if strings.Contains(out, prompt) {
					break
				}
				if ps, _ := vmm(t, "ps"); time.Now().After(limit) || !strings.Contains(ps, c.layout) {
					t.Fatalf("no %q:\n%s", prompt, out)
				}
			}
			t.Logf("took %v to the login", time.Since(start))
			ok(t, "kill", c.layout)
			for _, disk := range disks {
				ok(t, "image", "check", disk)
			}
		})
	}
}
