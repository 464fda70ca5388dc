package guestimages

import (
	"bufio"
	"context"
	"crypto/sha256"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
)

// kernelConfig is merged over the kernel's tinyconfig.
//
//go:embed kernel.config
var kernelConfig string

// kernelRecipe changes when what buildKernel does changes its result.
const kernelRecipe = 2

// buildTools are the packages that building the kernel needs.
var buildTools = []string{"gcc", "libc6-dev", "make", "flex", "bison", "bc", "libelf-dev", "libssl-dev", "xz-utils", "lz4", "perl"}

// buildLines is about how many lines a build prints, for its progress.
const buildLines = 2100

// Kernel is a kernel in the cache.
type Kernel struct {
	Image     string // bzImage
	SystemMap string // symbols, "" where there are none
	ELF       string // vmlinux, for debuggers; "" where there is none
	Modules   string // their directory, with a modules.dep; "" where all is built in
}

// Version is the kernel's release, as uname -r shows it, of one with modules.
func (k *Kernel) Version() string { return filepath.Base(k.Modules) }

// SlimKernel returns the slim kernel, built from Debian's linux-source.
func (b *Builder) SlimKernel(ctx context.Context) (Kernel, error) {
	dir, err := b.Once(ctx, slimName(), b.buildKernel)
	return Kernel{Image: filepath.Join(dir, "bzImage"), SystemMap: filepath.Join(dir, "System.map"), ELF: filepath.Join(dir, "vmlinux")}, err
}

// slimName changes with the recipe.
func slimName() string {
	return fmt.Sprintf("kernel-slim-%.6x", sha256.Sum256(fmt.Appendf(nil, "%d\n%s", kernelRecipe, kernelConfig)))
}

// HasSlimKernel tells whether the slim kernel is built, and where it is or
// would be.
func HasSlimKernel() (path string, ok bool) { return cached(slimName(), "bzImage") }

// SlimKernelELF is the slim kernel with its symbols, if it is built.
func SlimKernelELF() (path string, ok bool) { return cached(slimName(), "vmlinux") }

func cached(name, file string) (string, bool) {
	cache, err := CacheDir()
	if err != nil {
		return "", false
	}
	path := filepath.Join(cache, name, file)
	_, err = os.Stat(path)
	return path, err == nil
}

func (b *Builder) buildKernel(ctx context.Context, dir string) error {
	if err := b.install(ctx, buildTools...); err != nil {
		return err
	}
	pkg, err := depends(ctx, "linux-source", "linux-source-")
	if err != nil {
		return err
	}
	work := filepath.Join(dir, "work")
	if err := os.Mkdir(work, 0o755); err != nil {
		return err
	}
	if err := b.fetch(ctx, pkg, work); err != nil {
		return err
	}
	tars, err := filepath.Glob(filepath.Join(work, "usr/src", pkg+".tar.*"))
	if err != nil || len(tars) != 1 {
		return fmt.Errorf("package %s has no source archive", pkg)
	}
	b.log("unpacking %s", pkg)
	if _, err := command(ctx, work, "tar", "xf", tars[0]); err != nil {
		return err
	}
	src := filepath.Join(work, pkg)
	if err := os.WriteFile(filepath.Join(work, "fragment"), []byte(kernelConfig), 0o644); err != nil {
		return err
	}
	for _, args := range [][]string{
		{"make", "tinyconfig"},
		{"scripts/kconfig/merge_config.sh", "-m", ".config", "../fragment"},
		{"make", "olddefconfig"},
	} {
		if _, err := command(ctx, src, args[0], args[1:]...); err != nil {
			return err
		}
	}
	if err := checkConfig(filepath.Join(src, ".config")); err != nil {
		return err
	}
	b.log("building the kernel (some minutes)")
	if err := b.make(ctx, src); err != nil {
		return err
	}
	for from, to := range map[string]string{"arch/x86/boot/bzImage": "bzImage", "System.map": "System.map", "vmlinux": "vmlinux", ".config": "config"} {
		if err := os.Rename(filepath.Join(src, from), filepath.Join(dir, to)); err != nil {
			return err
		}
	}
	return os.RemoveAll(work)
}

// checkConfig finds options of the fragment that the kernel did not take.
func checkConfig(path string) error {
	config, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var lost []string
	for _, line := range strings.Split(kernelConfig, "\n") {
		if strings.HasPrefix(line, "CONFIG_") && !strings.Contains(string(config), line+"\n") {
			lost = append(lost, line)
		}
	}
	if lost != nil {
		return errors.New("the kernel did not take " + strings.Join(lost, ", "))
	}
	return nil
}

// make runs the build and counts its lines.
func (b *Builder) make(ctx context.Context, src string) error {
	c := exec.CommandContext(ctx, "make", fmt.Sprintf("-j%d", runtime.NumCPU()+1), "bzImage")
	c.Dir = src
	c.Env = append(os.Environ(), "LC_ALL=C", "KBUILD_BUILD_USER=vmm", "KBUILD_BUILD_HOST=vmm")
	var tail strings.Builder
	c.Stderr = &tail
	out, err := c.StdoutPipe()
	if err != nil {
		return err
	}
	if err := c.Start(); err != nil {
		return err
	}
	lines := 0
	for s := bufio.NewScanner(out); s.Scan(); lines++ {
		b.progress("kernel", min(lines, buildLines), buildLines)
	}
	if err := c.Wait(); err != nil {
		return fmt.Errorf("make bzImage: %w\n%s", err, lastLines(tail.String(), 15))
	}
	b.progress("kernel", buildLines, buildLines)
	return nil
}

// stockName is the cache's name of Debian's cloud kernel.
const stockName = "kernel-debian-cloud-2"

// StockKernel returns Debian's linux-image-cloud-amd64 as it is, with its modules.
func (b *Builder) StockKernel(ctx context.Context) (Kernel, error) {
	dir, err := b.Once(ctx, stockName, func(ctx context.Context, dir string) error {
		if err := b.install(ctx, "kmod"); err != nil { // for depmod
			return err
		}
		pkg, err := depends(ctx, "linux-image-cloud-amd64", "linux-image-")
		if err != nil {
			return err
		}
		if err := b.fetch(ctx, pkg, dir); err != nil {
			return err
		}
		return unpackedKernel(ctx, dir)
	})
	if err != nil {
		return Kernel{}, err
	}
	return packagedKernel(dir)
}

// unpackedKernel makes of a kernel's package what packagedKernel finds.
func unpackedKernel(ctx context.Context, dir string) error {
	images, err := filepath.Glob(filepath.Join(dir, "boot/vmlinuz-*"))
	if err != nil || len(images) != 1 {
		return fmt.Errorf("the kernel's package has %d kernels", len(images))
	}
	version := strings.TrimPrefix(filepath.Base(images[0]), "vmlinuz-")
	if err := os.Rename(images[0], filepath.Join(dir, "bzImage")); err != nil {
		return err
	}
	if _, err := os.Lstat(filepath.Join(dir, "lib")); err != nil { // the modules are below /usr
		if err := os.Symlink("usr/lib", filepath.Join(dir, "lib")); err != nil {
			return err
		}
	}
	_, err = command(ctx, "", "depmod", "-b", dir, version)
	return err
}

// packagedKernel is a kernel that a package was unpacked to.
func packagedKernel(dir string) (Kernel, error) {
	modules, err := ModuleTree(dir)
	return Kernel{Image: filepath.Join(dir, "bzImage"), Modules: modules}, err
}

// HasStockKernel tells whether Debian's kernel is in the cache, and where.
func HasStockKernel() (path string, ok bool) { return cached(stockName, "bzImage") }
