package guestimages

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Errors of hosts that guest images cannot be made on. Their own kernels can be booted all
// the same: see HostKernel.
var (
	ErrNoApt         = errors.New("apt-get is not here, and guest images are made of Debian's packages")
	ErrNoCloudKernel = errors.New("this host's packages have no cloud kernel of Debian's")
)

// HostKernel returns the host's own kernel and its modules, below the directory root; ok
// is false if it is not there.
func HostKernel(root string) (k Kernel, ok bool) {
	var u unix.Utsname
	if err := unix.Uname(&u); err == nil {
		release := unix.ByteSliceToString(u.Release[:])
		modules := filepath.Join(root, "lib/modules", release)
		for _, image := range []string{filepath.Join(root, "boot/vmlinuz-"+release), filepath.Join(modules, "vmlinuz")} {
			if _, err := os.Stat(image); err == nil {
				return Kernel{Image: image, Modules: modules}, true
			}
		}
	}
	return Kernel{}, false
}

// updateLists makes sure that apt-get knows its packages.
func updateLists(ctx context.Context) error {
	if _, err := exec.LookPath("apt-get"); err != nil {
		return ErrNoApt
	}
	if out, err := command(ctx, "", "apt-cache", "show", "busybox-static"); err == nil && out != "" {
		return nil
	}
	return asRoot(ctx, "apt-get", "update", "-q")
}

// asRoot runs a command that needs root, or says to run it.
func asRoot(ctx context.Context, args ...string) error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("run this as root first: %s", strings.Join(args, " "))
	}
	_, err := command(ctx, "", args[0], args[1:]...)
	return err
}

// install makes sure that the packages are installed.
func (b *Builder) install(ctx context.Context, packages ...string) error {
	var missing []string
	for _, p := range packages {
		out, err := command(ctx, "", "dpkg-query", "-W", "-f", "${db:Status-Status}", p)
		if err != nil || strings.TrimSpace(out) != "installed" {
			missing = append(missing, p)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	if err := updateLists(ctx); err != nil {
		return err
	}
	b.log("installing %s", strings.Join(missing, " "))
	return asRoot(ctx, append([]string{"apt-get", "install", "-y", "-q", "--no-install-recommends"}, missing...)...)
}

// apt asks for packages. The zero value uses the lists of this machine.
type apt struct {
	options []string
}

// command runs one of apt's programs in a directory.
func (a *apt) command(ctx context.Context, dir, name string, args ...string) (string, error) {
	if a.options == nil {
		if err := updateLists(ctx); err != nil {
			return "", err
		}
	}
	return command(ctx, dir, name, append(slices.Clone(a.options), args...)...)
}

// suiteApt returns the packages of a Debian suite from the mirror that this machine
// uses. Lists and all else that apt-get writes are in dir, so it takes no root, and
// the machine's own are as before.
func suiteApt(ctx context.Context, suite, dir string) (*apt, error) {
	mirror, err := debianMirror(ctx)
	if err != nil {
		return nil, err
	}
	sources := fmt.Sprintf("deb [signed-by=%s] %s %s main\n", debianKeyring, mirror, suite)
	for name, content := range map[string]string{"sources.list": sources, "status": ""} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			return nil, err
		}
	}
	for _, d := range []string{"lists", "cache"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			return nil, err
		}
	}
	a := &apt{}
	for _, o := range []string{
		"Dir::Etc::SourceList=" + filepath.Join(dir, "sources.list"), "Dir::Etc::SourceParts=/dev/null",
		"Dir::Etc::Preferences=/dev/null", "Dir::Etc::PreferencesParts=/dev/null",
		"Dir::State::Lists=" + filepath.Join(dir, "lists"), "Dir::State::Status=" + filepath.Join(dir, "status"),
		"Dir::Cache=" + filepath.Join(dir, "cache"), "Acquire::Languages=none", asCaller,
		// What only appstream wants to have.
		"Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false",
	} {
		a.options = append(a.options, "-o", o)
	}
	_, err = a.command(ctx, "", "apt-get", "update", "-q")
	return a, err
}

// debianKeyring has the keys of all suites, on every Debian.
const debianKeyring = "/usr/share/keyrings/debian-archive-keyring.gpg"

// asCaller has apt-get download as who calls it: as root, it would do so as a user
// who may not write everywhere.
const asCaller = "APT::Sandbox::User="

// debianMirror is the URI of the machine's mirror of Debian.
func debianMirror(ctx context.Context) (string, error) {
	if err := updateLists(ctx); err != nil {
		return "", err
	}
	out, err := command(ctx, "", "apt-get", "indextargets", "--format", "$(CODENAME) $(REPO_URI)", "Origin: Debian", "Created-By: Packages")
	if err != nil {
		return "", err
	}
	return mainMirror(out)
}

// mainMirror finds the mirror in lines of a suite and its URI. Suites with a dash are
// updates to others, and may be elsewhere.
func mainMirror(targets string) (string, error) {
	for line := range strings.Lines(targets) {
		if f := strings.Fields(line); len(f) == 2 && !strings.Contains(f[0], "-") {
			return f[1], nil
		}
	}
	return "", errors.New("apt-get's configuration names no mirror of Debian")
}

// depends returns the packages that a package depends on, without alternatives.
func (a *apt) depends(ctx context.Context, pkg string) ([]string, error) {
	out, err := a.command(ctx, "", "apt-cache", "depends", pkg)
	if err != nil {
		return nil, err
	}
	var list []string
	for line := range strings.Lines(out) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "Depends: "); ok {
			list = append(list, name)
		}
	}
	return list, nil
}

// metapackage returns the first package that a metapackage depends on and whose
// name begins with prefix.
func (a *apt) metapackage(ctx context.Context, meta, prefix string) (string, error) {
	list, err := a.depends(ctx, meta)
	if err != nil {
		return "", err
	}
	for _, name := range list {
		if strings.HasPrefix(name, prefix) {
			return name, nil
		}
	}
	return "", fmt.Errorf("package %s depends on no %s*", meta, prefix)
}

// fetch downloads a package, which apt-get verifies, and unpacks it into dir.
// It needs no root.
func (b *Builder) fetch(ctx context.Context, a *apt, pkg, dir string) error {
	b.log("fetching %s", pkg)
	tmp, err := os.MkdirTemp(dir, "deb-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	if _, err := a.command(ctx, tmp, "apt-get", "-o", asCaller, "download", pkg); err != nil {
		return err
	}
	debs, err := filepath.Glob(filepath.Join(tmp, "*.deb"))
	if err != nil || len(debs) != 1 {
		return fmt.Errorf("apt-get download %s brought %d files", pkg, len(debs))
	}
	_, err = command(ctx, "", "dpkg-deb", "-x", debs[0], dir)
	return err
}
