package main

import (
	"context"
	"crypto/sha256"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/u-root/u-root/pkg/cpio"

	guestimages "vmm/guest-images"
	"vmm/storage/rootfs"
	"vmm/tests/programs"
)

// hostRecipe changes when what buildHost does changes its result.
const hostRecipe = 2

// suite is the Debian of the host.
const suite = "bookworm"

// hostPackages are what the tests use, and the peers of the benchmarks.
var hostPackages = []string{
	"iproute2", "iputils-ping", "curl", "python3-minimal", "passt", "qemu-utils", "qemu-system-x86", "qemu-system-common",
	"e2fsprogs", "fdisk", "squashfs-tools", "dosfstools", "mtools", "fio", "gdb", "git", "gcc", "libc6-dev", "make", "procps",
	"kmod", "busybox-static", "tshark", "iperf3", "xz-utils",
}

// The host's init, and that of the initial RAM disk that mounts its root.
var (
	//go:embed init.sh
	hostInit string
	//go:embed initrd.sh
	initrdInit string
)

// Room for what the tests write, in bytes.
const (
	rootRoom   = 2 << 30
	bundleRoom = 16 << 30
)

// host is what a host is started of.
type host struct {
	emulator             emulator
	kernel, initrd, root string // files in the cache
	bundle               string // disk of the tests
}

// diskModules are what the kernel needs for its disks but for virtio's: bochs has IDE.
var diskModules = []string{"sd_mod", "ata_piix"}

// prepare builds what is missing of the host, and a disk of the tests in dir.
func prepare(ctx context.Context, e emulator, dir string, kernels bool) (*host, error) {
	for _, tool := range append(e.tools(), "mmdebstrap", "depmod") {
		if _, err := exec.LookPath(tool); err != nil {
			return nil, fmt.Errorf("%s is not installed: make test-hardware does that, or make test-hardware-intel", tool)
		}
	}
	b := &guestimages.Builder{Log: os.Stderr, Progress: progress()}
	kernel, err := b.StockKernel(ctx)
	if err != nil {
		return nil, err
	}
	recipe := sha256.Sum256(fmt.Append(nil, hostRecipe, suite, hostPackages, hostInit, initrdInit, diskModules, rootRoom, kernel.Version()))
	made, err := b.Once(ctx, fmt.Sprintf("hardware-host-%.6x", recipe), func(ctx context.Context, dir string) error {
		return buildHost(ctx, b, kernel, dir)
	})
	if err != nil {
		return nil, err
	}
	h := &host{emulator: e, kernel: kernel.Image, initrd: filepath.Join(made, "initrd"), root: filepath.Join(made, "root.ext4"),
		bundle: filepath.Join(dir, "bundle.ext4")}
	return h, h.makeBundle(ctx, b, filepath.Join(dir, "bundle"), kernels)
}

// buildHost makes the root disk and the initial RAM disk.
func buildHost(ctx context.Context, b *guestimages.Builder, kernel guestimages.Kernel, dir string) error {
	tar, init := filepath.Join(dir, "root.tar"), filepath.Join(dir, "host-init")
	if err := os.WriteFile(init, []byte(hostInit), 0o755); err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "building the host (some minutes, once)\n")
	c := exec.CommandContext(ctx, "mmdebstrap", "--variant=minbase", "--include="+strings.Join(hostPackages, ","),
		"--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/man/*", "--dpkgopt=path-exclude=/usr/share/locale/*",
		"--customize-hook=copy-in "+filepath.Dir(kernel.Image)+"/lib/modules /usr/lib/", "--customize-hook=copy-in "+init+" /sbin/",
		`--customize-hook=chroot "$1" depmod `+kernel.Version(),
		suite, tar)
	c.Stdout, c.Stderr = os.Stderr, os.Stderr
	// Without its own signal handling an interrupt would leave a half-made chroot mounted.
	c.Cancel = func() error { return c.Process.Signal(os.Interrupt) }
	if err := c.Run(); err != nil {
		return fmt.Errorf("mmdebstrap: %w", err)
	}
	os.Remove(init)
	if err := makeDisk(ctx, tar, filepath.Join(dir, "root.ext4"), rootRoom); err != nil {
		return err
	}
	os.Remove(tar)
	return writeInitrd(ctx, b, kernel, filepath.Join(dir, "initrd"))
}

// makeDisk makes an ext4 disk of a directory or a tar archive.
func makeDisk(ctx context.Context, source, disk string, room int64) error {
	f, err := os.Create(disk)
	if err != nil {
		return err
	}
	return errors.Join(rootfs.Build(ctx, source, f, room), f.Close())
}

