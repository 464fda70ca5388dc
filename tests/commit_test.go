package tests

import (
	"archive/tar"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// What TestCommit does in a guest, and what vmm diff says of it.
const (
	commitChanges = `cd /; b=/bin/busybox; $b mkdir /app
echo added >/app/added; echo joe:x:1:2::/:/bin/sh >/etc/passwd; $b rm /etc/gone; $b rm -r /lower; $b mkdir /lower; echo again >/lower/again
$b rm -r /todir /tofile/x; $b rmdir /tofile; $b mkdir /todir; echo in >/todir/in; echo file >/tofile
echo linked >/app/one; $b ln /app/one /app/two; $b ln -s ../etc/passwd /app/link
$b mknod /app/null c 1 3; $b mkfifo /app/pipe; $b chown 7:8 /app/added; $b chmod 6755 /app/added
$b dd if=/dev/zero of=/app/sparse bs=1 count=0 seek=1000000 2>/dev/null; echo end >>/app/sparse
echo odd >"/app/$(printf 'o\377\ndd')"; $b mkdir -p /deep/er; $b chmod 700 /dir; $b rm /etc/kept/old; echo new >/etc/kept/new; exit 0`
	commitDiff = `A /app
A /app/added
A /app/link
A /app/null
A /app/one
A /app/o\xff^Jdd
A /app/pipe
A /app/sparse
A /app/two
A /deep
A /deep/er
C /dir
C /etc
D /etc/gone
C /etc/kept
A /etc/kept/new
D /etc/kept/old
C /etc/passwd
C /lower
A /lower/again
D /lower/old
C /todir
A /todir/in
C /tofile
`
	// commitTree tells all of a tree that was changed.
	commitTree = `cd /; export LC_ALL=C; for f in $(/bin/find app deep dir lower todir tofile etc/kept etc/passwd | /bin/sort); do /bin/stat -c '%n %A %u:%g %t:%T' "$f"; done 2>/dev/null | /bin/sort
/bin/find app lower todir tofile etc/kept etc/passwd -type f -exec /bin/sha256sum {} \; | /bin/sort; /bin/ls -l /app/link; /bin/ls /etc; /bin/find app -type f -links 2 | /bin/sort`
)

// TestCommit changes a guest of an image in all ways, and has the image that is made of it run.
func TestCommit(t *testing.T) {
	needKVM(t)
	ownImages(t)
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	defer server.Close()
	base := strings.TrimPrefix(server.URL, "http://") + "/base:1"
	r, err := name.ParseReference(base)
	if err != nil {
		t.Fatal(err)
	}
	file := func(name string) layerFile {
		return layerFile{tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644}, "of the base\n"}
	}
	image := containerImage(t, v1.Config{Env: []string{"PATH=/bin", "A=0"}, Cmd: []string{"/bin/cat", "/app/added"}}, baseLayer(t),
		imageLayer(t, file("todir"), file("tofile/x"), file("etc/kept/old"), file("etc/kept/other"), layerFile{tar.Header{Name: "dir/", Typeflag: tar.TypeDir, Mode: 0o755}, ""}, file("dir/x")))
	if err := remote.Write(r, image); err != nil {
		t.Fatal(err)
	}
	if out, status := vmm(t, "run", "-d", "--name", "first", "--image", base, "--", "/bin/sleep", "100000"); status != 0 {
		t.Fatalf("run: status %d\n%s", status, out)
	}
	defer vmm(t, "rm", "-f", "first")
	if out, status := vmm(t, "diff", "first"); status != 0 || out != "" {
		t.Errorf("diff of nothing: status %d\n%s", status, out)
	}
	if out, status := vmm(t, "exec", "first", "--", "/bin/sh", "-c", commitChanges); status != 0 {
		t.Fatalf("changes: status %d\n%s", status, out)
	}
	out, status := vmm(t, "diff", "first")
	if status != 0 || out != commitDiff {
		t.Errorf("diff: status %d\n%s\nwant\n%s", status, out, commitDiff)
	}
	before, status := vmm(t, "exec", "first", "--", "/bin/sh", "-c", commitTree)
	if status != 0 || !strings.Contains(before, "app/one\napp/two\n") {
		t.Fatalf("status %d\n%s", status, before)
	}
	id, status := vmm(t, "commit", "-a", "Ann", "-m", "all kinds", "-c", "ENV A=1", "-c", `LABEL x="y z"`, "first", "made:1")
	if status != 0 || !strings.HasPrefix(id, "sha256:") {
		t.Fatalf("commit: status %d\n%s", status, id)
	}
	dir := t.TempDir()
	if out, status := vmm(t, "export", "-o", dir+"/all.tar", "first"); status != 0 {
		t.Errorf("export: status %d\n%s", status, out)
	}
	list := must(t, "tar", "-tf", dir+"/all.tar")
	for _, want := range []string{"bin/busybox\n", "app/two\n", "deep/er/\n", "proc/\n", "etc/hosts\n"} {
		if !strings.Contains(list, want) {
			t.Errorf("export: no %q in\n%s", want, list)
		}
	}
	if strings.Contains(list, "proc/1") {
		t.Errorf("export: what is mounted is there too:\n%s", list)
	}
	again, errs, status := inDir(t, t.TempDir(), nil, "run", "--image", "made:1", "--timeout", bootLimit, "--", "/bin/sh", "-c", commitTree)
	if status != 0 || again != before {
		t.Errorf("the image: status %d\n%s\nwant\n%s\n%s", status, again, before, errs)
	}
	if out, status := vmm(t, "inspect-image", "made:1"); status != 0 || !strings.Contains(out, "A=1") || !strings.Contains(out, "y z") || !strings.Contains(out, "all kinds") {
		t.Errorf("inspect-image: status %d\n%s", status, out)
	}
	if out, status := vmm(t, "save", "-o", dir+"/made.tar", "made:1"); status != 0 {
		t.Fatalf("save: status %d\n%s", status, out)
	}
	t.Run("podman reads it", func(t *testing.T) {
		run, pushed := podman(t), strings.Replace(base, "base", "made", 1)
		for _, args := range [][]string{{"tag", "made:1", pushed}, {"push", pushed}} {
			if out, status := vmm(t, args...); status != 0 {
				t.Fatalf("%v: status %d\n%s", args, status, out)
			}
		}
		run("load", "-q", "-i", dir+"/made.tar")
		run("pull", "-q", "--tls-verify=false", pushed)
		want := strings.TrimSpace(strings.TrimPrefix(id, "sha256:")) + " Ann [PATH=/bin A=1] map[x:y z] [/bin/cat /app/added] 3\n"
		for _, ref := range []string{"made:1", pushed} {
			if got := run("image", "inspect", "--format", "{{.Id}} {{.Author}} {{.Config.Env}} {{.Config.Labels}} {{.Config.Cmd}} {{len .RootFS.Layers}}", ref); got != want {
				t.Errorf("podman sees %s in %s, want %s", got, ref, want)
			}
		}
	})
	t.Run("others read it", func(t *testing.T) {
		for _, tool := range []string{"skopeo", "umoci"} {
			if _, err := exec.LookPath(tool); err != nil {
				t.Skip("there is no " + tool)
			}
		}
		must(t, "skopeo", "copy", "--insecure-policy", "oci-archive:"+dir+"/made.tar", "oci:"+dir+"/layout:made")
		if os.Getuid() != 0 {
			t.Skip("devices need root")
		}
		must(t, "umoci", "unpack", "--image", dir+"/layout:made", dir+"/bundle")
		root := dir + "/bundle/rootfs"
		if out := must(t, "sh", "-c", "cd "+root+"; stat -c '%n %A %u:%g %h' app/added app/two app/null app/pipe; ls lower etc/kept; stat -c %s app/sparse"); out !=
			"app/added -rwsr-sr-x 7:8 1\napp/two -rw-r--r-- 0:0 2\napp/null crw-r--r-- 0:0 1\napp/pipe prw-r--r-- 0:0 1\netc/kept:\nnew\nother\n\nlower:\nagain\n1000004\n" {
			t.Errorf("umoci: %s", out)
		}
		if _, err := os.Lstat(filepath.Join(root, "etc/gone")); err == nil {
			t.Error("umoci: etc/gone is there")
		}
	})
	wantRefusals(t, []refusal{
		{"commit first Not:a:name", 2, "is no name of an image"},
		{"commit -c CMD first", 2, "ENTRYPOINT"},
		{"commit nobody", 125, "nobody"},
		{"diff nobody", 125, "nobody"},
	})
}

// podman returns a function that runs podman as root, with a store of its own. It does so in a
// mount namespace, with which goes what it mounts.
func podman(t *testing.T) func(args ...string) string {
	t.Helper()
	for _, tool := range []string{"podman", "unshare"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skip("there is no " + tool)
		}
	}
	if os.Geteuid() != 0 {
		t.Skip("the store of another user's podman needs newuidmap")
	}
	dir := t.TempDir()
	options := []string{"--mount", "podman", "--log-level", "error", "--root", dir + "/root", "--runroot", dir + "/run", "--tmpdir", dir + "/tmp"}
	return func(args ...string) string {
		t.Helper()
		return must(t, "unshare", append(slices.Clone(options), args...)...)
	}
}
