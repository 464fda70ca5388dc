package tests

import (
	"archive/tar"
	"bytes"
	"context"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"

	guestimages "vmm/guest-images"
)

// layerFile is a file of a layer.
type layerFile struct {
	tar.Header
	body string
}

// imageLayer makes a layer.
func imageLayer(t *testing.T, files ...layerFile) v1.Layer {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		f.Format, f.Size = tar.FormatPAX, int64(len(f.body))
		if err := w.WriteHeader(&f.Header); err != nil {
			t.Fatal(err)
		}
		io.WriteString(w, f.body)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil },
		tarball.WithMediaType(types.OCILayer))
	if err != nil {
		t.Fatal(err)
	}
	return layer
}

// containerImage makes an image with a configuration.
func containerImage(t *testing.T, c v1.Config, layers ...v1.Layer) v1.Image {
	t.Helper()
	image, err := mutate.AppendLayers(mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON), layers...)
	if err != nil {
		t.Fatal(err)
	}
	file, err := image.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	file = file.DeepCopy()
	file.OS, file.Architecture, file.Config = "linux", "amd64", c
	if image, err = mutate.ConfigFile(image, file); err != nil {
		t.Fatal(err)
	}
	return image
}

// baseLayer has busybox under the names of what the tests run.
func baseLayer(t *testing.T) v1.Layer {
	t.Helper()
	busybox, err := (&guestimages.Builder{Log: os.Stderr}).Busybox(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	files := []layerFile{
		{tar.Header{Name: "bin/", Typeflag: tar.TypeDir, Mode: 0o755}, ""},
		{tar.Header{Name: "bin/busybox", Typeflag: tar.TypeReg, Mode: 0o755}, string(busybox)},
		{tar.Header{Name: "etc/passwd", Typeflag: tar.TypeReg, Mode: 0o644}, "root:x:0:0::/root:/bin/sh\njoe:x:1001:1002::/home/joe:/bin/sh\n"},
		{tar.Header{Name: "etc/gone", Typeflag: tar.TypeReg, Mode: 0o644}, "of the base\n"},
		{tar.Header{Name: "tmp/", Typeflag: tar.TypeDir, Mode: 0o1777}, ""},
		{tar.Header{Name: "tmp/kept", Typeflag: tar.TypeReg, Mode: 0o644}, "of the image\n"},
		{tar.Header{Name: "lower/old", Typeflag: tar.TypeReg, Mode: 0o600}, "old\n"},
		{tar.Header{Name: "large", Typeflag: tar.TypeReg, Mode: 0o644}, strings.Repeat("0123456789abcdef", 300000)},
	}
	for _, n := range []string{"sh", "cat", "id", "env", "ls", "stat", "find", "sort", "pwd", "sha256sum", "sleep", "grep", "mount", "hostname"} {
		files = append(files, layerFile{tar.Header{Name: "bin/" + n, Typeflag: tar.TypeSymlink, Linkname: "busybox", Mode: 0o777}, ""})
	}
	return imageLayer(t, files...)
}

// imageChecks is what the image of TestContainerImage runs, and imageSays what it prints.
const (
	imageChecks = `id -u; id -g; pwd; echo $GREETING $EXTRA $HOME; cat /tmp/kept; ls /etc/gone /lower /work
stat -c '%A %u:%g %h %n' /app/tool /app/same /dev/null /app/device; cat /app/same; for f in /app/*; do echo "$f"; done; sha256sum /large; mount | grep -c ' / type overlay'
echo written >/tmp/new && cat /tmp/new; hostname; cat /etc/hosts | grep -c localhost; exit 7`
	imageSays = `1001
1002
/work/dir
hi more /home/joe
of the image
ls: /etc/gone: No such file or directory
/lower:
new

/work:
dir
-rwsr-xr-x 5:6 2 /app/tool
-rwsr-xr-x 5:6 2 /app/same
crw-rw-rw- 0:0 1 /dev/null
crw-r--r-- 0:0 1 /app/device
tool
/app/device
/app/na` + "\xff" + `me
/app/same
/app/tool
`
)

// TestContainerImage pulls images with layers in common from a registry, and runs them.
func TestContainerImage(t *testing.T) {
	needKVM(t)
	ownImages(t)
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	defer server.Close()
	host := strings.TrimPrefix(server.URL, "http://")
	base := baseLayer(t)
	app := containerImage(t, v1.Config{Entrypoint: []string{"/bin/sh", "-c"}, Cmd: []string{imageChecks}, Env: []string{"PATH=/bin", "GREETING=hi"}, User: "joe", WorkingDir: "/work/dir"},
		base, imageLayer(t,
			layerFile{tar.Header{Name: "etc/.wh.gone", Typeflag: tar.TypeReg}, ""},
			layerFile{tar.Header{Name: "lower/.wh..wh..opq", Typeflag: tar.TypeReg}, ""},
			layerFile{tar.Header{Name: "lower/new", Typeflag: tar.TypeReg, Mode: 0o644}, "new\n"},
			layerFile{tar.Header{Name: "app/tool", Typeflag: tar.TypeReg, Mode: 0o4755, Uid: 5, Gid: 6}, "tool\n"},
			layerFile{tar.Header{Name: "app/device", Typeflag: tar.TypeChar, Mode: 0o644, Devmajor: 1, Devminor: 3}, ""},
			layerFile{tar.Header{Name: "app/na\xffme", Typeflag: tar.TypeReg, Mode: 0o644}, ""}),
		imageLayer(t, layerFile{tar.Header{Name: "app/same", Typeflag: tar.TypeLink, Linkname: "app/tool"}, ""}))
	for ref, image := range map[string]v1.Image{"team/app:1": app, "base": containerImage(t, v1.Config{}, base)} {
		r, err := name.ParseReference(host + "/" + ref)
		if err != nil {
			t.Fatal(err)
		}
		if err := remote.Write(r, image); err != nil {
			t.Fatal(err)
		}
	}
	if out, status := vmm(t, "pull", host+"/base"); status != 0 || !strings.Contains(out, host+"/base:latest  sha256:") {
		t.Fatalf("pull: status %d\n%s", status, out)
	}
	out, errs, status := inDir(t, t.TempDir(), nil, "run", "--image", host+"/team/app:1", "-e", "EXTRA=more", "--timeout", bootLimit)
	if status != 7 || !strings.Contains(errs, "already here") {
		t.Errorf("run: status %d\n%s\n%s", status, out, errs)
	}
	for _, want := range strings.Split(strings.TrimSpace(imageSays), "\n") {
		if !strings.Contains(out+errs, want+"\n") {
			t.Errorf("run: no %q in\n%s\n%s", want, out, errs)
		}
	}
	if !strings.Contains(out, largeSum(t)) {
		t.Errorf("run: the contents of /large are others:\n%s", out)
	}
	if out, status := vmm(t, "images", "--tree"); status != 0 || !strings.Contains(out, "also in "+host+"/base:latest") {
		t.Errorf("images --tree: status %d\n%s", status, out)
	}
	t.Run("warm", func(t *testing.T) {
		out, errs, status := inDir(t, t.TempDir(), nil, "run", "-v", "--name", "other", "--image", host+"/team/app:1", "-w", "/", "--timeout", bootLimit, "--",
			"echo $GREETING; pwd; id -u; hostname; cat /etc/hosts; ls /tmp")
		if want := "hi\n/\n1001\nother\n127.0.0.1 localhost other\n::1 localhost\nkept\n"; status != 0 || out != want {
			t.Errorf("status %d\n%s\nwant\n%s", status, out, want)
		}
		if strings.Contains(errs, "a cold start") {
			t.Errorf("it did not go on from the snapshot of its kind:\n%s", errs)
		}
	})
	t.Run("volumes", func(t *testing.T) { testVolumes(t, host+"/team/app:1") })
	t.Run("compose", func(t *testing.T) { testCompose(t, host+"/team/app:1") })
	t.Run("in the background", func(t *testing.T) {
		if out, status := vmm(t, "run", "-d", "--name", "contained", "--image", host+"/team/app:1", "--entrypoint", "/bin/sleep", "--", "100000"); status != 0 {
			t.Fatalf("run -d: status %d\n%s", status, out)
		}
		defer vmm(t, "rm", "-f", "contained")
		if out, status := vmm(t, "exec", "contained", "/bin/sh", "-c", "id -u; pwd; echo $GREETING; ls /tmp"); status != 0 || out != "1001\n/work/dir\nhi\nkept\n" {
			t.Errorf("exec: status %d\n%s", status, out)
		}
		if out, status := vmm(t, "exec", "-u", "0", "-w", "/", "contained", "--", "nothing"); status != 127 {
			t.Errorf("exec of nothing: status %d\n%s", status, out)
		}
		// The guest has the image as memory that it cannot write to, whoever tries: what is left of that in its cache goes.
		if out, status := vmm(t, "exec", "-u", "0", "contained", "/bin/sh", "-c", "/bin/busybox dd if=/dev/zero of=/dev/pmem0 bs=4096 count=2; /bin/busybox sync; echo 3 >/proc/sys/vm/drop_caches; echo done"); status != 0 || !strings.HasSuffix(out, "done\n") {
			t.Errorf("writing to the image: status %d\n%s", status, out)
		}
		if out, status := vmm(t, "rmi", host+"/team/app:1"); status != 0 { // a VM that runs keeps what it has
			t.Errorf("rmi: status %d\n%s", status, out)
		}
		if out, status := vmm(t, "exec", "contained", "/bin/sha256sum", "/large"); status != 0 || !strings.Contains(out, largeSum(t)) {
			t.Errorf("exec after rmi: status %d\n%s", status, out)
		}
	})
	wantRefusals(t, []refusal{
		{"run --image " + host + "/base", 2, "says no command"},
		{"run --image " + host + "/none -- /bin/true", 125, "no such image"},
		{"run --image " + host + "/none --pull never -- /bin/true", 125, "no such image"},
		{"run --image " + host + "/base --root / -- /bin/true", 2, "a guest has one root"},
		{"run --image Not:a:name -- /bin/true", 125, "is no name of an image"},
		{"run --tmpfs /x -- /bin/true", 2, "goes with --image"},
		{"run --image " + host + "/base --pull sometimes -- /bin/true", 2, "missing, always or never"},
		{"rmi none", 125, "no such image"},
	})
}

// largeSum is the digest of /large.
func largeSum(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "large")
	if err := os.WriteFile(path, []byte(strings.Repeat("0123456789abcdef", 300000)), 0o600); err != nil {
		t.Fatal(err)
	}
	return strings.Fields(must(t, "sha256sum", path))[0]
}

