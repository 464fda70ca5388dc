package rootfs

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestBuild makes file systems and has e2fsck and debugfs look at them.
func TestBuild(t *testing.T) {
	if _, err := exec.LookPath("e2fsck"); err != nil {
		t.Skip("no e2fsck: install e2fsprogs")
	}
	dir := t.TempDir()
	write := func(name, content string) {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("etc/passwd", "root:x:0:0::/:/bin/sh\n")
	write("big", strings.Repeat("0123456789abcdef", 1<<20))
	for n := range 3000 {
		write("many/"+strings.Repeat("n", n%50)+string(rune('a'+n%26))+strings.Repeat("x", n/50), "x")
	}
	if err := os.Link(filepath.Join(dir, "etc/passwd"), filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("etc/passwd", filepath.Join(dir, "symlink")); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(filepath.Join(dir, "pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	const xattr = "user.vmm"
	hasXattrs := unix.Setxattr(filepath.Join(dir, "big"), xattr, []byte("value"), 0) == nil // not all file systems do
	tgz := filepath.Join(t.TempDir(), "root.tar.gz")
	if out, err := exec.Command("tar", "-C", dir, "--xattrs", "-czf", tgz, ".").CombinedOutput(); err != nil {
		t.Fatalf("tar: %v\n%s", err, out)
	}
	for _, c := range []struct {
		source string
		free   int64
	}{{dir, 0}, {dir, 1}, {dir, 1 << 30}, {tgz, 40 << 30}} {
		out, err := os.Create(filepath.Join(t.TempDir(), "disk"))
		if err != nil {
			t.Fatal(err)
		}
		defer out.Close()
		if err := Build(t.Context(), c.source, out, c.free); err != nil {
			t.Fatal(err)
		}
		if b, err := exec.Command("e2fsck", "-fn", out.Name()).CombinedOutput(); err != nil {
			t.Errorf("%s with %d free bytes: e2fsck: %v\n%s", c.source, c.free, err, b)
		}
		b, err := exec.Command("debugfs", "-R", "cat /link", out.Name()).Output()
		if err != nil || !strings.HasPrefix(string(b), "root:x:0") {
			t.Errorf("/link holds %q, %v", b, err)
		}
		for command, want := range map[string]string{"stat /link": "Links: 2 ", "stat /symlink": `"etc/passwd"`, "stat /pipe": "FIFO"} {
			if b, err := exec.Command("debugfs", "-R", command, out.Name()).Output(); err != nil || !strings.Contains(string(b), want) {
				t.Errorf("%s: no %q in %s, %v", command, want, b, err)
			}
		}
		if b, err := exec.Command("debugfs", "-R", "ea_get /big "+xattr, out.Name()).Output(); hasXattrs && (err != nil || !strings.Contains(string(b), "value")) {
			t.Errorf("the extended attribute is %q, %v", b, err)
		}
	}
}

// TestBuildErrors wants one clear error and no panic.
func TestBuildErrors(t *testing.T) {
	bad := filepath.Join(t.TempDir(), "bad.tar")
	if err := os.WriteFile(bad, []byte(strings.Repeat("not a tar ", 1000)), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, source := range []string{bad, "/nowhere"} {
		out, err := os.Create(filepath.Join(t.TempDir(), "disk"))
		if err != nil {
			t.Fatal(err)
		}
		defer out.Close()
		if err := Build(t.Context(), source, out, 0); err == nil || !strings.Contains(err.Error(), source) {
			t.Errorf("%s: %v", source, err)
		}
	}
}

// TestBuildContext: what takes long ends with its context.
func TestBuildContext(t *testing.T) {
	out, err := os.Create(filepath.Join(t.TempDir(), "disk"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	ctx, cancel := context.WithCancelCause(t.Context())
	enough := errors.New("enough")
	cancel(enough)
	if err := Build(ctx, "/usr/share", out, 0); !errors.Is(err, enough) {
		t.Error(err)
	}
}

// TestBuildLargeXattr: an extended attribute that ext4 has no room for is an error with the file's name, and not left out.
func TestBuildLargeXattr(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("none", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Skipf("a file system of its own is for root: %v", err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setxattr(file, "user.x", make([]byte, 5000), 0); err != nil {
		t.Skipf("tmpfs takes no attributes of users: %v", err)
	}
	out, err := os.Create(filepath.Join(t.TempDir(), "disk"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	if err := Build(t.Context(), dir, out, 0); err == nil || !strings.Contains(err.Error(), "file: extended attributes of more than") {
		t.Errorf("%v", err)
	}
}
