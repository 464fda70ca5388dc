package tests

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmm/machine/snapshot"
)

// lookAtRoot says what there is of a root: names, modes, owners, times, contents. Left out is what a
// guest has of its own.
const lookAtRoot = `PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
own="-path /etc -o -name hostname -o -name hosts -o -name resolv.conf"
{
	busybox find /bin /usr /root /dir /new /etc ! \( $own \) -exec busybox stat -c '%f %u %g %Y %N' {} +
	busybox find /usr /root /dir /new /etc /bin/true ! \( $own \) -type f -exec busybox md5sum {} +
	busybox ls -d /missing /dir/missing /root/missing
	busybox stat -c '%f %n' /etc
	command -v true
} 2>&1 | busybox sort`

// ownCache gives a test snapshots of its own for warm starts, and all else of the user's cache.
func ownCache(t *testing.T) {
	t.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	must(t, "mkdir", filepath.Join(dir, "vmm"))
	there, _ := filepath.Glob(filepath.Join(cache, "vmm", "*"))
	for _, path := range there {
		if name := filepath.Base(path); name != "warm" {
			if err := os.Symlink(path, filepath.Join(dir, "vmm", name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	t.Setenv("XDG_CACHE_HOME", dir)
}

// TestWarmChanges changes a root between commands in all ways, and compares what the guest sees
// of it with what is there. All commands but the first start warm.
func TestWarmChanges(t *testing.T) {
	needKVM(t)
	if os.Getuid() != 0 {
		t.Skip("only root can look at the root with chroot")
	}
	runtimeDirFor(t)
	ownCache(t)
	root := smallRoot(t)
	in := func(name string) string { return filepath.Join(root, name) }
	write := func(name, content string) error { return os.WriteFile(in(name), []byte(content), 0o755) }
	do := func(errs ...error) {
		t.Helper()
		for _, err := range errs {
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, dir := range []string{"root", "usr/bin", "usr/sbin", "usr/local/bin", "etc", "dir/sub", "dir/emptied", "dir/moved"} {
		do(os.MkdirAll(in(dir), 0o755))
	}
	do(write("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n"), write("dir/sub/file", "content"), write("dir/sub/same", "before"),
		write("dir/emptied/a", "a"), write("dir/moved/b", "b"), write("root/history", "one\n"), os.Symlink("sub/file", in("dir/link")))
	// The guest runs true before it is saved, and so remembers all that this looks at.
	do(os.Remove(in("bin/true")), write("bin/true", "#!/bin/sh\nbusybox find /dir /usr /etc -type f -exec busybox md5sum {} + >/dev/null 2>&1\n"+
		"busybox ls -l /dir /dir/* /bin /root/history >/dev/null 2>&1\n"+
		"busybox ls -d /missing /new /dir/missing /root/missing >/dev/null 2>&1\nexit 0\n"))

	first := true
	compare := func(change string) {
		t.Helper()
		c := exec.Command("/bin/sh", "-c", lookAtRoot)
		c.SysProcAttr, c.Dir = &unix.SysProcAttr{Chroot: root}, "/"
		want, err := c.Output()
		if err != nil {
			t.Fatal(err)
		}
		out, errs, status := inDir(t, "/", nil, "run", "-v", "--timeout", bootLimit, "--root", root, "--", "sh", "-c", lookAtRoot)
		if status != 0 || out != string(want) {
			t.Errorf("%s: status %d, the guest sees\n%s\nand there is\n%s\n%s", change, status, out, want, errs)
		}
		if cold := strings.Contains(errs, "a cold start"); cold != first {
			t.Errorf("%s: a cold start: %v\n%s", change, cold, errs)
		}
		first = false
	}
	for _, c := range []struct {
		change string
		do     func() error
	}{
		{"nothing yet", func() error { return nil }},
		{"nothing", func() error { return nil }},
		{"a file beside others", func() error { return write("root/log", "two\n") }},
		{"a file that grows", func() error { return write("root/history", "one\ntwo\n") }},
		{"other content of the same size", func() error { return write("dir/sub/same", "behind") }},
		{"another file", func() error {
			return errors.Join(write("dir/sub/other", "another"), os.Rename(in("dir/sub/other"), in("dir/sub/file")))
		}},
		{"permissions of a file", func() error { return os.Chmod(in("dir/sub/same"), 0o600) }},
		{"permissions of a directory", func() error { return os.Chmod(in("dir/sub"), 0o700) }},
		{"an owner", func() error { return os.Chown(in("dir/sub/same"), 7, 8) }},
		{"a file fewer", func() error { return os.Remove(in("dir/emptied/a")) }},
		{"names that were missing", func() error {
			return errors.Join(write("missing", ""), write("root/missing", ""), os.Mkdir(in("dir/missing"), 0o755), os.Mkdir(in("new"), 0o755))
		}},
		{"a directory moved, and a link in its place", func() error {
			return errors.Join(os.Rename(in("dir/moved"), in("new/moved")), os.Symlink("../new/moved", in("dir/moved")))
		}},
		{"a link elsewhere", func() error { return errors.Join(os.Remove(in("dir/link")), os.Symlink("sub/same", in("dir/link"))) }},
		{"a program earlier in PATH", func() error { return write("usr/local/bin/true", "#!/bin/sh\n") }},
		{"a user more", func() error {
			return errors.Join(write("etc/new", "root:x:0:0:root:/root:/bin/sh\nx:x:7:8::/:/bin/sh\n"), os.Rename(in("etc/new"), in("etc/passwd")))
		}},
		{"permissions of a directory that is mounted on", func() error { return os.Chmod(in("etc"), 0o711) }},
		{"another program", func() error {
			return errors.Join(os.Remove(in("bin/sh")), os.Link(in("bin/busybox"), in("bin/sh")))
		}},
	} {
		do(c.do())
		compare(c.change)
	}
}

// TestWarmDirectories starts a command in one fresh directory after the other, each with a home of its own
// beside it: the second start is warm, and has its own directory's files and secrets.
func TestWarmDirectories(t *testing.T) {
	needKVM(t)
	runtimeDirFor(t)
	ownCache(t)
	for i, name := range []string{"one", "two", "three"} {
		top, err := os.MkdirTemp("/var/tmp", "vmm-test-warm-") // the guest has a /tmp of its own
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(top)
		home, work := filepath.Join(top, "home-"+name), filepath.Join(top, "home-"+name, "work-"+name)
		for _, dir := range []string{work + "/out", home + "/.ssh", work + "/mine"} {
			if err := os.MkdirAll(dir, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		for _, path := range []string{work + "/file", home + "/.ssh/id", work + "/mine/id"} {
			if err := os.WriteFile(path, []byte(name+"\n"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		t.Setenv("HOME", home)
		out, errs, status := inDir(t, work, nil, "run", "-v", "--timeout", bootLimit, "--rw", "out", "--hide", "mine", "--", "sh", "-c",
			`pwd; cat file; cat "$1/.ssh/id"; cat mine/id; echo "$2" > out/new; echo end`, "sh", home, name)
		if want := work + "\n" + name + "\nend\n"; out != want || status != 0 {
			t.Errorf("%s: status %d, the guest saw %q, want %q\n%s", name, status, out, want, errs)
		}
		if b, err := os.ReadFile(filepath.Join(work, "out", "new")); err != nil || string(b) != name+"\n" {
			t.Errorf("%s: written: %q, %v", name, b, err)
		}
		if cold := strings.Contains(errs, "a cold start"); cold != (i == 0) {
			t.Errorf("%s: a cold start: %v\n%s", name, cold, errs)
		}
	}
}

// TestWarmRenewed: after a change of the root, the first start from an older snapshot makes another one,
// from which the guests that follow go on without mounting their root anew.
func TestWarmRenewed(t *testing.T) {
	needKVM(t)
	runtimeDirFor(t)
	ownCache(t)
	root := smallRoot(t)
	tool := filepath.Join(root, "bin", "true") // which each guest runs before it is saved
	var says string
	const mended, renewed = "mounts its root anew", "a new snapshot is made"
	for i, c := range []struct {
		name            string
		say             string // what the tool says from then on; it stays if empty
		old             bool   // the snapshot is, before
		mended, renewed bool
	}{
		{"cold", "a", false, false, false},
		{"as before", "", true, false, false},
		{"a change", "b", true, true, true},
		{"the same", "", false, false, false},
		{"a change so soon", "c", false, true, false},
		{"still", "", true, true, true},
		{"the same again", "", true, false, false},
	} {
		if c.say != "" {
			says = c.say
			if err := errors.Join(os.Remove(tool), os.WriteFile(tool, []byte("#!/bin/sh\necho "+says+"\n"), 0o755)); err != nil {
				t.Fatal(err)
			}
		}
		if c.old {
			ageSnapshots(t)
		}
		name := "renewed-" + strconv.Itoa(i)
		out, errs, status := inDir(t, "/", nil, "run", "-v", "--timeout", bootLimit, "--name", name, "--root", root, "--", "sh", "-c", "/bin/true; busybox hostname")
		if want := says + "\n" + name + "\n"; status != 0 || out != want {
			t.Errorf("%s: status %d, %q, want %q\n%s", c.name, status, out, want, errs)
		}
		if m, r := strings.Contains(errs, mended), strings.Contains(errs, renewed); m != c.mended || r != c.renewed {
			t.Errorf("%s: the root was mounted anew: %v, a new snapshot: %v\n%s", c.name, m, r, errs)
		}
	}
}

// ageSnapshots makes the snapshots of a test's own cache older than any that is still changing.
func ageSnapshots(t *testing.T) {
	t.Helper()
	manifests, err := filepath.Glob(filepath.Join(os.Getenv("XDG_CACHE_HOME"), "vmm", "warm", "*", snapshot.ManifestFile))
	if err != nil || len(manifests) != 1 {
		t.Fatalf("the snapshots are %v, %v", manifests, err)
	}
	old := time.Now().Add(-time.Hour)
	if err := os.Chtimes(manifests[0], old, old); err != nil {
		t.Fatal(err)
	}
}