// writeInitrd makes the initial RAM disk, which loads the modules that the kernel
// needs for its root disk.
func writeInitrd(ctx context.Context, b *guestimages.Builder, kernel guestimages.Kernel, path string) error {
	busybox, err := b.Busybox(ctx)
	if err != nil {
		return err
	}
	files, load, err := guestimages.Modules(kernel.Modules, diskModules...)
	if err != nil {
		return err
	}
	script := strings.Replace(initrdInit, "@MODULES@", strings.Join(load, " "), 1)
	for _, d := range []string{"proc", "sys", "dev", "root"} {
		files = append(files, cpio.Directory(d, 0o755))
	}
	archive, err := guestimages.Archive(append(files, cpio.StaticFile("init", script, 0o755),
		cpio.StaticFile("bin/busybox", string(busybox), 0o755), cpio.CharDev("dev/console", 0o600, 5, 1))...)
	if err != nil {
		return err
	}
	return os.WriteFile(path, archive, 0o644)
}

// makeBundle makes the disk of what the tests need: the programs, the source tree,
// and the guest images.
func (h *host) makeBundle(ctx context.Context, b *guestimages.Builder, dir string, kernels bool) error {
	fmt.Fprintln(os.Stderr, "building the tests")
	bin := filepath.Join(dir, "bin")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		return err
	}
	build := func(args ...string) error {
		c := exec.CommandContext(ctx, "go", args...)
		c.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := c.CombinedOutput(); err != nil {
			return fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, out)
		}
		return nil
	}
	if err := programs.Init("."); err != nil {
		return err
	}
	for _, p := range []struct {
		name, pkg string
		flags     []string
	}{{"vmm", "vmm/cmd/vmm", nil}, {"guestcheck", "vmm/tests/guestcheck", nil}, {programs.Probe, "vmm/cmd/vmm", programs.ProbeFlags},
		{programs.HostileGuest, "vmm/tests/hostileguest", programs.HostileGuestFlags}} {
		if _, err := programs.Build(bin, p.name, p.pkg, p.flags...); err != nil {
			return err
		}
	}
	for _, p := range packages() {
		if err := build(slices.Concat([]string{"test", "-c"}, programs.Flags, []string{"-o", filepath.Join(bin, binary(p)), "./" + p})...); err != nil {
			return err
		}
	}
	if err := copyTree(".", filepath.Join(dir, "src"), func(path string) bool {
		return path == ".git" || path == "vmm" || path == "tests/hardware"
	}); err != nil {
		return err
	}
	slim, err := b.SlimKernel(ctx)
	if err != nil {
		return err
	}
	if _, err := b.Busybox(ctx); err != nil {
		return err
	}
	cache, err := guestimages.CacheDir()
	if err != nil {
		return err
	}
	names := []string{filepath.Base(filepath.Dir(slim.Image)), "busybox"}
	if kernels {
		for _, suite := range guestimages.DebianSuites {
			k, err := b.DebianKernel(ctx, suite)
			if err != nil {
				return err
			}
			names = append(names, filepath.Base(filepath.Dir(k.Image)))
		}
	}
	for _, n := range names {
		if err := copyTree(filepath.Join(cache, n), filepath.Join(dir, "cache/vmm", n), nil); err != nil {
			return err
		}
	}
	err = makeDisk(ctx, dir, h.bundle, bundleRoom)
	return errors.Join(err, os.RemoveAll(dir))
}

// copyTree copies files, directories and links but for what skip names.
func copyTree(from, to string, skip func(path string) bool) error {
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		if skip != nil && skip(rel) {
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		target := filepath.Join(to, rel)
		switch {
		case d.IsDir():
			return os.MkdirAll(target, 0o755)
		case d.Type()&fs.ModeSymlink != 0:
			link, err := os.Readlink(path)
			if err != nil {
				return err
			}
			return os.Symlink(link, target)
		case !d.Type().IsRegular():
			return nil
		}
		return copyFile(path, target)
	})
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	st, err := in.Stat()
	if err != nil {
		return err
	}
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, st.Mode().Perm())
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// progress shows a line every tenth of a step.
func progress() func(step string, done, total int) {
	last := -1
	return func(step string, done, total int) {
		if tenth := done * 10 / total; tenth != last {
			last = tenth
			fmt.Fprintf(os.Stderr, "%s: %d %%\n", step, tenth*10)
		}
	}
}
