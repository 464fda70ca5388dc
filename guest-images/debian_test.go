package guestimages

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestMainMirror(t *testing.T) {
	for targets, want := range map[string]string{
		"bookworm http://a/debian/\nbookworm-security http://b/\n":           "http://a/debian/",
		"trixie-updates http://u/\ntrixie http://a/debian/\nsid http://s/\n": "http://a/debian/",
	} {
		if got, err := mainMirror(targets); err != nil || got != want {
			t.Errorf("mainMirror(%q) = %q, %v", targets, got, err)
		}
	}
	for _, targets := range []string{"", "bookworm-security http://b/\n", " http://nameless/\n"} {
		if got, err := mainMirror(targets); err == nil {
			t.Errorf("mainMirror(%q) = %q", targets, got)
		}
	}
}

// TestHostKernel names the host's own kernel where it is, and none that is not.
func TestHostKernel(t *testing.T) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		t.Fatal(err)
	}
	release := unix.ByteSliceToString(u.Release[:])
	root := t.TempDir()
	if got, ok := HostKernel(root); ok {
		t.Errorf("without a kernel: %v", got)
	}
	modules := filepath.Join(root, "lib/modules", release)
	for _, image := range []string{filepath.Join(modules, "vmlinuz"), filepath.Join(root, "boot/vmlinuz-"+release)} {
		if err := errors.Join(os.MkdirAll(filepath.Dir(image), 0o755), os.WriteFile(image, nil, 0o644)); err != nil {
			t.Fatal(err)
		}
		if got, ok := HostKernel(root); !ok || got != (Kernel{Image: image, Modules: modules}) {
			t.Errorf("%+v, %v, want %s and %s", got, ok, image, modules)
		}
	}
}

// TestFindImage finds the kernel of a package of any age.
func TestFindImage(t *testing.T) {
	for _, path := range []string{"boot/vmlinuz-6.1.0-50-cloud-amd64", "lib/modules/6.1.0-50-cloud-amd64/vmlinuz"} {
		root := t.TempDir()
		want := filepath.Join(root, path)
		if _, _, err := findImage(root); err == nil {
			t.Error("found a kernel in nothing")
		}
		if err := errors.Join(os.MkdirAll(filepath.Dir(want), 0o755), os.WriteFile(want, nil, 0o644)); err != nil {
			t.Fatal(err)
		}
		if image, version, err := findImage(root); err != nil || image != want || version != "6.1.0-50-cloud-amd64" {
			t.Errorf("%s: %s, %s, %v", path, image, version, err)
		}
	}
}

// TestNoApt makes what it can where there is no apt-get, and a dynamic busybox is none.
func TestNoApt(t *testing.T) {
	bin := t.TempDir()
	t.Setenv("PATH", bin)
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	var b Builder
	if _, err := b.SlimKernel(context.Background()); !errors.Is(err, ErrNoApt) {
		t.Errorf("a kernel without apt-get: %v", err)
	}
	if err := os.Symlink("/bin/ls", filepath.Join(bin, "busybox")); err != nil { // which is dynamic
		t.Fatal(err)
	}
	if _, err := b.Busybox(context.Background()); err == nil || !strings.Contains(err.Error(), "static busybox") {
		t.Errorf("a dynamic busybox: %v", err)
	}
}
