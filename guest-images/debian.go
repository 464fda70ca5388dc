package guestimages

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// ErrNoApt says that this is no Debian-like machine.
var ErrNoApt = errors.New("apt-get is not here: guest images are made from Debian's packages; give --kernel and --initrd instead")

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
	b.log("installing %s", strings.Join(missing, " "))
	if err := updateLists(ctx); err != nil {
		return err
	}
	return asRoot(ctx, append([]string{"apt-get", "install", "-y", "-q", "--no-install-recommends"}, missing...)...)
}

// depends returns the first package that a metapackage depends on and whose
// name begins with prefix.
func depends(ctx context.Context, meta, prefix string) (string, error) {
	if err := updateLists(ctx); err != nil {
		return "", err
	}
	out, err := command(ctx, "", "apt-cache", "depends", meta)
	if err != nil {
		return "", err
	}
	for _, line := range strings.Split(out, "\n") {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "Depends: "); ok && strings.HasPrefix(name, prefix) {
			return name, nil
		}
	}
	return "", fmt.Errorf("package %s depends on no %s*", meta, prefix)
}

// fetch downloads a package, which apt-get verifies, and unpacks it into dir.
// It needs no root.
func (b *Builder) fetch(ctx context.Context, pkg, dir string) error {
	if err := updateLists(ctx); err != nil {
		return err
	}
	b.log("fetching %s", pkg)
	tmp, err := os.MkdirTemp(dir, "deb-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	// As root, apt-get downloads as a user who may not write everywhere.
	if _, err := command(ctx, tmp, "apt-get", "-o", "APT::Sandbox::User=", "download", pkg); err != nil {
		return err
	}
	debs, err := filepath.Glob(filepath.Join(tmp, "*.deb"))
	if err != nil || len(debs) != 1 {
		return fmt.Errorf("apt-get download %s brought %d files", pkg, len(debs))
	}
	_, err = command(ctx, "", "dpkg-deb", "-x", debs[0], dir)
	return err
}