// testVolumes has VMs of an image write to volumes and to a directory of the host.
func testVolumes(t *testing.T, image string) {
	dir := t.TempDir()
	run := func(want string, args ...string) {
		t.Helper()
		out, errs, status := inDir(t, dir, nil, append([]string{"run", "--timeout", bootLimit, "--image", image, "-u", "0", "-v", "data:/app", "-v", "./made:/made"}, args...)...)
		if status != 0 || out != want {
			t.Errorf("%v: status %d, %q, want %q\n%s", args, status, out, want, errs)
		}
	}
	// It gets what the image has there when it is empty, and only then.
	run("-rwsr-xr-x 5:6 /app/tool\n-rwsr-xr-x 5:6 /app/same\ntool\n", "--", "stat -c '%A %u:%g %n' /app/tool /app/same; cat /app/tool; echo mine > /app/tool; echo host > /made/file")
	run("mine\nno\n", "--mount", "type=volume,source=data,target=/again,readonly", "--", "cat /again/tool; echo x 2>/dev/null > /again/tool || echo no")
	if b, err := os.ReadFile(filepath.Join(dir, "made", "file")); err != nil || string(b) != "host\n" {
		t.Errorf("what was written to the host's directory: %q, %v", b, err)
	}
	if out, status := vmm(t, "run", "-d", "--name", "user", "--image", image, "-v", "data:/app", "--entrypoint", "/bin/sleep", "--", "1000"); status != 0 {
		t.Fatalf("run -d: status %d\n%s", status, out)
	}
	if out, status := vmm(t, "volume", "rm", "data"); status != 125 || !strings.Contains(out, "a VM is using it") {
		t.Errorf("volume rm of one in use: status %d\n%s", status, out)
	}
	vmm(t, "rm", "-f", "user")
	if out, status := vmm(t, "volume", "ls", "-q"); status != 0 || out != "data\n" {
		t.Errorf("volume ls: status %d\n%s", status, out)
	}
	if out, status := vmm(t, "volume", "rm", "data"); status != 0 || out != "data\n" {
		t.Errorf("volume rm: status %d\n%s", status, out)
	}
	wantRefusals(t, []refusal{
		{"run --image " + image + " -v /app -- true", 2, "without a name"},
		{"run --image " + image + " -v a/b:/app -- true", 2, "a volume's name"},
		{"run --image " + image + " -v data:/proc -- true", 2, "/proc of its own"},
		{"run --mount type=tmpfs,target=/x -- true", 2, "goes with --image"},
		{"volume create a/b", 2, "a volume's name"},
		{"volume rm none", 125, "no such volume"},
		{"volume inspect none", 125, "no such volume"},
		{"volume prune --all", 2, "--force"},
	})
}

