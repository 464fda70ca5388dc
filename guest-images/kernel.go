package guestimages

import (
	"bytes"
	"context"
	"crypto/sha256"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"vmm/internal/tail"
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

// DefaultKernel returns the kernel of the default guest: the slim one if it is
// built, and else Debian's, which is there in seconds.
func (b *Builder) DefaultKernel(ctx context.Context) (Kernel, error) {
	if _, ok := HasSlimKernel(); ok {
		return b.SlimKernel(ctx)
	}
	return b.StockKernel(ctx)
}

// slimName changes with the recipe.
func slimName() string {
	return fmt.Sprintf("kernel-slim-%.6x", sha256.Sum256(fmt.Appendf(nil, "%d\n%s", kernelRecipe, kernelConfig)))
}

// HasSlimKernel reports whether the slim kernel is built, and where it is or
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
	a := &apt{}
	pkg, err := a.metapackage(ctx, "linux-source", "linux-source-")
	if err != nil {
		return err
	}
	work := filepath.Join(dir, "work")
	if err := os.Mkdir(work, 0o755); err != nil {
		return err
	}
	if err := b.fetch(ctx, a, pkg, work); err != nil {
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

// mayLack are options of the fragment that not every kernel has: Linux 6.8 to 6.13 without a later
// mend have no linear arrays.
var mayLack = []string{"CONFIG_MD_LINEAR=y"}

// checkConfig finds options of the fragment that the kernel did not take.
func checkConfig(path string) error {
	config, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var lost []string
	for _, line := range strings.Split(kernelConfig, "\n") {
		if strings.HasPrefix(line, "CONFIG_") && !slices.Contains(mayLack, line) && !strings.Contains(string(config), line+"\n") {
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
	c := newTool(ctx, "make", fmt.Sprintf("-j%d", runtime.NumCPU()+1), "bzImage")
	c.Dir = src
	c.Env = append(os.Environ(), "LC_ALL=C", "KBUILD_BUILD_USER=vmm", "KBUILD_BUILD_HOST=vmm")
	var errs tail.Buffer
	c.Stderr = &errs
	c.Stdout = &lineCounter{func(n int) { b.progress("kernel", min(n, buildLines), buildLines) }, 0}
	if err := c.Run(); err != nil {
		return fmt.Errorf("make bzImage: %w\n%s", err, strings.Join(tail.Lines(errs.String(), 15), "\n"))
	}
	b.progress("kernel", buildLines, buildLines)
	return nil
}

// lineCounter tells how many lines were written to it.
type lineCounter struct {
	tell  func(lines int)
	lines int
}

// Write implements io.Writer.
func (c *lineCounter) Write(p []byte) (int, error) {
	c.lines += bytes.Count(p, []byte("\n"))
	c.tell(c.lines)
	return len(p), nil
}

// stockName is the cache's name of the cloud kernel of this machine's Debian.
const stockName = "kernel-debian-cloud-2"

// StockKernel returns this Debian's linux-image-cloud-amd64 as it is, with its
// modules.
func (b *Builder) StockKernel(ctx context.Context) (Kernel, error) {
	return b.cloudKernel(ctx, stockName, func(string) (*apt, error) { return &apt{}, nil })
}

// DebianSuites are those of which DebianKernel has a kernel, from the oldest on.
var DebianSuites = []string{"bullseye", "bookworm", "trixie", "sid"}

// DebianKernel returns the linux-image-cloud-amd64 of a suite of Debian as it is,
// with its modules, whatever the machine's own Debian.
func (b *Builder) DebianKernel(ctx context.Context, suite string) (Kernel, error) {
	if !slices.Contains(DebianSuites, suite) {
		return Kernel{}, fmt.Errorf("suite %q: there are %s", suite, strings.Join(DebianSuites, ", "))
	}
	return b.cloudKernel(ctx, "kernel-debian-"+suite+"-1", func(dir string) (*apt, error) {
		return suiteApt(ctx, suite, dir)
	})
}

// cloudKernel is Debian's cloud kernel, of the packages that source returns, which
// may write to the directory that it is given.
func (b *Builder) cloudKernel(ctx context.Context, name string, source func(dir string) (*apt, error)) (Kernel, error) {
	dir, err := b.Once(ctx, name, func(ctx context.Context, dir string) error {
		if err := b.install(ctx, "kmod"); err != nil { // for depmod
			return err
		}
		lists := filepath.Join(dir, "apt")
		if err := os.Mkdir(lists, 0o755); err != nil {
			return err
		}
		a, err := source(lists)
		if err != nil {
			return err
		}
		if err := b.fetchKernel(ctx, a, dir); err != nil {
			return err
		}
		return errors.Join(unpackedKernel(ctx, dir), os.RemoveAll(lists))
	})
	if err != nil {
		return Kernel{}, err
	}
	return packagedKernel(dir)
}

// fetchKernel unpacks the packages of the cloud kernel into dir. Newer ones have the
// image and the modules in packages of their own, of the same version.
func (b *Builder) fetchKernel(ctx context.Context, a *apt, dir string) error {
	const image = "linux-image-"
	pkg, err := a.metapackage(ctx, "linux-image-cloud-amd64", image)
	if err != nil { // only Debian has it
		return fmt.Errorf("%w: %w", ErrNoCloudKernel, err)
	}
	parts, err := a.depends(ctx, pkg)
	if err != nil {
		return err
	}
	for _, p := range append([]string{pkg}, parts...) {
		if strings.HasSuffix(p, "-"+strings.TrimPrefix(pkg, image)) {
			if err := b.fetch(ctx, a, p, dir); err != nil {
				return err
			}
		}
	}
	return nil
}

// unpackedKernel makes of a kernel's packages what packagedKernel finds.
func unpackedKernel(ctx context.Context, dir string) error {
	if _, err := os.Lstat(filepath.Join(dir, "lib")); err != nil { // the modules are below /usr
		if err := os.Symlink("usr/lib", filepath.Join(dir, "lib")); err != nil {
			return err
		}
	}
	image, version, err := findImage(dir)
	if err != nil {
		return err
	}
	if err := os.Rename(image, filepath.Join(dir, "bzImage")); err != nil {
		return err
	}
	_, err = command(ctx, "", "depmod", "-b", dir, version)
	return err
}

// findImage finds the only kernel below a root directory, in /boot or with its modules.
func findImage(root string) (image, version string, err error) {
	var found []string
	for _, pattern := range []string{"boot/vmlinuz-*", "lib/modules/*/vmlinuz"} {
		list, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil {
			return "", "", err
		}
		found = append(found, list...)
	}
	if len(found) != 1 {
		return "", "", fmt.Errorf("the kernel's package has %d kernels", len(found))
	}
	image = found[0]
	if name, ok := strings.CutPrefix(filepath.Base(image), "vmlinuz-"); ok {
		return image, name, nil
	}
	return image, filepath.Base(filepath.Dir(image)), nil
}

// packagedKernel is a kernel that a package was unpacked to.
func packagedKernel(dir string) (Kernel, error) {
	modules, err := ModuleTree(dir)
	return Kernel{Image: filepath.Join(dir, "bzImage"), Modules: modules}, err
}

// HasStockKernel reports whether Debian's kernel is in the cache, and where.
func HasStockKernel() (path string, ok bool) { return cached(stockName, "bzImage") }