// composeFile is two services: one waits until the other is well, finds it by its names, and reads
// what that has written.
const composeFile = `
name: shop
services:
  web:
    image: IMAGE
    user: "0"
    depends_on: {api: {condition: service_healthy}}
    command: ["cat /data/word; grep -c 'api$$' /etc/hosts; /bin/busybox nc backend 80; exit 3"]
    volumes: ["data:/data:ro"]
    privileged: true
  api:
    image: IMAGE
    user: "0"
    environment: {WORD: from the other}
    command: ["sleep 1; echo $$WORD > /data/word; echo hello over the network | /bin/busybox nc -l -p 80"]
    volumes: ["data:/data"]
    healthcheck: {test: [CMD, cat, /data/word], interval: 1s}
    networks: {default: {aliases: [backend]}}
volumes: {data: }
`

// testCompose runs the services of a compose file.
func testCompose(t *testing.T, image string) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "compose.yaml"), []byte(strings.ReplaceAll(composeFile, "IMAGE", image)), 0o600); err != nil {
		t.Fatal(err)
	}
	defer inDir(t, dir, nil, "down", "-v")
	out, errs, status := inDir(t, dir, nil, "up")
	if status != 3 || !strings.Contains(errs, "compose.yaml:10: services.web.privileged has no effect here") || !strings.Contains(errs, "web ended with status 3") {
		t.Errorf("up: status %d\n%s\n%s", status, out, errs)
	}
	for _, want := range []string{"shop-api-1 started\nshop-web-1 started\n", "web | from the other\n", "web | 1\n", "web | hello over the network\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("up: no %q in\n%s\n%s", want, out, errs)
		}
	}
	if out, errs, status := inDir(t, dir, nil, "down", "-v"); status != 0 || out != "shop-web-1 removed\nshop-api-1 removed\nshop_data removed\n" {
		t.Errorf("down: status %d\n%s\n%s", status, out, errs)
	}
	for text, want := range map[string]string{
		"services: {a: {build: .}}": "no image", "services: {a: {image: " + image + ", network_mode: host}}": "network_mode",
		"services: {a: {image: " + image + ", volumes: [/x]}}": "without a name", "services: [": "compose.yaml",
	} {
		if err := os.WriteFile(filepath.Join(dir, "compose.yaml"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if out, errs, status := inDir(t, dir, nil, "up", "-d"); status != 2 || !strings.Contains(errs, want) {
			t.Errorf("%s: status %d\n%s\n%s", text, status, out, errs)
		}
	}
}
